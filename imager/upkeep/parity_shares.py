"""Making the shares of a parity group, and taking members back out of them."""

import hashlib
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import zfec

from imager.errors import OBJECT_FAULTS, ObjectDamaged
from imager.repository import parity_object
from imager.repository.backend.protocol import Backend
from imager.repository.parity_object import (
    BLOCK,
    TABLE_START,
    Checks,
    Member,
    Table,
    blocks_of,
    check_of,
    encode_prefix,
    make_table,
)
from imager.units import MIB

_STRIP: Final = MIB  # of every member at a time; a multiple of BLOCK
_THREADS: Final = 2  # zfec and the hashes let others run meanwhile

Advance = Callable[[int], None]
ReadRange = Callable[[str, int, int], bytes]


@dataclass(frozen=True, slots=True)
class MadeShares:
    """The parity objects of a group, in memory.

    Attributes:
        table: of the group.
        objects: name and parts of each, in the order of shares.
    """

    table: Table
    objects: tuple[tuple[str, tuple[bytes, bytearray]], ...]


@dataclass(frozen=True, slots=True)
class StoredGroup:
    """A parity group as it lies in a repository, whole or not.

    Attributes:
        table: of the group.
        shares: names of its parity objects by number of share.
    """

    table: Table
    shares: dict[int, str]


def make_shares(
    backend: Backend,
    repository: bytes,
    members: Sequence[tuple[str, int, bytes | None]],
    shares: int,
    advance: Advance,
) -> tuple[MadeShares | None, tuple[str, ...]]:
    """Read members once, in strips, and make their parity objects.

    Memory: 1 MiB per member, and `shares` times the longest member.

    Args:
        backend: where the members lie.
        repository: id of the repository.
        members: name, length, and the SHA-256 it must have (None: whatever it has).
        shares: how many to make.
        advance: told of every byte read.

    Returns:
        The parity objects, and the names of members that are not what they must be. If there is
        any of these, nothing was made.
    """
    longest = max(length for _, length, _ in members)
    hashes = [hashlib.sha256() for _ in members]
    member_checks: list[list[bytes]] = [[] for _ in members]
    share_checks: list[list[bytes]] = [[] for _ in range(shares)]
    built = [bytearray() for _ in range(shares)]
    encoder = zfec.Encoder(len(members), len(members) + shares)
    numbers = tuple(range(len(members), len(members) + shares))
    bad: set[str] = set()

    def read(number: int, offset: int, width: int) -> bytes:
        name, length, _ = members[number]
        wanted = min(width, max(length - offset, 0))
        data = b""
        if wanted and name not in bad:
            try:
                data = backend.get_range(name, offset, wanted)
            except OBJECT_FAULTS:
                bad.add(name)
            hashes[number].update(data)
            member_checks[number] += _checks(data)
            advance(len(data))
        return data.ljust(width, b"\0")

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="parity") as pool:
        for offset in range(0, longest, _STRIP):
            width = min(_STRIP, longest - offset)
            strip = tuple(
                pool.map(read, range(len(members)), [offset] * len(members), [width] * len(members))
            )
            if bad:
                break
            for number, piece in enumerate(_encode(pool, encoder, strip, numbers)):
                built[number] += piece
                share_checks[number] += _checks(piece)
    bad |= {
        name
        for (name, _, digest), found in zip(members, hashes, strict=True)
        if digest not in {None, found.digest()}
    }
    if bad:
        return None, tuple(sorted(bad))
    checks = b"".join(b"".join(row) for row in (*member_checks, *share_checks))
    rows = [
        Member(name, length, found.digest())
        for (name, length, _), found in zip(members, hashes, strict=True)
    ]
    table = make_table(rows, shares, checks)
    return MadeShares(
        table, tuple(_share(repository, table, n, checks, body) for n, body in enumerate(built))
    ), ()


