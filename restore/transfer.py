"""Writes content: the chunks of an image to every place they belong.

It follows the order in which the repository stores chunks, over all volumes at once, so that a chunk
that several places share is fetched once. It is done in windows (`restore.windows`), so that memory
does not grow with the disks. Chunks are written by the threads that opened
them (`imager.repository.delivery`), while they are in the cache of the processor; what lies side by
side on a disk in one write.
"""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager.errors import ObjectDamaged, VerificationFailed
from imager.repository.chunk import MOST_PLAIN
from imager.repository.delivery import Report
from imager.stages import Lane, Stages
from imager.thread_buffers import ThreadBuffers
from imager.units import KIB
from restore.comparison import differing_runs, reading_lane
from restore.device import OpenTarget
from restore.runs import Image, Offsets, Runs
from restore.steps import WriteVolume
from restore.target import Target
from restore.windows import Window, but_heads, is_before, parts_of, places, windows

Advance = Callable[[int], None]
Open = Mapping[Target, OpenTarget]
Wanted = Callable[[WriteVolume, Runs], Runs]

# Places of one chunk that are written before anybody hears of it: some are in every corner of a disk.
_PLACES: Final = 1 << 10

_BLOCK: Final = 4 * KIB

_WRITE: Final = "write"
_FLUSH: Final = "flush"
_ZERO: Final = "zero"


@dataclass(frozen=True, slots=True)
class Course:
    """Which windows are there, and who hears of more (`restore.journal`).

    Attributes:
        done: windows that are written and flushed already; nothing of them is touched.
        resumes: the window behind may be there in part: it is compared first.
        note: called with the count of windows that are written, not yet flushed.
        leave: called before anything is written where notes are kept.
    """

    done: int = 0
    resumes: bool = False
    note: Callable[[int], None] = field(default=lambda _windows: None)
    leave: Callable[[], None] = field(default=lambda: None)


FROM_THE_START: Final = Course()


def _all_of(_step: WriteVolume, runs: Runs) -> Runs:
    return runs


def writing_stages(image: Image, *, resumes: bool = False) -> Stages:
    """Return what counts the stages of writing; its clock begins.

    Args:
        image: where the content comes from.
        resumes: something is compared before.
    """
    before = (reading_lane(),) if resumes else ()
    return Stages((*before, *image.lanes((_WRITE,)), Lane("disk", 1, (_ZERO, _FLUSH))))


def write_volumes(
    steps: Sequence[WriteVolume],
    image: Image,
    opened: Open,
    advance: Advance,
    stages: Stages,
    wanted: Wanted = _all_of,
    course: Course = FROM_THE_START,
) -> list[int]:
    """Write volumes of one phase in one pass, and flush.

    What a disk without a table begins with is written last, zeros too, since it makes the disk
    look whole; until then the journal lies there.

    Args:
        steps: what to write; all of one phase.
        image: where the content comes from.
        opened: the targets.
        advance: called in this thread with bytes just written, zeros included, or right already.
        stages: counts; made by `writing_stages`.
        wanted: returns which of the runs of a step are to be written.
        course: where to begin.

    Returns:
        How many bytes were written for each step.

    Raises:
        WriteFailed: a target refused.
        ObjectDamaged, ObjectMissing: the repository can't give what the image names.
    """
    writer = _Writer(steps, image, opened, advance, stages)
    heads: list[tuple[int, Runs]] = []
    writer.write(but_heads(steps, writer.parts(wanted), heads), course)
    if any(runs.size for _, runs in heads):
        writer.flush()
        course.leave()
        writer.write(heads, FROM_THE_START)
    writer.flush()
    return writer.written


@dataclass(frozen=True, slots=True)
class _Writer:
    """What a pass writes, where, and who hears of it; for the thread that makes the pass."""

    steps: Sequence[WriteVolume]
    image: Image
    opened: Open
    advance: Advance
    stages: Stages
    written: list[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "written", [0] * len(self.steps))

    def parts(self, wanted: Wanted) -> Iterator[tuple[int, Runs]]:
        """Yield what is to be written, part by part, with the number of the step."""
        for number, part in parts_of(self.image, self.steps):
            runs = wanted(self.steps[number], part)
            if part.size > runs.size:
                self.advance(part.size - runs.size)
            yield number, runs

    def write(self, parts: Iterable[tuple[int, Runs]], course: Course) -> None:
        """Write the zeros and the data of parts, but what is there already."""
        zeroed = self._zeroed(parts, course.done)
        for number, window in enumerate(windows(self.steps, zeroed)):
            if number < course.done:
                self.advance(window.size)
                continue
            if course.resumes and number == course.done:
                self._deliver(self._missing(window))
            else:
                self._deliver(window)
            with self.stages.within(_FLUSH):
                course.note(number + 1)

    def _zeroed(self, parts: Iterable[tuple[int, Runs]], done: int) -> Iterator[tuple[int, Runs]]:
        position = 0
        for number, runs in parts:
            if is_before(position, done):
                self.advance(runs.size - runs.data)
            else:
                self._zero(number, np.concatenate([runs.zeros, runs.cleared]))
            position += len(runs.data_offsets)
            yield number, runs

    def _missing(self, window: Window) -> Window:
        """Return what of a window is not there yet."""
        differs = np.zeros(len(window.offsets), dtype=np.bool_)
        for number in np.unique(window.steps).tolist():
            start, stop = np.searchsorted(window.steps, (number, number + 1)).tolist()
            differs[start:stop] = differing_runs(
                window.offsets[start:stop],
                window.lengths[start:stop],
                window.ids[start:stop],
                self.image,
                self.opened[self.steps[number].target],
                self.stages,
            )
        missing = window.where(differs)
        self.advance(window.size - missing.size)
        return missing

    def _deliver(self, window: Window) -> None:
        if not len(window.offsets):
            return
        targets = [self.opened[step.target] for step in self.steps]
        order, ids, firsts = places(window)
        there = _Places(window, order, firsts, targets, self.steps, self.stages)
        self.image.deliver(ids, there.take, self.advance, self.stages)
        for number, size in enumerate(there.written):
            self.written[number] += size

    def _zero(self, number: int, ranges: Offsets) -> None:
        """Make ranges of the volume of a step zero."""
        step = self.steps[number]
        for offset, length in ranges.tolist():
            with self.stages.within(_ZERO, length):
                self.opened[step.target].zero(step.offset + offset, length)
            self.written[number] += length
            self.advance(length)

    def flush(self) -> None:
        """Wait until all is on stable storage."""
        with self.stages.within(_FLUSH):
            for target in dict.fromkeys(step.target for step in self.steps):
                self.opened[target].flush()


