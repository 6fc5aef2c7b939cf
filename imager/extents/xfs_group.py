"""Allocation groups of XFS: each has its own headers, free space and inodes."""

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager import blockdev
from imager.extents.checksum import crc32c_without
from imager.extents.extents import UncertainMapError, is_apart, merged
from imager.extents.xfs_superblock import Geometry, check_copy
from imager.extents.xfs_tree import BY_BLOCK, BY_COUNT, INODES, OWNERS, Tree, TreeKind, read_tree

_HEADERS: Final = 4  # sectors: superblock, free space, inodes, free list
_VERSION: Final = 1

# Magic, version, group, blocks; roots and levels of three trees and a spare each; first, last and
# number of the free list; free blocks, the longest run of them, blocks of the free space trees
_FREE_SPACE: Final = struct.Struct(">4sIII3I3I3I3I")
_FREE_SPACE_UUID: Final = 64
_FREE_SPACE_CRC: Final = 216
# Magic, version, group, blocks, inodes, root, levels, free inodes
_INODE_HEADER: Final = struct.Struct(">4sIIIIIII")
_INODE_UUID: Final = 296
_INODE_CRC: Final = 312
_FREE_LIST: Final = struct.Struct(">4sI16sQ")  # version 5: magic, group, UUID, LSN
_FREE_LIST_UUID: Final = 8
_FREE_LIST_CRC: Final = 32
_FREE_LIST_HEAD: Final = 36

_CHUNK: Final = 64  # inodes in a record of the inode tree
_PIECE: Final = 4  # inodes that a bit in the mask of holes stands for


@dataclass(frozen=True, slots=True)
class Group:
    """What is known of one allocation group; all in blocks of the filesystem, from its start.

    Attributes:
        free_starts: first block of each free range; sorted.
        free_ends: block after the last one of each.
        counted_free: blocks that the superblock counts as free: beside the free ranges those
            kept for the free space trees, and these trees themselves.
        inodes: allocated.
    """

    free_starts: NDArray[np.int64]
    free_ends: NDArray[np.int64]
    counted_free: int
    inodes: int


def read_group(fd: int, offset: int, geometry: Geometry, number: int) -> Group:
    """Read an allocation group, and confirm its free space in all ways there are.

    Args:
        fd: of the disk.
        offset: of the filesystem in it.
        geometry: of the filesystem.
        number: of the group.

    Raises:
        UncertainMapError: something does not add up.
    """
    return _Reader(fd, offset, geometry, number).read()


@dataclass(frozen=True, slots=True)
class _Counts:
    """What the header of the free space says."""

    roots: tuple[int, int, int]
    levels: tuple[int, int, int]
    list_first: int
    list_last: int
    list_count: int
    free: int
    longest: int
    tree_blocks: int


