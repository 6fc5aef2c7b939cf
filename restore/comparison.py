"""Reads targets and compares them with an image, in threads.

It serves two ends: reading back what was written, and finding what differs before anything is
written. What is compared is what the map defines: data, zeros, and free space near the ends of a
volume.
"""

import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager.errors import VerificationFailed
from imager.layout.disk import Volume
from imager.stages import Lane, Stages
from imager.units import KIB, MIB
from restore.device import OpenTarget
from restore.runs import Image, Offsets, Runs, take_apart
from restore.steps import CompareVolume, VerifyVolume

_SEGMENT: Final = MIB  # read at once; more would not stay in caches until it is hashed
_GRAIN: Final = 64 * KIB  # of what is not zero where it must be
_MOST_READERS: Final = 8
_AHEAD: Final = 4  # segments asked for at once, for each reader

_READ: Final = "read"
_COMPARE: Final = "compare"

Advance = Callable[[int], None]


def reading_stages() -> Stages:
    """Return what counts the stages of a comparison; its clock begins."""
    return Stages((Lane("read", _readers(), (_READ, _COMPARE)),))


@dataclass(frozen=True, slots=True)
class Differences:
    """What of a volume is not on a target as the image has it.

    Attributes:
        data: for each run of data whether it differs; shape (n,).
        zeros: (offset, length) of ranges in the volume that must be zero and are not; shape (m, 2).
        at_ends: which runs of data lie at an end of the disk, where zeros go as soon as anything
            differs; shape (n,).
    """

    data: NDArray[np.bool_]
    zeros: Offsets
    at_ends: NDArray[np.bool_]

    @property
    def any(self) -> bool:
        """Whether there is any."""
        return bool(self.data.any()) or len(self.zeros) > 0

    def all_of(self, runs: Runs, *, with_ends: bool) -> Runs:
        """Return what must be written of the volume's runs."""
        wanted = self.data | self.at_ends if with_ends else self.data
        return replace(runs.where(wanted), zeros=self.zeros)


def verify_volume(
    step: VerifyVolume, image: Image, opened: OpenTarget, advance: Advance, stages: Stages
) -> None:
    """Read a volume back from the disk itself and compare every byte that was written.

    Args:
        step: what to compare.
        image: knows what must be there.
        opened: the target, flushed.
        advance: called with bytes just compared.
        stages: counts; made by `reading_stages`.

    Raises:
        VerificationFailed: with the target and the first byte of the piece that differs.
    """
    comparison = _Comparison(step, image, opened, stages)
    with closing(comparison.pieces()) as pieces:
        for found in pieces:
            for offset, length in comparison.places(found):
                raise VerificationFailed(
                    f"{step.target.path} ({step.target.disk}) does not hold what was written to "
                    f"{step.volume}: the {length} bytes at byte {offset} of the disk differ"
                )
            advance(found.size)


def compare_volume(
    step: CompareVolume, image: Image, opened: OpenTarget, advance: Advance, stages: Stages
) -> Differences:
    """Find what of a volume is not on a target yet. What can't be read differs.

    Args:
        step: what to compare.
        image: knows what must be there.
        opened: the target.
        advance: called with bytes just compared.
        stages: counts; made by `reading_stages`.
    """
    comparison = _Comparison(step, image, opened, stages)
    runs = comparison.runs
    differs = np.zeros(len(runs.data_offsets), dtype=np.bool_)
    zeros: list[tuple[int, int]] = []
    with closing(comparison.pieces(tolerant=True)) as pieces:
        for found in pieces:
            differs[list(found.runs)] = True
            zeros.extend(found.zeros)
            advance(found.size)
    starts = runs.data_offsets + np.uint64(step.offset)
    head, tail = step.ends
    at_ends = starts < np.uint64(head)
    at_ends |= starts + runs.data_lengths > np.uint64(tail)
    return Differences(differs, np.array(zeros, dtype=np.uint64).reshape(-1, 2), at_ends)


def clear_outside(opened: OpenTarget, ranges: Iterable[tuple[int, int]]) -> int:
    """Write zeros over ranges of a target, in pieces, where it holds anything else.

    Returns:
        Bytes written.

    Raises:
        WriteFailed: the target refused.
    """
    buffer = memoryview(mmap.mmap(-1, _GRAIN))
    written = 0
    for offset, length in ranges:
        for start in range(offset, offset + length, _GRAIN):
            piece = buffer[: min(_GRAIN, offset + length - start)]
            try:
                opened.read_into(start, piece)
                is_zero = not np.frombuffer(piece, np.uint8).max()
            except VerificationFailed:
                is_zero = False
            if not is_zero:
                opened.zero(start, len(piece))
                written += len(piece)
    if written:
        opened.flush()
    return written


@dataclass(frozen=True, slots=True)
class _Piece:
    """What was found in some bytes that were read at once.

    Attributes:
        size: bytes.
        runs: numbers of the runs of data that differ.
        zeros: (offset, length) of ranges in the volume that are not zero and must be.
    """

    size: int
    runs: tuple[int, ...] = ()
    zeros: tuple[tuple[int, int], ...] = ()


