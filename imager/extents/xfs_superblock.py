"""The superblock of XFS: where things lie, and whether all of it is known here."""

import struct
from dataclasses import dataclass
from typing import Final

from imager import blockdev
from imager.extents.checksum import crc32c_without
from imager.extents.extents import UncertainMapError

_MAGIC: Final = b"XFSB"
_SIZE: Final = 264
_CRC: Final = 224
_CHECKED: Final = 512  # bytes that a superblock's checksum covers at least: a sector
# magic, block size, blocks, realtime blocks, realtime extents, UUID, log start, root inode, two
# realtime inodes, realtime extent size, blocks in a group, groups, realtime bitmap blocks, log
# blocks, version, sector size, inode size, inodes in a block, name, logarithms of the block,
# sector, inode, inodes in a block and group size, of the realtime extent size, in progress
_HEAD: Final = struct.Struct(">4sIQQQ16sQQQQIIIIIHHHH12s7B")
_COUNTS: Final = struct.Struct(">QQQ")  # inodes, free inodes, free blocks
_COUNTS_AT: Final = 128
_FEATURES_2_AT: Final = 200
_FEATURES: Final = struct.Struct(">4I")
_FEATURES_AT: Final = 208
_UUID_AT: Final = 32
_META_UUID_AT: Final = 248

# Attributes, link counts, quota, aligned inodes, alignment, log version 2, sector size, unwritten
# extents, directories version 2, names without regard to case, more bits
_VERSION_4: Final = (
    0x10 | 0x20 | 0x40 | 0x80 | 0x100 | 0x400 | 0x800 | 0x1000 | 0x2000 | 0x4000 | 0x8000
)
_MORE_BITS: Final = 0x8000
# Lazy counts, attributes version 2, project ids of 32 bits, checksums, file types
_FEATURES_2: Final = 0x2 | 0x8 | 0x80 | 0x100 | 0x200
_RMAP: Final = 0x2
# Free inode tree, reverse mapping, reflinks, counts of inode tree blocks
_READ_ONLY: Final = 0x1 | _RMAP | 0x4 | 0x8
# File types, sparse inodes, UUID of metadata, times after 2038, large extent counts, exchange of
# ranges, parent pointers
_SPARSE: Final = 0x2
_META_UUID: Final = 0x4
_NEEDS_REPAIR: Final = 0x10
_INCOMPATIBLE: Final = 0x1 | _SPARSE | _META_UUID | 0x8 | 0x20 | 0x40 | 0x80


@dataclass(frozen=True, slots=True)
class Geometry:
    """What the primary superblock says.

    Attributes:
        is_v5: metadata carries checksums, its owner and its place.
        uuid: that metadata carries (version 5).
        block: bytes.
        sector: bytes.
        blocks: of the whole filesystem.
        group_blocks: of every allocation group but the last, which may be shorter.
        groups: allocation groups.
        log: group, first block in it, and number of blocks of the log.
        inodes_log: two to this power inodes are in a block.
        has_rmap: every group has a tree that names the owner of each used block.
        has_sparse_inodes: a chunk of inodes may have holes.
        inodes: allocated.
        free_blocks: as the counters say.
    """

    is_v5: bool
    uuid: bytes
    block: int
    sector: int
    blocks: int
    group_blocks: int
    groups: int
    log: tuple[int, int, int]
    inodes_log: int
    has_rmap: bool
    has_sparse_inodes: bool
    inodes: int
    free_blocks: int

    def blocks_of(self, group: int) -> int:
        """Return how many blocks an allocation group has."""
        return min(self.group_blocks, self.blocks - group * self.group_blocks)