class _Reader:
    """One allocation group."""

    def __init__(self, fd: int, offset: int, geometry: Geometry, number: int) -> None:
        self._fd = fd
        self._geometry = geometry
        self._number = number
        self._blocks = geometry.blocks_of(number)
        self._primary = blockdev.read_at(fd, offset, geometry.sector)
        self._offset = offset + number * geometry.group_blocks * geometry.block

    def read(self) -> Group:
        geometry = self._geometry
        headers = blockdev.read_at(self._fd, self._offset, _HEADERS * geometry.sector)
        copy, free_header, inode_header, free_list = (
            headers[index * geometry.sector :][: geometry.sector] for index in range(_HEADERS)
        )
        check_copy(copy, self._primary)
        counts = self._counts(free_header)
        by_block = self._tree(BY_BLOCK, counts.roots[0], counts.levels[0])
        starts, ends = self._free(by_block, counts)
        by_count = self._tree(BY_COUNT, counts.roots[1], counts.levels[1])
        self._check_same(by_block, by_count)
        inodes = self._inode_tree(inode_header)
        trees = [by_block, by_count, inodes]
        if geometry.has_rmap:
            trees.append(self._check_owners(counts, starts, ends))
        self._check_used(starts, ends, trees, self._list_blocks(free_list, counts))
        self._check_inodes(starts, ends, inodes)
        base = self._number * geometry.group_blocks
        return Group(
            starts + base,
            ends + base,
            counts.free + counts.list_count + counts.tree_blocks,
            struct.unpack_from(">I", inode_header, 16)[0],
        )

    def _doubt(self, what: str) -> UncertainMapError:
        return UncertainMapError(f"{what} in allocation group {self._number}")

    def _check_header(self, data: bytes, magic: bytes, uuid_at: int, crc_at: int) -> None:
        found, version, number, blocks = struct.unpack_from(">4sIII", data)
        if (found, version, number, blocks) != (magic, _VERSION, self._number, self._blocks):
            raise self._doubt("a header makes no sense")
        self._check_crc(data, uuid_at, crc_at)

    def _check_crc(self, data: bytes, uuid_at: int, crc_at: int) -> None:
        if not self._geometry.is_v5:
            return
        (stated,) = struct.unpack_from("<I", data, crc_at)
        if data[uuid_at : uuid_at + 16] != self._geometry.uuid:
            raise self._doubt("there is a header of another filesystem")
        if crc32c_without(data, crc_at) != stated:
            raise self._doubt("a header has a wrong checksum")

    def _counts(self, data: bytes) -> _Counts:
        self._check_header(data, b"XAGF", _FREE_SPACE_UUID, _FREE_SPACE_CRC)
        words = _FREE_SPACE.unpack_from(data)[4:]
        return _Counts(words[0:3], words[3:6], *words[6:])

    def _tree(self, kind: TreeKind, root: int, levels: int) -> Tree:
        size = self._geometry.block
        return read_tree(
            kind, root, levels, self._number, self._geometry,
            lambda block: blockdev.read_at(self._fd, self._offset + block * size, size),
        )  # fmt: skip

    def _free(self, tree: Tree, counts: _Counts) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the free ranges; they must be sorted, apart, and as many as counted."""
        starts = tree.records["start"].astype(np.int64)
        lengths = tree.records["count"].astype(np.int64)
        ends = starts + lengths
        first = -(-_HEADERS * self._geometry.sector // self._geometry.block)
        edges = np.concatenate([[first - 1], np.column_stack([starts, ends]).reshape(-1)])
        # Neighbours that touch would be one range.
        if np.any(np.diff(edges) <= 0) or edges[-1] > self._blocks:
            raise self._doubt("free ranges overlap or lie nowhere")
        if int(lengths.sum()) != counts.free or int(lengths.max(initial=0)) != counts.longest:
            raise self._doubt("header and tree disagree about the free blocks")
        return starts, ends

    def _check_same(self, by_block: Tree, by_count: Tree) -> None:
        """Both trees of the free space must tell of the same ranges."""
        other = by_count.records
        order = np.lexsort((other["start"], other["count"]))
        if np.any(order != np.arange(other.size)):
            raise self._doubt("the tree of free space by size is not in order")
        if not np.array_equal(np.sort(other, order="start"), by_block.records):
            raise self._doubt("the two trees of free space disagree")

    def _list_blocks(self, data: bytes, counts: _Counts) -> NDArray[np.int64]:
        """Return the blocks that are kept for the free space trees to grow."""
        head = 0
        if self._geometry.is_v5:
            magic, number, _, _ = _FREE_LIST.unpack_from(data)
            if (magic, number) != (b"XAFL", self._number):
                raise self._doubt("the free list makes no sense")
            self._check_crc(data, _FREE_LIST_UUID, _FREE_LIST_CRC)
            head = _FREE_LIST_HEAD
        entries = np.frombuffer(data, ">u4", (len(data) - head) // 4, head).astype(np.int64)
        size = entries.size
        index = (counts.list_first + np.arange(counts.list_count)) % size
        if counts.list_count and (
            counts.list_count > size or counts.list_first >= size or index[-1] != counts.list_last
        ):
            raise self._doubt("the free list makes no sense")
        found = entries[index]
        if np.any((found <= 0) | (found >= self._blocks)) or np.unique(found).size != found.size:
            raise self._doubt("the free list makes no sense")
        return found

    def _inode_tree(self, header: bytes) -> Tree:
        self._check_header(header, b"XAGI", _INODE_UUID, _INODE_CRC)
        _, _, _, _, count, root, levels, free = _INODE_HEADER.unpack_from(header)
        tree = self._tree(INODES, root, levels)
        records = tree.records
        if self._geometry.has_sparse_inodes:
            counted = (
                int(records["count"].sum(dtype=np.int64)),
                int(records["free"].sum(dtype=np.int64)),
            )
        else:
            # The same bytes are one number of 32 bits: of free inodes.
            free_counts = (
                records["holes"].astype(np.int64) << 16
                | records["count"].astype(np.int64) << 8
                | records["free"]
            )
            counted = _CHUNK * records.size, int(free_counts.sum())
        if counted != (count, free):
            raise self._doubt("header and tree disagree about the inodes")
        return tree

    def _check_owners(
        self, counts: _Counts, starts: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> Tree:
        """What has no owner must be free, and the other way round."""
        tree = self._tree(OWNERS, counts.roots[2], counts.levels[2])
        first = tree.records["start"].astype(np.int64)
        owned = merged(first, first + tree.records["count"]).astype(np.int64)
        edges = np.concatenate([[0], np.column_stack([owned[:, 0], owned.sum(axis=1)]).reshape(-1)])
        edges = np.append(edges, self._blocks).reshape(-1, 2)
        without = edges[edges[:, 1] > edges[:, 0]]
        if not np.array_equal(without, np.column_stack([starts, ends])):
            raise self._doubt("the trees of free space and of owners disagree")
        return tree

    def _check_used(
        self,
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
        trees: list[Tree],
        listed: NDArray[np.int64],
    ) -> None:
        """The trees themselves, the free list and the log must not be free."""
        used_blocks = np.concatenate([*(tree.blocks for tree in trees), listed])
        if np.unique(used_blocks).size != used_blocks.size:
            raise self._doubt("a block is used twice")
        used_starts, used_ends = used_blocks, used_blocks + 1
        group, log_first, log_blocks = self._geometry.log
        if group == self._number:
            used_starts = np.append(used_starts, log_first)
            used_ends = np.append(used_ends, log_first + log_blocks)
        if not is_apart(used_starts, used_ends, starts, ends):
            raise self._doubt("the free space trees say that metadata is free")

    def _check_inodes(self, starts: NDArray[np.int64], ends: NDArray[np.int64], tree: Tree) -> None:
        """No inode may lie in a free block."""
        log = self._geometry.inodes_log
        pieces = np.arange(_CHUNK // _PIECE)
        first = tree.records["start"].astype(np.int64)[:, None] + pieces * _PIECE
        if self._geometry.has_sparse_inodes:
            holes = tree.records["holes"].astype(np.int64)[:, None] >> pieces & 1
            first = first[holes == 0]
        first = first.reshape(-1)
        blocks = first >> log, (first + _PIECE - 1 >> log) + 1
        if first.size and int(blocks[1].max()) > self._blocks:
            raise self._doubt("inodes lie nowhere")
        if not is_apart(*blocks, starts, ends):
            raise self._doubt("the free space trees say that inodes are free")
