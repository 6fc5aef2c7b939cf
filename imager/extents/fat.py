"""FAT12, FAT16 and FAT32: the used clusters, read from the table itself and confirmed.

The table counts only if

- the boot sector makes sense in every field that says where things lie;
- the volume is marked as cleanly unmounted and without errors;
- there are two copies of the table, and they are equal;
- every link in it leads to a used cluster of the volume, and no two lead to the same one;
- everything in the directories begins in a used cluster, and every directory lies where the
  boot sector says that clusters lie (without any directory, the backup of the boot sector must
  say the same);
- FAT32's own count of free clusters, where it is known, is the same.
"""

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager import blockdev
from imager.extents.extents import Extents, UncertainMapError, merged, set_ranges
from imager.extents.fat_directory import check_directories

# bytes per sector, sectors per cluster, reserved sectors, tables, root entries, sectors (16 bit),
# media, sectors per table (16 bit), sectors per track, heads, hidden sectors, sectors (32 bit)
_BOOT: Final = struct.Struct("<HBHBHHBHHHII")
_BOOT_OFFSET: Final = 11
# sectors per table, flags, version, root cluster, information sector, backup of the boot sector
_BOOT_32: Final = struct.Struct("<IHHIHH")
_BOOT_32_OFFSET: Final = 36
_STATE_OFFSET: Final = {12: 37, 16: 37, 32: 65}
_STATE_DIRTY: Final = 0x03  # not unmounted, or errors found
_ENTRY: Final = 32
_MAX_CLUSTERS: Final = {12: 0xFF4, 16: 0xFFF4, 32: 0x0FFFFFF4}
_MASK: Final = {12: 0xFFF, 16: 0xFFFF, 32: 0x0FFFFFFF}
_CLEAN_BITS: Final = {16: 0xC000, 32: 0x0C000000}  # in entry 1: unmounted, no errors
_SPARE: Final = 1 << 20  # bytes that a table may be longer than makes sense
_UNKNOWN_FREE: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class _Geometry:
    bits: int
    sector: int
    cluster: int
    table_offset: int
    table_length: int
    data_offset: int
    clusters: int
    media: int
    root_length: int
    root_cluster: int | None
    info_offset: int | None
    backup_offset: int | None


def read(fd: int, offset: int, length: int) -> Extents:
    """Return reserved area, tables, root directory, used clusters, and what lies behind them.

    Raises:
        UncertainMapError: the map can't be relied on.
    """
    if length < 512:
        raise UncertainMapError("the volume is too small for a FAT filesystem")
    boot = blockdev.read_at(fd, offset, 512)
    geometry = _geometry(boot, length)
    if boot[_STATE_OFFSET[geometry.bits]] & _STATE_DIRTY:
        raise UncertainMapError("it was not unmounted cleanly")
    first, second = (
        blockdev.read_at(
            fd, offset + geometry.table_offset + copy * geometry.table_length, geometry.table_length
        )
        for copy in range(2)
    )
    if first != second:
        raise UncertainMapError("the two copies of the FAT differ")
    entries = _entries(first, geometry)
    _check(entries, geometry)
    is_used = entries[2:] != 0
    directories = _check_directories(fd, offset, entries, geometry)
    if not directories and is_used.any() and not _has_backup(fd, offset, boot, geometry):
        raise UncertainMapError("it has no directory and no backup that confirm its boot sector")
    if geometry.info_offset is not None:
        info = blockdev.read_at(fd, offset + geometry.info_offset, 512)
        _check_count(info, int(np.count_nonzero(~is_used)))
    return Extents(_ranges(is_used, geometry, length), "FAT", None, geometry.cluster)


def _geometry(boot: bytes, length: int) -> _Geometry:
    (
        sector, per_cluster, reserved, tables, root_entries, sectors_16, media, table_16,
        _track, _heads, _hidden, sectors_32,
    ) = _BOOT.unpack_from(boot, _BOOT_OFFSET)  # fmt: skip
    table_32, flags, version, root_cluster, info, backup = _BOOT_32.unpack_from(
        boot, _BOOT_32_OFFSET
    )
    sectors = sectors_16 or sectors_32
    if (
        boot[0] not in {0xEB, 0xE9}
        or sector not in {512, 1024, 2048, 4096}
        or per_cluster not in {1, 2, 4, 8, 16, 32, 64, 128}
        or reserved < 1
        or (media != 0xF0 and media < 0xF8)
        or root_entries * _ENTRY % sector
    ):
        raise UncertainMapError("the FAT boot sector makes no sense")
    if tables != 2:
        raise UncertainMapError(f"it has {tables} copies of the FAT instead of two")
    is_32 = table_16 == 0
    if is_32 and (flags & 0x80 or version or root_entries):
        raise UncertainMapError("it uses a rare form of FAT32 (no mirroring, or a later version)")
    table = table_32 if is_32 else table_16
    data = reserved + tables * table + root_entries * _ENTRY // sector
    if sectors * sector > length:
        raise UncertainMapError("the filesystem is larger than the volume it lies in")
    clusters = (sectors - data) // per_cluster
    bits = 32 if is_32 else 16 if clusters > _MAX_CLUSTERS[12] else 12
    if not is_32 and not root_entries:
        raise UncertainMapError("the FAT boot sector makes no sense")
    if not 0 < clusters <= _MAX_CLUSTERS[bits] or table * sector * 8 < (clusters + 2) * bits:
        raise UncertainMapError("the FAT is too short for its clusters")
    if table * sector > 2 * (clusters + 2) * bits // 8 + _SPARE:
        raise UncertainMapError("the FAT is far longer than its clusters need")
    if is_32 and not (2 <= root_cluster < clusters + 2 and 0 < info < reserved):
        raise UncertainMapError("the FAT32 boot sector makes no sense")
    return _Geometry(
        bits=bits,
        sector=sector,
        cluster=per_cluster * sector,
        table_offset=reserved * sector,
        table_length=table * sector,
        data_offset=data * sector,
        clusters=clusters,
        media=media,
        root_length=root_entries * _ENTRY,
        root_cluster=root_cluster if is_32 else None,
        info_offset=info * sector if is_32 else None,
        backup_offset=backup * sector if is_32 and 0 < backup < reserved else None,
    )


