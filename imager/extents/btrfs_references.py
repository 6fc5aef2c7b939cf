"""What the trees of a btrfs refer to: a second opinion where there is no free space tree."""

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager.extents.btrfs_space import Ranges
from imager.extents.btrfs_tree import Leaf, Root, TreeReader
from imager.extents.extents import UncertainMapError

_FILE_EXTENT: Final = 108
_KIND_AT: Final = 20
_EXTENT_AT: Final = 21
_LENGTH_AT: Final = 29
_SIZE: Final = 53
_INLINE: Final = 0
_KINDS: Final = 2  # inline, regular, reserved


def read_references(reader: TreeReader, roots: Iterable[Root]) -> Ranges:
    """Return the extents that any file refers to, in any order; the reader keeps the tree blocks.

    All metadata is read for it. Subvolumes that are being cleared away are left out: some of what
    they refer to may be free.

    Raises:
        UncertainMapError: a tree is damaged.
    """
    starts = [np.empty(0, dtype=np.int64)]
    ends = [np.empty(0, dtype=np.int64)]
    for leaf in reader.leaves_of_all(root for root in roots if root.block and not root.is_deleted):
        items = leaf.items[leaf.items["type"] == _FILE_EXTENT]
        if items.size:
            begins, lengths = _extents(leaf, items)
            starts.append(begins)
            ends.append(begins + lengths)
    return np.concatenate(starts), np.concatenate(ends)


def _extents(leaf: Leaf, items: NDArray[np.void]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    data = np.frombuffer(leaf.data, np.uint8)
    if np.any(items["size"] <= _KIND_AT):
        raise UncertainMapError("a file's extent makes no sense")
    kinds = data[leaf.starts(items) + _KIND_AT]
    kept = items[kinds != _INLINE]
    if np.any(kinds > _KINDS) or np.any(kept["size"] != _SIZE):
        raise UncertainMapError("a file's extent makes no sense")
    places = leaf.starts(kept)[:, None] + np.arange(8)
    begins = data[places + _EXTENT_AT].view("<u8").reshape(-1)
    lengths = data[places + _LENGTH_AT].view("<u8").reshape(-1)
    if np.any(begins >= 1 << 62) or np.any(lengths >= 1 << 62):
        raise UncertainMapError("a file's extent makes no sense")
    is_hole = begins == 0
    return begins[~is_hole].astype(np.int64), lengths[~is_hole].astype(np.int64)
