"""Trees of btrfs: every block is verified before a byte of it counts."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager.extents.btrfs_superblock import Superblock, is_sound
from imager.extents.extents import UncertainMapError

# Behind the checksum: UUID, logical address, flags, UUID of the chunk tree, generation, owner,
# items, level
_HEAD: Final = struct.Struct("<16sQQ16sQQIB")
_SUM_SIZE: Final = 32
_HEAD_SIZE: Final = _SUM_SIZE + _HEAD.size
_MAX_LEVEL: Final = 7
_KEY: Final = [("object", "<u8"), ("type", "u1"), ("offset", "<u8")]
_ITEM: Final = np.dtype([*_KEY, ("place", "<u4"), ("size", "<u4")])
_POINTER: Final = np.dtype([*_KEY, ("block", "<u8"), ("generation", "<u8")])


@dataclass(frozen=True, slots=True)
class Root:
    """Where a tree begins.

    Attributes:
        tree: its number.
        block: logical address of the uppermost block.
        level: of that block.
        generation: in which it was written.
    """

    tree: int
    block: int
    level: int
    generation: int


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf.

    Attributes:
        items: with the fields object, type, offset (the key), place and size.
        data: of the whole block.
    """

    items: NDArray[np.void]
    data: bytes

    def content(self, item: np.void) -> bytes:
        """Return what an item holds."""
        start = _HEAD_SIZE + int(item["place"])
        return self.data[start : start + int(item["size"])]


class TreeReader:
    """Reads trees, and remembers which blocks they are made of."""

    def __init__(self, superblock: Superblock, read: Callable[[int, int], bytes]) -> None:
        """Take a function that returns bytes by logical address and length."""
        self._superblock = superblock
        self._read = read
        self.blocks: list[int] = []

    def leaves(self, root: Root) -> Iterator[Leaf]:
        """Yield all leaves of a tree in the order of their keys.

        Raises:
            UncertainMapError: a block is damaged, or is not the one that should be there.
        """
        last: bytes | None = None
        for leaf in self._below(root, root.block, root.level, root.generation, None):
            if not leaf.items.size:
                if root.level:
                    raise UncertainMapError(f"a leaf of tree {root.tree} is empty")
                continue
            keys = _sortable(leaf.items)
            if last is not None and not last < keys[0]:
                raise UncertainMapError(f"tree {root.tree} is not in order")
            last = keys[-1]
            yield leaf

    def _below(
        self, root: Root, block: int, level: int, generation: int, key: np.void | None
    ) -> Iterator[Leaf]:
        data, count = self._block(root, block, level, generation)
        if level == 0:
            yield self._leaf(root, data, count, key)
            return
        if not count or count > (len(data) - _HEAD_SIZE) // _POINTER.itemsize:
            raise UncertainMapError(f"a node of tree {root.tree} makes no sense")
        pointers = np.frombuffer(data, _POINTER, count, _HEAD_SIZE)
        if key is not None and not _same_key(pointers[0], key):
            raise UncertainMapError(f"a node of tree {root.tree} does not begin as it should")
        for pointer in pointers:
            place, written = int(pointer["block"]), int(pointer["generation"])
            yield from self._below(root, place, level - 1, written, pointer)

    def _leaf(self, root: Root, data: bytes, count: int, key: np.void | None) -> Leaf:
        room = len(data) - _HEAD_SIZE
        if count > room // _ITEM.itemsize:
            raise UncertainMapError(f"a leaf of tree {root.tree} makes no sense")
        items = np.frombuffer(data, _ITEM, count, _HEAD_SIZE)
        ends = items["place"].astype(np.int64) + items["size"]
        if np.any(ends > room) or np.any(items["place"] < count * _ITEM.itemsize):
            raise UncertainMapError(f"a leaf of tree {root.tree} makes no sense")
        if key is not None and not (count and _same_key(items[0], key)):
            raise UncertainMapError(f"a leaf of tree {root.tree} does not begin as it should")
        return Leaf(items, data)

    def _block(self, root: Root, block: int, level: int, generation: int) -> tuple[bytes, int]:
        superblock = self._superblock
        if level > _MAX_LEVEL or block % superblock.sector:
            raise UncertainMapError(f"tree {root.tree} makes no sense")
        data = self._read(block, superblock.node)
        uuid, address, _, _, written, owner, count, found = _HEAD.unpack_from(data, _SUM_SIZE)
        expected = (superblock.metadata_uuid, block, generation, root.tree, level)
        if (uuid, address, written, owner, found) != expected:
            raise UncertainMapError(f"tree {root.tree} leads to a block of something else")
        if not is_sound(data, superblock.checksum):
            raise UncertainMapError(f"a block of tree {root.tree} has a wrong checksum")
        self.blocks.append(block)
        return data, count


def _same_key(left: np.void, right: np.void) -> bool:
    return all(left[name] == right[name] for name, _ in _KEY)


def _sortable(items: NDArray[np.void]) -> list[bytes]:
    """Return first and last key of a leaf in a form that compares as the tree does."""
    return [
        struct.pack(">QBQ", int(item["object"]), int(item["type"]), int(item["offset"]))
        for item in (items[0], items[-1])
    ]
