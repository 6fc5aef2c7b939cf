"""Volume maps as arrays: which bytes come from the image, which are zero, which do not matter.

A volume map is a structured array of runs (`RUN`) in the order of the volume. Here it becomes
plain arrays of offsets that the planner sums up, and that writing and verifying both follow: what
is verified is by construction what was written. It comes in parts, so that memory does not grow
with the disks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from imager.errors import ObjectDamaged
from imager.layout.disk import Volume
from imager.layout.machine import Machine
from imager.repository.delivery import Report, Take
from imager.stages import Lane, Stages
from imager.units import MIB

RUN: Final = np.dtype([("length", "<u8"), ("id", "V32")])

# Free space this near to an end of a volume is zeroed. Signatures that could be taken for the new
# content's lie at the ends: most in the first and last 64 KiB, VMFS from 1 MiB on, LUKS2 copies of
# its header up to 4 MiB, Promise RAID 1.5 MiB before the end.
EDGE: Final = 8 * MIB

_PART: Final = 1 << 16  # runs that are taken apart at once, at least

# Ids of runs that no chunk has.
_ZERO: Final = bytes(32)
_FREE: Final = b"\xff" * 32

Offsets = NDArray[np.uint64]


class Image(Protocol):
    """What a restore needs of an opened image; `imager.repository` provides it."""

    @property
    def machine(self) -> Machine:
        """The saved machine."""

    def map_parts(self, volume_id: str) -> Iterator[NDArray[np.void]]:
        """Yield the runs of a volume, of dtype `RUN`, in order, some at a time."""

    def map_from(self, volume_id: str, start: int) -> Iterator[tuple[int, NDArray[np.void]]]:
        """Yield the same parts from that on which covers a byte, each with its place in bytes."""

    def deliver(self, ids: NDArray[np.void], take: Take, done: Report, stages: Stages) -> None:
        """Hand every chunk to `take`, verified; see `imager.repository.delivery`."""

    def lanes(self, taking: Sequence[str]) -> tuple[Lane, ...]:
        """Return the lanes of a delivery, given the stages that chunks go through in `take`."""

    def identify(self, data: bytes | memoryview) -> bytes:
        """Return the id that this plaintext has."""

    def chunks(self, ids: Sequence[bytes]) -> Mapping[bytes, bytes]:
        """Return the plaintexts of a few chunks, verified, by id."""


@dataclass(frozen=True, slots=True)
class Runs:
    """A part of a volume map taken apart. Offsets are bytes from the start of the volume, ascending.

    Attributes:
        start: first byte of the volume that this is about.
        end: first byte behind.
        first: how many runs from the image come before, in the volume.
        data_offsets: where each run from the image begins; shape (n,).
        data_lengths: bytes of each; shape (n,).
        data_ids: as four 64-bit words each; shape (n, 4).
        zeros: (offset, length) of ranges that must read as zeros; shape (m, 2).
        cleared: (offset, length) of free ranges near the ends, zeroed as well; shape (k, 2).
        cut: bytes of the last run from the image that lie behind the end, where a volume is not
            taken whole; they are not among its `data_lengths`, and its id is that of all of it.
        skipped: likewise of the first run, bytes that lie before the start.
    """

    start: int
    end: int
    first: int
    data_offsets: Offsets
    data_lengths: Offsets
    data_ids: Offsets
    zeros: Offsets
    cleared: Offsets
    cut: int = 0
    skipped: int = 0

    @property
    def data(self) -> int:
        """Bytes from the image."""
        return int(self.data_lengths.sum())

    @property
    def size(self) -> int:
        """Bytes that have a defined content: from the image, zero, or cleared."""
        return self.data + int(self.zeros[:, 1].sum()) + int(self.cleared[:, 1].sum())

    def where(self, wanted: NDArray[np.bool_]) -> "Runs":
        """Return some of the runs of data, and nothing that is zeroed."""
        return replace(
            self,
            data_offsets=self.data_offsets[wanted],
            data_lengths=self.data_lengths[wanted],
            data_ids=self.data_ids[wanted],
            zeros=np.empty((0, 2), dtype=np.uint64),
            cleared=np.empty((0, 2), dtype=np.uint64),
        )

    def split(self, at: int) -> tuple["Runs", "Runs"]:
        """Return what begins before an offset, and the rest. Zeros are cut there, data is not."""
        is_before = self.data_offsets < np.uint64(at)
        return (
            replace(
                self.where(is_before),
                zeros=_within(self.zeros, 0, at),
                cleared=_within(self.cleared, 0, at),
            ),
            replace(
                self.where(~is_before),
                zeros=_within(self.zeros, at, self.end),
                cleared=_within(self.cleared, at, self.end),
            ),
        )


def each_part(
    image: Image, volume: Volume, length: int | None = None, source: int = 0
) -> Iterator[Runs]:
    """Yield what to do with each byte of a volume, for some ten thousand runs at a time.

    Args:
        image: knows the map.
        volume: as it was saved.
        length: bytes that it has where it is restored, if it is fitted: of a smaller one only what
            lies before its end is told, and of a larger one the rest is free.
        source: first byte that is told of; offsets count from there.

    Raises:
        ObjectDamaged: the runs do not add up to the volume.
    """
    size = volume.length - source if length is None else length
    start, first = 0, 0
    runs_from, skipped = _from(image, volume, source)
    for runs, cut in _joined(_fitted(runs_from, volume.length - source, size)):
        part = replace(
            _take_apart(runs, start, first, volume, size),
            cut=cut,
            skipped=skipped if not start else 0,
        )
        start, first = part.end, first + len(part.data_offsets)
        yield part
    if start != size:
        raise _not_covered(volume)


def _not_covered(volume: Volume) -> ObjectDamaged:
    return ObjectDamaged(f"the map of {volume.id} does not cover its {volume.length} bytes")


def _from(image: Image, volume: Volume, source: int) -> tuple[Iterator[NDArray[np.void]], int]:
    """Return the runs of a volume from a byte on, and what of the first one's data lies before it."""
    if not source:
        return image.map_parts(volume.id), 0
    parts = image.map_from(volume.id, source)
    start, part = next(parts, (0, np.empty(0, dtype=RUN)))
    ends = start + np.cumsum(part["length"], dtype=np.uint64)
    number = int(np.searchsorted(ends, np.uint64(source), side="right"))
    if number == len(part):
        raise _not_covered(volume)
    first = part[number:].copy()
    before = source - (int(ends[number]) - int(first["length"][0]))
    first["length"][0] -= np.uint64(before)
    rest = (runs for _, runs in parts)
    return chain([first], rest), before if _is_data(first["id"][0]) else 0


