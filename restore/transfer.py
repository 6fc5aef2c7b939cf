"""Writes content: the chunks of an image to every place they belong.

It follows the order in which the repository stores chunks, over all volumes at once, so that a chunk
that several places share is fetched once. It is done in windows of a few hundred thousand runs (some
30 GiB), so that memory does not grow with the disks. Chunks are written by the threads that opened
them (`imager.repository.delivery`), while they are in the cache of the processor; what lies side by
side on a disk in one write.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager.errors import ObjectDamaged
from imager.layout.disk import Volume
from imager.repository.delivery import Report
from imager.stages import Lane, Stages
from restore.device import OpenTarget
from restore.runs import Image, Offsets, Runs, take_apart
from restore.steps import Target, WriteVolume

Advance = Callable[[int], None]
Open = Mapping[Target, OpenTarget]

# Runs handled at once. Each costs about 150 bytes here, so a window needs about 40 MiB.
_WINDOW: Final = 1 << 18
# Places of one chunk that are written before anybody hears of it: some are in every corner of a disk.
_PLACES: Final = 1 << 10

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


def writing_stages(image: Image) -> Stages:
    """Return what counts the stages of writing; its clock begins."""
    lanes = image.lanes((_WRITE,))
    return Stages((*lanes, Lane("disk", 1, (_ZERO, _FLUSH))))


def write_volumes(
    steps: Sequence[WriteVolume], image: Image, opened: Open, advance: Advance, stages: Stages
) -> None:
    """Write volumes of one phase in one pass, and flush.

    Args:
        steps: what to write; all of one phase.
        image: where the content comes from.
        opened: the targets.
        advance: called in this thread with bytes just written, zeros included.
        stages: counts; made by `writing_stages`.

    Raises:
        WriteFailed: a target refused.
        ObjectDamaged, ObjectMissing: the repository can't give what the image names.
    """
    volumes = {volume.id: volume for _, volume in image.machine.volumes()}
    taken_apart = _each_volume(steps, volumes, image, opened, advance, stages)
    targets = [opened[step.target] for step in steps]
    for window in _windows(steps, taken_apart):
        order, ids, firsts = _places(window)
        places = _Places(window, order, firsts, targets, steps, stages)
        image.deliver(ids, places.take, advance, stages)
    with stages.within(_FLUSH):
        for target in dict.fromkeys(step.target for step in steps):
            opened[target].flush()


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
        self._volumes = [step.volume for step in steps]
        self._stages = stages

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
                    self._targets[step].write(offset, *parts)
            report(size)

    def _places_of(
        self, numbers: Sequence[int], plains: Sequence[memoryview]
    ) -> Iterator[tuple[int, int, memoryview]]:
        for number, plain in zip(numbers, plains, strict=True):
            for place in range(self._firsts[number], self._firsts[number + 1]):
                if len(plain) != self._lengths[place]:
                    raise ObjectDamaged(
                        f"a chunk of {self._volumes[self._steps[place]]} has {len(plain)} bytes "
                        f"where the image says {self._lengths[place]}"
                    )
                yield self._steps[place], self._offsets[place], plain


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


def _each_volume(
    steps: Sequence[WriteVolume],
    volumes: Mapping[str, Volume],
    image: Image,
    opened: Open,
    advance: Advance,
    stages: Stages,
) -> Iterator[Runs]:
    """Yield the runs of each step, after its zeros are written."""
    for step in steps:
        runs = take_apart(image.map(step.volume), volumes[step.volume])
        target = opened[step.target]
        for offset, length in np.concatenate([runs.zeros, runs.cleared]).tolist():
            with stages.within(_ZERO, length):
                target.zero(step.offset + offset, length)
            advance(length)
        yield runs


def _windows(steps: Sequence[WriteVolume], volumes: Iterable[Runs]) -> Iterator[_Window]:
    parts: list[_Window] = []
    room = _WINDOW
    for number, (step, runs) in enumerate(zip(steps, volumes, strict=True)):
        start, count = 0, len(runs.data_offsets)
        while start < count:
            stop = min(start + room, count)
            parts.append(
                _Window(
                    steps=np.full(stop - start, number, dtype=np.uint32),
                    offsets=runs.data_offsets[start:stop] + np.uint64(step.offset),
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
