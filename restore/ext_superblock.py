"""What the superblock of an ext2, ext3 or ext4 counts, for who asks how small it can become.

The layout is that of the kernel, fs/ext4/ext4.h, `struct ext4_super_block`.
"""

import struct
from dataclasses import dataclass
from typing import Final, Self

from imager.units import KIB

TYPES: Final = frozenset({"ext2", "ext3", "ext4"})  # as libblkid calls them
PLACE: Final = 1024  # first byte of it in a filesystem
SIZE: Final = 1024

# Inodes, blocks, reserved and free blocks, free inodes, the first block, how often 1 KiB is doubled
# to make a block; from byte 32 blocks, clusters and inodes of a group.
_COUNTS: Final = struct.Struct("<7I")
_GROUPS: Final = struct.Struct("<3I")
_GROUPS_AT: Final = 32
_MAGIC: Final = 0xEF53
_LARGEST_SHIFT: Final = 6
_META_BG: Final = 0x10
_64BIT: Final = 0x80


@dataclass(frozen=True, slots=True)
class ExtSuperblock:
    """Counts of a filesystem.

    Attributes:
        used_inodes: how many are in use.
        used_blocks: likewise, those of metadata included.
        blocks_per_group: of each group but the last.
        inodes_per_group: of each.
        shift: how often 1 KiB is doubled to make a block.
        is_sound: magic and counts are such as a filesystem has; without that the others mean nothing.
        is_movable: it has its journal within, and describes its groups where resize2fs moves them.
    """

    used_inodes: int
    used_blocks: int
    blocks_per_group: int
    inodes_per_group: int
    shift: int
    is_sound: bool
    is_movable: bool

    @classmethod
    def parse(cls, data: bytes | bytearray) -> Self:
        """Return the counts in a superblock, `SIZE` bytes."""
        inodes, blocks, _, free_blocks, free_inodes, _, shift = _COUNTS.unpack_from(data)
        per_group, _, inodes_per_group = _GROUPS.unpack_from(data, _GROUPS_AT)
        (magic,) = struct.unpack_from("<H", data, 56)
        (incompatible,) = struct.unpack_from("<I", data, 96)
        (journal_device,) = struct.unpack_from("<I", data, 228)
        if incompatible & _64BIT:
            blocks |= struct.unpack_from("<I", data, 336)[0] << 32
            free_blocks |= struct.unpack_from("<I", data, 344)[0] << 32
        return cls(
            used_inodes=inodes - free_inodes,
            used_blocks=blocks - free_blocks,
            blocks_per_group=per_group,
            inodes_per_group=inodes_per_group,
            shift=shift,
            is_sound=bool(
                magic == _MAGIC and shift <= _LARGEST_SHIFT and per_group and inodes_per_group
            ),
            is_movable=not journal_device and not incompatible & _META_BG,
        )

    @property
    def block_size(self) -> int:
        """Bytes of a block."""
        return KIB << self.shift

    def room_for(self, inodes: int) -> int:
        """Return bytes of as many whole groups as have so many inodes."""
        groups = -(-inodes // self.inodes_per_group)
        return groups * self.blocks_per_group * self.block_size
