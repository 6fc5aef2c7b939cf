"""F2FS: the valid blocks of its segments, confirmed by every address in every node.

The segment information table (SIT) counts only if

- both superblocks say the same, and no feature is unknown here; it has one device;
- both checkpoint packs are whole, and the newer one was written by a clean unmount, without
  orphans, errors, or a check that is due;
- in each segment the bits add up to its count;
- the blocks of all nodes (as the node address table has them) and all blocks that they refer to
  are exactly those that the SIT has, no two the same, and the checkpoint's counts agree.

Everything before the main area (both checkpoints, the tables, the summaries) is read.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager import blockdev
from imager.extents.extents import Extents, UncertainMapError, merged, set_ranges
from imager.extents.f2fs_nodes import Owned, Referred, read_nodes

BLOCK: Final = 4096
_SEGMENT: Final = 512  # blocks
_SUPERBLOCK_OFFSET: Final = 1024
_SUPERBLOCK_SIZE: Final = 3072
_MAGIC: Final = 0xF2F52010
# magic, version (2), logarithms (sector, sectors in a block, block, blocks in a segment), segments
# in a section, sections in a zone, place of the checksum, blocks, sections, segments (all, then of
# checkpoints, SIT, NAT, SSA, main area), addresses (segment 0, then the same areas)
_SUPERBLOCK: Final = struct.Struct("<IHHIIIIIIIQIIIIIIIIIIIII")
_PAYLOAD_AT: Final = 1664
_FEATURES_AT: Final = 2180
_DEVICES_AT: Final = 2201
_ERRORS_AT, _ERRORS = 2794, 16
_COMPARED: Final = 2762  # behind it: reasons why it stopped, which are written without care
_CHECKSUM_AT: Final = 3068
_HAS_CHECKSUM: Final = 0x800
# encrypt, extra attributes, project quota, inode checksum, flexible inline attributes, quota
# inodes, creation time, lost+found, verity, superblock checksum, casefold, compression
_KNOWN: Final = (
    0x1 | 0x8 | 0x10 | 0x20 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800 | 0x1000 | 0x2000
)

# version, user blocks, valid blocks; much later: flags, blocks of the pack, place of the summaries,
# valid nodes, valid inodes, next free node, bytes of the SIT's and NAT's bitmaps, checksum's place
_CHECKPOINT: Final = struct.Struct("<QQQ")
_CHECKPOINT_REST: Final = struct.Struct("<9I")
_REST_AT: Final = 132
_BITMAPS_AT: Final = 192
_UNMOUNTED, _COMPACT, _LARGE_NAT = 0x1, 0x4, 0x400
# Beside these: recovery of nodes by checksum (or without), bits of the NAT, trimmed
_KNOWN_FLAGS: Final = _UNMOUNTED | _COMPACT | _LARGE_NAT | 0x40 | 0x80 | 0x100 | 0x200
_LAST_WORD: Final = BLOCK - 4

_SIT: Final = np.dtype([("count", "<u2"), ("map", "u1", 64), ("time", "<u8")])
_SIT_PER_BLOCK: Final = BLOCK // _SIT.itemsize
_COUNT: Final = 0x3FF
_NAT: Final = np.dtype([("version", "u1"), ("ino", "<u4"), ("address", "<u4")])
_NAT_PER_BLOCK: Final = BLOCK // _NAT.itemsize
_SIT_CHANGE: Final = np.dtype([("number", "<u4"), ("entry", _SIT)])
_NAT_CHANGE: Final = np.dtype([("number", "<u4"), ("entry", _NAT)])
_JOURNAL: Final = 507  # bytes
_JOURNAL_AT: Final = 512 * 7  # behind the entries of a summary block
_SUMMARIES: Final = 6
# Where the log of warm nodes goes on, in a checkpoint; and its version, in the end of a node.
_WARM_SEGMENT_AT: Final = 40
_WARM_BLOCK_AT: Final = 70
_NODE_VERSION_AT: Final = 4084
_LOWER_HALF: Final = 0xFFFFFFFF
_POPULATION: Final = (
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1).astype(np.uint8)
)
_COLD: Final = 2

_PIECE: Final = 1 << 20  # bytes of bits that are looked at in one go

Bits = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Superblock:
    checkpoints: int
    sit: int
    sit_blocks: int
    nat: int
    nat_blocks: int
    main: int
    segments: int
    payload: int
    features: int

    @property
    def end(self) -> int:
        return self.main + self.segments * _SEGMENT


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    address: int
    version: int
    valid: int
    nodes: int
    next_node: int
    flags: int
    blocks: int
    summaries: int
    sit_map: Bits
    nat_map: Bits


def read(fd: int, offset: int, length: int) -> Extents:
    """Return the tables, the valid blocks, and what lies behind the main area.

    Raises:
        UncertainMapError: the map can't be relied on.
    """
    superblock = _superblock(fd, offset, length)
    reader = _Reader(fd, offset)
    packs = [
        _checkpoint(reader, superblock, superblock.checkpoints + number * _SEGMENT)
        for number in range(2)
    ]
    newest = max(packs, key=lambda pack: pack.version)
    unknown = newest.flags & ~_KNOWN_FLAGS
    if not newest.flags & _UNMOUNTED or unknown:
        raise UncertainMapError(
            f"it was not unmounted cleanly, or a check is due (checkpoint flags {newest.flags:#x})"
        )
    _check_roll_forward(reader, superblock, newest)
    valid = _valid_blocks(reader, superblock, newest)
    _confirm(reader, superblock, newest, valid)
    behind = -(-length // BLOCK)
    starts, ends = [np.array([0, superblock.end])], [np.array([superblock.main, behind])]
    for position in range(0, valid.size, _PIECE):
        first, last = set_ranges(np.unpackbits(valid[position : position + _PIECE]))
        starts.append(superblock.main + position * 8 + first)
        ends.append(superblock.main + position * 8 + last)
    ranges = merged(
        np.concatenate(starts) * BLOCK, np.minimum(np.concatenate(ends) * BLOCK, length)
    )
    return Extents(ranges, "F2FS segment table", None, BLOCK)


class _Reader:
    def __init__(self, fd: int, offset: int) -> None:
        self._fd = fd
        self._offset = offset

    def blocks(self, address: int, count: int = 1) -> bytes:
        """Return blocks from an address on."""
        return blockdev.read_at(self._fd, self._offset + address * BLOCK, count * BLOCK)


def _crc(data: bytes, seed: int = _MAGIC) -> int:
    """Return the kernel's CRC-32, which is not turned at its ends."""
    return zlib.crc32(data, seed ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def _superblock(fd: int, offset: int, length: int) -> _Superblock:
    if length < 2 * BLOCK:
        raise UncertainMapError("the volume is too small for F2FS")
    first, second = (
        blockdev.read_at(fd, offset + block * BLOCK + _SUPERBLOCK_OFFSET, _SUPERBLOCK_SIZE)
        for block in range(2)
    )
    if first[:_COMPARED] != second[:_COMPARED]:
        raise UncertainMapError("the two superblocks differ")
    (
        magic, _, _, _, _, log_block, log_segment, _, _, checksum_at, blocks, _, _,
        _, sit_segments, nat_segments, _, segments, start, checkpoints, sit, nat, ssa, main,
    ) = _SUPERBLOCK.unpack_from(first)  # fmt: skip
    (payload,) = struct.unpack_from("<I", first, _PAYLOAD_AT)
    (features,) = struct.unpack_from("<I", first, _FEATURES_AT)
    if magic != _MAGIC or (1 << log_block, 1 << log_segment) != (BLOCK, _SEGMENT):
        raise UncertainMapError("the F2FS superblock makes no sense, or has blocks of another size")
    _check_features(first, features, checksum_at)
    found = _Superblock(
        checkpoints=checkpoints,
        sit=sit,
        sit_blocks=sit_segments // 2 * _SEGMENT,
        nat=nat,
        nat_blocks=nat_segments // 2 * _SEGMENT,
        main=main,
        segments=segments,
        payload=payload,
        features=features,
    )
    if not (
        2 <= start <= checkpoints
        and checkpoints + 2 * _SEGMENT <= sit
        and sit + 2 * found.sit_blocks <= nat
        and nat + 2 * found.nat_blocks <= ssa <= main < found.end <= blocks
        and segments <= found.sit_blocks * _SIT_PER_BLOCK
        and payload < _SEGMENT
    ):
        raise UncertainMapError("the F2FS superblock makes no sense")
    if blocks * BLOCK > length:
        raise UncertainMapError("the filesystem is larger than the volume it lies in")
    return found


def _check_features(superblock: bytes, features: int, checksum_at: int) -> None:
    if features & ~_KNOWN:
        raise UncertainMapError(f"it has features that are not known here: {features & ~_KNOWN:#x}")
    if features & _HAS_CHECKSUM:
        (checksum,) = struct.unpack_from("<I", superblock, _CHECKSUM_AT)
        if checksum_at != _CHECKSUM_AT or checksum != _crc(superblock[:_CHECKSUM_AT]):
            raise UncertainMapError("the superblock has a wrong checksum")
    if superblock[_DEVICES_AT]:
        raise UncertainMapError("it has several devices")
    if any(superblock[_ERRORS_AT : _ERRORS_AT + _ERRORS]):
        raise UncertainMapError("it notes errors that were found on it")


def _checkpoint(reader: _Reader, superblock: _Superblock, address: int) -> _Checkpoint:
    head = reader.blocks(address, 1 + superblock.payload)
    version, _, valid = _CHECKPOINT.unpack_from(head)
    flags, blocks, summaries, nodes, _, _, sit_size, nat_size, checksum_at = (
        _CHECKPOINT_REST.unpack_from(head, _REST_AT)
    )
    if not 1 + superblock.payload < blocks <= _SEGMENT or not 0 < summaries < blocks:
        raise UncertainMapError("a checkpoint makes no sense")
    last = reader.blocks(address + blocks - 1)
    for block in (head[:BLOCK], last):
        if not _BITMAPS_AT <= checksum_at <= _LAST_WORD or checksum_at % 4:
            raise UncertainMapError("a checkpoint makes no sense")
        total = _crc(block[:checksum_at])
        if checksum_at < _LAST_WORD:
            total = _crc(block[checksum_at + 4 :], total)
        if struct.unpack_from("<I", block, checksum_at)[0] != total:
            raise UncertainMapError("a checkpoint has a wrong checksum")
    if last[: _CHECKPOINT.size] != head[: _CHECKPOINT.size]:
        raise UncertainMapError("a checkpoint was written in part only")
    if flags & _LARGE_NAT:
        nat_at, sit_at = _BITMAPS_AT + 4, _BITMAPS_AT + 4 + nat_size
    elif superblock.payload:
        nat_at, sit_at = _BITMAPS_AT, BLOCK
    else:
        nat_at, sit_at = _BITMAPS_AT + sit_size, _BITMAPS_AT
    maps = [
        np.unpackbits(np.frombuffer(head[at : at + size], dtype=np.uint8))
        for at, size in ((sit_at, sit_size), (nat_at, nat_size))
    ]
    (segment,) = struct.unpack_from("<I", head, _WARM_SEGMENT_AT)
    (block_in_segment,) = struct.unpack_from("<H", head, _WARM_BLOCK_AT)
    return _Checkpoint(
        address=address,
        version=version,
        valid=valid,
        nodes=nodes,
        next_node=superblock.main + segment * _SEGMENT + block_in_segment,
        flags=flags,
        blocks=blocks,
        summaries=summaries,
        sit_map=maps[0],
        nat_map=maps[1],
    )


def _check_roll_forward(reader: _Reader, superblock: _Superblock, newest: _Checkpoint) -> None:
    """Refuse a filesystem to which nodes were written after its last checkpoint.

    Mounting writes no checkpoint, and fsync hardly ever does: the one of the unmount before stays the
    newest. At the next mount the kernel follows the nodes that lie where the log of warm nodes goes on,
    each with the version of the checkpoint that it came after (fs/f2fs/recovery.c). Here the lower
    half of the version is enough for a doubt.
    """
    if not superblock.main <= newest.next_node < superblock.end:
        raise UncertainMapError("the log of nodes lies outside of the filesystem")
    node = reader.blocks(newest.next_node)
    (version,) = struct.unpack_from("<Q", node, _NODE_VERSION_AT)
    if version & _LOWER_HALF == newest.version & _LOWER_HALF:
        raise UncertainMapError("files were written after the last checkpoint (it was cut off)")


def _journal(
    reader: _Reader, checkpoint: _Checkpoint, kind: int, entry: np.dtype[np.void]
) -> NDArray[np.void]:
    """Return changes of a table that were kept in a summary: the NAT's in 0, the SIT's in 2."""
    if checkpoint.flags & _COMPACT:
        block = reader.blocks(checkpoint.address + checkpoint.summaries)
        at = _JOURNAL if kind else 0
    else:
        first = checkpoint.blocks - _SUMMARIES - 1
        if first != checkpoint.summaries:
            raise UncertainMapError("the summaries are not where the checkpoint should have them")
        block = reader.blocks(checkpoint.address + first + kind)
        at = _JOURNAL_AT
    (count,) = struct.unpack_from("<H", block, at)
    if count * entry.itemsize > _JOURNAL - 2:
        raise UncertainMapError("the journal of a table makes no sense")
    return np.frombuffer(block, dtype=entry, count=count, offset=at + 2)


def _valid_blocks(reader: _Reader, superblock: _Superblock, checkpoint: _Checkpoint) -> Bits:
    """Return one bit for each block of the main area, the first one highest in its byte."""
    count = -(-superblock.segments // _SIT_PER_BLOCK)
    if checkpoint.sit_map.size < count:
        raise UncertainMapError("a checkpoint makes no sense")
    table = np.concatenate(
        [
            np.frombuffer(
                reader.blocks(
                    superblock.sit + index + int(checkpoint.sit_map[index]) * superblock.sit_blocks
                ),
                dtype=_SIT,
                count=_SIT_PER_BLOCK,
            )
            for index in range(count)
        ]
    )
    for change in _journal(reader, checkpoint, _COLD, _SIT_CHANGE):
        if change["number"] >= superblock.segments:
            raise UncertainMapError("the journal of a table makes no sense")
        table[change["number"]] = change["entry"]
    table = table[: superblock.segments]
    valid: Bits = np.ascontiguousarray(table["map"]).reshape(-1)
    if np.any(
        _POPULATION[valid].reshape(-1, 64).sum(axis=1, dtype=np.int64) != table["count"] & _COUNT
    ):
        raise UncertainMapError("the blocks of a segment do not add up to its count")
    return valid


def _nodes(reader: _Reader, superblock: _Superblock, checkpoint: _Checkpoint) -> NDArray[np.void]:
    """Return (number, entry) of every node."""
    if checkpoint.nat_map.size < superblock.nat_blocks:
        raise UncertainMapError("a checkpoint makes no sense")
    parts = []
    for first in range(0, superblock.nat_blocks, _SEGMENT):
        place = superblock.nat + 2 * first
        copies = [
            np.frombuffer(reader.blocks(place + side * _SEGMENT, _SEGMENT), dtype=np.uint8)
            for side in range(2)
        ]
        chosen = checkpoint.nat_map[first : first + _SEGMENT, None].astype(np.bool_)
        blocks = np.where(chosen, copies[1].reshape(-1, BLOCK), copies[0].reshape(-1, BLOCK))
        size = _NAT_PER_BLOCK * _NAT.itemsize
        parts.append(np.ascontiguousarray(blocks[:, :size]).reshape(-1).view(_NAT))
    table = np.concatenate(parts)
    for change in _journal(reader, checkpoint, 0, _NAT_CHANGE):
        if change["number"] >= table.size:
            raise UncertainMapError("the journal of a table makes no sense")
        table[change["number"]] = change["entry"]
    # 0 is none, 1 and 2 stand for the tables themselves.
    numbers = np.flatnonzero(table["address"][3:]) + 3
    found = np.empty(numbers.size, dtype=_NAT_CHANGE)
    found["number"], found["entry"] = numbers, table[numbers]
    return found


def _confirm(
    reader: _Reader, superblock: _Superblock, checkpoint: _Checkpoint, valid: Bits
) -> None:
    """Compare the valid blocks with those that nodes have and refer to."""
    nodes = _nodes(reader, superblock, checkpoint)
    if nodes.size != checkpoint.nodes:
        raise UncertainMapError("node table and checkpoint disagree about the nodes")
    owned = Owned(superblock.main, superblock.segments * _SEGMENT)
    owned.take(nodes["entry"]["address"].astype(np.int64))
    order = np.argsort(nodes["entry"]["address"], kind="stable")
    referred: Referred = read_nodes(nodes[order], reader.blocks, superblock.features, owned)
    if not np.array_equal(owned.bits, valid):
        raise UncertainMapError("segment table and nodes disagree about the used blocks")
    total = int(_POPULATION[valid].sum(dtype=np.int64))
    if not total <= checkpoint.valid <= total + referred.reserved:
        raise UncertainMapError("segment table and checkpoint disagree about the used blocks")
