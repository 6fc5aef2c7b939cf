"""Parity: Reed-Solomon shares over groups of objects, so that lost and rotten ones come back.

No keys are needed, so whoever only stores a repository can run this.

A full group has 80 members and 4 shares: 5 %. A group of fewer members has at least 2 shares, so the
rest that does not fill a group costs more: `max(2, ceil(members x percent))` times its longest member.
Packs are grouped with packs; images, indexes, statements, generations and the configuration with each
other. Objects of like size and age go together.

What is guaranteed: of a group with `m` shares any `m` objects, members or shares, may be lost at
once; and of objects that are only damaged in places, any that have at most `m` damaged blocks
of 64 KiB in the same row. Stopped at any instant, what was covered stays covered: new shares
are durable before old ones go.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final

from imager.errors import OBJECT_FAULTS, ObjectMissing, UsageError
from imager.repository import pack as pack_format
from imager.repository import parity_object
from imager.repository.backend.protocol import Backend, Entry
from imager.repository.parity_object import MOST_LENGTH, MOST_SHARES, can_be_member, named_digest
from imager.upkeep.parity_shares import StoredGroup, make_shares, read_groups

DEFAULT_OVERHEAD: Final = 5.0  # percent
_MEMBERS: Final = 80
_LEAST_SHARES: Final = 2
_MOST_OVERHEAD: Final = 100.0
# A group that is not full is made anew when at least a quarter as many members are new, so that
# each object is read again a few times at most, however small the nightly additions are.
_GROWTH: Final = 4

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class NewGroup:
    """A group to be made.

    Attributes:
        members: listing entries of its members.
        shares: how many parity objects.
    """

    members: tuple[Entry, ...]
    shares: int

    @property
    def parity_bytes(self) -> int:
        """About how many bytes the shares take."""
        return self.shares * max(entry.size for entry in self.members)


@dataclass(frozen=True, slots=True)
class ParityPlan:
    """What `execute` will do.

    Attributes:
        make: groups to be made.
        dissolve: groups whose shares go once all their members are in new groups.
        kept: intact groups that stay.
        broken: groups with lost members; `repair` is for them, so they stay.
        too_large: objects that parity does not cover.
        elsewhere: objects that intact groups cover which stay.
        removed: objects that are about to go, and need no cover.
        hurt: of groups that cover objects which are about to go, members that stay and are gone
            or cut off: only these groups can bring them back, so nothing may go before `repair`.
    """

    make: tuple[NewGroup, ...]
    dissolve: tuple[StoredGroup, ...]
    kept: tuple[StoredGroup, ...]
    broken: tuple[StoredGroup, ...]
    too_large: tuple[str, ...]
    elsewhere: frozenset[str]
    removed: frozenset[str] = frozenset()
    hurt: tuple[str, ...] = ()

    @property
    def read_bytes(self) -> int:
        """Bytes of members to be read."""
        return sum(entry.size for group in self.make for entry in group.members)


@dataclass(frozen=True, slots=True)
class ParityOutcome:
    """What was done.

    Attributes:
        made: groups that were made.
        members: objects covered by them and by the groups that were kept.
        member_bytes: their bytes.
        parity_bytes: bytes of all parity objects of these groups.
        weakest: the smallest number of shares of any group; 0 without groups.
        groups: how many groups are intact now.
        damaged: objects that are not what their name says, so that no parity was made of them.
    """

    made: int
    members: int
    member_bytes: int
    parity_bytes: int
    weakest: int
    groups: int
    damaged: tuple[str, ...]

    @property
    def overhead(self) -> float:
        """Percent that parity adds."""
        return 100 * self.parity_bytes / self.member_bytes if self.member_bytes else 0.0


def shares_for(members: int, overhead: float) -> int:
    """Return how many shares a group of so many members gets, for an overhead in percent."""
    return max(_LEAST_SHARES, math.ceil(members * overhead / 100 - 1e-9))


def members_for(overhead: float) -> int:
    """Return how many members a full group has, for an overhead in percent.

    Raises:
        UsageError: no such overhead can be had.
    """
    if not 1 <= overhead <= _MOST_OVERHEAD:
        raise UsageError("the overhead must be between 1 and 100 percent")
    if overhead >= 100 * _LEAST_SHARES / _MEMBERS:
        return _MEMBERS
    return min(MOST_SHARES - _LEAST_SHARES, int(100 * _LEAST_SHARES / overhead))


def has_parity(backend: Backend) -> bool:
    """Whether a repository has any parity object."""
    return any(True for _ in backend.list(parity_object.PREFIX))


def plan(backend: Backend, repository: bytes, overhead: float = DEFAULT_OVERHEAD) -> ParityPlan:
    """Plan to cover every object that no intact group covers.

    Args:
        backend: of the repository.
        repository: its id.
        overhead: percent.

    Raises:
        UsageError: no such overhead can be had.
    """
    full = members_for(overhead)
    entries = {entry.name: entry for entry in backend.list("")}
    coverable = {name: entry for name, entry in entries.items() if can_be_member(name)}
    too_large = tuple(sorted(n for n, e in coverable.items() if not 0 < e.size <= MOST_LENGTH))
    waiting = {name: entry for name, entry in coverable.items() if name not in too_large}
    kept: list[StoredGroup] = []
    dissolve: list[StoredGroup] = []
    broken: list[StoredGroup] = []
    for group in read_groups(backend, repository)[0].values():
        if not _members_there(group, entries):
            broken.append(group)
        elif not _shares_there(group, entries):
            dissolve.append(group)
        else:
            kept.append(group)
    for group in kept:
        for member in group.table.members:
            waiting.pop(member.name, None)
    make: list[NewGroup] = []
    for packs in (True, False):
        pool = {name: entry for name, entry in waiting.items() if _is_pack(name) is packs}
        partial = sorted(
            (
                group
                for group in kept
                if _is_pack(group.table.members[0].name) is packs
                and len(group.table.members) < full
            ),
            key=lambda group: len(group.table.members),
        )
        for group in partial:
            if len(group.table.members) > _GROWTH * len(pool):
                break
            # Groups may overlap, when making them was stopped before the old ones went.
            pool |= {member.name: entries[member.name] for member in group.table.members}
            kept.remove(group)
            dissolve.append(group)
        make += _arrange(pool.values(), full, overhead)
    elsewhere = frozenset(member.name for group in kept for member in group.table.members)
    return ParityPlan(
        tuple(make), tuple(dissolve), tuple(kept), tuple(broken), too_large, elsewhere
    )


def plan_without(
    backend: Backend,
    repository: bytes,
    removed: Collection[str],
    overhead: float = DEFAULT_OVERHEAD,
) -> ParityPlan:
    """Plan to make the groups anew that cover objects which are about to be removed.

    `execute` it before the objects go: afterwards no group counts on them, and all that stays
    is covered as before.

    Args:
        backend: of the repository.
        repository: its id.
        removed: names of the objects that will go.
        overhead: percent.
    """
    entries = {entry.name: entry for entry in backend.list("")}
    gone = set(removed)
    dissolve: list[StoredGroup] = []
    kept: list[StoredGroup] = []
    for group in read_groups(backend, repository)[0].values():
        touched = any(member.name in gone for member in group.table.members)
        (dissolve if touched else kept).append(group)
    elsewhere = frozenset(
        member.name
        for group in kept
        if _members_there(group, entries) and _shares_there(group, entries)
        for member in group.table.members
    )
    hurt = {
        member.name
        for group in dissolve
        for member in group.table.members
        if member.name not in gone | elsewhere
        and (member.name not in entries or entries[member.name].size != member.length)
    }
    left = {
        member.name: entries[member.name]
        for group in dissolve
        for member in group.table.members
        if member.name in entries and member.name not in gone | elsewhere
    }
    full = members_for(overhead)
    make = [
        group
        for packs in (True, False)
        for group in _arrange(
            (entry for entry in left.values() if _is_pack(entry.name) is packs), full, overhead
        )
    ]
    return ParityPlan(
        tuple(make),
        tuple(dissolve),
        tuple(kept),
        (),
        (),
        elsewhere,
        frozenset(gone),
        tuple(sorted(hurt)),
    )


def execute(
    backend: Backend, repository: bytes, made_plan: ParityPlan, advance: Advance
) -> ParityOutcome:
    """Make the planned groups, durably, and only then let the old shares go.

    Members are hashed while they are read; one that is not what its name says is left out and
    reported, and the old group that covers it stays.

    Args:
        backend: of the repository.
        repository: its id.
        made_plan: by `plan` or `plan_without`.
        advance: told of every byte of members that was read.

    Raises:
        NoRoom: the store is full; all old parity is still there.
    """
    stored = [_store_group(backend, repository, new, advance) for new in made_plan.make]
    covered = [(len(g.members), g.member_bytes, g.parity_bytes) for g in stored if g.members]
    damaged = {name for group in stored for name in group.damaged}
    fresh = {name for group in stored for name in group.shares}
    safe = made_plan.elsewhere | made_plan.removed
    safe |= {name for group in stored for name in (*group.members, *group.vanished)}
    for group in made_plan.dissolve:
        if all(member.name in safe for member in group.table.members):
            for name in group.shares.values():
                if name not in fresh:
                    backend.delete(name)
    made_groups = len(covered)
    shares_of = [g.table.shares for g in made_plan.kept] + [g.shares for g in made_plan.make]
    for group in made_plan.kept:
        table = group.table
        size = sum(member.length for member in table.members)
        covered.append((len(table.members), size, table.shares * table.object_size))
    return ParityOutcome(
        made_groups,
        sum(row[0] for row in covered),
        sum(row[1] for row in covered),
        sum(row[2] for row in covered),
        min(shares_of, default=0),
        len(covered),
        tuple(sorted(damaged)),
    )


def _arrange(entries: Iterable[Entry], full: int, overhead: float) -> list[NewGroup]:
    """Group objects of like size, then of like age; sizes count by powers of two."""
    ordered = sorted(entries, key=lambda e: (-e.size.bit_length(), e.modified, e.name))
    pieces = [ordered[start : start + full] for start in range(0, len(ordered), full)]
    return [NewGroup(tuple(piece), shares_for(len(piece), overhead)) for piece in pieces]


@dataclass(frozen=True, slots=True)
class _Stored:
    """What became of a planned group: its members and shares, and what is not among them."""

    members: tuple[str, ...]
    shares: tuple[str, ...]
    member_bytes: int
    parity_bytes: int
    damaged: frozenset[str]
    vanished: frozenset[str]


def _store_group(backend: Backend, repository: bytes, new: NewGroup, advance: Advance) -> _Stored:
    """Make a group of those members that are there and verify, durably.

    What goes while this runs was removed by a prune: that either saw the shares, or is seen here.
    """
    damaged: set[str] = set()
    vanished: set[str] = set()
    members = list(new.members)
    while members:
        rows = [(entry.name, entry.size, _digest(backend, entry.name)) for entry in members]
        shares = shares_for(len(rows), 100 * new.shares / len(new.members))
        made, bad = make_shares(backend, repository, rows, shares, advance)
        names = tuple(name for name, _ in made.objects) if made is not None else ()
        for name, parts in made.objects if made is not None else ():
            backend.put_new(name, parts)
        gone = {entry.name for entry in members if not _is_there(backend, entry.name)}
        if made is not None and not gone:
            size = sum(length for _, length, _ in rows)
            return _Stored(
                tuple(name for name, _, _ in rows),
                names,
                size,
                shares * made.table.object_size,
                frozenset(damaged),
                frozenset(vanished),
            )
        for name in names:
            backend.delete(name)
        vanished |= gone
        damaged |= set(bad) - gone
        members = [entry for entry in members if entry.name not in damaged | vanished]
    return _Stored((), (), 0, 0, frozenset(damaged), frozenset(vanished))


def _is_there(backend: Backend, name: str) -> bool:
    try:
        backend.get_range(name, 0, 1)
    except ObjectMissing:
        return False
    except OBJECT_FAULTS:
        return True
    return True


def _is_pack(name: str) -> bool:
    return name.startswith(pack_format.PREFIX)


def _members_there(group: StoredGroup, entries: dict[str, Entry]) -> bool:
    return all(
        member.name in entries and entries[member.name].size == member.length
        for member in group.table.members
    )


def _shares_there(group: StoredGroup, entries: dict[str, Entry]) -> bool:
    size = group.table.object_size
    return len(group.shares) == group.table.shares and all(
        name in entries and entries[name].size == size for name in group.shares.values()
    )


def _digest(backend: Backend, name: str) -> bytes | None:
    """Return the SHA-256 an object must have; of those whose name is no hash, the one it has."""
    known = named_digest(name)
    if known is not None:
        return known
    try:
        return hashlib.sha256(backend.get(name)).digest()
    except OBJECT_FAULTS:
        return None
