"""The B+trees of an XFS allocation group, whose blocks point to each other by 32-bit numbers."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager.extents.checksum import crc32c_without
from imager.extents.extents import UncertainMapError
from imager.extents.xfs_superblock import Geometry

_HEAD: Final = struct.Struct(">4sHHII")  # magic, level, records, left and right neighbour
_HEAD_V5: Final = struct.Struct(">QQ16sI")  # place in units of 512 bytes, LSN, UUID, group
_CRC_AT: Final = 52
_HEAD_SIZE: Final = {False: 16, True: 56}
_POINTER: Final = 4
_NONE: Final = 0xFFFF_FFFF
_MAX_LEVELS: Final = 12
_SECTOR_UNIT: Final = 512


@dataclass(frozen=True, slots=True)
class TreeKind:
    """One kind of tree.

    Attributes:
        name: for people.
        magic: of its blocks, before version 5 and from it on; None where there was none.
        record: of its leaves.
        key_size: bytes for each child in a block above.
    """

    name: str
    magic: dict[bool, bytes]
    record: np.dtype[np.void]
    key_size: int


BY_BLOCK: Final = TreeKind(
    "free space by block",
    {False: b"ABTB", True: b"AB3B"},
    np.dtype([("start", ">u4"), ("count", ">u4")]),
    8,
)
BY_COUNT: Final = TreeKind(
    "free space by size", {False: b"ABTC", True: b"AB3C"}, BY_BLOCK.record, 8
)
INODES: Final = TreeKind(
    "inodes",
    {False: b"IABT", True: b"IAB3"},
    # With sparse inodes "free" is a mask of holes, a number of inodes and one of free ones.
    np.dtype(
        [("start", ">u4"), ("holes", ">u2"), ("count", "u1"), ("free", "u1"), ("mask", ">u8")]
    ),
    4,
)
OWNERS: Final = TreeKind(
    "owners of blocks",
    {True: b"RMB3"},
    np.dtype([("start", ">u4"), ("count", ">u4"), ("owner", ">u8"), ("offset", ">u8")]),
    40,
)


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree that was read.

    Attributes:
        records: of all leaves, in the order of the tree.
        blocks: where the tree itself lies, in the group.
    """

    records: NDArray[np.void]
    blocks: NDArray[np.int64]


def read_tree(
    kind: TreeKind,
    root: int,
    levels: int,
    group: int,
    geometry: Geometry,
    read_block: Callable[[int], bytes],
) -> Tree:
    """Read a whole tree; every block must be of this tree and in its right place in it.

    Args:
        kind: of tree.
        root: its uppermost block, in the group.
        levels: how many there are, leaves included.
        group: the allocation group.
        geometry: of the filesystem.
        read_block: returns a block of the group.

    Raises:
        UncertainMapError: it is damaged.
    """
    if not 0 < levels <= _MAX_LEVELS:
        raise UncertainMapError(f"{_tree(kind, group)} makes no sense")
    head_size = _HEAD_SIZE[geometry.is_v5]
    room = geometry.block - head_size
    seen: list[int] = []
    row = [root]
    for level in range(levels - 1, -1, -1):
        if len(seen) + len(row) > geometry.blocks_of(group):
            raise UncertainMapError(f"{_tree(kind, group)} is entangled")
        seen += row
        parts = []
        below: list[int] = []
        for index, number in enumerate(row):
            left = row[index - 1] if index else _NONE
            right = row[index + 1] if index + 1 < len(row) else _NONE
            if not 0 < number < geometry.blocks_of(group):
                raise UncertainMapError(f"{_tree(kind, group)} leads out of its group")
            data = read_block(number)
            count = _check(data, kind, number, group, geometry, level, (left, right))
            size = kind.record.itemsize if level == 0 else kind.key_size + _POINTER
            if count > room // size or (count == 0 and levels > 1):
                raise UncertainMapError(f"{_tree(kind, group)} makes no sense")
            if level == 0:
                parts.append(np.frombuffer(data, kind.record, count, head_size))
            else:
                start = head_size + room // size * kind.key_size
                below += np.frombuffer(data, ">u4", count, start).tolist()
        row = below
    if len(set(seen)) != len(seen):
        raise UncertainMapError(f"{_tree(kind, group)} is entangled")
    return Tree(np.concatenate(parts), np.array(seen, dtype=np.int64))


def _check(
    data: bytes,
    kind: TreeKind,
    number: int,
    group: int,
    geometry: Geometry,
    level: int,
    neighbours: tuple[int, int],
) -> int:
    """Return how many records a block has; it must be the one that is looked for."""
    magic, found_level, count, left, right = _HEAD.unpack_from(data)
    expected = kind.magic.get(geometry.is_v5), level, *neighbours
    if (magic, found_level, left, right) != expected:
        raise UncertainMapError(f"{_tree(kind, group)} is damaged")
    if geometry.is_v5:
        place, _, uuid, owner = _HEAD_V5.unpack_from(data, _HEAD.size)
        (stated,) = struct.unpack_from("<I", data, _CRC_AT)
        block = group * geometry.group_blocks + number
        if (place * _SECTOR_UNIT, uuid, owner) != (block * geometry.block, geometry.uuid, group):
            raise UncertainMapError(f"{_tree(kind, group)} holds a block of another place")
        if crc32c_without(data, _CRC_AT) != stated:
            raise UncertainMapError(f"a block in {_tree(kind, group)} has a wrong checksum")
    return int(count)


def _tree(kind: TreeKind, group: int) -> str:
    return f"the tree of {kind.name} of group {group}"
