"""Reads targets and compares them with an image, in threads."""

import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Final

import numpy as np

from imager.errors import VerificationFailed
from imager.stages import Lane, Stages
from imager.units import MIB
from restore.device import OpenTarget
from restore.runs import Image, Runs, take_apart
from restore.steps import VerifyVolume

_SEGMENT: Final = MIB  # read at once; more would not stay in caches until it is hashed
_MOST_READERS: Final = 8
_AHEAD: Final = 4  # segments asked for at once, for each reader

_READ: Final = "read"
_COMPARE: Final = "compare"


def reading_stages() -> Stages:
    """Return what counts the stages of a comparison; its clock begins."""
    return Stages((Lane("read", _readers(), (_READ, _COMPARE)),))


def _readers() -> int:
    return min(len(os.sched_getaffinity(0)), _MOST_READERS)


def verify_volume(
    step: VerifyVolume,
    image: Image,
    opened: OpenTarget,
    advance: Callable[[int], None],
    stages: Stages,
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
    volumes = {volume.id: volume for _, volume in image.machine.volumes()}
    runs = take_apart(image.map(step.volume), volumes[step.volume])
    opened.forget()
    comparison = _Comparison(step, image, opened, runs, stages)
    work = chain(
        ((comparison.data, *piece) for piece in _segments(runs)),
        ((comparison.zeros, *piece) for piece in _pieces(runs)),
    )
    pending: deque[Future[int]] = deque()
    with ThreadPoolExecutor(_readers(), thread_name_prefix="verify") as pool:
        try:
            for compare, one, other in work:
                pending.append(pool.submit(compare, one, other))
                if len(pending) >= _AHEAD * _readers():
                    advance(pending.popleft().result())
            while pending:
                advance(pending.popleft().result())
        finally:
            for future in pending:
                future.cancel()


class _Comparison:
    """Compares a volume on a target with its map; its methods run in threads."""

    def __init__(
        self, step: VerifyVolume, image: Image, opened: OpenTarget, runs: Runs, stages: Stages
    ) -> None:
        self._step = step
        self._image = image
        self._opened = opened
        self._runs = runs
        self._stages = stages
        self._buffers = threading.local()

    def data(self, start: int, stop: int) -> int:
        """Compare the data runs from `start` to `stop`, which lie side by side; return bytes."""
        offsets = (self._runs.data_offsets[start:stop] + np.uint64(self._step.offset)).tolist()
        lengths = self._runs.data_lengths[start:stop].tolist()
        first = offsets[0]
        total = offsets[-1] + lengths[-1] - first
        view = self._read(first, total)
        ids = self._runs.data_ids[start:stop].tobytes()
        with self._stages.within(_COMPARE, total):
            for number, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
                piece = view[offset - first : offset - first + length]
                if self._image.identify(piece) != ids[32 * number : 32 * number + 32]:
                    raise self._differs(offset, length)
        return int(total)

    def zeros(self, offset: int, length: int) -> int:
        """Compare a range that must be zero; return bytes."""
        view = self._read(self._step.offset + offset, length)
        with self._stages.within(_COMPARE, length):
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
        with self._stages.within(_READ, length):
            self._opened.read_into(offset, view)
        return view

    def _differs(self, offset: int, length: int) -> VerificationFailed:
        target = self._step.target
        return VerificationFailed(
            f"{target.path} ({target.disk}) does not hold what was written to "
            f"{self._step.volume}: the {length} bytes at byte {offset} of the disk differ"
        )


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
