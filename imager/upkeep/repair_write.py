"""Writing what comes back, so that a stop at any instant loses nothing."""

from collections.abc import Collection, Sequence

from imager.errors import ObjectDamaged, RemetalError
from imager.repository.backend.protocol import Backend
from imager.upkeep.parity_shares import StoredGroup, make_shares, read_groups
from imager.upkeep.repair_scan import STASH, Scan, State, Verifier

Failed = list[tuple[str, RemetalError]]


def put_back(
    backend: Backend, verifier: Verifier, name: str, data: bytes, taken: float | None = None
) -> None:
    """Create an object, or replace it if it was read whole and has other bytes.

    Args:
        backend: where to.
        verifier: of the repository.
        name: of the object.
        data: its bytes.
        taken: when the store took it first, if that is known: a repaired image is no new one.

    Raises:
        ObjectDamaged: `data` does not verify, or what is there can't be read; it was left alone.
    """
    if not verifier.verifies(name, data):
        raise ObjectDamaged(f"the bytes for {name} do not verify")
    if backend.put_new(name, [data], taken):
        return
    match verifier.state_at(backend, name):
        case State.INTACT:
            return
        case State.UNREADABLE:
            raise ObjectDamaged(f"{name} can't be read now, so it was left alone")
        case State.MISSING:
            backend.put_new(name, [data], taken)
            return
        case State.DAMAGED:
            pass
    stash = STASH + name
    if (
        not backend.put_new(stash, [data], taken)
        and verifier.state_at(backend, name, stash) is not State.INTACT
    ):
        backend.delete(stash)
        backend.put_new(stash, [data], taken)
    backend.delete(name)
    backend.put_new(name, [data], taken)
    if verifier.state_at(backend, name) is State.INTACT:
        backend.delete(stash)


def clear_stashes(backend: Backend, verifier: Verifier, gone: Collection[str]) -> None:
    """Remove stashes whose objects verify or are gone for good, and those that are rotten."""
    for entry in list(backend.list(STASH)):
        name = entry.name.removeprefix(STASH)
        rotten = (
            verifier.can_judge(name)
            and verifier.state_at(backend, name, entry.name) is State.DAMAGED
        )
        state = verifier.state_at(backend, name)
        if rotten or state is State.INTACT or (state is State.MISSING and name in gone):
            backend.delete(entry.name)


def drop(backend: Backend, verifier: Verifier, names: Sequence[str]) -> list[str]:
    """Remove objects that were read whole and have other bytes, and return those that went."""
    rotten = [name for name in names if verifier.state_at(backend, name) is State.DAMAGED]
    for name in rotten:
        backend.delete(name)
    return rotten


def make_shares_again(
    backend: Backend, found: Scan, groups: Sequence[StoredGroup], failed: Failed
) -> list[str]:
    """Make the parity of groups again of which shares are lost or damaged; return their names.

    A group of which no share is left was dissolved meanwhile. Shares that the scan could not read
    are left alone.
    """
    verifier = found.verifier
    done: list[str] = []
    there = read_groups(backend, verifier.repository)[0] if groups else {}
    for group in groups:
        table = group.table
        if table.id not in there:
            continue
        rows = [(member.name, member.length, member.digest) for member in table.members]
        made, bad = make_shares(backend, verifier.repository, rows, table.shares, lambda _: None)
        if made is None:
            reason = ObjectDamaged(f"its parity can't be made again: {', '.join(bad)} is damaged")
            failed.append((f"parity group {table.id.hex()[:16]}", reason))
            continue
        for name, (prefix, body) in made.objects:
            if name in found.unreadable or verifier.state_at(backend, name) is State.INTACT:
                continue
            try:
                put_back(backend, verifier, name, prefix + body)
            except ObjectDamaged as error:
                failed.append((name, error))
            else:
                done.append(name)
        # A table that lies about itself gives objects of other names; the liars stay as they are.
    return done