def read_geometry(fd: int, offset: int, length: int) -> Geometry:
    """Read the primary superblock.

    Raises:
        UncertainMapError: it is damaged, or has a state, feature or device that isn't known here.
    """
    if length < _CHECKED:
        raise UncertainMapError("the volume is too small for an XFS filesystem")
    data = blockdev.read_at(fd, offset, _CHECKED)
    (
        magic, block, blocks, realtime_blocks, realtime_extents, _uuid, log_start, _root_inode,
        _, _, _, group_blocks, groups, _, log_blocks, version, sector, inode_size, per_block, _,
        block_log, sector_log, inode_log, per_block_log, group_log, _, in_progress,
    ) = _HEAD.unpack_from(data)  # fmt: skip
    if magic != _MAGIC:
        raise UncertainMapError("the XFS superblock makes no sense")
    sound = (
        9 <= block_log <= 16
        and block == 1 << block_log
        and 9 <= sector_log <= 15
        and sector == 1 << sector_log
        and 8 <= inode_log <= 11
        and inode_size == 1 << inode_log
        and per_block == 1 << per_block_log == block // inode_size
        and 0 < group_blocks <= 1 << group_log <= 1 << 31
        and groups == -(-blocks // group_blocks)
        and not in_progress
    )
    if not sound:
        raise UncertainMapError("the XFS superblock makes no sense")
    is_v5 = version & 0xF == 5
    _check_features(data, version, is_v5=is_v5)
    if is_v5:
        sectors = blockdev.read_at(fd, offset, sector)
        (stated,) = struct.unpack_from("<I", sectors, _CRC)
        if crc32c_without(sectors, _CRC) != stated:
            raise UncertainMapError("the XFS superblock has a wrong checksum")
    if blocks * block > length:
        raise UncertainMapError("the filesystem is larger than the volume it lies in")
    if not log_start:
        raise UncertainMapError("its log lies on another device")
    if realtime_blocks or realtime_extents:
        raise UncertainMapError("it has a realtime device")
    _, read_only, incompatible, _ = _FEATURES.unpack_from(data, _FEATURES_AT)
    inodes, _, free_blocks = _COUNTS.unpack_from(data, _COUNTS_AT)
    uuid_at = _META_UUID_AT if is_v5 and incompatible & _META_UUID else _UUID_AT
    return Geometry(
        is_v5=is_v5,
        uuid=data[uuid_at : uuid_at + 16],
        block=block,
        sector=sector,
        blocks=blocks,
        group_blocks=group_blocks,
        groups=groups,
        log=(log_start >> group_log, log_start & (1 << group_log) - 1, log_blocks),
        inodes_log=per_block_log,
        has_rmap=bool(is_v5 and read_only & _RMAP),
        has_sparse_inodes=bool(is_v5 and incompatible & _SPARSE),
        inodes=inodes,
        free_blocks=free_blocks,
    )


def check_copy(data: bytes, primary: bytes) -> None:
    """Check that the superblock of another group tells of the same filesystem.

    Counts, and the size after a growth that was stopped, may be older there.

    Raises:
        UncertainMapError: it does not.
    """
    ours, theirs = _HEAD.unpack_from(primary), _HEAD.unpack_from(data)
    # Magic, block size, log start, blocks in a group, log blocks, sector and inode size
    if any(ours[index] != theirs[index] for index in (0, 1, 6, 11, 14, 16, 17)):
        raise UncertainMapError("the superblocks of the allocation groups disagree")


def _check_features(data: bytes, version: int, *, is_v5: bool) -> None:
    """Refuse what may change the meaning of the free space trees."""
    (features_2,) = struct.unpack_from(">I", data, _FEATURES_2_AT)
    compatible, read_only, incompatible, in_log = _FEATURES.unpack_from(data, _FEATURES_AT)
    if version & 0xF not in {4, 5}:
        raise UncertainMapError(f"it has version {version & 0xF}, which is not known here")
    if is_v5 and incompatible & _NEEDS_REPAIR:
        raise UncertainMapError("it is marked as in need of a repair")
    unknown = [version & ~0xF & ~_VERSION_4]
    if version & _MORE_BITS or is_v5:
        unknown.append(features_2 & ~_FEATURES_2)
    if is_v5:
        unknown += [compatible, read_only & ~_READ_ONLY, incompatible & ~_INCOMPATIBLE, in_log]
    if any(unknown):
        raise UncertainMapError(
            "it has features that are not known here: " + " ".join(f"{bits:#x}" for bits in unknown)
        )
