"""What the superblock of an XFS says, for who asks how small it can become and what it asks a disk for.

The layout is that of the kernel, fs/xfs/libxfs/xfs_format.h, `struct xfs_dsb`, big-endian.
"""

import struct
from dataclasses import dataclass
from typing import Final, Self

from imager.units import MIB

SIZE: Final = 512
# mkfs.xfs makes none that is smaller.
LEAST: Final = 300 * MIB

# Magic, bytes of a block, blocks of the data and of the realtime device.
_SIZES: Final = struct.Struct(">4sIQQ")
_LOG_AT: Final = 48  # first block of an internal log, else 0; 64 bits
_SECTOR_AT: Final = 102  # bytes of a sector
_FREE_AT: Final = 144  # free blocks, 64 bits
_QUOTA_AT: Final = 176  # what quotas it has
_LOG_SECTOR_AT: Final = 194  # bytes of a sector of the log, 0 where it is the same
_MAGIC: Final = b"XFSB"


@dataclass(frozen=True, slots=True)
class XfsSuperblock:
    """Counts of a filesystem.

    Attributes:
        used: bytes that are not free, its log among them.
        sector: the least bytes that it reads and writes.
        is_sound: it is one; without that the others mean nothing.
        is_plain: all of it is on one device, and it has no quotas, which are no files.
    """

    used: int
    sector: int
    is_sound: bool
    is_plain: bool

    @classmethod
    def parse(cls, data: bytes | bytearray) -> Self:
        """Return what a superblock says, `SIZE` bytes."""
        magic, block, blocks, realtime = _SIZES.unpack_from(data)
        (log,) = struct.unpack_from(">Q", data, _LOG_AT)
        (free,) = struct.unpack_from(">Q", data, _FREE_AT)
        (quotas,) = struct.unpack_from(">H", data, _QUOTA_AT)
        sectors = [struct.unpack_from(">H", data, at)[0] for at in (_SECTOR_AT, _LOG_SECTOR_AT)]
        return cls(
            used=(blocks - free) * block,
            sector=min((each for each in sectors if each), default=0),
            is_sound=magic == _MAGIC and free <= blocks and bool(sectors[0]),
            is_plain=bool(log) and not realtime and not quotas,
        )
