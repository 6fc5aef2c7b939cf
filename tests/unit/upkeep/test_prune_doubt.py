"""What makes a prune hold back: outdated plans, doubtful keys, lying indexes, damaged neighbours."""

import os
from pathlib import Path

import numpy as np
import pytest

from imager.errors import ChecksFailed, UsageError
from imager.repository import pack
from imager.repository.backend.directory import DirectoryBackend
from imager.repository.header import ID_SIZE, NO_KIND, Header, Magic, PackKind, StatementKind
from imager.repository.index import Segment
from imager.repository.pack import Entries
from imager.repository.repository import now
from imager.repository.retrieval import Unlocked
from imager.repository.session import Session
from imager.repository.statement import HoldBody, Signatory
from imager.upkeep import membership, parity
from imager.upkeep.prune import plan
from imager.upkeep.prune_execute import execute
from tests.conftest import Tiny
from tests.unit.upkeep.covered_repository import no_keys, run
from tests.unit.upkeep.test_prune import age, content, data, packs, planned, prune


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "TARGET_SIZE", 1 << 18)


def signatory(tiny: Tiny) -> Signatory:
    return Signatory(Unlocked(tiny.open(), tiny.key).secrets.signer)


def write_index(tiny: Tiny, directories: list[tuple[bytes, PackKind, Entries]]) -> None:
    """Store an index as a holder of a credential can, whatever it says."""
    repository = tiny.open()
    keys = repository.credential_keys(tiny.credential)
    header = Header(Magic.INDEX, NO_KIND, 0, os.urandom(ID_SIZE), keys.group, repository.id)
    name, encoded = Segment.collect(directories).encode(header, keys.directory_key)
    repository.backend.put_new(name, [encoded])


def test_a_plan_that_is_outdated_by_another_prune_removes_nothing(
    tiny: Tiny, tmp_path: Path
) -> None:
    """The other prune rescued what this one was about to remove, and a capture counts on it."""
    text = data()
    old = tiny.add({"a": text}, tmp_path)
    prune(tiny, frozenset({old}))
    age(tiny)
    made = planned(tiny, frozenset({old}))
    prune(tiny)
    new = tiny.add({"a": text}, tmp_path)
    repository = tiny.open()
    keys = repository.credential_keys(tiny.credential)
    with pytest.raises(UsageError, match="has changed"):
        execute(made, repository, keys, signatory(tiny), lambda _: None)
    assert content(tiny.open(), tiny, new) == {"a": text}


def test_a_hold_that_comes_after_the_plan_holds(tiny: Tiny, tmp_path: Path) -> None:
    text = data()
    old = tiny.add({"a": text}, tmp_path)
    tiny.add({"a": data()}, tmp_path)
    prune(tiny, frozenset({old}))
    age(tiny)
    made = planned(tiny, frozenset({old}))
    repository = tiny.open()
    keys = repository.credential_keys(tiny.credential)
    body = HoldBody((old,), "court", None, now())
    repository.state(StatementKind.HOLD, body, signatory(tiny), keys.group)
    with pytest.raises(UsageError, match="has changed"):
        execute(made, repository, keys, signatory(tiny), lambda _: None)
    assert content(tiny.open(), tiny, old) == {"a": text}


def test_an_index_that_lies_about_kinds_removes_nothing(tiny: Tiny, tmp_path: Path) -> None:
    text = data()
    image = tiny.add({"a": text}, tmp_path)
    none = np.zeros(0, dtype=pack.ENTRY)
    other = {PackKind.DATA: PackKind.MAPS, PackKind.MAPS: PackKind.DATA}
    lies = []
    for name in packs(tiny):
        kind = PackKind((tiny.path / name).read_bytes()[10])
        lies.append((bytes.fromhex(name[-64:]), other[kind], none))
    write_index(tiny, lies)
    made, _ = prune(tiny)
    assert not made.condemn_packs
    age(tiny)
    prune(tiny)
    assert content(tiny.open(), tiny, image) == {"a": text}


def test_an_index_that_lies_about_lengths_cuts_nothing_off(tiny: Tiny, tmp_path: Path) -> None:
    tiny.add({"a": data()}, tmp_path)
    lies = []
    for name in packs(tiny):
        row = np.zeros(1, dtype=pack.ENTRY)
        row["id"] = np.frombuffer(os.urandom(32), dtype="V32")
        row["offset"], row["length"] = 0xFFFFFF00, 64
        lies.append((bytes.fromhex(name[-64:]), PackKind((tiny.path / name).read_bytes()[10]), row))
    write_index(tiny, lies)
    repository = tiny.open()
    keys = repository.credential_keys(tiny.credential)
    index, _ = repository.load_index(keys)
    assert not repository.lost_packs(index)
    path = tiny.path / min(packs(tiny))
    os.truncate(path, path.stat().st_size - 1)
    assert repository.lost_packs(index) == {min(packs(tiny))}


def test_nothing_goes_while_a_revocation_is_damaged(tiny: Tiny, tmp_path: Path) -> None:
    old = tiny.add({"a": data()}, tmp_path)
    repository = tiny.open()
    made = membership.plan_revocation(
        repository, Unlocked(repository, tiny.key), "test machine", "gone"
    )
    membership.revoke(repository, made)
    (path,) = (tiny.path / "revocations").iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    repository = tiny.open()
    keys = repository.group_keys(Unlocked(repository, tiny.key).secrets)
    with pytest.raises(ChecksFailed, match="whose images count"):
        plan(repository, keys, frozenset({old}))


