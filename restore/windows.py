"""The order in which content is written: windows of a few hundred thousand runs, some 30 GiB.

A window is the unit of memory and of progress. Windows follow from the maps of an image, the order
of its volumes, and where a fitted one ends, so they are the same in every restore of it onto the
same disks, and a count of them says what is there (`restore.journal`). Zeros belong to the part of a
map they are in, and are written before its runs: whatever lies in a part that begins before the end of a window is zero by then.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager.layout.disk import VolumeRole
from imager.units import MIB
from restore.runs import Image, Offsets, Runs, each_part
from restore.steps import WriteVolume

# Runs handled at once. Each costs about 150 bytes, so a window needs about 40 MiB.
WINDOW: Final = 1 << 18

# Of a disk without a table: its boot sector, and the labels of what it holds.
HEAD: Final = MIB


@dataclass(frozen=True, slots=True)
class Window:
    """Runs from the image, of one or more volumes.

    Attributes:
        steps: number of the step in its group for each run, ascending.
        offsets: bytes on the target.
        lengths: bytes.
        ids: four 64-bit words each.
    """

    steps: NDArray[np.uint32]
    offsets: Offsets
    lengths: Offsets
    ids: Offsets

    @property
    def size(self) -> int:
        """Bytes."""
        return int(self.lengths.sum())

    def where(self, wanted: NDArray[np.bool_]) -> "Window":
        """Return some of the runs."""
        return Window(
            self.steps[wanted], self.offsets[wanted], self.lengths[wanted], self.ids[wanted]
        )


def parts_of(image: Image, steps: Sequence[WriteVolume]) -> Iterator[tuple[int, Runs]]:
    """Yield what is to be written, part by part, with the number of the step."""
    volumes = {volume.id: volume for _, volume in image.machine.volumes()}
    for number, step in enumerate(steps):
        for part in each_part(image, volumes[step.volume], step.length, step.source):
            yield number, part


def but_heads(
    steps: Sequence[WriteVolume],
    parts: Iterable[tuple[int, Runs]],
    heads: list[tuple[int, Runs]],
) -> Iterator[tuple[int, Runs]]:
    """Yield parts without what disks without a table begin with; that goes to `heads`."""
    for number, runs in parts:
        rest = runs
        step = steps[number]
        if step.role is VolumeRole.WHOLE_DISK and step.offset + runs.start < HEAD:
            head, rest = runs.split(HEAD - step.offset)
            heads.append((number, head))
        yield number, rest


def windows(steps: Sequence[WriteVolume], parts: Iterable[tuple[int, Runs]]) -> Iterator[Window]:
    """Yield the runs of parts in windows; the next part is asked for when a window has room."""
    held: list[Window] = []
    room = WINDOW
    for number, runs in parts:
        start, count = 0, len(runs.data_offsets)
        while start < count:
            stop = min(start + room, count)
            held.append(
                Window(
                    steps=np.full(stop - start, number, dtype=np.uint32),
                    offsets=runs.data_offsets[start:stop] + np.uint64(steps[number].offset),
                    lengths=runs.data_lengths[start:stop],
                    ids=runs.data_ids[start:stop],
                )
            )
            room -= stop - start
            start = stop
            if room == 0:
                yield _joined(held)
                held, room = [], WINDOW
    if held:
        yield _joined(held)


def is_before(position: int, done: int) -> bool:
    """Whether a run comes before the end of the first `done` windows, by its place in the order."""
    return position < done * WINDOW


def measure(image: Image, steps: Sequence[WriteVolume], done: int) -> tuple[int, int]:
    """Return how many windows there are, and the bytes that `done` of them stand for.

    Args:
        image: its maps are read.
        steps: all that is written in the first phase.
        done: windows.
    """
    position, size = 0, 0
    for _, runs in but_heads(steps, parts_of(image, steps), []):
        if is_before(position, done):
            inside = max(0, done * WINDOW - position)
            size += runs.size - runs.data + int(runs.data_lengths[:inside].sum())
        position += len(runs.data_offsets)
    return -(-position // WINDOW), size


def places(window: Window) -> tuple[NDArray[np.intp], NDArray[np.void], NDArray[np.intp]]:
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


def _joined(parts: Sequence[Window]) -> Window:
    return Window(
        steps=np.concatenate([part.steps for part in parts]),
        offsets=np.concatenate([part.offsets for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        ids=np.concatenate([part.ids for part in parts]),
    )