class _Comparison:
    """Compares a volume on a target with its map."""

    def __init__(
        self,
        step: VerifyVolume | CompareVolume,
        image: Image,
        opened: OpenTarget,
        stages: Stages,
    ) -> None:
        volumes: dict[str, Volume] = {volume.id: volume for _, volume in image.machine.volumes()}
        self.runs = take_apart(image.map(step.volume), volumes[step.volume])
        self._step = step
        self._image = image
        self._opened = opened
        self._stages = stages
        self._buffers = threading.local()

    def pieces(self, *, tolerant: bool = False) -> Generator[_Piece]:
        """Yield what is found, in the order of the volume, data first.

        Args:
            tolerant: take what can't be read for different.

        Raises:
            VerificationFailed: something can't be read.
        """
        self._opened.forget()
        work = chain(
            ((self._data, *piece) for piece in _segments(self.runs)),
            ((self._zeros, *piece) for piece in _pieces(self.runs)),
        )
        pending: deque[Future[_Piece]] = deque()
        with ThreadPoolExecutor(_readers(), thread_name_prefix="compare") as pool:
            try:
                for compare, one, other in work:
                    pending.append(pool.submit(compare, one, other, tolerant=tolerant))
                    if len(pending) >= _AHEAD * _readers():
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def places(self, piece: _Piece) -> Iterator[tuple[int, int]]:
        """Yield offset on the target and length of all that differs."""
        for number in piece.runs:
            offset, length = self.runs.data_offsets[number], self.runs.data_lengths[number]
            yield self._step.offset + int(offset), int(length)
        for start, length in piece.zeros:
            yield self._step.offset + start, length

    def _data(self, start: int, stop: int, *, tolerant: bool) -> _Piece:
        """Compare the data runs from `start` to `stop`, which lie side by side; for a thread."""
        offsets = self.runs.data_offsets[start:stop].tolist()
        lengths = self.runs.data_lengths[start:stop].tolist()
        total = offsets[-1] + lengths[-1] - offsets[0]
        try:
            view = self._read(offsets[0], total)
        except VerificationFailed:
            if not tolerant:
                raise
            if stop - start == 1:
                return _Piece(total, (start,))
            alone = [self._data(run, run + 1, tolerant=True) for run in range(start, stop)]
            return _Piece(total, tuple(run for piece in alone for run in piece.runs))
        ids = self.runs.data_ids[start:stop].tobytes()
        with self._stages.within(_COMPARE, total):
            return _Piece(
                total,
                tuple(
                    start + number
                    for number, (offset, length) in enumerate(zip(offsets, lengths, strict=True))
                    for position in [offset - offsets[0]]
                    if self._image.identify(view[position : position + length])
                    != ids[32 * number : 32 * number + 32]
                ),
            )

    def _zeros(self, offset: int, length: int, *, tolerant: bool) -> _Piece:
        """Compare a range that must be zero; for a thread."""
        try:
            view = self._read(offset, length)
        except VerificationFailed:
            if not tolerant:
                raise
            return _Piece(length, zeros=((offset, length),))
        with self._stages.within(_COMPARE, length):
            if not np.frombuffer(view, np.uint8).max():
                return _Piece(length)
            starts = [
                start
                for start in range(0, length, _GRAIN)
                if np.frombuffer(view[start : start + _GRAIN], np.uint8).max()
            ]
        return _Piece(
            length,
            zeros=tuple((offset + start, min(_GRAIN, length - start)) for start in starts),
        )

    def _read(self, offset: int, length: int) -> memoryview:
        """Read into this thread's own buffer: fresh memory each time costs more than hashing."""
        buffer: memoryview | None = getattr(self._buffers, "buffer", None)
        if buffer is None or len(buffer) < length:
            # From mmap, since direct reads want memory that begins at a page.
            buffer = self._buffers.buffer = memoryview(mmap.mmap(-1, max(length, _SEGMENT)))
        view = buffer[:length]
        with self._stages.within(_READ, length):
            self._opened.read_into(self._step.offset + offset, view)
        return view


def _readers() -> int:
    return min(len(os.sched_getaffinity(0)), _MOST_READERS)


def _segments(runs: Runs) -> Iterator[tuple[int, int]]:
    """Yield ranges of data runs that lie side by side and are read at once."""
    count = len(runs.data_offsets)
    if not count:
        return
    ends = runs.data_offsets + runs.data_lengths
    breaks = np.flatnonzero(runs.data_offsets[1:] != ends[:-1]) + 1
    for start, stop in zip([0, *breaks.tolist()], [*breaks.tolist(), count], strict=True):
        position = start
        while position < stop:
            limit = runs.data_offsets[position] + np.uint64(_SEGMENT)
            fitting = int(np.searchsorted(ends[position:stop], limit, side="right"))
            following = position + max(fitting, 1)
            yield position, following
            position = following


def _pieces(runs: Runs) -> Iterator[tuple[int, int]]:
    """Yield ranges that must be zero, in pieces that are read at once."""
    for offset, length in np.concatenate([runs.zeros, runs.cleared]).tolist():
        for start in range(offset, offset + length, _SEGMENT):
            yield start, min(_SEGMENT, offset + length - start)
