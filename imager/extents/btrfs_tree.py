"""Trees of btrfs: every block is verified before a byte of it counts."""

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager.extents.btrfs_superblock import Superblock
from imager.extents.extents import UncertainMapError
from imager.probe.btrfs import is_sound

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
        is_deleted: a subvolume that is being cleared away.
    """

    tree: int
    block: int
    level: int
    generation: int
    is_deleted: bool = False


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf.

    Attributes:
        items: with the fields object, type, offset (the key), place and size.
        data: of the whole block.
    """

    items: NDArray[np.void]
    data: bytes

    def starts(self, items: NDArray[np.void]) -> NDArray[np.int64]:
        """Return where in the block some items' contents begin."""
        return _HEAD_SIZE + items["place"].astype(np.int64)

    def content(self, item: np.void) -> bytes:
        """Return what an item holds."""
        start = _HEAD_SIZE + int(item["place"])
        return self.data[start : start + int(item["size"])]


@dataclass(frozen=True, slots=True)
class _Step:
    """A block that waits to be read, as its parent tells of it; the key is of its first item."""

    block: int
    level: int
    generation: int
    key: np.void | None


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
        for leaf in self._below(root, _Step(root.block, root.level, root.generation, None)):
            if not leaf.items.size:
                if root.level:
                    raise UncertainMapError(f"a leaf of tree {root.tree} is empty")
                continue
            keys = _sortable(leaf.items)
            if last is not None and not last < keys[0]:
                raise UncertainMapError(f"tree {root.tree} is not in order")
            last = keys[-1]
            yield leaf

    def leaves_of_all(self, roots: Iterable[Root]) -> Iterator[Leaf]:
        """Yield the leaves of trees that may have blocks in common, each of them once.

        Raises:
            UncertainMapError: a block is damaged, or is not the one that should be there.
        """
        seen: set[int] = set()
        for root in roots:
            yield from self._below(root, _Step(root.block, root.level, root.generation, None), seen)
        self.blocks += seen

    def _below(self, root: Root, top: _Step, seen: set[int] | None = None) -> Iterator[Leaf]:
        """Yield the leaves below a block; with `seen`, those below blocks that are not in it."""
        waiting = [top]
        while waiting:
            step = waiting.pop()
            if seen is not None:
                if step.block in seen:
                    continue
                seen.add(step.block)
            data, count = self._block(root, step, is_shared=seen is not None)
            if step.level == 0:
                yield self._leaf(root, data, count, step.key)
            else:
                waiting += reversed(self._children(root, data, count, step))

    def _children(self, root: Root, data: bytes, count: int, step: _Step) -> list[_Step]:
        if not count or count > (len(data) - _HEAD_SIZE) // _POINTER.itemsize:
            raise UncertainMapError(f"a node of tree {root.tree} makes no sense")
        pointers = np.frombuffer(data, _POINTER, count, _HEAD_SIZE)
        if step.key is not None and not _same_key(pointers[0], step.key):
            raise UncertainMapError(f"a node of tree {root.tree} does not begin as it should")
        return [
            _Step(int(pointer["block"]), step.level - 1, int(pointer["generation"]), pointer)
            for pointer in pointers
        ]

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

    def _block(self, root: Root, step: _Step, *, is_shared: bool) -> tuple[bytes, int]:
        superblock = self._superblock
        if step.level > _MAX_LEVEL or step.block % superblock.sector:
            raise UncertainMapError(f"tree {root.tree} makes no sense")
        data = self._read(step.block, superblock.node)
        uuid, address, _, _, written, owner, count, level = _HEAD.unpack_from(data, _SUM_SIZE)
        expected = (superblock.metadata_uuid, step.block, step.generation, step.level)
        # What a snapshot has in common with its origin belongs to the origin.
        if (uuid, address, written, level) != expected or (owner != root.tree and not is_shared):
            raise UncertainMapError(f"tree {root.tree} leads to a block of something else")
        if not is_sound(data, superblock.checksum):
            raise UncertainMapError(f"a block of tree {root.tree} has a wrong checksum")
        if not is_shared:
            self.blocks.append(step.block)
        return data, count


def _same_key(left: np.void, right: np.void) -> bool:
    return all(left[name] == right[name] for name, _ in _KEY)


def _sortable(items: NDArray[np.void]) -> list[bytes]:
    """Return first and last key of a leaf in a form that compares as the tree does."""
    return [
        struct.pack(">QBQ", int(item["object"]), int(item["type"]), int(item["offset"]))
        for item in (items[0], items[-1])
    ]
