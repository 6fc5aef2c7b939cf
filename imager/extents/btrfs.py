"""btrfs: all that is allocated, less the free space within it that has two witnesses.

A filesystem may span several volumes; they are read together. What matters on each is found from
the outside: superblocks and their copies, the first MiB, and every chunk, whatever it holds. Of a
chunk only those ranges are left out that are free in the extent tree, and for which there is a
second witness: the free space tree, or where there is no valid one, all other trees, none of which
refers to them. All of this counts only if

- all superblocks of all devices agree, know no feature that is not known here, and no log tree
  waits to be replayed;
- every device is there, once, as the chunk tree describes it;
- each tree block that is read has a right checksum, and is the one that should be there;
- chunk tree and device tree tell of the same places, which add up to what each device counts;
- block groups are the chunks; extents add up to what each group counts, and all to the
  superblock's count;
- extent tree and free space tree agree to the byte, or no file or tree refers to free space;
- no tree begins in, and none of the trees read lies in, free space.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np

from imager import blockdev
from imager.extents import btrfs_space
from imager.extents.btrfs_chunks import (
    CHUNK_ITEM,
    STRIPE,
    Chunk,
    ChunkMap,
    parse_chunk,
    parse_system_chunks,
)
from imager.extents.btrfs_references import read_references
from imager.extents.btrfs_space import BlockGroups, Ranges
from imager.extents.btrfs_superblock import Superblock, read_superblock
from imager.extents.btrfs_tree import Root, TreeReader
from imager.extents.extents import Extents, Part, UncertainMapError, is_apart, merged
from imager.probe.btrfs import DEVICE, SUPERBLOCK_PLACES
from imager.units import MIB

_ROOT_TREE: Final = 1
_EXTENT_TREE: Final = 2
_CHUNK_TREE: Final = 3
_DEVICE_TREE: Final = 4
_FREE_SPACE_TREE: Final = 10
_BLOCK_GROUP_TREE: Final = 11

_ROOT_ITEM: Final = 132
_DEVICE_EXTENT: Final = 204
_DEVICE_ITEM: Final = 216
_REPLACE_ITEM: Final = 250

_ROOT_GENERATION_AT: Final = 160
_ROOT_BLOCK_AT: Final = 176
_ROOT_REFERENCES_AT: Final = 216
_ROOT_LEVEL_AT: Final = 238
_ROOT_SIZE: Final = 239
_PLACE: Final = struct.Struct("<QQQQ16s")  # tree, objectid, chunk, length, UUID
_REPLACE_STATE_AT: Final = 32
_REPLACE_ENDED: Final = {0, 2, 3}  # never begun, finished, given up
_RESERVED: Final = MIB  # for loaders; the allocator leaves it alone


def read(parts: Sequence[Part]) -> list[Extents]:
    """Return for each device of a filesystem all that may be in use, and what lies behind it.

    Args:
        parts: all that carry the same filesystem UUID.

    Raises:
        UncertainMapError: the maps can't be relied on; it is true of all devices.
    """
    superblocks = [read_superblock(part) for part in parts]
    _check_devices(superblocks)
    devices = {
        superblock.device[0]: part for superblock, part in zip(superblocks, parts, strict=True)
    }
    allocation = _Filesystem(superblocks, devices).allocation()
    return [
        _extents(superblock, part, allocation)
        for superblock, part in zip(superblocks, parts, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Allocation:
    """Where chunks lie, and what of the logical addresses in them is free."""

    chunks: tuple[Chunk, ...]
    free: Ranges


def _check_devices(superblocks: list[Superblock]) -> None:
    first = superblocks[0]
    identities = {superblock.device[0] for superblock in superblocks}
    if len(identities) != len(superblocks):
        raise UncertainMapError("two volumes say that they are the same device of it")
    if len(superblocks) != first.devices:
        raise UncertainMapError(
            f"it spans {first.devices} devices, of which {len(superblocks)} can be seen"
        )
    if any(superblock.shared != first.shared for superblock in superblocks):
        raise UncertainMapError("its devices are not of the same moment")


class _Filesystem:
    """The trees of one filesystem."""

    def __init__(self, superblocks: list[Superblock], devices: dict[int, Part]) -> None:
        self._superblocks = superblocks
        self._superblock = superblocks[0]
        self._devices = devices
        self._map = ChunkMap(parse_system_chunks(self._superblock.chunks))
        self._reader = TreeReader(self._superblock, self._read)

    def allocation(self) -> _Allocation:
        """Return what is allocated, confirmed in all ways there are."""
        self._map = ChunkMap(self._chunks())
        roots = self._roots()
        self._check_places(self._root(roots, _DEVICE_TREE))
        superblock = self._superblock
        extents = btrfs_space.read_extents(
            self._reader, self._root(roots, _EXTENT_TREE), superblock.node
        )
        groups = extents.groups
        if superblock.has_block_group_tree:
            if groups.starts.size:
                raise UncertainMapError("there are block groups in two trees")
            tree = self._root(roots, _BLOCK_GROUP_TREE)
            groups = btrfs_space.read_extents(self._reader, tree, superblock.node).groups
        self._check_groups(groups)
        free = btrfs_space.free_between(extents, groups)
        if superblock.has_free_space_tree:
            tree = self._root(roots, _FREE_SPACE_TREE)
            other = btrfs_space.read_free_space(self._reader, tree, groups, superblock.sector)
            if not all(map(np.array_equal, free, other)):
                raise UncertainMapError("extent tree and free space tree disagree")
        else:
            self._check_references(free, groups, roots)
        self._check_trees(free, groups, roots)
        return _Allocation(self._map.chunks, free)

    def _read(self, address: int, size: int) -> bytes:
        device, offset = self._map.locate(address, size)
        part = self._devices.get(device)
        if part is None or offset + size > part.length:
            raise UncertainMapError("a tree leads to a device that is not there")
        return blockdev.read_at(part.fd, part.offset + offset, size)

    def _chunks(self) -> list[Chunk]:
        """Read the chunk tree; the devices it describes must be those that are here."""
        block, level, generation = self._superblock.chunk_root
        chunks, devices = [], []
        for leaf in self._reader.leaves(Root(_CHUNK_TREE, block, level, generation)):
            for item in leaf.items:
                if item["type"] == CHUNK_ITEM:
                    chunks.append(parse_chunk(int(item["offset"]), leaf.content(item)))
                elif item["type"] == _DEVICE_ITEM:
                    identity, size, allocated, *_, uuid, _ = _unpacked(DEVICE, leaf.content(item))
                    devices.append((identity, size, allocated, uuid))
        if sorted(devices) != sorted(superblock.device for superblock in self._superblocks):
            raise UncertainMapError("chunk tree and superblocks disagree about the devices")
        if not set(self._map.chunks) <= set(chunks):
            raise UncertainMapError("chunk tree and superblock disagree about system chunks")
        return chunks

    def _root_tree(self) -> Root:
        block, level = self._superblock.root
        return Root(_ROOT_TREE, block, level, self._superblock.generation)

    def _roots(self) -> list[Root]:
        """Return the roots of all trees but the first two."""
        found = []
        for leaf in self._reader.leaves(self._root_tree()):
            for item in leaf.items[leaf.items["type"] == _ROOT_ITEM]:
                data = leaf.content(item)
                if len(data) < _ROOT_SIZE:
                    raise UncertainMapError("the root of a tree makes no sense")
                (generation,) = struct.unpack_from("<Q", data, _ROOT_GENERATION_AT)
                (block,) = struct.unpack_from("<Q", data, _ROOT_BLOCK_AT)
                (references,) = struct.unpack_from("<I", data, _ROOT_REFERENCES_AT)
                found.append(
                    Root(
                        int(item["object"]), block, data[_ROOT_LEVEL_AT], generation, not references
                    )
                )
        return found

    def _root(self, roots: list[Root], tree: int) -> Root:
        found = [root for root in roots if root.tree == tree]
        if len(found) != 1:
            raise UncertainMapError(f"there is no tree {tree}, or more than one")
        return found[0]

    def _check_places(self, root: Root) -> None:
        """Chunk tree and device tree must tell of the same places, none of them twice."""
        found = self._places(root)
        expected = [
            (device, offset, chunk.length_on_device, chunk.start)
            for chunk in self._map.chunks
            for device, offset, _ in chunk.places
        ]
        if found != sorted(expected):
            raise UncertainMapError("chunk tree and device tree disagree")
        for left, right in pairwise(found):
            if left[0] == right[0] and left[1] + left[2] > right[1]:
                raise UncertainMapError("two chunks lie in the same place")
        for superblock in self._superblocks:
            identity, size, allocated, _ = superblock.device
            own = [place for place in found if place[0] == identity]
            if sum(place[2] for place in own) != allocated:
                raise UncertainMapError("a device and its places disagree about allocated bytes")
            if any(place[1] + place[2] > size for place in own):
                raise UncertainMapError("a chunk lies outside of its device")
        known = {(superblock.device[0], superblock.device[3]) for superblock in self._superblocks}
        places = (place for chunk in self._map.chunks for place in chunk.places)
        if any((device, uuid) not in known for device, _, uuid in places):
            raise UncertainMapError("a chunk lies on another device")

    def _places(self, root: Root) -> list[tuple[int, int, int, int]]:
        """Read the device tree: device, offset on it, length and chunk of each place, sorted."""
        found = []
        for leaf in self._reader.leaves(root):
            for item in leaf.items:
                if item["type"] == _DEVICE_EXTENT:
                    _, _, chunk, length, _ = _unpacked(_PLACE, leaf.content(item))
                    found.append((int(item["object"]), int(item["offset"]), length, chunk))
                elif item["type"] == _REPLACE_ITEM:
                    state = leaf.content(item)[_REPLACE_STATE_AT:][:8]
                    if int.from_bytes(state, "little") not in _REPLACE_ENDED:
                        raise UncertainMapError("one of its devices is being replaced")
        return sorted(found)

    def _check_groups(self, groups: BlockGroups) -> None:
        """Block groups must be the chunks, and add up to what the superblock counts."""
        found = np.column_stack([groups.starts, groups.ends, groups.kinds]).tolist()
        expected = [
            [chunk.start, chunk.start + chunk.length, chunk.kind] for chunk in self._map.chunks
        ]
        if found != expected:
            raise UncertainMapError("block groups and chunks disagree")
        if int(groups.used.sum()) != self._superblock.used:
            raise UncertainMapError("block groups and superblock disagree about the used bytes")

    def _check_references(self, free: Ranges, groups: BlockGroups, roots: list[Root]) -> None:
        """Nothing that a file refers to may be free."""
        # The root tree has files as well: caches of free space as they were before the tree.
        starts, ends = read_references(self._reader, [self._root_tree(), *roots])
        btrfs_space.containing(groups.starts, groups.ends, starts, ends)
        if not is_apart(starts, ends, *free):
            raise UncertainMapError("the extent tree says that a file's content is free")

    def _check_trees(self, free: Ranges, groups: BlockGroups, roots: list[Root]) -> None:
        """Neither the trees that were read nor the root of any other may be free."""
        blocks = {*self._reader.blocks, *(root.block for root in roots if root.block)}
        starts = np.array(sorted(blocks), dtype=np.int64)
        ends = starts + self._superblock.node
        btrfs_space.containing(groups.starts, groups.ends, starts, ends)
        if not is_apart(starts, ends, *free):
            raise UncertainMapError("the trees say that they are free themselves")


def _unpacked(form: struct.Struct, data: bytes) -> tuple[Any, ...]:
    if len(data) != form.size:
        raise UncertainMapError("an item of a tree makes no sense")
    return form.unpack(data)


def _extents(superblock: Superblock, part: Part, allocation: _Allocation) -> Extents:
    """Return what of one device is in use."""
    kept = [(0, _RESERVED), (superblock.size, part.length)]
    kept += [(place, place + STRIPE) for place in SUPERBLOCK_PLACES if place < superblock.size]
    table = np.array(kept, dtype=np.int64)
    starts, ends = [table[:, 0]], [np.minimum(table[:, 1], part.length)]
    free_starts, free_ends = allocation.free
    for chunk in allocation.chunks:
        first, last = np.searchsorted(free_starts, [chunk.start, chunk.start + chunk.length])
        inside = slice(first, last)
        for device, *used in chunk.used_on_devices(free_starts[inside], free_ends[inside]):
            if device == superblock.device[0]:
                starts.append(used[0])
                ends.append(used[1])
    ranges = merged(np.concatenate(starts), np.concatenate(ends))
    return Extents(ranges, "btrfs trees", None, superblock.sector)
