"""exFAT: the allocation bitmap, confirmed by a walk through all directories.

The bitmap counts only if

- the checksum of the boot region is right, its backup says the same, and there is one FAT;
- the volume is not marked dirty or failing;
- each cluster of each file and directory, contiguous or chained through the FAT, is set in the
  bitmap, and no two own the same one;
- the sets of directory entries carry right checksums, and no entry is of an unknown critical kind.

Clusters that the FAT marks as bad and nobody owns are left out: nothing can be read there.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager import blockdev
from imager.extents.exfat_entries import Allocation, Kind, parse_directory
from imager.extents.extents import Extents, UncertainMapError, merged, set_ranges
from imager.units import MIB

# partition offset, sectors; FAT (place, sectors), heap (place, clusters), root cluster, serial;
# version, flags, exponents (sector, sectors per cluster), number of FATs
_BOOT: Final = struct.Struct("<QQIIIIIIHHBBB")
_BOOT_OFFSET: Final = 64
_VERSION: Final = 0x0100
_SECTORS_SUMMED: Final = 11
_BACKUP: Final = 12  # sectors
_UNSUMMED: Final = (106, 107, 112)  # flags, percent in use
_DIRTY: Final = 0x2
_FAILING: Final = 0x4
_SECOND_FAT: Final = 0x1

_FIRST: Final = 2  # number of the first cluster
_MEDIA: Final = 0xFFFFFFF8
_BAD: Final = 0xFFFFFFF7
_END: Final = 0xFFFFFFFF
_LARGEST_FAT: Final = 128 * MIB  # it is held in memory
_LARGEST_DIRECTORY: Final = 256 * MIB  # by the specification


@dataclass(frozen=True, slots=True)
class _Geometry:
    sector: int
    cluster: int
    fat_offset: int
    heap_offset: int
    clusters: int
    root: int


def read(fd: int, offset: int, length: int) -> Extents:
    """Return the boot regions and the FAT, the used clusters, and what lies behind them.

    Raises:
        UncertainMapError: the map can't be relied on.
    """
    geometry = _geometry(fd, offset, length)
    walk = _Walk(fd, offset, geometry)
    is_used = walk.confirmed()
    first, last = set_ranges(is_used)
    cluster, heap = geometry.cluster, geometry.heap_offset
    behind = heap + geometry.clusters * cluster
    starts = np.concatenate([[0], heap + first * cluster, [behind]])
    ends = np.concatenate([[heap], heap + last * cluster, [length]])
    return Extents(merged(starts, ends), "exFAT allocation bitmap", None, cluster)


def _geometry(fd: int, offset: int, length: int) -> _Geometry:
    if length < 512:
        raise UncertainMapError("the volume is too small for exFAT")
    boot = blockdev.read_at(fd, offset, 512)
    (
        _, sectors, fat, fat_sectors, heap, clusters, root, _,
        version, flags, sector_shift, cluster_shift, fats,
    ) = _BOOT.unpack_from(boot, _BOOT_OFFSET)  # fmt: skip
    if (
        boot[3:11] != b"EXFAT   "
        or any(boot[11:64])
        or boot[510:] != b"\x55\xaa"
        or not 9 <= sector_shift <= 12
        or cluster_shift > 25 - sector_shift
    ):
        raise UncertainMapError("the exFAT boot sector makes no sense")
    if version != _VERSION:
        raise UncertainMapError(f"it is exFAT {version >> 8}.{version & 255:02}, not known here")
    if fats != 1 or flags & _SECOND_FAT:
        raise UncertainMapError("it has two FATs (TexFAT)")
    if flags & _DIRTY:
        raise UncertainMapError("it was not unmounted cleanly (it is marked dirty)")
    if flags & _FAILING:
        raise UncertainMapError("it is marked as lying on a failing medium")
    sector = 1 << sector_shift
    if sectors * sector > length:
        raise UncertainMapError("the filesystem is larger than the volume it lies in")
    if (
        not 2 * _BACKUP <= fat <= fat + fat_sectors <= heap
        or not 0 < clusters <= _END - 10
        or heap + (clusters << cluster_shift) > sectors
        or fat_sectors * sector < (clusters + _FIRST) * 4
        or not _FIRST <= root < clusters + _FIRST
    ):
        raise UncertainMapError("the exFAT boot sector makes no sense")
    if (clusters + _FIRST) * 4 > _LARGEST_FAT:
        raise UncertainMapError("it has more clusters than are followed here")
    _check_regions(fd, offset, sector)
    return _Geometry(sector, sector << cluster_shift, fat * sector, heap * sector, clusters, root)


def _check_regions(fd: int, offset: int, sector: int) -> None:
    """Check both boot regions by their checksums, which must be the same."""
    size = _BACKUP * sector
    sums = []
    for place in (0, size):
        region = blockdev.read_at(fd, offset + place, size)
        total = 0
        for index, byte in enumerate(region[: _SECTORS_SUMMED * sector]):
            if index not in _UNSUMMED:
                total = ((total >> 1 | total << 31) & 0xFFFFFFFF) + byte & 0xFFFFFFFF
        if region[_SECTORS_SUMMED * sector :] != struct.pack("<I", total) * (sector // 4):
            raise UncertainMapError("a boot region has a wrong checksum")
        sums.append(total)
    if sums[0] != sums[1]:
        raise UncertainMapError("the boot region and its backup differ")


class _Walk:
    """The way through the directories: what each file owns."""

    def __init__(self, fd: int, offset: int, geometry: _Geometry) -> None:
        self._fd = fd
        self._offset = offset
        self._geometry = geometry
        count = geometry.clusters + _FIRST
        table = blockdev.read_at(fd, offset + geometry.fat_offset, count * 4)
        self._fat = np.frombuffer(table, dtype="<u4")
        if int(self._fat[0]) != _MEDIA or int(self._fat[1]) != _END:
            raise UncertainMapError("the FAT does not begin as it must")
        self._owned = np.zeros(geometry.clusters, dtype=np.bool_)

    def confirmed(self) -> NDArray[np.bool_]:
        """Return which clusters are used, if everything adds up.

        Raises:
            UncertainMapError: it does not.
        """
        bitmaps = []
        root = self._own(Allocation(Kind.DIRECTORY, self._geometry.root, None, is_chain=True))
        waiting = [self._content(root)]
        is_root = True
        while waiting:
            for found in parse_directory(waiting.pop()):
                if not is_root and found.kind in {Kind.BITMAP, Kind.UPCASE}:
                    raise UncertainMapError("a folder holds what only the root may hold")
                runs = self._own(found)
                if found.kind is Kind.BITMAP:
                    bitmaps.append((found, runs))
                elif found.kind is Kind.DIRECTORY:
                    waiting.append(self._content(runs))
            is_root = False
        if len(bitmaps) != 1:
            raise UncertainMapError("it has no allocation bitmap, or several")
        used = self._bitmap(*bitmaps[0])
        if np.any(self._owned & ~used):
            raise UncertainMapError("the bitmap says that a file's clusters are free")
        readable: NDArray[np.bool_] = used & (self._owned | (self._fat[_FIRST:] != _BAD))
        return readable

    def _own(self, found: Allocation) -> list[tuple[int, int]]:
        """Take the clusters of a file, and return them as runs from one to before another."""
        cluster = self._geometry.cluster
        if found.size == 0:
            if found.first:
                raise UncertainMapError("an empty file owns clusters")
            return []
        needed = -(-found.size // cluster) if found.size is not None else 1
        if found.kind is Kind.DIRECTORY and needed * cluster > max(_LARGEST_DIRECTORY, cluster):
            raise UncertainMapError("a directory is larger than it may be")
        runs = []
        chain = (
            self._chain(found.first) if found.is_chain else [(found.first, found.first + needed)]
        )
        for start, end in chain:
            if not _FIRST <= start < end <= self._geometry.clusters + _FIRST:
                raise UncertainMapError("a directory leads to a cluster that does not exist")
            owned = self._owned[start - _FIRST : end - _FIRST]
            if owned.any():
                raise UncertainMapError("two files own the same cluster")
            owned[:] = True
            runs.append((start, end))
        if sum(end - start for start, end in runs) < needed:
            raise UncertainMapError("a file is longer than its chain of clusters")
        return runs

    def _chain(self, first: int) -> Iterator[tuple[int, int]]:
        """Yield the runs of a chain; whoever takes them notices a chain that leads into itself."""
        count = self._fat.size
        while True:
            if not _FIRST <= first < count:
                raise UncertainMapError("the FAT links to a cluster that does not exist")
            last, window = first, 64
            while True:
                links = self._fat[last : min(last + window, count)]
                breaks = np.flatnonzero(links != np.arange(last + 1, last + 1 + links.size))
                if breaks.size:
                    last += int(breaks[0])
                    break
                last += links.size
                window = min(window * 4, 1 << 20)
                if last >= count:
                    raise UncertainMapError("the FAT links to a cluster that does not exist")
            yield first, last + 1
            first = int(self._fat[last])
            if first == _END:
                return

    def _content(self, runs: list[tuple[int, int]]) -> bytes:
        cluster = self._geometry.cluster
        heap = self._offset + self._geometry.heap_offset
        return b"".join(
            blockdev.read_at(self._fd, heap + (start - _FIRST) * cluster, (end - start) * cluster)
            for start, end in runs
        )

    def _bitmap(self, found: Allocation, runs: list[tuple[int, int]]) -> NDArray[np.bool_]:
        count = self._geometry.clusters
        if found.size is None or found.size < -(-count // 8):
            raise UncertainMapError("the allocation bitmap is too short")
        content = np.frombuffer(self._content(runs), dtype=np.uint8)[: -(-count // 8)]
        bits: NDArray[np.bool_] = np.unpackbits(content, bitorder="little")[:count].view(np.bool_)
        return bits
