"""Where chunks are cut: content-defined and block-aligned (FORMAT.md section 6).

All per-block work is numpy; Python runs once per chunk. The cut points depend on a key of the
group, so that stored sizes do not tell which known files a disk holds.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np
from numpy.typing import NDArray

BLOCK: Final = 4096
LEAST_BLOCKS: Final = 8
MOST_BLOCKS: Final = 128
LEAST_ZERO_BLOCKS: Final = 16
_WORDS: Final = BLOCK // 8
_SAMPLE: Final = slice(5, _WORDS, 64)
_SAMPLES: Final = 8
_CUT_BELOW: Final = np.uint64(1 << 59)


class PieceKind(Enum):
    """What a stretch of a volume is."""

    DATA = 1
    ZERO = 2


@dataclass(frozen=True, slots=True)
class Piece:
    """A decided part of the buffer: a chunk, or a zero run.

    Attributes:
        kind: data or zero.
        start: first byte in the buffer.
        end: first byte after.
    """

    kind: PieceKind
    start: int
    end: int


class Chunker:
    """Cuts one extent, given in consecutive buffers; make a new one for each extent.

    Args:
        cut_key: of the group, 32 bytes.
    """

    def __init__(self, cut_key: bytes) -> None:
        self._multipliers = np.frombuffer(hashlib.sha512(cut_key).digest(), "<u8") | np.uint64(1)
        self._in_zero = False

    def cut(self, data: memoryview, *, final: bool) -> tuple[list[Piece], int]:
        """Decide as much of a buffer as can be decided.

        Args:
            data: what was left of the last buffer, followed by what comes next.
            final: whether the extent ends with this buffer.

        Returns:
            The pieces, in order and without gaps, and how many bytes they cover. The caller gives
            the rest again, in front of what comes next; with `final` there is no rest.
        """
        zero, cuts = self._examine(data)
        blocks = len(zero)
        pieces: list[Piece] = []
        position = 0
        for start, end in _zero_runs(zero, continues=self._in_zero):
            open_end = end == blocks and not final
            if end - start < LEAST_ZERO_BLOCKS and not (start == 0 and self._in_zero):
                if open_end:
                    consumed = _cut_data(pieces, cuts, position, start, closed=False)
                    self._in_zero = False
                    return _in_bytes(pieces, len(data)), consumed * BLOCK
                continue
            _cut_data(pieces, cuts, position, start, closed=True)
            pieces.append(Piece(PieceKind.ZERO, start, end))
            position = end
        self._in_zero = position == blocks and bool(pieces)
        consumed = _cut_data(pieces, cuts, position, blocks, closed=final)
        return _in_bytes(pieces, len(data)), min(consumed * BLOCK, len(data))

    def _examine(self, data: memoryview) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
        """Return which blocks are zero, and the numbers of blocks after which a cut may be."""
        whole = len(data) // BLOCK
        words = np.frombuffer(data, "<u8", count=whole * _WORDS).reshape(whole, _WORDS)
        samples = words[:, _SAMPLE]
        zero: NDArray[np.bool_] = ~np.any(samples, axis=1)
        for block in np.flatnonzero(zero):
            zero[block] = not words[block].any()
        prints = (samples * self._multipliers).sum(axis=1, dtype=np.uint64)
        cuts = np.flatnonzero(prints + self._multipliers[0] < _CUT_BELOW)
        if len(data) % BLOCK:
            tail = np.frombuffer(data, "u1", offset=whole * BLOCK)
            zero = np.append(zero, not tail.any())
        return zero, cuts


def _zero_runs(zero: NDArray[np.bool_], *, continues: bool) -> Iterator[tuple[int, int]]:
    """Yield start and end of the runs of zero blocks that could count."""
    edges = np.diff(np.concatenate(([False], zero, [False])).astype(np.int8))
    starts = np.flatnonzero(edges == 1)
    ends = np.flatnonzero(edges == -1)
    long = ends - starts >= LEAST_ZERO_BLOCKS
    if len(starts):
        long[0] |= continues and starts[0] == 0
        long[-1] |= ends[-1] == len(zero)
    for start, end in zip(starts[long], ends[long], strict=True):
        yield int(start), int(end)


def _cut_data(
    pieces: list[Piece], cuts: NDArray[np.intp], start: int, end: int, *, closed: bool
) -> int:
    """Append the chunks of a data stretch; return the block where the undecided rest begins."""
    while start < end:
        position = int(np.searchsorted(cuts, start + LEAST_BLOCKS - 1))
        limit = start + MOST_BLOCKS
        stop = min(int(cuts[position]) + 1, limit) if position < len(cuts) else limit
        if stop > end:
            if not closed:
                return start
            stop = end
        pieces.append(Piece(PieceKind.DATA, start, stop))
        start = stop
    return start


def _in_bytes(pieces: list[Piece], size: int) -> list[Piece]:
    return [
        Piece(piece.kind, piece.start * BLOCK, min(piece.end * BLOCK, size)) for piece in pieces
    ]
