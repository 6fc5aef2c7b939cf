"""Reads the extents of a volume, part by part, and cuts them; the source is only ever read."""

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from imager import blockdev
from imager.blockdev import DirectDisk
from imager.capture.chunker import BLOCK, LEAST_ZERO_BLOCKS, MOST_UNDECIDED, Chunker, Piece
from imager.errors import UnreadableSource
from imager.stages import Stages
from imager.units import round_up

_LEAST_HOLE: Final = LEAST_ZERO_BLOCKS * BLOCK


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an extent.

    Attributes:
        offset: of its first byte, relative to the volume.
        length: bytes; whole blocks, but for the end of the extent.
        is_hole: of a disk file: zeros that need no reading, enough for a zero run.
        is_last: the extent ends with it.
    """

    offset: int
    length: int
    is_hole: bool
    is_last: bool


class Reader:
    """Reads a volume; `read` is safe from any thread.

    Args:
        descriptor: of the disk, open for reading.
        base: first byte of the volume on the disk.
        most: bytes of a part, unless it is a hole; a multiple of `BLOCK`.
        direct: the same disk for what can be read past the page cache, if any can.
    """

    def __init__(
        self, descriptor: int, base: int, most: int, direct: DirectDisk | None = None
    ) -> None:
        self._descriptor = descriptor
        self._direct = direct
        self._base = base
        self._most = most
        self._is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)

    def parts(self, offset: int, length: int) -> Iterator[Part]:
        """Yield the parts of an extent, in order.

        Args:
            offset: first byte of the extent in the volume.
            length: bytes of the extent.
        """
        end = offset + length
        while offset < end:
            hole = self._hole(offset, end)
            is_hole = hole >= _LEAST_HOLE
            size = hole if is_hole else self._before_hole(offset, end)
            yield Part(offset, size, is_hole, offset + size == end)
            offset += size

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with what begins at an offset in the volume.

        Args:
            offset: in the volume.
            buffer: begins at a page, if the disk can be read past the page cache.

        Raises:
            TruncatedSource: the disk ends within it.
            UnreadableSource: the disk gives a read error.
        """
        start = self._base + offset
        direct = self._direct
        if direct and not start % direct.sector and not len(buffer) % direct.sector:
            try:
                blockdev.read_into(direct.descriptor, start, buffer)
            except UnreadableSource:
                pass  # through the cache, page by page, it tells which byte it is
            else:
                return
        blockdev.read_into(self._descriptor, start, buffer)

    def _hole(self, offset: int, end: int) -> int:
        """Return how many bytes from an offset on are a hole: whole blocks, or up to the end."""
        data = self._seek(offset, os.SEEK_DATA)
        if data is None:
            return 0
        hole = max(min(data, end) - offset, 0)
        return hole if offset + hole == end else hole // BLOCK * BLOCK

    def _before_hole(self, offset: int, end: int) -> int:
        """Return how much is to be read before a hole that is worth it."""
        limit = min(offset + self._most, end)
        position = offset
        while position < limit:
            start = self._seek(position, os.SEEK_HOLE)
            if start is None or start >= limit:
                break
            start = offset + round_up(start - offset, BLOCK)
            if start < limit and self._hole(start, end) >= _LEAST_HOLE:
                return start - offset
            position = max(self._seek(start, os.SEEK_DATA) or limit, position + BLOCK)
        return limit - offset

    def _seek(self, offset: int, what: int) -> int | None:
        """Return where the next data or hole of a disk file begins, in the volume; None if nobody knows."""
        if not self._is_file:
            return None
        try:
            return os.lseek(self._descriptor, self._base + offset, what) - self._base
        except OSError as error:
            if error.errno != errno.ENXIO:
                return None
            return blockdev.size_of(self._descriptor) - self._base


class _Turns:
    """Lets threads through one by one, in the order of their numbers, each number once."""

    def __init__(self) -> None:
        self._next = 0
        self._changed = threading.Condition()

    @contextmanager
    def of(self, number: int) -> Iterator[Callable[[], None]]:
        """Yield what waits for the turn of a number; it is passed on at the end, also after an error."""

        def wait() -> None:
            with self._changed:
                self._changed.wait_for(lambda: self._next == number)

        try:
            yield wait
        finally:
            wait()
            with self._changed:
                self._next += 1
                self._changed.notify_all()


class ExtentReader:
    """An extent that is being read and cut by several threads, each part by one of them.

    Args:
        reader: of the volume.
        cut_key: of the group.
        stages: counts `read` and `cut`.
    """

    def __init__(self, reader: Reader, cut_key: bytes, stages: Stages) -> None:
        self._reader = reader
        self._chunker = Chunker(cut_key)
        self._stages = stages
        self._rest = b""
        self._turns = _Turns()

    def cut(
        self, number: int, part: Part, buffer: memoryview
    ) -> tuple[int, memoryview, list[Piece]]:
        """Read a part and cut it.

        Args:
            number: of the part in the extent, from 0; those before must have been begun.
            part: the part.
            buffer: room for `MOST_UNDECIDED` bytes and the part.

        Returns:
            Where in the volume the pieces begin that can be decided now, the buffer from their
            first byte on, and these. Their bytes lie there, but for a zero run's.
        """
        end = MOST_UNDECIDED + part.length
        with self._turns.of(number) as wait:
            examined = None
            if not part.is_hole:
                data = buffer[MOST_UNDECIDED:end]
                with self._stages.within("read", part.length):
                    self._reader.read(part.offset, data)
                with self._stages.within("cut", part.length):
                    examined = self._chunker.examine(data)
            wait()
            begin = MOST_UNDECIDED - len(self._rest)
            buffer[begin:MOST_UNDECIDED] = self._rest
            with self._stages.within("cut"):
                if examined is None:
                    pieces = self._chunker.decide_zeros(part.length, final=part.is_last)
                else:
                    pieces = self._chunker.decide(examined, final=part.is_last)
            self._rest = bytes(buffer[end - self._chunker.undecided : end])
        return part.offset - (MOST_UNDECIDED - begin), buffer[begin:], pieces
