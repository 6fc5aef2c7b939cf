"""XFS: free blocks as both free space trees of each allocation group tell them.

They are read here, block by block, and count only if

- the superblock knows no feature that may change their meaning, has neither another device for
  its log nor a realtime device, and the log ends with an unmount;
- each block of metadata is of the kind, place and filesystem it should be, and its checksum is
  right (version 5);
- the tree by block and the tree by size tell of the same ranges; these add up to the counts in
  the group's header, and all together to the count in the superblock;
- neither the trees, nor the free list, nor the log, nor any inode lies in a free block;
- what has an owner is exactly what is not free, where the filesystem records owners (rmapbt).
"""

import numpy as np

from imager.extents.extents import Extents, UncertainMapError, complement
from imager.extents.xfs_group import read_group
from imager.extents.xfs_log import check_clean
from imager.extents.xfs_superblock import Geometry, read_geometry


def read(fd: int, offset: int, length: int) -> Extents:
    """Return all blocks that are not free, and what lies behind the filesystem.

    Raises:
        UncertainMapError: the map can't be relied on.
    """
    geometry = read_geometry(fd, offset, length)
    _check_log(fd, offset, geometry)
    groups = [read_group(fd, offset, geometry, number) for number in range(geometry.groups)]
    if sum(group.counted_free for group in groups) != geometry.free_blocks:
        raise UncertainMapError("allocation groups and superblock disagree about the free blocks")
    if sum(group.inodes for group in groups) != geometry.inodes:
        raise UncertainMapError("allocation groups and superblock disagree about the inodes")
    size = geometry.block
    starts = np.concatenate([group.free_starts for group in groups]) * size
    ends = np.concatenate([group.free_ends for group in groups]) * size
    return Extents(complement(starts, ends, length), "XFS free space trees", None, size)


def _check_log(fd: int, offset: int, geometry: Geometry) -> None:
    group, first, blocks = geometry.log
    if group >= geometry.groups or blocks < 1 or first + blocks > geometry.blocks_of(group):
        raise UncertainMapError("the log of the filesystem lies nowhere")
    start = (group * geometry.group_blocks + first) * geometry.block
    check_clean(fd, offset + start, blocks * geometry.block)