def _entries(table: bytes, geometry: _Geometry) -> NDArray[np.uint32]:
    """Return the table's entries, the two reserved ones included."""
    count = geometry.clusters + 2
    if geometry.bits == 12:
        raw = np.frombuffer(table[: -(-count * 3 // 2)] + b"\0\0", dtype=np.uint8).astype(np.uint32)
        index = np.arange(count)
        position = index * 3 // 2
        pair = raw[position] | raw[position + 1] << 8
        return np.where(index & 1, pair >> 4, pair & 0xFFF).astype(np.uint32)
    dtype = "<u2" if geometry.bits == 16 else "<u4"
    found = np.frombuffer(table, dtype=dtype, count=count).astype(np.uint32)
    return found & np.uint32(_MASK[geometry.bits])


def _check(entries: NDArray[np.uint32], geometry: _Geometry) -> None:
    mask = _MASK[geometry.bits]
    if int(entries[0]) != (mask & ~0xFF) | geometry.media:
        raise UncertainMapError("the FAT does not begin as it must")
    clean = _CLEAN_BITS.get(geometry.bits, 0)
    if int(entries[1]) & clean != clean:
        raise UncertainMapError("it was not unmounted cleanly")
    if geometry.root_cluster is not None and not entries[geometry.root_cluster]:
        raise UncertainMapError("the FAT says that its root directory is free")
    # From mask - 8 on: a bad cluster, or the end of a chain.
    links = entries[2:][(entries[2:] != 0) & (entries[2:] < mask - 8)]
    if links.size and (int(links.min()) < 2 or int(links.max()) >= entries.size):
        raise UncertainMapError("the FAT links to a cluster that does not exist")
    if np.any(entries[links] == 0):
        raise UncertainMapError("the FAT links to a free cluster")
    if np.unique(links).size != links.size:
        raise UncertainMapError("the FAT links to one cluster twice")


def _check_directories(
    fd: int, offset: int, entries: NDArray[np.uint32], geometry: _Geometry
) -> int:
    def read_cluster(number: int) -> bytes:
        position = offset + geometry.data_offset + (number - 2) * geometry.cluster
        return blockdev.read_at(fd, position, geometry.cluster)

    root: bytes | int
    if geometry.root_cluster is None:
        start = offset + geometry.data_offset - geometry.root_length
        root = blockdev.read_at(fd, start, geometry.root_length)
    else:
        root = geometry.root_cluster
    # The mark of a bad cluster can't be part of a chain: it ends it as well.
    return check_directories(root, entries, _MASK[geometry.bits] - 8, read_cluster)


def _has_backup(fd: int, offset: int, boot: bytes, geometry: _Geometry) -> bool:
    """Whether a backup of the boot sector says the same about where things lie."""
    if not geometry.backup_offset:
        return False
    backup = blockdev.read_at(fd, offset + geometry.backup_offset, 512)
    layout = slice(_BOOT_OFFSET, _BOOT_32_OFFSET + _BOOT_32.size)
    return boot[layout] == backup[layout]


def _check_count(info: bytes, free: int) -> None:
    if info[:4] != b"RRaA" or info[484:488] != b"rrAa" or info[508:] != b"\0\0\x55\xaa":
        raise UncertainMapError("the FAT32 information sector is damaged")
    (stated,) = struct.unpack_from("<I", info, 488)
    if stated not in {free, _UNKNOWN_FREE}:
        raise UncertainMapError("the FAT and the information sector disagree about free clusters")


def _ranges(is_used: NDArray[np.bool_], geometry: _Geometry, length: int) -> NDArray[np.uint64]:
    first, last = set_ranges(is_used)
    starts = geometry.data_offset + first * geometry.cluster
    ends = geometry.data_offset + last * geometry.cluster
    behind = geometry.data_offset + geometry.clusters * geometry.cluster
    return merged(
        np.concatenate([[0], starts, [behind]]),
        np.concatenate([[geometry.data_offset], ends, [length]]),
    )