@pytest.mark.parametrize("damage", ["lost", "rotten"])
def test_parity_that_something_else_needs_stays(tiny: Tiny, tmp_path: Path, damage: str) -> None:
    old, new = tiny.add({"a": data()}, tmp_path), tiny.add({"a": data()}, tmp_path)
    backend, identity = tiny.open().backend, tiny.open().id
    parity.execute(backend, identity, parity.plan(backend, identity), lambda _: None)
    prune(tiny, frozenset({old}))
    age(tiny)
    made = planned(tiny, frozenset({old}))
    going = {name for name, _ in made.remove_packs}
    staying = min(
        name for name in packs(tiny) - going if (tiny.path / name).read_bytes()[10] == PackKind.DATA
    )
    path = tiny.path / staying
    if damage == "lost":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ChecksFailed, match=staying):
        prune(tiny, frozenset({old}))
    groups = parity.read_groups(backend, identity)[0].values()
    assert any(
        len(group.shares) == group.table.shares
        for group in groups
        if going | {staying} <= {member.name for member in group.table.members}
    )
    assert going <= packs(tiny)
    assert f"images/{new}" in {entry.name for entry in backend.list("images/")}


def test_parity_stopped_before_the_old_shares_went_goes_on(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cover() -> None:
        backend, identity = tiny.open().backend, tiny.open().id
        parity.execute(backend, identity, parity.plan(backend, identity), lambda _: None)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    tiny.add({"a": data()}, tmp_path)
    cover()
    tiny.add({"a": data()}, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(DirectoryBackend, "delete", stop)
        with pytest.raises(KeyboardInterrupt):
            cover()
    tiny.add({"a": data()}, tmp_path)
    cover()
    groups, unreadable = parity.read_groups(tiny.open().backend, tiny.open().id)
    assert not unreadable
    assert packs(tiny) <= {m.name for group in groups.values() for m in group.table.members}


def test_a_full_store_still_condemns(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "TARGET_SIZE", 1 << 20)
    blocks = [data(1 << 19) for _ in range(8)]
    old = tiny.add({"a": b"".join(blocks)}, tmp_path)
    tiny.add({"a": b"".join(blocks[::2])}, tmp_path)
    put_new = DirectoryBackend.put_new

    def full(backend: DirectoryBackend, name: str, parts: object) -> bool:
        if name.startswith("packs/"):
            raise UsageError("no room")
        return put_new(backend, name, parts)  # type: ignore[arg-type]

    monkeypatch.setattr(DirectoryBackend, "put_new", full)
    assert planned(tiny, frozenset({old})).repack
    with pytest.raises(UsageError, match="no room"):
        prune(tiny, frozenset({old}))
    assert list(tiny.open().backend.list("removals/"))


def test_a_capture_sees_what_went_though_no_statement_is_left(tiny: Tiny, tmp_path: Path) -> None:
    """A machine that was paused for longer than the statements stay."""
    text = data()
    old = tiny.add({"a": text}, tmp_path)
    finish = Session.finish

    def late(session: Session, *arguments: object) -> object:
        prune(tiny, frozenset({old}))
        age(tiny)
        prune(tiny, frozenset({old}))
        for path in (tiny.path / "removals").iterdir():
            path.unlink()
        return finish(session, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "finish", late)
        with pytest.raises(Exception, match="no image was made"):
            tiny.add({"a": text}, tmp_path)
    assert not list(tiny.open().backend.list("images/"))


def test_of_two_copies_of_a_map_the_rotten_one_goes(tiny: Tiny, tmp_path: Path) -> None:
    text = {"a": data()}
    image = tiny.add(text, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "_is_stored", lambda *_: False)
        tiny.add(text, tmp_path)
    maps = [name for name in packs(tiny) if (tiny.path / name).read_bytes()[10] == PackKind.MAPS]
    assert len(maps) == 2
    rotten = tiny.path / min(maps, key=lambda name: (tiny.path / name).stat().st_mtime)
    for name in maps:
        when = 1e9 if tiny.path / name == rotten else 1.1e9
        os.utime(tiny.path / name, (when, when))
    content_before = bytearray(rotten.read_bytes())
    content_before[200] ^= 1
    rotten.write_bytes(content_before)
    os.utime(rotten, (1e9, 1e9))
    for _ in range(2):
        prune(tiny)
        age(tiny)
    assert content(tiny.open(), tiny, image) == text


@pytest.mark.parametrize("damage", ["lost", "rotten"])
def test_a_revocation_comes_back_from_parity(tiny: Tiny, tmp_path: Path, damage: str) -> None:
    tiny.add({"a": data()}, tmp_path)
    repository = tiny.open()
    unlocked = Unlocked(repository, tiny.key)
    membership.revoke(
        repository, membership.plan_revocation(repository, unlocked, "test machine", "gone")
    )
    backend, identity = repository.backend, repository.id
    parity.execute(backend, identity, parity.plan(backend, identity), lambda _: None)
    (path,) = (tiny.path / "revocations").iterdir()
    before = path.read_bytes()
    if damage == "lost":
        path.unlink()
    else:
        path.write_bytes(before[:-1] + b"?")
    run(tiny, keys=no_keys)
    assert path.read_bytes() == before
    assert tiny.open().trust.revocations
