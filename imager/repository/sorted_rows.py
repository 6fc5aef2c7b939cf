"""Rows sorted by id, in memory or in a file, of which a look-up reads one short run.

The file is read with `pread`, not mapped: kernels map far more around a page that is touched than
was asked for (since Linux 6.18 whole large folios), so random look-ups in a mapped file of some
gigabytes soon have all of it in the memory of the process.
"""

import heapq
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, BinaryIO, Final, Self

import numpy as np
from numpy.typing import NDArray

from imager.repository.ids import heads, words
from imager.repository.scratch import Rows, write

# Of so many rows in a file the head of one is in memory; a look-up reads those after it.
_STRIDE: Final = 1 << 6
_WINDOW: Final = 1 << 18
# So many look-ups are answered at once; each reads `_STRIDE` rows.
_BATCH: Final = 1 << 10


@dataclass(frozen=True, slots=True)
class Found:
    """Rows whose ids are, or begin as, some that were asked for.

    Attributes:
        numbers: of the rows, from 0.
        owners: for each, the place of the id that was asked for.
        rows: the rows.
    """

    numbers: NDArray[np.intp]
    owners: NDArray[np.intp]
    rows: Rows


def merged_parts(
    sources: Iterable[Iterable[tuple[int, Rows]]], dtype: np.dtype[Any]
) -> Iterator[Rows]:
    """Yield all rows of each first byte of ids, in the order of first bytes; in no order within.

    Args:
        sources: what `SortedRows.parts` or `Parted.parts` yield.
        dtype: of the rows.
    """
    merged = heapq.merge(*sources, key=itemgetter(0))
    for _, parts in itertools.groupby(merged, key=itemgetter(0)):
        yield np.concatenate([rows for _, rows in parts], dtype=dtype)


class SortedRows:
    """Rows whose first field is an `id` (32 bytes), sorted by it; safe from any thread.

    Args:
        parts: the rows in order.
        dtype: of them.
        file: new and empty, where they go; without it they stay in memory, and there is one part.

    Attributes:
        file: where they lie, from its beginning; None in memory.
        fences: first eight bytes of the id of the first row, and of others at equal distances.

    Raises:
        OutputError: there is no room in the file.
    """

    def __init__(
        self, parts: Iterable[Rows], dtype: np.dtype[Any], file: BinaryIO | None = None
    ) -> None:
        self._dtype = dtype
        self.file = file
        self._stride = 1 if file is None else _STRIDE
        self._rows: Rows = np.empty(0, dtype=dtype)
        self._count = 0
        fences = []
        for rows in parts:
            fences.append(heads(rows["id"][-self._count % self._stride :: self._stride]))
            self._count += len(rows)
            if self.file is None:
                self._rows = rows
            else:
                write(self.file, rows)
        self.fences = np.concatenate([np.empty(0, dtype=np.uint64), *fences])

    @classmethod
    def found_in(
        cls, file: BinaryIO, count: int, fences: NDArray[np.uint64], dtype: np.dtype[Any]
    ) -> Self:
        """Return rows that were written to a file before."""
        found = cls((), dtype, file)
        found._count, found.fences = count, fences
        return found

    def __len__(self) -> int:
        return self._count

    def windows(self) -> Iterator[Rows]:
        """Yield all rows in order, some at a time; those whose ids begin alike are never parted."""
        start, size = 0, _WINDOW
        while start < self._count:
            rows = self._read(start, min(size, self._count - start))
            last = heads(rows["id"][-1:])
            end = len(rows)
            if start + end < self._count:
                end = int(np.searchsorted(heads(rows["id"]), last)[0])
            size = _WINDOW if end else 2 * size
            if end:
                yield rows[:end]
            start += end

    def parts(self) -> Iterator[tuple[int, Rows]]:
        """Yield the rows of each first byte of ids, in order, with that byte."""
        bounds = [self._first_row(byte << 56) for byte in range(256)] + [self._count]
        for byte, (start, end) in enumerate(itertools.pairwise(bounds)):
            if start < end:
                yield byte, self._read(start, end - start)

    def _first_row(self, head: int) -> int:
        """Return the first row whose id begins with this or more."""
        start = max(int(np.searchsorted(self.fences, np.uint64(head))) - 1, 0) * self._stride
        rows = self._read(start, min(self._stride, self._count - start))
        return start + int(np.searchsorted(heads(rows["id"]), np.uint64(head)))

    def rows_of(self, ids: NDArray[np.void]) -> Iterator[Found]:
        """Yield all rows of some ids (dtype V32)."""
        for part in self._beginning_as(ids):
            right = (words(part.rows["id"]) == words(ids[part.owners])).all(axis=1)
            yield Found(part.numbers[right], part.owners[right], part.rows[right])

    def _beginning_as(self, ids: NDArray[np.void]) -> Iterator[Found]:
        """Yield all rows whose ids have the first eight bytes of one of some ids (dtype V32)."""
        for start in range(0, len(ids), _BATCH):
            keys = heads(ids[start : start + _BATCH])
            blocks = np.maximum(np.searchsorted(self.fences, keys) - 1, 0)
            asked = np.flatnonzero(blocks < len(self.fences))
            while len(asked):
                numbers, rows = self._blocks(blocks[asked])
                hits = (heads(rows["id"]).reshape(len(asked), -1) == keys[asked, None]).ravel()
                hits &= numbers < self._count
                owners = np.repeat(asked, self._stride)[hits]
                yield Found(numbers[hits], start + owners, rows[hits])
                # Hardly ever they go on in the next block.
                blocks[asked] += 1
                asked = asked[blocks[asked] < len(self.fences)]
                asked = asked[self.fences[blocks[asked]] <= keys[asked]]

    def _read(self, start: int, count: int) -> Rows:
        if self.file is None:
            return self._rows[start : start + count]
        size = self._dtype.itemsize
        data = os.pread(self.file.fileno(), count * size, start * size)
        return np.frombuffer(data, dtype=self._dtype)

    def _blocks(self, blocks: NDArray[np.intp]) -> tuple[NDArray[np.intp], Rows]:
        """Return numbers and rows of some blocks; those after the last row are of no meaning."""
        numbers = (blocks[:, None] * self._stride + np.arange(self._stride)).ravel()
        if self.file is None:
            return numbers, self._rows[np.minimum(numbers, self._count - 1)]
        rows = np.zeros(len(numbers), dtype=self._dtype)
        view, size = rows.view(np.uint8).data, _STRIDE * self._dtype.itemsize
        descriptor = self.file.fileno()
        for place, block in enumerate(blocks.tolist()):
            os.preadv(descriptor, [view[place * size : (place + 1) * size]], block * size)
        return numbers, rows
