"""Writes content: the chunks of an image to every place they belong.

It follows the order in which the repository stores chunks, over all volumes at once, so that a chunk
that several places share is fetched once. It is done in windows of a few hundred thousand runs (some
30 GiB), so that memory does not grow with the disks. Chunks are written by the threads that opened
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
from imager.layout.disk import VolumeRole
from imager.repository.chunk import MOST_PLAIN
from imager.repository.delivery import Report
from imager.stages import Lane, Stages
from imager.thread_buffers import ThreadBuffers
from imager.units import KIB, MIB
from restore.device import OpenTarget
from restore.runs import Image, Offsets, Runs, each_part
from restore.steps import Target, WriteVolume

Advance = Callable[[int], None]
Open = Mapping[Target, OpenTarget]
Wanted = Callable[[WriteVolume, Runs], Runs]

# Runs handled at once. Each costs about 150 bytes here, so a window needs about 40 MiB.
_WINDOW: Final = 1 << 18
# Places of one chunk that are written before anybody hears of it: some are in every corner of a disk.
_PLACES: Final = 1 << 10

# Of a disk without a table: its boot sector, and the labels of what it holds.
_HEAD: Final = MIB
_BLOCK: Final = 4 * KIB

_WRITE: Final = "write"
_FLUSH: Final = "flush"
_ZERO: Final = "zero"


@dataclass(frozen=True, slots=True)
class _Window:
    """Runs from the image, of one or more volumes.

    Attributes:
        steps: number of the step in its group for each run.
        offsets: bytes on the target.
        lengths: bytes.
        ids: four 64-bit words each.
    """

    steps: NDArray[np.uint32]
    offsets: Offsets
    lengths: Offsets
    ids: Offsets


def _all_of(_step: WriteVolume, runs: Runs) -> Runs:
    return runs


def writing_stages(image: Image) -> Stages:
    """Return what counts the stages of writing; its clock begins."""
    lanes = image.lanes((_WRITE,))
    return Stages((*lanes, Lane("disk", 1, (_ZERO, _FLUSH))))


def write_volumes(
    steps: Sequence[WriteVolume],
    image: Image,
    opened: Open,
    advance: Advance,
    stages: Stages,
    wanted: Wanted = _all_of,
) -> list[int]:
    """Write volumes of one phase in one pass, and flush.

    What a disk without a table begins with is written last, since it makes the disk look whole.

    Args:
        steps: what to write; all of one phase.
        image: where the content comes from.
        opened: the targets.
        advance: called in this thread with bytes just written, zeros included, or right already.
        stages: counts; made by `writing_stages`.
        wanted: returns which of the runs of a step are to be written.

    Returns:
        How many bytes were written for each step.

    Raises:
        WriteFailed: a target refused.
        ObjectDamaged, ObjectMissing: the repository can't give what the image names.
    """
    writer = _Writer(steps, image, opened, advance, stages)
    heads: list[tuple[int, Runs]] = []
    writer.write(_but_heads(steps, _each_part(writer, wanted), heads))
    if any(len(runs.data_offsets) for _, runs in heads):
        writer.flush()
        writer.write(heads)
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

    def write(self, parts: Iterable[tuple[int, Runs]]) -> None:
        """Write the data of parts of volumes, given with the number of their step."""
        targets = [self.opened[step.target] for step in self.steps]
        for window in _windows(self.steps, parts):
            order, ids, firsts = _places(window)
            places = _Places(window, order, firsts, targets, self.steps, self.stages)
            self.image.deliver(ids, places.take, self.advance, self.stages)
            for number, size in enumerate(places.written):
                self.written[number] += size

    def zero(self, number: int, ranges: Offsets) -> None:
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
        window: _Window,
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
                if len(plain) != self._lengths[place]:
                    raise ObjectDamaged(
                        f"a chunk of {self._plan[self._steps[place]].volume} has {len(plain)} bytes "
                        f"where the image says {self._lengths[place]}"
                    )
                yield self._steps[place], self._offsets[place], plain


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


def _each_part(writer: _Writer, wanted: Wanted) -> Iterator[tuple[int, Runs]]:
    """Yield what is to be written of each step, part by part, after its zeros are."""
    volumes = {volume.id: volume for _, volume in writer.image.machine.volumes()}
    for number, step in enumerate(writer.steps):
        for part in each_part(writer.image, volumes[step.volume]):
            runs = wanted(step, part)
            if part.size > runs.size:
                writer.advance(part.size - runs.size)
            writer.zero(number, np.concatenate([runs.zeros, runs.cleared]))
            yield number, runs


def _but_heads(
    steps: Sequence[WriteVolume],
    parts: Iterable[tuple[int, Runs]],
    heads: list[tuple[int, Runs]],
) -> Iterator[tuple[int, Runs]]:
    """Yield parts without what disks without a table begin with; that goes to `heads`."""
    for number, runs in parts:
        is_head = np.zeros(len(runs.data_offsets), dtype=np.bool_)
        if steps[number].role is VolumeRole.WHOLE_DISK and runs.start < _HEAD:
            is_head = runs.data_offsets < np.uint64(_HEAD)
            heads.append((number, runs.where(is_head)))
        yield number, runs.where(~is_head)


def _windows(
    steps: Sequence[WriteVolume], volumes: Iterable[tuple[int, Runs]]
) -> Iterator[_Window]:
    parts: list[_Window] = []
    room = _WINDOW
    for number, runs in volumes:
        start, count = 0, len(runs.data_offsets)
        while start < count:
            stop = min(start + room, count)
            parts.append(
                _Window(
                    steps=np.full(stop - start, number, dtype=np.uint32),
                    offsets=runs.data_offsets[start:stop] + np.uint64(steps[number].offset),
                    lengths=runs.data_lengths[start:stop],
                    ids=runs.data_ids[start:stop],
                )
            )
            room -= stop - start
            start = stop
            if room == 0:
                yield _joined(parts)
                parts, room = [], _WINDOW
    if parts:
        yield _joined(parts)


def _joined(parts: Sequence[_Window]) -> _Window:
    return _Window(
        steps=np.concatenate([part.steps for part in parts]),
        offsets=np.concatenate([part.offsets for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        ids=np.concatenate([part.ids for part in parts]),
    )


def _places(window: _Window) -> tuple[NDArray[np.intp], NDArray[np.void], NDArray[np.intp]]:
    """Group equal ids: an order of the runs, each id once, and where in that order its runs begin.

    The ids come in the order of their first place, so that what the repository has no better order
    for is written from front to back.
    """
    words = window.ids
    by_id = np.lexsort((words[:, 3], words[:, 2], words[:, 1], words[:, 0]))
    ordered = words[by_id]
    is_first = np.ones(len(by_id), dtype=np.bool_)
    is_first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    # Each run is named by the first run of its id; sorted by that, ids come as the disk has them.
    leaders = np.empty(len(by_id), dtype=np.intp)
    leaders[by_id] = by_id[np.flatnonzero(is_first)][np.cumsum(is_first) - 1]
    order = np.argsort(leaders, kind="stable")
    firsts = np.flatnonzero(leaders[order] == order)
    ids = np.ascontiguousarray(words[order[firsts]]).view("V32").ravel()
    return order, ids, np.append(firsts, len(order))