class _Places:
    """Where the chunks of a window belong; writes them there, in threads.

    Args:
        window: the runs.
        order: of the runs, so that those of one chunk are side by side.
        firsts: for each chunk its first place in that order, and the end.
        targets: of each step.
        steps: what is written.
        stages: counts.
    """

    def __init__(
        self,
        window: Window,
        order: NDArray[np.intp],
        firsts: NDArray[np.intp],
        targets: Sequence[OpenTarget],
        steps: Sequence[WriteVolume],
        stages: Stages,
    ) -> None:
        # Views give plain integers, and take less room than lists of them.
        self._firsts = firsts.data
        self._steps = window.steps[order].data
        self._offsets = window.offsets[order].data
        self._lengths = window.lengths[order].data
        self._targets = targets
        self._plan = steps
        self._stages = stages
        self._lock = threading.Lock()
        self._buffers = ThreadBuffers(MOST_PLAIN)
        self.written = [0] * len(steps)

    def take(self, numbers: Sequence[int], plains: Sequence[memoryview], report: Report) -> None:
        """Write chunks to all their places; see `imager.repository.delivery.Take`.

        Raises:
            WriteFailed: a target refused.
            ObjectDamaged: a chunk is not as long as the map says.
        """
        places = self._places_of(numbers, plains)
        while pieces := list(itertools.islice(places, _PLACES)):
            size = sum(len(piece[2]) for piece in pieces)
            with self._stages.within(_WRITE, size):
                pieces.sort(key=itemgetter(0, 1))
                for step, offset, parts in _side_by_side(pieces):
                    self._write(step, offset, parts)
            report(size)

    def _write(self, step: int, offset: int, parts: Sequence[memoryview]) -> None:
        written = 0
        if not self._plan[step].only_differences:
            self._targets[step].write(offset, *parts)
            written = sum(map(len, parts))
        else:
            for part in parts:
                written += self._write_differences(self._targets[step], offset, part)
                offset += len(part)
        with self._lock:
            self.written[step] += written

    def _write_differences(self, target: OpenTarget, offset: int, plain: memoryview) -> int:
        """Write those blocks of a chunk that are not there yet; return bytes."""
        there = self._buffers.of(len(plain))
        try:
            target.read_into(offset, there)
        except VerificationFailed:
            target.write(offset, plain)  # that makes many a disk take another sector for it
            return len(plain)
        written = 0
        for start, stop in _differing_blocks(there, plain):
            target.write(offset + start, plain[start:stop])
            written += stop - start
        return written

    def _places_of(
        self, numbers: Sequence[int], plains: Sequence[memoryview]
    ) -> Iterator[tuple[int, int, memoryview]]:
        for number, plain in zip(numbers, plains, strict=True):
            for place in range(self._firsts[number], self._firsts[number + 1]):
                step = self._plan[self._steps[place]]
                offset, length = self._offsets[place], self._lengths[place]
                start = step.skipped if offset == step.offset else 0
                end = start + length
                is_cut = step.is_shortened and offset + length == step.offset + step.length
                if len(plain) != end and not (is_cut and len(plain) > end):
                    raise ObjectDamaged(
                        f"a chunk of {step.volume} has {len(plain)} bytes "
                        f"where the image says {end}"
                    )
                yield self._steps[place], offset, plain[start:end]


def _differing_blocks(one: memoryview, other: memoryview) -> Iterator[tuple[int, int]]:
    """Yield ranges that differ, of two buffers of one size, in blocks."""
    whole = len(one) // _BLOCK * _BLOCK
    words, others = (
        np.frombuffer(buffer[:whole], np.uint64).reshape(-1, _BLOCK // 8) for buffer in (one, other)
    )
    differs = (words != others).any(axis=1)
    edges = np.flatnonzero(np.diff(differs, prepend=False, append=False)) * _BLOCK
    yield from map(tuple, edges.reshape(-1, 2).tolist())
    if one[whole:] != other[whole:]:
        yield whole, len(one)


def _side_by_side(
    pieces: Iterable[tuple[int, int, memoryview]],
) -> Iterator[tuple[int, int, list[memoryview]]]:
    """Yield step, offset and parts of what is written at once, from sorted pieces."""
    step, start, end, parts = -1, 0, 0, list[memoryview]()
    for its_step, offset, plain in pieces:
        if parts and (its_step != step or offset != end):
            yield step, start, parts
            parts = []
        if not parts:
            step, start = its_step, offset
        parts.append(plain)
        end = offset + len(plain)
    if parts:
        yield step, start, parts
