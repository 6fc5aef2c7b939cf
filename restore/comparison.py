"""Reads targets and compares them with an image, in threads.

It serves reading back what was written, finding what differs before anything is written, and
finding what an interrupted restore has written last. What is compared is what the map defines:
data, zeros, and free space near the ends of a volume.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager.direct_io import page_buffer
from imager.errors import VerificationFailed
from imager.layout.disk import Volume
from imager.repository.volume_map import side_by_side
from imager.stages import Lane, Stages
from imager.thread_buffers import ThreadBuffers
from imager.units import KIB, MIB
from restore.device import OpenTarget
from restore.runs import Image, Offsets, Runs, each_part
from restore.steps import CompareVolume, VerifyVolume

_SEGMENT: Final = MIB  # read at once; more would not stay in caches until it is hashed
_GRAIN: Final = 64 * KIB  # of what is not zero where it must be
_MOST_READERS: Final = 8
_AHEAD: Final = 4  # segments asked for at once, for each reader

_READ: Final = "read"
_COMPARE: Final = "compare"

Advance = Callable[[int], None]


def reading_lane() -> Lane:
    """Return the lane of a comparison."""
    return Lane("read", _readers(), (_READ, _COMPARE))


def reading_stages() -> Stages:
    """Return what counts the stages of a comparison; its clock begins."""
    return Stages((reading_lane(),))


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
        """Return what must be written of a part of the volume."""
        these = slice(runs.first, runs.first + len(runs.data_offsets))
        wanted = self.data[these] | self.at_ends[these] if with_ends else self.data[these]
        starts = self.zeros[:, 0]
        is_here = (starts >= np.uint64(runs.start)) & (starts < np.uint64(runs.end))
        return replace(runs.where(wanted), zeros=self.zeros[is_here])


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
            for offset, length in found.places:
                raise VerificationFailed(
                    f"{step.target.path} ({step.target.disk}) does not hold what was written to "
                    f"{step.volume}: the {length} bytes at byte {step.offset + offset} of the "
                    "disk differ"
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
    zeros: list[tuple[int, int]] = []
    with closing(comparison.pieces(tolerant=True)) as pieces:
        for found in pieces:
            for offset, length in found.zeros:
                if zeros and sum(zeros[-1]) == offset:
                    offset, length = zeros[-1][0], zeros.pop()[1] + length  # noqa: PLW2901
                zeros.append((offset, length))
            advance(found.size)
    return Differences(
        data=np.concatenate([np.empty(0, dtype=np.bool_), *comparison.differs]),
        zeros=np.array(zeros, dtype=np.uint64).reshape(-1, 2),
        at_ends=np.concatenate([np.empty(0, dtype=np.bool_), *comparison.at_ends]),
    )


def differing_runs(
    offsets: Offsets,
    lengths: Offsets,
    ids: Offsets,
    image: Image,
    opened: OpenTarget,
    stages: Stages,
) -> NDArray[np.bool_]:
    """Find which runs of data are not on a target yet. What can't be read differs.

    Args:
        offsets: bytes on the target, ascending; shape (n,).
        lengths: bytes of each.
        ids: four 64-bit words each; shape (n, 4).
        image: knows which id bytes have.
        opened: the target.
        stages: counts; they have the `reading_lane`.

    Returns:
        Shape (n,).
    """
    reader = _Reader(image, opened, 0, stages)
    differs = np.zeros(len(offsets), dtype=np.bool_)
    compare = partial(reader.data, _Data(offsets, lengths, ids), differs, True)
    segments = side_by_side(offsets, offsets + lengths, _SEGMENT)
    with closing(_in_threads((compare, *segment) for segment in segments)) as pieces:
        for _ in pieces:
            pass
    return differs


def clear_outside(opened: OpenTarget, ranges: Iterable[tuple[int, int]]) -> int:
    """Write zeros over ranges of a target, in pieces, where it holds anything else.

    Returns:
        Bytes written.

    Raises:
        WriteFailed: the target refused.
    """
    buffer = page_buffer(_GRAIN)
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
    """What was found in some bytes that were read at once. Offsets are those in the volume.

    Attributes:
        size: bytes.
        data: (offset, length) of each run of data that differs.
        zeros: (offset, length) of ranges that are not zero and must be.
    """

    size: int
    data: tuple[tuple[int, int], ...] = ()
    zeros: tuple[tuple[int, int], ...] = ()

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """All that differs."""
        return self.data + self.zeros


_Work = tuple[Callable[[int, int], _Piece], int, int]


@dataclass(frozen=True, slots=True)
class _Data:
    """Runs of data: offsets, lengths, and ids as in `Runs`."""

    offsets: Offsets
    lengths: Offsets
    ids: Offsets


class _Comparison:
    """Compares a volume on a target with its map.

    Attributes:
        differs: for each part, which of its runs of data were found to differ.
        at_ends: for each part, which of them lie at an end of the disk, in a `CompareVolume`.
    """

    def __init__(
        self,
        step: VerifyVolume | CompareVolume,
        image: Image,
        opened: OpenTarget,
        stages: Stages,
    ) -> None:
        volumes: dict[str, Volume] = {volume.id: volume for _, volume in image.machine.volumes()}
        self._volume = volumes[step.volume]
        self._step = step
        self._image = image
        self._opened = opened
        self._reader = _Reader(image, opened, step.offset, stages)
        self.differs: list[NDArray[np.bool_]] = []
        self.at_ends: list[NDArray[np.bool_]] = []

    def pieces(self, *, tolerant: bool = False) -> Generator[_Piece]:
        """Yield what is found, in the order of the volume; of each part data first.

        Args:
            tolerant: take what can't be read for different.

        Raises:
            VerificationFailed: something can't be read.
        """
        if isinstance(self._step, VerifyVolume):
            self._opened.forget()
        else:
            self._opened.forget_what_is_stale()
        return _in_threads(self._work(tolerant=tolerant))

    def _work(self, *, tolerant: bool) -> Iterator[_Work]:
        step = self._step
        source = step.source if isinstance(step, VerifyVolume) else 0
        for runs in each_part(self._image, self._volume, step.length, source):
            differs = np.zeros(len(runs.data_offsets), dtype=np.bool_)
            self.differs.append(differs)
            if isinstance(step, CompareVolume):
                self.at_ends.append(self._at_ends(runs, step))
            data = _Data(runs.data_offsets, runs.data_lengths, runs.data_ids)
            compare = partial(self._reader.data, data, differs, tolerant)
            ends = runs.data_offsets + runs.data_lengths
            whole = slice(int(bool(runs.skipped)), len(ends) - bool(runs.cut))
            sides = side_by_side(runs.data_offsets[whole], ends[whole], _SEGMENT)
            for first, last in sides:
                yield compare, whole.start + first, whole.start + last
            for number in sorted(_parted(runs)):
                skipped = 0 if number else runs.skipped
                part = partial(self._reader.part, runs.data_ids[number].tobytes(), skipped)
                yield part, int(runs.data_offsets[number]), int(runs.data_lengths[number])
            clear = partial(self._reader.zeros, tolerant)
            yield from ((clear, *piece) for piece in _pieces(runs))

    def _at_ends(self, runs: Runs, step: CompareVolume) -> NDArray[np.bool_]:
        head, tail = step.ends
        starts = runs.data_offsets + np.uint64(step.offset)
        is_behind: NDArray[np.bool_] = starts + runs.data_lengths > np.uint64(tail)
        return is_behind | (starts < np.uint64(head))


class _Reader:
    """Reads pieces of a target and compares them; for many threads.

    Args:
        image: knows which id bytes have.
        opened: the target.
        base: where on the target the offsets begin that it is given.
        stages: counts.
    """

    def __init__(self, image: Image, opened: OpenTarget, base: int, stages: Stages) -> None:
        self._image = image
        self._opened = opened
        self._base = base
        self._stages = stages
        self._buffers = ThreadBuffers(_SEGMENT)

    def data(
        self, runs: _Data, differs: NDArray[np.bool_], tolerant: bool, start: int, stop: int
    ) -> _Piece:
        """Compare the data runs from `start` to `stop`, which lie side by side; for a thread."""
        offsets = runs.offsets[start:stop].tolist()
        lengths = runs.lengths[start:stop].tolist()
        total = offsets[-1] + lengths[-1] - offsets[0]
        try:
            view = self._read(offsets[0], total)
        except VerificationFailed:
            if not tolerant:
                raise
            if stop - start == 1:
                differs[start] = True
                return _Piece(total, ((offsets[0], total),))
            alone = [self.data(runs, differs, tolerant, run, run + 1) for run in range(start, stop)]
            return _Piece(total, tuple(place for piece in alone for place in piece.data))
        ids = runs.ids[start:stop].tobytes()
        found = []
        with self._stages.within(_COMPARE, total):
            for number, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
                piece = view[offset - offsets[0] : offset - offsets[0] + length]
                if self._image.identify(piece) != ids[32 * number : 32 * number + 32]:
                    differs[start + number] = True
                    found.append((offset, length))
        return _Piece(total, tuple(found))

    def part(self, identity: bytes, skipped: int, offset: int, length: int) -> _Piece:
        """Compare a range with some of the bytes of a chunk, of which its id says nothing.

        For a thread, and for what was written: what can't be read is an error.
        """
        view = self._read(offset, length)
        plain = self._image.chunks([identity])[identity]
        is_same = view == plain[skipped : skipped + length]
        return _Piece(length, () if is_same else ((offset, length),))

    def zeros(self, tolerant: bool, offset: int, length: int) -> _Piece:
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
        """Read into this thread's own buffer."""
        view = self._buffers.of(length)
        with self._stages.within(_READ, length):
            self._opened.read_into(self._base + offset, view)
        return view


def _in_threads(work: Iterable[_Work]) -> Generator[_Piece]:
    """Yield what calls return, in their order."""
    pending: deque[Future[_Piece]] = deque()
    with ThreadPoolExecutor(_readers(), thread_name_prefix="compare") as pool:
        try:
            for compare, one, other in work:
                pending.append(pool.submit(compare, one, other))
                if len(pending) >= _AHEAD * _readers():
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _readers() -> int:
    return min(len(os.sched_getaffinity(0)), _MOST_READERS)


def _parted(runs: Runs) -> set[int]:
    """Return which runs from the image are not there with all of their chunk."""
    last = len(runs.data_offsets) - 1
    return ({0} if runs.skipped else set()) | ({last} if runs.cut else set())


def _pieces(runs: Runs) -> Iterator[tuple[int, int]]:
    """Yield ranges that must be zero, in pieces that are read at once."""
    for offset, length in np.concatenate([runs.zeros, runs.cleared]).tolist():
        for start in range(offset, offset + length, _SEGMENT):
            yield start, min(_SEGMENT, offset + length - start)
