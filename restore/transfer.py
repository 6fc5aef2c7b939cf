"""Moves content: chunks of an image to every place they belong, and back again to be compared.

Writing follows the order in which the repository stores chunks, over all volumes at once, so that
a chunk that several places share is fetched once. It is done in windows of a few hundred thousand
runs (some 30 GiB), so that memory does not grow with the disks. Verifying follows the disks.
"""

import mmap
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager.errors import ObjectDamaged, ObjectMissing, VerificationFailed
from imager.layout.disk import Volume
from imager.units import MIB
from restore.device import OpenTarget
from restore.runs import Image, Offsets, Runs, take_apart
from restore.steps import Target, VerifyVolume, WriteVolume

Advance = Callable[[int], None]
Open = Mapping[Target, OpenTarget]

# Runs handled at once. Each costs about 300 bytes here: its id as bytes, an entry in a table, and
# its places; so a window needs about 80 MiB.
_WINDOW: Final = 1 << 18
_SEGMENT: Final = 4 * MIB  # read back at once
_READERS: Final = 2
_AHEAD: Final = 8  # segments asked for at once


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


def write_volumes(
    steps: Sequence[WriteVolume], image: Image, opened: Open, advance: Advance
) -> tuple[float, ...]:
    """Write volumes of one phase in one pass, and flush.

    Args:
        steps: what to write; all of one phase.
        image: where the content comes from.
        opened: the targets.
        advance: called with bytes just written, zeros included.

    Returns:
        Seconds spent on each step: the time until its chunks came and were written, and an equal
        share of the flush at the end.

    Raises:
        WriteFailed: a target refused.
        ObjectDamaged, ObjectMissing: the repository can't give what the image names.
    """
    seconds = [0.0] * len(steps)
    volumes = {volume.id: volume for _, volume in image.machine.volumes()}
    taken_apart = _each_volume(steps, volumes, image, opened, advance, seconds)
    for window in _windows(steps, taken_apart):
        _write_window(window, steps, image, opened, advance, seconds)
    started = time.monotonic()
    for target in dict.fromkeys(step.target for step in steps):
        opened[target].flush()
    share = (time.monotonic() - started) / max(len(steps), 1)
    return tuple(value + share for value in seconds)


def verify_volume(step: VerifyVolume, image: Image, opened: OpenTarget, advance: Advance) -> None:
    """Read a volume back from the disk itself and compare every byte that was written.

    Args:
        step: what to compare.
        image: knows what must be there.
        opened: the target, flushed.
        advance: called with bytes just compared.

    Raises:
        VerificationFailed: with the target and the first byte of the piece that differs.
    """
    volumes = {volume.id: volume for _, volume in image.machine.volumes()}
    runs = take_apart(image.map(step.volume), volumes[step.volume])
    opened.forget()
    comparison = _Comparison(step, image, opened, runs)
    work = chain(
        ((comparison.data, *piece) for piece in _segments(runs)),
        ((comparison.zeros, *piece) for piece in _pieces(runs)),
    )
    pending: deque[Future[int]] = deque()
    with ThreadPoolExecutor(_READERS, thread_name_prefix="verify") as pool:
        try:
            for compare, one, other in work:
                pending.append(pool.submit(compare, one, other))
                if len(pending) >= _AHEAD:
                    advance(pending.popleft().result())
            while pending:
                advance(pending.popleft().result())
        finally:
            for future in pending:
                future.cancel()