def _fitted(
    parts: Iterator[NDArray[np.void]], whole: int, size: int
) -> Iterator[tuple[NDArray[np.void], int]]:
    """Yield the runs of a volume up to another end; with the last one, what is cut off its data."""
    position = 0
    for part in parts:
        end = position + int(part["length"].sum(dtype=np.uint64))
        if end > size and size < whole:
            yield _cut(part, size - position)
            return
        yield part, 0
        position = end
    if position == whole < size:
        yield np.array([(size - position, _FREE)], dtype=RUN), 0


def _cut(runs: NDArray[np.void], size: int) -> tuple[NDArray[np.void], int]:
    """Return the runs that begin before an end, the last one cut there, and what is cut off data."""
    ends = np.cumsum(runs["length"], dtype=np.uint64)
    last = int(np.searchsorted(ends, np.uint64(size)))
    kept = runs[: last + 1].copy()
    over = int(ends[last]) - size
    kept["length"][last] -= np.uint64(over)
    return kept, over if _is_data(kept["id"][last]) else 0


def _is_data(identity: np.void) -> bool:
    return identity.tobytes() not in {_ZERO, _FREE}


def _joined(
    parts: Iterator[tuple[NDArray[np.void], int]],
) -> Iterator[tuple[NDArray[np.void], int]]:
    """Yield larger parts: working on arrays pays with long ones."""
    held: list[NDArray[np.void]] = []
    cut = 0
    for part, cut in parts:
        held.append(part)
        if sum(map(len, held)) >= _PART:
            yield np.concatenate(held), cut
            held = []
    if held:
        yield np.concatenate(held), cut


def _take_apart(runs: NDArray[np.void], start: int, first: int, volume: Volume, size: int) -> Runs:
    lengths = np.ascontiguousarray(runs["length"]).astype(np.uint64)
    # Summed as Python integers would be slow; in floats first, so that no overflow goes unseen.
    if float(lengths.sum(dtype=np.float64)) > 2.0**62:
        raise _not_covered(volume)
    words = np.ascontiguousarray(runs["id"]).view("<u8").reshape(-1, 4)
    offsets = np.cumsum(lengths, dtype=np.uint64) - lengths + np.uint64(start)
    end = start + int(lengths.sum())
    if end > size:
        raise _not_covered(volume)
    zero = (words == 0).all(axis=1)
    free = (words == np.uint64(2**64 - 1)).all(axis=1)
    data = ~(zero | free)
    return Runs(
        start=start,
        end=end,
        first=first,
        data_offsets=offsets[data],
        data_lengths=lengths[data],
        data_ids=words[data],
        zeros=np.stack([offsets[zero], lengths[zero]], axis=1),
        cleared=_near_ends(offsets[free], lengths[free], size),
    )


def _near_ends(offsets: Offsets, lengths: Offsets, size: int) -> Offsets:
    """Cut ranges down to what lies within `EDGE` bytes of an end."""
    ranges = np.stack([offsets, lengths], axis=1)
    head = _within(ranges, 0, min(EDGE, size))
    return np.concatenate([head, _within(ranges, max(EDGE, size - EDGE), size)])


def _within(ranges: Offsets, low: int, high: int) -> Offsets:
    """Cut ranges down to what lies from one offset up to another."""
    starts = np.maximum(ranges[:, 0], np.uint64(low))
    stops = np.minimum(ranges[:, 0] + ranges[:, 1], np.uint64(high))
    inside = starts < stops
    return np.stack([starts[inside], stops[inside] - starts[inside]], axis=1)
