"""The image of a machine before, as the base of the next: what is as it was needs no cutting.

Runs of its maps that lie within what is read now are only read and hashed. Nothing else is taken
from it: where a hash is another one, the content is cut anew, and a base that can't be read, or is
of something else, costs nothing but time.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager.capture.chunker import BLOCK, MOST_BLOCKS
from imager.repository.chunk import FREE, ZERO
from imager.repository.ids import NOWHERE
from imager.repository.volume_map import Runs, are

# Longer runs of zeros are looked at as if nothing was known: of a disk file most are holes.
_MOST_RUN: Final = MOST_BLOCKS * BLOCK

Offsets = NDArray[np.int64]
Holders = Callable[[NDArray[np.void]], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Known:
    """Runs of the base, chunks and zeros, between which nothing is to be read.

    Attributes:
        offsets: where they begin in the volume, in bytes, ascending; shape (n,).
        runs: dtype `RUN`; shape (n,).
        packs: for each chunk the number of a pack that holds it, else NOWHERE; shape (n,).
    """

    offsets: Offsets
    runs: Runs
    packs: NDArray[np.int64]

    @property
    def ends(self) -> Offsets:
        """First byte behind each."""
        return self.offsets + self.runs["length"].astype(np.int64)

    @property
    def size(self) -> int:
        """Bytes to be read."""
        return int(self.runs["length"].sum())


@dataclass(frozen=True, slots=True)
class Fresh:
    """A stretch of an extent of which nothing is known.

    Attributes:
        offset: first byte in the volume.
        length: bytes.
    """

    offset: int
    length: int


def divide(
    ranges: NDArray[np.uint64], base: Iterable[Runs], holders: Holders, most: int
) -> Iterator[Known | Fresh]:
    """Divide what is to be read of a volume into what the base knows, and the rest; in order.

    Args:
        ranges: (offset, length) of the extents, ascending and apart; shape (n, 2).
        base: the map of the volume in the base, part by part; may end early, or be of another
            volume.
        holders: returns for chunk ids the number of a pack that holds each, or NOWHERE.
        most: bytes that are known together, at most.
    """
    extents = _Extents(ranges)
    offset = 0
    for runs in base:
        lengths = runs["length"].astype(np.int64)
        offsets = offset + np.cumsum(lengths) - lengths
        offset += int(lengths.sum())
        usable = np.flatnonzero(
            ~are(runs["id"], FREE)
            & (lengths <= _MOST_RUN)
            & extents.hold(offsets, offsets + lengths)
        )
        packs = holders(runs["id"][usable])
        is_there = (packs != NOWHERE) | are(runs["id"][usable], ZERO)
        usable = usable[is_there]
        if len(usable):
            known = Known(offsets[usable], runs[usable], packs[is_there])
            for start, stop in _together(known, extents, most):
                these = slice(start, stop)
                part = Known(known.offsets[these], known.runs[these], known.packs[these])
                yield from extents.fresh_before(int(part.offsets[0]))
                yield part
                extents.skip_to(int(part.ends[-1]))
    yield from extents.fresh_before(None)


def _together(known: Known, extents: "_Extents", most: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of runs with nothing fresh between them, of at most so many bytes."""
    lengths = known.runs["length"].astype(np.int64)
    groups = (np.cumsum(lengths) - lengths) // (most - _MOST_RUN)
    is_break = groups[1:] != groups[:-1]
    is_break |= extents.before(known.offsets[1:]) > extents.before(known.ends[:-1])
    breaks = np.flatnonzero(is_break) + 1
    yield from zip([0, *breaks.tolist()], [*breaks.tolist(), len(lengths)], strict=True)


class _Extents:
    """The extents of a volume, and how far they were divided."""

    def __init__(self, ranges: NDArray[np.uint64]) -> None:
        self._starts = ranges[:, 0].astype(np.int64)
        self._lengths = ranges[:, 1].astype(np.int64)
        self._before = np.concatenate(([0], np.cumsum(self._lengths)))
        self._next = 0
        self._position = 0

    def hold(self, starts: Offsets, ends: Offsets) -> NDArray[np.bool_]:
        """Return which ranges lie each within one extent."""
        extents = np.searchsorted(self._starts, starts, side="right") - 1
        stops = np.append(self._starts + self._lengths, -1)  # the last one stands for none
        inside: NDArray[np.bool_] = ends <= stops[extents]
        return inside

    def before(self, offsets: Offsets) -> Offsets:
        """Return how many bytes of extents lie before each offset, none before the first extent."""
        extents = np.searchsorted(self._starts, offsets, side="right") - 1
        inside = np.minimum(offsets - self._starts[extents], self._lengths[extents])
        found: Offsets = self._before[extents] + inside
        return found

    def fresh_before(self, limit: int | None) -> Iterator[Fresh]:
        """Yield what was not divided yet, up to an offset."""
        while self._next < len(self._starts):
            start = max(int(self._starts[self._next]), self._position)
            end = int(self._starts[self._next] + self._lengths[self._next])
            stop = end if limit is None else min(end, limit)
            if start < stop:
                yield Fresh(start, stop - start)
            if stop < end:
                return
            self._next += 1

    def skip_to(self, offset: int) -> None:
        """Take everything before an offset for divided."""
        self._position = offset
