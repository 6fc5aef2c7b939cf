"""Where chunks are cut: content-defined and block-aligned (FORMAT.md section 6).

All per-block work is numpy; Python runs once per chunk. The cut points depend on a key of the
group, so that stored sizes do not tell which known files a disk holds.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager.extents.extents import set_ranges

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

    def skip(self, zeros: int) -> Piece | None:
        """Decide zeros that come next without looking at them, if all before is decided.

        Args:
            zeros: bytes of them; whole blocks, or up to the end of the extent.

        Returns:
            Their piece, as if they began a buffer; None if they are too few to be a zero run.
        """
        if zeros < (1 if self._in_zero else LEAST_ZERO_BLOCKS * BLOCK):
            return None
        self._in_zero = True
        return Piece(PieceKind.ZERO, 0, zeros)

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
        line = _Line(cuts, len(data))
        for start, end in _zero_runs(zero, continues=self._in_zero):
            open_end = end == blocks and not final
            if end - start < LEAST_ZERO_BLOCKS and not (start == 0 and self._in_zero):
                if open_end:
                    line.cut(start, closed=False)
                    self._in_zero = False
                    return line.pieces, line.covered
                continue
            line.cut(start, closed=True)
            line.append(PieceKind.ZERO, end)
        self._in_zero = line.position == blocks and bool(line.pieces)
        line.cut(blocks, closed=final)
        return line.pieces, line.covered

    def _examine(self, data: memoryview) -> tuple[NDArray[np.bool_], list[int]]:
        """Return which blocks are zero, and the numbers of blocks after which a cut may be."""
        whole = len(data) // BLOCK
        words = np.frombuffer(data, "<u8", count=whole * _WORDS).reshape(whole, _WORDS)
        prints = np.ascontiguousarray(words[:, _SAMPLE]) @ self._multipliers
        zero = _zero_blocks(words, prints == 0)
        cuts = np.flatnonzero(prints + self._multipliers[0] < _CUT_BELOW).tolist()
        if len(data) % BLOCK:
            tail = np.frombuffer(data, "u1", offset=whole * BLOCK)
            zero = np.append(zero, not tail.any())
        return zero, cuts


def _zero_blocks(words: NDArray[np.uint64], candidates: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which of the candidates really are zero."""
    starts, ends = set_ranges(candidates)
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        if words[start:end].any():
            candidates[start:end] = ~words[start:end].any(axis=1)
    return candidates


def _zero_runs(zero: NDArray[np.bool_], *, continues: bool) -> Iterator[tuple[int, int]]:
    """Yield start and end of the runs of zero blocks that could count."""
    starts, ends = set_ranges(zero)
    long = ends - starts >= LEAST_ZERO_BLOCKS
    if len(starts):
        long[0] |= continues and starts[0] == 0
        long[-1] |= ends[-1] == len(zero)
    for start, end in zip(starts[long], ends[long], strict=True):
        yield int(start), int(end)


class _Line:
    """The pieces of a buffer in the making.

    Args:
        cuts: numbers of blocks after which a cut may be, ascending.
        size: bytes of the buffer.

    Attributes:
        pieces: decided so far.
        position: the block where what is undecided begins.
    """

    def __init__(self, cuts: list[int], size: int) -> None:
        self._cuts = cuts
        self._size = size
        self.pieces: list[Piece] = []
        self.position = 0

    @property
    def covered(self) -> int:
        """Bytes that the pieces cover."""
        return min(self.position * BLOCK, self._size)

    def append(self, kind: PieceKind, end: int) -> None:
        """Let a piece end before a block."""
        piece = Piece(kind, self.position * BLOCK, min(end * BLOCK, self._size))
        self.pieces.append(piece)
        self.position = end

    def cut(self, end: int, *, closed: bool) -> None:
        """Append the chunks of a data stretch up to a block.

        Args:
            end: the block.
            closed: whether the data ends there; else the last chunk is left undecided.
        """
        while self.position < end:
            number = bisect_left(self._cuts, self.position + LEAST_BLOCKS - 1)
            stop = self.position + MOST_BLOCKS
            if number < len(self._cuts):
                stop = min(self._cuts[number] + 1, stop)
            if stop > end:
                if not closed:
                    return
                stop = end
            self.append(PieceKind.DATA, stop)
