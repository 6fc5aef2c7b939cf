"""MBR and its chain of extended boot records, read straight from the bytes.

The second opinion beside sfdisk; and it says where those records lie, which sfdisk does not.
"""

import struct
from dataclasses import dataclass
from typing import Final

from imager import blockdev
from imager.errors import SourceError, TruncatedSource

_EXTENDED: Final = frozenset({0x05, 0x0F, 0x85})
_ENTRY: Final = struct.Struct("<B3sB3sII")
_TABLE_OFFSET: Final = 446
_SECTOR: Final = 512
_MAX_LOGICAL: Final = 256


@dataclass(frozen=True, slots=True)
class MbrBytes:
    """An MBR as its bytes say.

    Attributes:
        ranges: (offset, length, type byte as two hex digits) of every entry in use: primary,
            extended and logical partitions.
        structures: (offset, length) of the MBR and of every extended boot record.
    """

    ranges: frozenset[tuple[int, int, str]]
    structures: tuple[tuple[int, int], ...]


def read_mbr(fd: int, size: int, sector: int) -> MbrBytes:
    """Return the MBR of an open disk that is known to have one.

    Raises:
        TruncatedSource: the chain of extended boot records leads beyond the end of the disk.
        SourceError: the chain is broken.
    """
    ranges: set[tuple[int, int, str]] = set()
    structures = [(0, sector)]
    for kind, first, count in _entries(blockdev.read_at(fd, 0, _SECTOR)):
        ranges.add((first * sector, count * sector, f"{kind:02x}"))
        if kind in _EXTENDED:
            chain = _Chain(fd, size, sector)
            chain.follow(first)
            ranges |= chain.ranges
            structures += chain.structures
    return MbrBytes(frozenset(ranges), tuple(sorted(structures)))


class _Chain:
    """The extended boot records of one extended partition."""

    def __init__(self, fd: int, size: int, sector: int) -> None:
        self._fd = fd
        self._size = size
        self._sector = sector
        self.ranges: set[tuple[int, int, str]] = set()
        self.structures: list[tuple[int, int]] = []

    def follow(self, base: int) -> None:
        """Walk the chain that starts with the extended partition at sector `base`."""
        lba: int | None = base
        seen: set[int] = set()
        while lba is not None:
            if (lba + 1) * self._sector > self._size:
                raise TruncatedSource(
                    f"{blockdev.name_of(self._fd)} ends at byte {self._size}, before its extended "
                    "partition does"
                )
            record = blockdev.read_at(self._fd, lba * self._sector, _SECTOR)
            if lba in seen or len(seen) >= _MAX_LOGICAL or record[510:] != b"\x55\xaa":
                raise SourceError(
                    f"the partition table of {blockdev.name_of(self._fd)} is damaged: the logical "
                    f"partitions break off at sector {lba}",
                    hint="Repair it first (`fdisk` shows what it makes of it); no image was made.",
                )
            seen.add(lba)
            self.structures.append((lba * self._sector, self._sector))
            lba = self._read(record, base, lba)

    def _read(self, record: bytes, base: int, lba: int) -> int | None:
        """Take a record's partition; return the sector of the next record.

        The partition is relative to the record, the link to the start of the extended partition.
        """
        following = None
        for kind, first, count in _entries(record)[:2]:
            if kind in _EXTENDED:
                following = base + first
            else:
                self.ranges.add(((lba + first) * self._sector, count * self._sector, f"{kind:02x}"))
        return following


def _entries(record: bytes) -> list[tuple[int, int, int]]:
    """Return (type, first sector, number of sectors) of the entries in use."""
    entries = []
    for index in range(4):
        _flag, _chs, kind, _end, first, count = _ENTRY.unpack_from(
            record, _TABLE_OFFSET + index * _ENTRY.size
        )
        if kind and count:
            entries.append((kind, first, count))
    return entries
