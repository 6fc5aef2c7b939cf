"""Free space within block groups of btrfs, as two trees tell it."""

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager.extents.btrfs_tree import Leaf, Root, TreeReader
from imager.extents.extents import UncertainMapError, set_ranges

_EXTENT: Final = 168
_TREE_BLOCK: Final = 169
_BLOCK_GROUP: Final = 192
_FREE_SPACE_INFO: Final = 198
_FREE_SPACE_EXTENT: Final = 199
_FREE_SPACE_BITMAP: Final = 200
_GROUP: Final = struct.Struct("<QQQ")  # used, objectid, flags
_INFO: Final = struct.Struct("<II")  # number of free extents, flags

Ranges = tuple[NDArray[np.int64], NDArray[np.int64]]
_NOTHING: Final = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class BlockGroups:
    """All block groups, sorted.

    Attributes:
        starts: first logical address of each.
        ends: the address after its last one.
        used: bytes, as each counts them.
        kinds: flags.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    used: NDArray[np.int64]
    kinds: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ExtentTree:
    """What the extent tree says.

    Attributes:
        starts: of each extent, data or tree block; sorted.
        ends: of it.
        groups: block groups in the tree; empty when they have a tree of their own.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    groups: BlockGroups


def read_extents(reader: TreeReader, root: Root, node: int) -> ExtentTree:
    """Read all extents, and the block groups between them.

    Args:
        reader: of trees.
        root: of the extent tree, or of the tree of block groups.
        node: bytes of a tree block.

    Raises:
        UncertainMapError: the tree is damaged.
    """
    starts, ends = [_NOTHING], [_NOTHING]
    groups: list[tuple[int, int, int, int]] = []
    for leaf in reader.leaves(root):
        items = leaf.items
        is_extent, is_block = items["type"] == _EXTENT, items["type"] == _TREE_BLOCK
        found = items[is_extent | is_block]
        lengths = np.where(found["type"] == _EXTENT, found["offset"], node).astype(np.int64)
        begins = found["object"].astype(np.int64)
        starts.append(begins)
        ends.append(begins + lengths)
        groups += [_group(leaf, item) for item in items[items["type"] == _BLOCK_GROUP]]
    table = np.array(groups, dtype=np.int64).reshape(-1, 4)
    return ExtentTree(np.concatenate(starts), np.concatenate(ends), BlockGroups(*table.T))


def containing(
    group_starts: NDArray[np.int64],
    group_ends: NDArray[np.int64],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return which of the sorted groups each range lies in.

    Raises:
        UncertainMapError: one lies in none.
    """
    index = np.searchsorted(group_starts, starts, side="right") - 1
    if starts.size and (np.any(index < 0) or np.any(ends > group_ends[index])):
        raise UncertainMapError("there is an extent that no block group holds")
    return index


def _group(leaf: Leaf, item: np.void) -> tuple[int, int, int, int]:
    data = leaf.content(item)
    if len(data) != _GROUP.size:
        raise UncertainMapError("a block group makes no sense")
    used, _, kind = _GROUP.unpack(data)
    start, end = int(item["object"]), int(item["object"]) + int(item["offset"])
    if max(end, used, kind) >= 1 << 63:
        raise UncertainMapError("a block group makes no sense")
    return start, end, used, kind


def free_between(extents: ExtentTree, groups: BlockGroups) -> Ranges:
    """Return what of the block groups no extent takes.

    Raises:
        UncertainMapError: extents overlap, lie in no group, or add up to other than it counts.
    """
    starts, ends = extents.starts, extents.ends
    index = containing(groups.starts, groups.ends, starts, ends)
    totals = np.zeros(groups.starts.size, dtype=np.int64)
    np.add.at(totals, index, ends - starts)
    if not np.array_equal(totals, groups.used):
        raise UncertainMapError("extents and block groups disagree about the used bytes")
    # Each free range begins with a group or behind an extent, and ends with or before one.
    begins = np.sort(np.concatenate([groups.starts, ends]))
    finishes = np.sort(np.concatenate([starts, groups.ends]))
    edges = np.column_stack([begins, finishes]).reshape(-1)
    if np.any(np.diff(edges) < 0):
        raise UncertainMapError("extents overlap")
    is_free = finishes > begins
    return begins[is_free], finishes[is_free]


def read_free_space(reader: TreeReader, root: Root, groups: BlockGroups, sector: int) -> Ranges:
    """Return what the free space tree says is free in the block groups.

    Raises:
        UncertainMapError: it is damaged, or does not have every group once.
    """
    starts, ends = [_NOTHING], [_NOTHING]
    described: list[tuple[int, int, int]] = []
    for leaf in reader.leaves(root):
        items = leaf.items
        for item in items[items["type"] == _FREE_SPACE_INFO]:
            data = leaf.content(item)
            if len(data) != _INFO.size:
                raise UncertainMapError("the free space tree makes no sense")
            start, end = int(item["object"]), int(item["object"]) + int(item["offset"])
            if end >= 1 << 63:
                raise UncertainMapError("the free space tree makes no sense")
            described.append((start, end, _INFO.unpack(data)[0]))
        found = items[items["type"] == _FREE_SPACE_EXTENT]
        begins = found["object"].astype(np.int64)
        starts.append(begins)
        ends.append(begins + found["offset"].astype(np.int64))
        for item in items[items["type"] == _FREE_SPACE_BITMAP]:
            begins, finishes = _runs(leaf, item, sector)
            starts.append(begins)
            ends.append(finishes)
    bounds = np.array(described, dtype=np.int64).reshape(-1, 3)
    begins, finishes = bounds[:, 0], bounds[:, 1]
    if np.any(begins[1:] < finishes[:-1]):
        raise UncertainMapError("the free space tree makes no sense")
    free = _joined(np.concatenate(starts), np.concatenate(ends), begins)
    index = containing(begins, finishes, *free)
    if not np.array_equal(np.bincount(index, minlength=begins.size), bounds[:, 2]):
        raise UncertainMapError("the free space tree and its counts disagree")
    # mkfs.btrfs leaves groups behind that it made for a moment; the kernel ignores them as well.
    exists = np.isin(begins, groups.starts)
    if not np.array_equal(bounds[exists, :2], np.column_stack([groups.starts, groups.ends])):
        raise UncertainMapError("the free space tree does not describe every block group")
    is_kept = exists[index]
    return free[0][is_kept], free[1][is_kept]


def _runs(leaf: Leaf, item: np.void, sector: int) -> Ranges:
    """Return the free ranges of a bitmap."""
    start, length = int(item["object"]), int(item["offset"])
    data = leaf.content(item)
    count = length // sector
    if length % sector or len(data) != -(-count // 8):
        raise UncertainMapError("the free space tree makes no sense")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[:count]
    begins, finishes = set_ranges(bits)
    return start + begins * sector, start + finishes * sector


def _joined(
    starts: NDArray[np.int64], ends: NDArray[np.int64], borders: NDArray[np.int64]
) -> Ranges:
    """Join runs that go on in the next bitmap; never over the border of a group."""
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], ends[order]
    if np.any(starts[1:] < ends[:-1]):
        raise UncertainMapError("ranges in the free space tree overlap")
    goes_on = (starts[1:] == ends[:-1]) & ~np.isin(starts[1:], borders)
    return starts[np.append(True, ~goes_on)[: starts.size]], ends[
        np.append(~goes_on, True)[: ends.size]
    ]
