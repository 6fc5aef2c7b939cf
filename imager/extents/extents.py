"""Extent maps: what of a volume must be read."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Ranges = NDArray[np.uint64]
Indexes = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Extents:
    """What of a volume must be read; the content of all the rest does not matter.

    Attributes:
        ranges: shape (n, 2), columns offset and length in bytes relative to the volume; sorted,
            without overlap, neighbours merged, within the volume, no length is 0.
        method: how it was found, such as "ext block bitmap", "XFS free space trees" or "whole".
        reason: why a filesystem that could have been known is read whole, else None.
        block_size: bytes the filesystem allocates at a time; 1 for "whole".
    """

    ranges: Ranges
    method: str
    reason: str | None
    block_size: int

    @property
    def total(self) -> int:
        """Bytes to be read."""
        return int(self.ranges[:, 1].sum())


@dataclass(frozen=True, slots=True)
class Part:
    """Where a volume lies.

    Attributes:
        fd: of the disk, open for reading.
        offset: first byte of the volume on it.
        length: bytes.
    """

    fd: int
    offset: int
    length: int


class UncertainMapError(Exception):
    """A reader can't be sure of its map; the volume is read whole. Never leaves this package."""


def whole(length: int, reason: str | None = None) -> Extents:
    """Return the map that reads everything of a volume of `length` bytes."""
    rows = [(0, length)] if length else []
    return Extents(np.array(rows, dtype=np.uint64).reshape(-1, 2), "whole", reason, 1)


def every_sector(length: int) -> Extents:
    """Return the map that reads everything because that was asked for."""
    return replace(whole(length), method="every sector")


def merged(starts: NDArray[np.integer], ends: NDArray[np.integer]) -> Ranges:
    """Return the union of the half-open ranges `starts[i]` to `ends[i]` as (offset, length) rows.

    They may be in any order, overlap, touch or be empty.
    """
    starts = np.asarray(starts, dtype=np.int64)
    ends = np.asarray(ends, dtype=np.int64)
    kept = ends > starts
    starts, ends = starts[kept], ends[kept]
    if not starts.size:
        return np.empty((0, 2), dtype=np.uint64)
    order = np.argsort(starts, kind="stable")
    starts = starts[order]
    reached = np.maximum.accumulate(ends[order])
    is_first = np.concatenate([[True], starts[1:] > reached[:-1]])
    firsts = starts[is_first]
    lasts = np.concatenate([reached[:-1][is_first[1:]], reached[-1:]])
    return np.column_stack([firsts, lasts - firsts]).astype(np.uint64)


def set_ranges(bits: NDArray[np.bool_] | NDArray[np.uint8]) -> tuple[Indexes, Indexes]:
    """Return where each run of set bits (one in each element) starts, and what is behind it.

    Takes three bytes for each bit meanwhile: large bitmaps come in pieces.
    """
    framed = np.zeros(bits.size + 2, dtype=np.int8)
    framed[1:-1] = bits
    steps = np.diff(framed)
    return np.flatnonzero(steps > 0), np.flatnonzero(steps < 0)


def complement(starts: NDArray[np.integer], ends: NDArray[np.integer], length: int) -> Ranges:
    """Return what is left of 0 to `length` without the half-open ranges `starts[i]` to `ends[i]`.

    The ranges must be sorted, without overlap and within 0 to `length`.

    Raises:
        UncertainMapError: they are not.
    """
    starts = np.asarray(starts, dtype=np.int64)
    ends = np.asarray(ends, dtype=np.int64)
    edges = np.column_stack([starts, ends]).reshape(-1)
    bounded = np.concatenate([[0], edges, [length]])
    if np.any(np.diff(bounded) < 0):
        raise UncertainMapError("the free ranges overlap or leave the filesystem")
    return merged(np.concatenate([[0], ends]), np.concatenate([starts, [length]]))


def is_apart(
    starts: NDArray[np.integer],
    ends: NDArray[np.integer],
    free_starts: NDArray[np.integer],
    free_ends: NDArray[np.integer],
) -> bool:
    """Return whether none of the half-open ranges has anything in common with the free ones.

    The ranges may be in any order and overlap; none is empty. The free ones must be sorted and
    without overlap.
    """
    # The first free range that ends after a range's start must not start before its end.
    index = np.searchsorted(free_ends, starts, side="right")
    is_near = index < free_starts.size
    return not np.any(free_starts[index[is_near]] < ends[is_near])