class _Comparison:
    """Compares a volume on a target with its map; its methods run in threads."""

    def __init__(self, step: VerifyVolume, image: Image, opened: OpenTarget, runs: Runs) -> None:
        self._step = step
        self._image = image
        self._opened = opened
        self._runs = runs
        self._buffers = threading.local()

    def data(self, start: int, stop: int) -> int:
        """Compare the data runs from `start` to `stop`, which lie side by side; return bytes."""
        offsets = (self._runs.data_offsets[start:stop] + np.uint64(self._step.offset)).tolist()
        lengths = self._runs.data_lengths[start:stop].tolist()
        first = offsets[0]
        total = offsets[-1] + lengths[-1] - first
        view = self._read(first, total)
        ids = self._runs.data_ids[start:stop].tobytes()
        for number, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
            piece = view[offset - first : offset - first + length]
            if self._image.identify(piece) != ids[32 * number : 32 * number + 32]:
                raise self._differs(offset, length)
        return int(total)

    def zeros(self, offset: int, length: int) -> int:
        """Compare a range that must be zero; return bytes."""
        view = self._read(self._step.offset + offset, length)
        if np.frombuffer(view, np.uint8).max():
            raise self._differs(self._step.offset + offset, length)
        return length

    def _read(self, offset: int, length: int) -> memoryview:
        """Read into this thread's own buffer: fresh memory each time costs more than hashing."""
        buffer: memoryview | None = getattr(self._buffers, "buffer", None)
        if buffer is None or len(buffer) < length:
            # From mmap, since direct reads want memory that begins at a page.
            buffer = self._buffers.buffer = memoryview(mmap.mmap(-1, max(length, _SEGMENT)))
        view = buffer[:length]
        self._opened.read_into(offset, view)
        return view

    def _differs(self, offset: int, length: int) -> VerificationFailed:
        target = self._step.target
        return VerificationFailed(
            f"{target.path} ({target.disk}) does not hold what was written to "
            f"{self._step.volume}: the {length} bytes at byte {offset} of the disk differ"
        )


def _each_volume(
    steps: Sequence[WriteVolume],
    volumes: Mapping[str, Volume],
    image: Image,
    opened: Open,
    advance: Advance,
    seconds: list[float],
) -> Iterator[Runs]:
    """Yield the runs of each step, after its zeros are written."""
    for number, step in enumerate(steps):
        started = time.monotonic()
        runs = take_apart(image.map(step.volume), volumes[step.volume])
        target = opened[step.target]
        for offset, length in np.concatenate([runs.zeros, runs.cleared]).tolist():
            target.zero(step.offset + offset, length)
            advance(length)
        seconds[number] += time.monotonic() - started
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


def _write_window(
    window: _Window,
    steps: Sequence[WriteVolume],
    image: Image,
    opened: Open,
    advance: Advance,
    seconds: list[float],
) -> None:
    order, places = _places(window)
    step_of = window.steps[order].tolist()
    offset_of = window.offsets[order].tolist()
    length_of = window.lengths[order].tolist()
    targets = [opened[step.target] for step in steps]
    started = time.monotonic()
    for identity, data in image.chunks(list(places)):
        first, stop = places.pop(identity)
        for place in range(first, stop):
            if len(data) != length_of[place]:
                raise ObjectDamaged(
                    f"a chunk of {steps[step_of[place]].volume} has {len(data)} bytes "
                    f"where the image says {length_of[place]}"
                )
            targets[step_of[place]].write(offset_of[place], data)
            advance(len(data))
        now = time.monotonic()
        seconds[step_of[first]] += now - started
        started = now
    if places:
        raise ObjectMissing(f"the repository did not give {len(places)} chunks of this image")


def _places(window: _Window) -> tuple[NDArray[np.intp], dict[bytes, tuple[int, int]]]:
    """Group equal ids: an order of the runs, and for each id its range in that order.

    The ids come in the order of their first place, so that a repository that has no better order
    of its own writes the disk from front to back.
    """
    words = window.ids
    order = np.lexsort((words[:, 3], words[:, 2], words[:, 1], words[:, 0]))
    ordered = words[order]
    is_first = np.ones(len(order), dtype=np.bool_)
    is_first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    firsts = np.flatnonzero(is_first)
    stops = np.append(firsts[1:], len(order))
    by_place = np.argsort(order[firsts], kind="stable")
    packed = np.ascontiguousarray(ordered[firsts]).tobytes()
    places = {
        packed[32 * number : 32 * number + 32]: (first, stop)
        for number, first, stop in zip(
            by_place.tolist(), firsts[by_place].tolist(), stops[by_place].tolist(), strict=True
        )
    }
    return order, places


def _segments(runs: Runs) -> Iterator[tuple[int, int]]:
    """Yield ranges of data runs that lie side by side and are read back at once."""
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
    """Yield ranges that must be zero, in pieces that are read back at once."""
    for offset, length in np.concatenate([runs.zeros, runs.cleared]).tolist():
        for start in range(offset, offset + length, _SEGMENT):
            yield start, min(_SEGMENT, offset + length - start)
