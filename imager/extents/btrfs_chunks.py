"""Chunks of btrfs: which bytes of which device a logical address stands for."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager.extents.extents import UncertainMapError
from imager.units import KIB

STRIPE: Final = 64 * KIB
# Length, owner, stripe length, type, alignments, sector size, stripes, stripes that are copies
_CHUNK: Final = struct.Struct("<QQQQIIIHH")
_PLACE: Final = struct.Struct("<QQ16s")  # device, offset, UUID of the device
_KEY: Final = struct.Struct("<QBQ")
_CHUNK_TREE: Final = 256
CHUNK_ITEM: Final = 228

_KINDS: Final = 0x7  # data, system, metadata
_RAID0: Final = 0x8
_RAID10: Final = 0x40
_RAID5: Final = 0x80
_RAID6: Final = 0x100
# Copies of everything: single, RAID 1, DUP, RAID 1 with 3 and 4 copies
_COPIES: Final = {0: 1, 0x10: 2, 0x20: 2, 0x200: 3, 0x400: 4}
_PARITY: Final = {_RAID5: 1, _RAID6: 2}


@dataclass(frozen=True, slots=True)
class Chunk:
    """A range of logical addresses and where its bytes are kept.

    Attributes:
        start: first logical address.
        length: bytes.
        kind: what it holds and how, as flags.
        places: device, offset on it, and UUID of it for each stripe.
        copies: how many neighbouring stripes hold the same (RAID 10), else 1; RAID 1 and DUP
            are one stripe in `columns`.
        parity: stripes of each row that hold parity.
    """

    start: int
    length: int
    kind: int
    places: tuple[tuple[int, int, bytes], ...]
    copies: int
    parity: int

    @property
    def columns(self) -> int:
        """Stripes of a row that hold different data."""
        return (len(self.places) - self.parity) // self.copies

    @property
    def length_on_device(self) -> int:
        """Bytes that each stripe takes."""
        return self.length // self.columns

    def locate(self, address: int, size: int) -> tuple[int, int]:
        """Return the device and offset of one copy of `size` bytes at a logical address.

        Raises:
            UncertainMapError: they are not in one piece.
        """
        position = address - self.start
        if self.columns == 1 and not self.parity:
            device, offset, _ = self.places[0]
            return device, offset + position
        if position % STRIPE + size > STRIPE:
            raise UncertainMapError("a tree block lies on two stripes")
        row, column = divmod(position // STRIPE, self.columns)
        index = (row + column) % len(self.places) if self.parity else column * self.copies
        device, offset, _ = self.places[index]
        return device, offset + row * STRIPE + position % STRIPE

    def used_on_devices(
        self, starts: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Yield for each stripe its device and the ranges of it that are in use, on the device.

        Args:
            starts: of the free ranges of logical addresses; sorted and within the chunk.
            ends: of them.
        """
        for index, (device, offset, _) in enumerate(self.places):
            free_starts = self._on_stripe(starts - self.start, index, is_end=False)
            free_ends = np.maximum(
                free_starts, self._on_stripe(ends - self.start, index, is_end=True)
            )
            yield (
                device,
                offset + np.concatenate([[0], free_ends]),
                offset + np.concatenate([free_starts, [self.length_on_device]]),
            )

    def _on_stripe(
        self, positions: NDArray[np.int64], index: int, *, is_end: bool
    ) -> NDArray[np.int64]:
        """Return how many bytes of a stripe come before positions in the chunk.

        With parity only whole rows are free: a start moves up to the next row, an end down.
        """
        if self.columns == 1 and not self.parity:
            return positions
        width = self.columns * STRIPE
        if self.parity:
            return (positions if is_end else positions + width - 1) // width * STRIPE
        rows, rest = positions // width, positions % width
        column = index // self.copies
        return rows * STRIPE + np.clip(rest - column * STRIPE, 0, STRIPE)


def parse_chunk(start: int, data: bytes) -> Chunk:
    """Read a chunk item.

    Raises:
        UncertainMapError: it makes no sense, or has a profile that is not known here.
    """
    if len(data) < _CHUNK.size:
        raise UncertainMapError("a chunk makes no sense")
    length, _, stripe, kind, _, _, _, count, sub = _CHUNK.unpack_from(data)
    if len(data) != _CHUNK.size + count * _PLACE.size or not count or stripe != STRIPE:
        raise UncertainMapError("a chunk makes no sense")
    places = tuple(_PLACE.iter_unpack(data[_CHUNK.size :]))
    profile = kind & ~_KINDS
    if profile in _COPIES:
        # All stripes hold the same: as many copies as there are stripes.
        sound, copies = count == _COPIES[profile], count
    elif profile == _RAID0:
        sound, copies = True, 1
    elif profile == _RAID10:
        sound, copies = sub == 2 and count % 2 == 0, 2
    elif profile in _PARITY:
        sound, copies = count > _PARITY[profile], 1
    else:
        raise UncertainMapError(f"a chunk has a profile that is not known here ({profile:#x})")
    if not sound or not kind & _KINDS:
        raise UncertainMapError("a chunk makes no sense")
    chunk = Chunk(start, length, kind, places, copies, _PARITY.get(profile, 0))
    is_striped = chunk.columns > 1 or chunk.parity
    if not length or length % (chunk.columns * (STRIPE if is_striped else 1)):
        raise UncertainMapError("a chunk makes no sense")
    return chunk


def parse_system_chunks(array: bytes) -> tuple[Chunk, ...]:
    """Read the chunks that the superblock lists: those the chunk tree itself lies in.

    Raises:
        UncertainMapError: the array makes no sense.
    """
    found = []
    position = 0
    while position < len(array):
        head = position + _KEY.size
        if head + _CHUNK.size > len(array):
            raise UncertainMapError("the array of system chunks makes no sense")
        owner, kind, start = _KEY.unpack_from(array, position)
        count = _CHUNK.unpack_from(array, head)[7]
        position = head + _CHUNK.size + count * _PLACE.size
        if (owner, kind) != (_CHUNK_TREE, CHUNK_ITEM):
            raise UncertainMapError("the array of system chunks makes no sense")
        found.append(parse_chunk(start, array[head:position]))
    return tuple(found)


class ChunkMap:
    """Finds the chunk of a logical address."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        """Take chunks in any order.

        Raises:
            UncertainMapError: two of them overlap.
        """
        self.chunks = tuple(sorted(chunks, key=lambda chunk: chunk.start))
        self._starts = np.array([chunk.start for chunk in self.chunks], dtype=np.int64)
        for left, right in zip(self.chunks, self.chunks[1:], strict=False):
            if left.start + left.length > right.start:
                raise UncertainMapError("two chunks overlap")

    def locate(self, address: int, size: int) -> tuple[int, int]:
        """Return the device and offset of one copy of `size` bytes at a logical address.

        Raises:
            UncertainMapError: there is no chunk, or they are not in one piece.
        """
        index = int(np.searchsorted(self._starts, address, side="right")) - 1
        if index >= 0:
            chunk = self.chunks[index]
            if address + size <= chunk.start + chunk.length:
                return chunk.locate(address, size)
        raise UncertainMapError("a tree leads to an address that has no chunk")
