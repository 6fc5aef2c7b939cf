"""Parity objects: what brings lost and rotten objects back (FORMAT.md section 13)."""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from imager.errors import ObjectDamaged, UnsupportedFormat
from imager.repository import names
from imager.repository.header import HEADER_SIZE, ID_SIZE, NO_KIND, Header, Magic
from imager.units import MIB

PREFIX: Final = names.PARITY
BLOCK: Final = 64 << 10
CHECK_SIZE: Final = 16
MOST_SHARES: Final = 256
MOST_LENGTH: Final = 128 * MIB
PROLOGUE: Final = struct.Struct("<HHI32s")
TABLE: Final = struct.Struct("<HHIQ32s")
MEMBER: Final = struct.Struct("<32sQH")
TABLE_START: Final = HEADER_SIZE + PROLOGUE.size
_MOST_TABLE: Final = TABLE.size + MOST_SHARES * (MEMBER.size + 128)


def object_name(digest: bytes) -> str:
    """Return the name of the parity object with this SHA-256."""
    text = digest.hex()
    return f"{PREFIX}{text[:2]}/{text}"


def named_digest(name: str) -> bytes | None:
    """Return the SHA-256 that the name of a member is made of; None if its name is none."""
    digest = names.digest_of(name) if names.may_be_covered(name) else None
    return None if digest is None else bytes.fromhex(digest)


def can_be_member(name: str) -> bool:
    """Whether parity may cover objects of this name."""
    return names.may_be_covered(name)


def check_of(block: bytes | bytearray | memoryview) -> bytes:
    """Return the 16 bytes by which a block is known to be intact."""
    return blake3(block).digest(CHECK_SIZE)


def blocks_of(length: int) -> int:
    """Return how many blocks an object of this length has."""
    return -(-length // BLOCK)


@dataclass(frozen=True, slots=True)
class Member:
    """An object that a group covers.

    Attributes:
        name: of the object.
        length: bytes.
        digest: its SHA-256.
    """

    name: str
    length: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Table:
    """What all parity objects of one group have in common.

    Attributes:
        members: the objects covered.
        shares: how many parity objects the group has.
        length: bytes of a share: the longest member's.
        checks_digest: SHA-256 of the checks.
        encoded: the bytes; their SHA-256 is the id of the group.
    """

    members: tuple[Member, ...]
    shares: int
    length: int
    checks_digest: bytes
    encoded: bytes

    @property
    def id(self) -> bytes:
        """Names the group."""
        return hashlib.sha256(self.encoded).digest()

    @property
    def rows(self) -> int:
        """Blocks of the longest member and of every share."""
        return blocks_of(self.length)

    @property
    def checks_length(self) -> int:
        """Bytes of the checks."""
        blocks = sum(blocks_of(member.length) for member in self.members)
        return CHECK_SIZE * (blocks + self.shares * self.rows)

    @property
    def checks_start(self) -> int:
        """Offset of the checks in every parity object of the group."""
        return TABLE_START + len(self.encoded)

    @property
    def share_start(self) -> int:
        """Offset of the share in every parity object of the group."""
        return self.checks_start + self.checks_length

    @property
    def object_size(self) -> int:
        """Bytes of every parity object of the group."""
        return self.share_start + self.length

    def split_checks(self, data: bytes, what: str) -> "Checks":
        """Read the checks.

        Raises:
            ObjectDamaged: they are not those of this group.
        """
        if len(data) != self.checks_length or hashlib.sha256(data).digest() != self.checks_digest:
            raise ObjectDamaged(f"the checks of {what} are damaged")
        rows, position = [], 0
        for length in (*(m.length for m in self.members), *[self.length] * self.shares):
            end = position + CHECK_SIZE * blocks_of(length)
            rows.append(data[position:end])
            position = end
        return Checks(tuple(rows))


@dataclass(frozen=True, slots=True)
class Checks:
    """The checks of all blocks of a group.

    Attributes:
        of: for each member, then for each share, its checks one after the other.
    """

    of: tuple[bytes, ...]

    def holds(self, number: int, row: int, block: bytes | bytearray | memoryview) -> bool:
        """Whether this is the block of that row of a member or share, as it was made."""
        start = row * CHECK_SIZE
        return check_of(block) == self.of[number][start : start + CHECK_SIZE]


def make_table(members: Sequence[Member], shares: int, checks: bytes) -> Table:
    """Return the table of a new group."""
    length = max(member.length for member in members)
    digest = hashlib.sha256(checks).digest()
    encoded = TABLE.pack(len(members), shares, BLOCK, length, digest) + b"".join(
        MEMBER.pack(member.digest, member.length, len(member.name)) + member.name.encode("ascii")
        for member in members
    )
    return Table(tuple(members), shares, length, digest, encoded)


def encode_prefix(repository: bytes, table: Table, number: int, checks: bytes) -> bytes:
    """Return everything of a parity object that comes before the share."""
    header = Header(Magic.PARITY, NO_KIND, 0, bytes(ID_SIZE), bytes(ID_SIZE), repository)
    prologue = PROLOGUE.pack(number, 0, len(table.encoded), table.id)
    return header.encode() + prologue + table.encoded + checks


def decode_prologue(data: bytes, repository: bytes, what: str) -> tuple[int, int, bytes]:
    """Read the first `TABLE_START` bytes: number of the share, length of the table, group id.

    Raises:
        ObjectDamaged: it is no parity object of this repository.
        UnsupportedFormat: it is of another version.
    """
    header = Header.decode(data, Magic.PARITY, repository, what)
    if len(data) < TABLE_START:
        raise ObjectDamaged(f"{what} is too short")
    number, zero, length, group = PROLOGUE.unpack_from(data, HEADER_SIZE)
    plain = not (header.envelope_length or any(header.session) or any(header.group))
    if header.kind != NO_KIND or zero or not plain:
        raise UnsupportedFormat(f"{what} is a parity object of unknown kind")
    if not TABLE.size < length <= _MOST_TABLE or number >= MOST_SHARES:
        raise ObjectDamaged(f"{what} is malformed")
    return number, length, group


def decode_table(data: bytes, group: bytes, what: str) -> Table:
    """Read the table of a group; the lengths in it are bounded.

    Raises:
        ObjectDamaged: it is not as it was written, or says what cannot be.
    """
    if hashlib.sha256(data).digest() != group:
        raise ObjectDamaged(f"the table of {what} is damaged")
    count, shares, block, length, checks = TABLE.unpack_from(data)
    if block != BLOCK or not (count and shares and count + shares <= MOST_SHARES):
        raise ObjectDamaged(f"{what} has an impossible form")
    members, position = [], TABLE.size
    for _ in range(count):
        end = position + MEMBER.size
        if end > len(data):
            raise ObjectDamaged(f"the table of {what} is cut off")
        digest, size, characters = MEMBER.unpack_from(data, position)
        position = end + characters
        name = data[end:position].decode("ascii", "replace")
        if not can_be_member(name) or named_digest(name) not in {None, digest}:
            raise ObjectDamaged(f"{what} names an object that cannot be: {name!r}")
        members.append(Member(name, size, digest))
    longest = max(member.length for member in members)
    if position != len(data) or length != longest or not 0 < length <= MOST_LENGTH:
        raise ObjectDamaged(f"the lengths in {what} do not add up")
    if len({member.name for member in members}) != count:
        raise ObjectDamaged(f"{what} names an object twice")
    return Table(tuple(members), shares, length, checks, data)
