"""Where chunks are cut: content-defined and block-aligned (FORMAT.md section 6).

All per-block work is numpy; Python runs once per chunk. The cut points depend on a key of the
group, so that stored sizes do not tell which known files a disk holds.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imager.extents.extents import set_ranges

BLOCK: Final = 4096
LEAST_BLOCKS: Final = 8
MOST_BLOCKS: Final = 128
LEAST_ZERO_BLOCKS: Final = 16
# A chunk that may still grow, and zeros that may become a run.
MOST_UNDECIDED: Final = (MOST_BLOCKS + LEAST_ZERO_BLOCKS) * BLOCK
_WORDS: Final = BLOCK // 8
_SAMPLE: Final = slice(5, _WORDS, 64)
_CUT_BELOW: Final = np.uint64(1 << 59)


class PieceKind(Enum):
    """What a stretch of a volume is."""

    DATA = 1
    ZERO = 2


class Piece(NamedTuple):
    """A decided part of an extent: a chunk, or a zero run.

    Attributes:
        kind: data or zero.
        start: first byte, counted from where what was undecided before began.
        end: first byte after.
    """

    kind: PieceKind
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Examined:
    """All of some blocks that matters for where they are cut.

    Attributes:
        zero: which of them are zero, shape (n,).
        cuts: numbers of those after which a cut may be, ascending.
        size: bytes; less than n blocks have if the last one is cut short.
    """

    zero: NDArray[np.bool_]
    cuts: NDArray[np.int64]
    size: int

    def followed_by(self, more: "Examined") -> "Examined":
        """Return these blocks and those that come after them."""
        if not len(self.zero):
            return more
        return Examined(
            np.concatenate((self.zero, more.zero)),
            np.concatenate((self.cuts, more.cuts + len(self.zero))),
            self.size + more.size,
        )

    def from_block(self, first: int) -> "Examined":
        """Return the blocks from one on."""
        cuts = self.cuts[np.searchsorted(self.cuts, first) :] - first
        return Examined(self.zero[first:].copy(), cuts, max(self.size - first * BLOCK, 0))


_NOTHING: Final = Examined(np.zeros(0, dtype=np.bool_), np.zeros(0, dtype=np.int64), 0)


class Chunker:
    """Cuts one extent, part by part; make a new one for each extent.

    What is costly, `examine`, depends on nothing else and is safe from any thread; deciding is for
    one thread at a time, in the order of the parts.

    Args:
        cut_key: of the group, 32 bytes.
    """

    def __init__(self, cut_key: bytes) -> None:
        self._multipliers = np.frombuffer(hashlib.sha512(cut_key).digest(), "<u8") | np.uint64(1)
        self._in_zero = False
        self._rest = _NOTHING

    @property
    def undecided(self) -> int:
        """Bytes before the next part that are no piece yet, at most `MOST_UNDECIDED`."""
        return self._rest.size

    def examine(self, data: memoryview) -> Examined:
        """Look at a part: whole blocks, but for the end of the extent."""
        whole = len(data) // BLOCK
        words = np.frombuffer(data, "<u8", count=whole * _WORDS).reshape(whole, _WORDS)
        prints = np.ascontiguousarray(words[:, _SAMPLE]) @ self._multipliers
        zero = _zero_blocks(words, prints == 0)
        cuts = np.flatnonzero(prints + self._multipliers[0] < _CUT_BELOW)
        if len(data) % BLOCK:
            tail = np.frombuffer(data, "u1", offset=whole * BLOCK)
            zero = np.append(zero, not tail.any())
        return Examined(zero, cuts, len(data))

    def decide(self, examined: Examined, *, final: bool) -> list[Piece]:
        """Decide as much as can be decided with one more part.

        Args:
            examined: the part.
            final: whether the extent ends with it; then nothing is left undecided.

        Returns:
            The pieces, in order and without gaps.
        """
        known = self._rest.followed_by(examined)
        line = _Line(known.cuts.tolist(), known.size)
        self._in_zero = self._decide(known.zero, line, final=final)
        self._rest = known.from_block(line.position)
        return line.pieces

    def decide_zeros(self, size: int, *, final: bool) -> list[Piece]:
        """Decide a part of zeros that nobody has looked at.

        Args:
            size: bytes, at least `LEAST_ZERO_BLOCKS` blocks; whole blocks, but for the end of the
                extent.
            final: as for `decide`.
        """
        enough = LEAST_ZERO_BLOCKS * BLOCK
        zeros = Examined(np.ones(LEAST_ZERO_BLOCKS, dtype=np.bool_), _NOTHING.cuts, enough)
        pieces = self.decide(zeros, final=final)
        pieces[-1] = pieces[-1]._replace(end=pieces[-1].end + size - enough)
        return pieces

    def _decide(self, zero: NDArray[np.bool_], line: "_Line", *, final: bool) -> bool:
        """Append all that can be decided to a line; return whether a zero run may go on after it."""
        blocks = len(zero)
        for start, end in _zero_runs(zero, continues=self._in_zero):
            open_end = end == blocks and not final
            if end - start < LEAST_ZERO_BLOCKS and not (start == 0 and self._in_zero):
                if open_end:
                    line.cut(start, closed=False)
                    return False
                continue
            line.cut(start, closed=True)
            line.append(PieceKind.ZERO, end)
        goes_on = line.position == blocks and bool(line.pieces)
        line.cut(blocks, closed=final)
        return goes_on


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
