"""Nodes of F2FS: the blocks that inodes and direct nodes refer to.

Names of fields and numbers follow the kernel's f2fs_fs.h.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager.extents.extents import UncertainMapError

_BLOCK: Final = 4096
_BATCH: Final = 2048  # nodes
_ADDRESSES_AT: Final = 360  # of an inode
_ADDRESSES: Final = 923
_PER_NODE: Final = 1018  # addresses in a direct node, or nodes in an indirect one
_FOOTER: Final = np.dtype([("number", "<u4"), ("ino", "<u4"), ("flag", "<u4")])
_FOOTER_AT: Final = 4072
_PLACE_SHIFT: Final = 3  # of the flag
_ATTRIBUTES: Final = 0xFFFFFFFF >> _PLACE_SHIFT  # place of a node that holds extended attributes

_INLINE_ATTRIBUTES, _INLINE_DATA, _INLINE_ENTRIES, _EXTRA = 0x1, 0x2, 0x4, 0x20
_DEFAULT_INLINE_ATTRIBUTES: Final = 50  # addresses they take the room of
_FLEXIBLE: Final = 0x40  # feature: each inode says how many

_RESERVED: Final = 0xFFFFFFFF  # an address that was promised, not given
_COMPRESSED: Final = 0xFFFFFFFE  # mark of a compressed cluster

_KIND: Final = 0xF000
_WITH_CONTENT: Final = (0x8000, 0x4000, 0xA000)  # files, directories, symbolic links

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Referred:
    """What nodes refer to beside blocks.

    Attributes:
        reserved: addresses that count as used and are no blocks.
    """

    reserved: int


class Owned:
    """Which blocks of the main area something refers to.

    Args:
        main: address of its first block.
        count: blocks in it.
    """

    def __init__(self, main: int, count: int) -> None:
        self._main = main
        self._count = count
        self.bits = np.zeros(count // 8, dtype=np.uint8)

    def take(self, addresses: Integers) -> None:
        """Note blocks, each of which must be in the main area and new.

        Raises:
            UncertainMapError: one is not.
        """
        blocks = np.sort(addresses) - self._main
        if not blocks.size:
            return
        if blocks[0] < 0 or blocks[-1] >= self._count:
            raise UncertainMapError("a node refers to a block outside of the main area")
        byte, bit = blocks >> 3, np.uint8(128) >> (blocks & 7).astype(np.uint8)
        if np.any(blocks[1:] == blocks[:-1]) or np.any(self.bits[byte] & bit):
            raise UncertainMapError("two nodes refer to the same block")
        first = np.flatnonzero(np.concatenate([[True], byte[1:] != byte[:-1]]))
        self.bits[byte[first]] |= np.bitwise_or.reduceat(bit, first)


def read_nodes(
    nodes: NDArray[np.void], read: Callable[[int, int], bytes], features: int, owned: Owned
) -> Referred:
    """Read all nodes and note what they refer to.

    Args:
        nodes: numbers and entries of the node address table, by address.
        read: returns blocks: address, count.
        features: of the superblock.
        owned: receives the blocks.

    Raises:
        UncertainMapError: a node is not what the table says.
    """
    reserved = 0
    for start in range(0, nodes.size, _BATCH):
        part = nodes[start : start + _BATCH]
        content = _blocks(part["entry"]["address"].astype(np.int64), read)
        footer = np.ascontiguousarray(content[:, _FOOTER_AT : _FOOTER_AT + _FOOTER.itemsize])
        footers = footer.reshape(-1).view(_FOOTER)
        if np.any(footers["number"] != part["number"]) or np.any(
            footers["ino"] != part["entry"]["ino"]
        ):
            raise UncertainMapError("a node is not where the node table says")
        place = footers["flag"] >> _PLACE_SHIFT
        is_inode = footers["number"] == footers["ino"]
        direct = content[~is_inode & _is_direct(place.astype(np.int64))]
        words = np.concatenate(
            [
                np.ascontiguousarray(direct[:, : 4 * _PER_NODE]).view("<u4").reshape(-1),
                _inode_addresses(content[is_inode], features),
            ]
        )
        is_mark = words >= _COMPRESSED
        reserved += int(np.count_nonzero(is_mark))
        owned.take(words[(words != 0) & ~is_mark].astype(np.int64))
    return Referred(reserved)


def _blocks(addresses: Integers, read: Callable[[int, int], bytes]) -> NDArray[np.uint8]:
    """Return blocks whose addresses are in order, neighbours in one go."""
    first = np.flatnonzero(np.concatenate([[True], np.diff(addresses) != 1]))
    counts = np.diff(np.concatenate([first, [addresses.size]]))
    parts = [
        read(address, count)
        for address, count in zip(addresses[first].tolist(), counts.tolist(), strict=True)
    ]
    return np.frombuffer(b"".join(parts), dtype=np.uint8).reshape(-1, _BLOCK)


def _is_direct(place: Integers) -> NDArray[np.bool_]:
    """Whether a node at this place in its file's tree holds addresses of blocks."""
    second = 4 + _PER_NODE
    third = 5 + 2 * _PER_NODE
    is_indirect = np.isin(place, (3, second, third))
    beyond = place - (third + 1)
    is_indirect |= (beyond >= 0) & (beyond % (_PER_NODE + 1) == 0)
    direct: NDArray[np.bool_] = ~is_indirect & (place != _ATTRIBUTES)
    return direct


def _inode_addresses(inodes: NDArray[np.uint8], features: int) -> NDArray[np.uint32]:
    mode = np.ascontiguousarray(inodes[:, 0:2]).view("<u2")[:, 0]
    inline = inodes[:, 3]
    end = _ADDRESSES_AT + 4 * _ADDRESSES
    words = np.ascontiguousarray(inodes[:, _ADDRESSES_AT:end]).view("<u4")
    extra = np.where(inline & _EXTRA, words[:, 0] & 0xFFFF, 0).astype(np.int64)
    if np.any(extra % 4) or np.any(extra > 4 * _ADDRESSES):
        raise UncertainMapError("an inode makes no sense")
    if features & _FLEXIBLE:
        taken = np.where(inline & _EXTRA, words[:, 0] >> 16, 0).astype(np.int64)
    else:
        has_some = inline & (_INLINE_ATTRIBUTES | _INLINE_ENTRIES)
        taken = np.where(has_some, _DEFAULT_INLINE_ATTRIBUTES, 0).astype(np.int64)
    column = np.arange(_ADDRESSES)
    counts = (column >= extra[:, None] // 4) & (column < (_ADDRESSES - taken)[:, None])
    counts &= ((inline & (_INLINE_DATA | _INLINE_ENTRIES)) == 0)[:, None]
    counts &= np.isin(mode & _KIND, _WITH_CONTENT)[:, None]
    found: NDArray[np.uint32] = words[counts]
    return found
