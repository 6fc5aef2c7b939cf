"""Reads the extents of a volume and cuts them; the source is only ever read."""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from imager import blockdev
from imager.capture.chunker import Chunker, Piece
from imager.stages import Stages
from imager.units import MIB

# Each costs some hundred microseconds of Python; they should be lost in what native code takes.
SEGMENT: Final = 8 * MIB


class Buffers:
    """Buffers of `SEGMENT` bytes that are used again: fresh memory costs as much as reading."""

    def __init__(self) -> None:
        self._free: list[memoryview] = []

    def take(self) -> memoryview:
        """Return a buffer that nobody else uses."""
        return self._free.pop() if self._free else memoryview(mmap.mmap(-1, SEGMENT))

    def give_back(self, buffer: memoryview) -> None:
        """Take a buffer back whose content nobody needs any more."""
        self._free.append(buffer)


@dataclass(frozen=True, slots=True)
class Batch:
    """Decided pieces and the buffer they lie in.

    Attributes:
        offset: where the buffer begins, in bytes relative to the volume.
        buffer: whole, to be given back when all of it is done.
        data: what of it is decided.
        pieces: in order, without gaps, from the buffer's first byte.
    """

    offset: int
    buffer: memoryview
    data: memoryview
    pieces: list[Piece]


class Reader:
    """Reads and cuts; for one thread.

    Args:
        descriptor: of the disk, open for reading.
        base: first byte of the volume on the disk.
        cut_key: of the group.
        buffers: each batch takes one of them.
        stages: counts `read` and `cut`.
    """

    def __init__(
        self, descriptor: int, base: int, cut_key: bytes, buffers: Buffers, stages: Stages
    ) -> None:
        self._descriptor = descriptor
        self._base = base
        self._cut_key = cut_key
        self._buffers = buffers
        self._stages = stages

    def read_extent(self, offset: int, length: int) -> Iterator[Batch]:
        """Yield one extent as batches of chunks and zero runs.

        Args:
            offset: first byte of the extent in the volume.
            length: bytes of the extent.

        Raises:
            TruncatedSource: the disk ends within the extent.
            UnreadableSource: the disk gives a read error.
        """
        chunker = Chunker(self._cut_key)
        rest = b""
        end = offset + length
        while offset < end:
            size = min(SEGMENT, end - offset)
            buffer = self._buffers.take()
            buffer[: len(rest)] = rest
            with self._stages.within("read", size - len(rest)):
                start = self._base + offset + len(rest)
                blockdev.read_into(self._descriptor, start, buffer[len(rest) : size])
            with self._stages.within("cut", size):
                pieces, covered = chunker.cut(buffer[:size], final=offset + size == end)
            rest = bytes(buffer[covered:size])
            yield Batch(offset, buffer, buffer[:covered], pieces)
            offset += covered