def _encode(
    pool: ThreadPoolExecutor,
    encoder: zfec.Encoder,
    strip: Sequence[bytes],
    numbers: tuple[int, ...],
) -> list[bytes]:
    width = len(strip[0])
    half = max(-(-width // _THREADS), BLOCK)
    spans = [(start, min(start + half, width)) for start in range(0, width, half)]

    def encode(span: tuple[int, int]) -> list[bytes]:
        views = tuple(memoryview(piece)[span[0] : span[1]] for piece in strip)
        made: list[bytes] = encoder.encode(views, numbers)
        return made

    pieces = list(pool.map(encode, spans))
    return [b"".join(part[number] for part in pieces) for number in range(len(numbers))]


def _checks(data: bytes) -> list[bytes]:
    view = memoryview(data)
    return [check_of(view[start : start + BLOCK]) for start in range(0, len(data), BLOCK)]


def _share(
    repository: bytes, table: Table, number: int, checks: bytes, body: bytearray
) -> tuple[str, tuple[bytes, bytearray]]:
    prefix = encode_prefix(repository, table, number, checks)
    digest = hashlib.sha256(prefix)
    digest.update(body)
    return parity_object.object_name(digest.digest()), (prefix, body)


def read_groups(
    backend: Backend, repository: bytes
) -> tuple[dict[bytes, StoredGroup], tuple[str, ...]]:
    """Return the groups of a repository by id, and the parity objects whose beginning is damaged.

    Of each parity object the first bytes are read, of each group one table.
    """
    groups: dict[bytes, StoredGroup] = {}
    unreadable: list[str] = []
    for entry in backend.list(parity_object.PREFIX):
        try:
            raw = backend.get_range(entry.name, 0, min(TABLE_START, entry.size))
            number, length, group = parity_object.decode_prologue(raw, repository, entry.name)
            if group not in groups:
                text = backend.get_range(entry.name, TABLE_START, length)
                table = parity_object.decode_table(text, group, entry.name)
                groups[group] = StoredGroup(table, {})
            table = groups[group].table
            if number >= table.shares or number in groups[group].shares:
                raise ObjectDamaged(f"{entry.name} is no share of its group")
        except OBJECT_FAULTS:
            unreadable.append(entry.name)
        else:
            groups[group].shares[number] = entry.name
    return groups, tuple(unreadable)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads ranges of objects: of what was brought back, and of all others.

    Attributes:
        there: reads what lies there.
        again: reads what was brought back.
        back: names of the latter.
    """

    there: ReadRange
    again: ReadRange
    back: Collection[str]

    def of(self, name: str) -> ReadRange:
        return self.again if name in self.back else self.there


class GroupSolver:
    """Which blocks of a group are intact, and what can be taken out of the others.

    Everything that is not known to verify is read once, block by block, when this is made. What is
    brought back afterwards is named to each method in `back`: all its blocks count as intact.

    Args:
        backend: where the group lies.
        group: the group.
        good: names of members and shares that are known to verify.

    Raises:
        ObjectDamaged: no share has the checks.
    """

    def __init__(self, backend: Backend, group: StoredGroup, good: Collection[str]) -> None:
        self._backend = backend
        self._group = group
        self._table = group.table
        self._checks = self._read_checks()
        count = len(self._table.members)
        self._names = [member.name for member in self._table.members] + [
            group.shares.get(number, "") for number in range(self._table.shares)
        ]
        self._lengths = [member.length for member in self._table.members]
        self._lengths += [self._table.length] * self._table.shares
        self._starts = [0] * count + [self._table.share_start] * self._table.shares
        # Bit sets over rows would be smaller; sets are enough: a group has at most 2048 rows.
        self._bad: list[set[int]] = [
            set() if name in good else self._find_bad(number)
            for number, name in enumerate(self._names)
        ]

    def solvable(self, name: str, back: Collection[str] = ()) -> bool:
        """Whether every damaged block of a member is in a row that can be solved."""
        others = [bad for n, bad in zip(self._names, self._bad, strict=True) if n not in back]
        rows = self._bad[self._names.index(name)]
        return all(sum(row in bad for bad in others) <= self._table.shares for row in rows)

    def bad_blocks(self, name: str) -> frozenset[int]:
        """Numbers of the member's blocks that are damaged or missing."""
        return frozenset(self._bad[self._names.index(name)])

    def solve(
        self, name: str, back: Collection[str] = (), read_back: ReadRange | None = None
    ) -> bytes:
        """Return a member as it was.

        Memory: the member, and one block of each.

        Args:
            name: of the member.
            back: names of what was brought back since this was made.
            read_back: reads these; by default from where the group lies.

        Raises:
            ObjectDamaged: it can't be brought back, or what comes out is not what was put in.
        """
        number = self._names.index(name)
        member = self._table.members[number]
        reader = _Reader(self._backend.get_range, read_back or self._backend.get_range, back)
        whole = bytearray()
        for row in range(blocks_of(member.length)):
            width = min(BLOCK, member.length - row * BLOCK)
            block = None if row in self._bad[number] else self._block(number, row, reader)
            whole += self._solve_row(number, row, reader)[:width] if block is None else block
        if hashlib.sha256(whole).digest() != member.digest:
            raise ObjectDamaged(f"parity of {name} does not give what it says")
        return bytes(whole)

    def _solve_row(self, number: int, row: int, reader: "_Reader") -> bytes:
        width = min(BLOCK, self._table.length - row * BLOCK)
        blocks: list[bytes] = []
        numbers: list[int] = []
        for other, name in enumerate(self._names):
            if row in self._bad[other] and name not in reader.back:
                continue
            block = self._block(other, row, reader)
            if block is not None:
                blocks.append(block.ljust(width, b"\0"))
                numbers.append(other)
            if len(blocks) == len(self._table.members):
                break
        else:
            raise ObjectDamaged(f"row {row} of a parity group has too few intact blocks")
        count = len(self._table.members)
        decoder = zfec.Decoder(count, count + self._table.shares)
        solved: list[bytes] = decoder.decode(tuple(blocks), tuple(numbers))
        return solved[number]

    def _block(self, number: int, row: int, reader: "_Reader") -> bytes | None:
        """Return an intact block, empty beyond a member's end; None when damaged."""
        offset = row * BLOCK
        length = min(BLOCK, self._lengths[number] - offset)
        if length <= 0:
            return b""
        name = self._names[number]
        try:
            block = reader.of(name)(name, self._starts[number] + offset, length)
        except OBJECT_FAULTS:
            return None
        return block if self._checks.holds(number, row, block) else None

    def _find_bad(self, number: int) -> set[int]:
        rows = range(blocks_of(self._lengths[number]))
        if not self._names[number]:
            return set(rows)
        reader = _Reader(self._backend.get_range, self._backend.get_range, ())
        return {row for row in rows if self._block(number, row, reader) is None}

    def _read_checks(self) -> Checks:
        table = self._table
        for name in self._group.shares.values():
            try:
                data = self._backend.get_range(name, table.checks_start, table.checks_length)
                return table.split_checks(data, name)
            except OBJECT_FAULTS:
                continue
        raise ObjectDamaged("no parity object of the group has intact checks")
