"""Reads the extents of a volume and cuts them; the source is only ever read."""

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from imager import blockdev
from imager.capture.chunker import BLOCK, LEAST_ZERO_BLOCKS, Chunker, Piece
from imager.stages import Stages
from imager.thread_buffers import page_buffer
from imager.units import MIB, round_up

# Each costs some hundred microseconds of Python; they should be lost in what native code takes.
SEGMENT: Final = 8 * MIB


class Buffers:
    """Buffers of `SEGMENT` bytes that are used again: fresh memory costs as much as reading."""

    def __init__(self) -> None:
        self._free: list[memoryview] = []

    def take(self) -> memoryview:
        """Return a buffer that nobody else uses."""
        return self._free.pop() if self._free else page_buffer(SEGMENT)

    def give_back(self, buffer: memoryview) -> None:
        """Take a buffer back whose content nobody needs any more."""
        self._free.append(buffer)


@dataclass(frozen=True, slots=True)
class Batch:
    """Decided pieces and the buffer they lie in.

    Attributes:
        offset: where the buffer begins, in bytes relative to the volume.
        buffer: whole, to be given back when all of it is done.
        pieces: in order, without gaps, from the buffer's first byte; zeros may go beyond its end.
    """

    offset: int
    buffer: memoryview
    pieces: list[Piece]

    @property
    def size(self) -> int:
        """Bytes of the volume that are decided."""
        return self.pieces[-1].end if self.pieces else 0


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
        self._is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)

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
            buffer = self._buffers.take()
            if not rest and (zeros := chunker.skip(self._hole(offset, end))):
                yield Batch(offset, buffer, [zeros])
                offset += zeros.end
                continue
            size = min(SEGMENT, end - offset, self._before_hole(offset, len(rest)))
            buffer[: len(rest)] = rest
            with self._stages.within("read", size - len(rest)):
                start = self._base + offset + len(rest)
                blockdev.read_into(self._descriptor, start, buffer[len(rest) : size])
            with self._stages.within("cut", size):
                pieces, covered = chunker.cut(buffer[:size], final=offset + size == end)
            rest = bytes(buffer[covered:size])
            yield Batch(offset, buffer, pieces)
            offset += covered

    def _hole(self, offset: int, end: int) -> int:
        """Return how many bytes of a disk file from there on are a hole: zeros that need no reading.

        Args:
            offset: in the volume.
            end: of the extent.
        """
        start = self._base + offset
        data = self._seek(start, os.SEEK_DATA)
        if data is None:
            return 0
        hole = max(min(data - start, end - offset), 0)
        return hole if hole == end - offset else hole // BLOCK * BLOCK

    def _before_hole(self, offset: int, known: int) -> int:
        """Return how much to read so that a hole that comes is known for a zero run.

        Args:
            offset: in the volume.
            known: bytes from there on that were read already.
        """
        start = self._base + offset
        hole = self._seek(start + known, os.SEEK_HOLE)
        if hole is None:
            return SEGMENT
        return round_up(hole - start, BLOCK) + LEAST_ZERO_BLOCKS * BLOCK

    def _seek(self, position: int, what: int) -> int | None:
        """Return where the next data or hole of a disk file begins; None if nobody knows."""
        if not self._is_file:
            return None
        try:
            return os.lseek(self._descriptor, position, what)
        except OSError as error:
            return blockdev.size_of(self._descriptor) if error.errno == errno.ENXIO else None
