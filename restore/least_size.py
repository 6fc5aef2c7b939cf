"""How small a saved filesystem may be made: what it uses, and room to move that.

The bound is a promise to whoever shrinks: with that many bytes it succeeds. What is used is what the
map of the image has, data and zeros. It holds the metadata of the whole filesystem, of which a
smaller one needs less, and its journal. On top come:

- a twentieth of what is used: trees of extents grow when files are cut into more pieces, and what is
  moved is never packed without a gap;
- a two-hundredth of the saved size: resize2fs itself reserves a five-hundredth of what is taken away
  for trees of extents; ntfsresize and btrfs ask for less;
- 32 MiB: inode tables of a group of groups (ext4), the MFT's next piece (NTFS);
- btrfs: three of its largest chunks, since it moves chunk by chunk, each into a new one;
- ext: as many groups of blocks as the inodes in use need, since their number goes with the size;
- XFS, which is made anew: at least what mkfs.xfs makes.

Where the map is that of an unknown or unclean filesystem, all of it is used, and nothing can go.
"""

from typing import Final

from imager.layout.disk import Volume
from imager.units import GIB, KIB, MIB, round_up
from restore import ext_superblock, xfs_superblock
from restore.ext_superblock import ExtSuperblock
from restore.overlay import Readable
from restore.runs import Image, each_part
from restore.saved_volume import SavedVolume
from restore.xfs_superblock import XfsSuperblock

LEAST_SWAP: Final = 256 * MIB

_XFS: Final = "xfs"
_NEVER: Final = 1 << 62  # larger than anything
_SLACK: Final = 32 * MIB
_BTRFS_SLACK: Final = 256 * MIB
_BTRFS_USED: Final = 64 * KIB + 120  # of its superblock: bytes in use


def least_size(image: Image, volume: Volume) -> int:
    """Return a length in bytes that a volume can be shrunk to; its own where nothing can go.

    Args:
        image: its map of the volume is read, and of ext the superblock.
        volume: a filesystem that can be shrunk, or swap.

    Raises:
        ObjectDamaged, ObjectMissing: the repository can't give what the image names.
        LinkError: it can't be reached.
    """
    kind = volume.filesystem.type if volume.filesystem is not None else ""
    if kind == "swap":
        return min(volume.length, LEAST_SWAP)
    used = sum(runs.data + int(runs.zeros[:, 1].sum()) for runs in each_part(image, volume))
    least = _with_room(kind, used, volume.length)
    if kind in ext_superblock.TYPES:
        data = SavedVolume(image, volume.id).read(ext_superblock.PLACE, ext_superblock.SIZE)
        least = max(least, _room_for_inodes(ExtSuperblock.parse(data)))
    elif kind == _XFS:
        superblock = XfsSuperblock.parse(SavedVolume(image, volume.id).read(0, xfs_superblock.SIZE))
        least = max(least, _least_xfs(superblock))
    return min(volume.length, round_up(least, MIB))


def least_within(kind: str, part: Readable) -> int:
    """Return a length in bytes that a part of a volume can be shrunk to; its own where nothing can go.

    Of a logical volume the map of an image has all, whatever it holds. So here the filesystem's own
    counts are believed. They may be behind the truth where it was not unmounted or frozen, and btrfs
    counts what is there twice once; that is a reason to ask its program before anything is written,
    as is done, and none to keep it whole.

    Args:
        kind: as libblkid calls what it holds; swap, ext2 to ext4, XFS and btrfs on one device can
            shrink.
        part: all of it.

    Raises:
        ObjectDamaged, ObjectMissing: the repository can't give what the image names.
        LinkError: it can't be reached.
    """
    if kind == "swap":
        return min(part.size, LEAST_SWAP)
    if kind in ext_superblock.TYPES:
        superblock = ExtSuperblock.parse(part.read(ext_superblock.PLACE, ext_superblock.SIZE))
        used = superblock.used_blocks * superblock.block_size if superblock.is_sound else part.size
        least = max(_with_room(kind, used, part.size), _room_for_inodes(superblock))
    elif kind == _XFS:
        plain = XfsSuperblock.parse(part.read(0, xfs_superblock.SIZE))
        least = max(_with_room(kind, plain.used, part.size), _least_xfs(plain))
    elif kind == "btrfs":
        used = int.from_bytes(part.read(_BTRFS_USED, 8), "little")
        least = _with_room(kind, used + used // 8, part.size)
    else:
        return part.size
    return min(part.size, round_up(least, MIB))


def _with_room(kind: str, used: int, length: int) -> int:
    least = used + used // 20 + length // 200 + _SLACK
    if kind == "btrfs":
        least += 3 * min(GIB, length // 10) + _BTRFS_SLACK
    return least


def _least_xfs(superblock: XfsSuperblock) -> int:
    """Return the least that one is made with; one that can't be understood, or filled, is kept."""
    return xfs_superblock.LEAST if superblock.is_sound and superblock.is_plain else _NEVER


def _room_for_inodes(superblock: ExtSuperblock) -> int:
    """Return how large an ext filesystem is whose groups have the inodes in use, and a few more.

    One that can't be understood, or that has its journal on another device, can't be made smaller.
    """
    if not superblock.is_sound or not superblock.is_movable:
        return _NEVER
    return superblock.room_for(superblock.used_inodes * 21 // 20)
