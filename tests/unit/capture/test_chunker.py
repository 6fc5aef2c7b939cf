"""Where chunks are cut, against a plain reading of FORMAT.md section 6."""

import hashlib
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imager.capture.chunker import BLOCK, MOST_UNDECIDED, Chunker, Piece, PieceKind

KEY = b"k" * 32


def plainly(data: bytes) -> list[tuple[PieceKind, int, int]]:
    """Cut as FORMAT.md says, block by block, with nothing clever."""
    words = struct.unpack("<8Q", hashlib.sha512(KEY).digest())
    multipliers = [word | 1 for word in words]
    blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    zero = [not any(block) for block in blocks]

    def cuts(block: bytes) -> bool:
        if len(block) < BLOCK:
            return False
        total = multipliers[0]
        for i in range(8):
            total += struct.unpack_from("<Q", block, 8 * (64 * i + 5))[0] * multipliers[i]
        return total % 2**64 < 2**59

    runs, at = [], 0
    while at < len(blocks):
        end = at
        while end < len(blocks) and zero[end]:
            end += 1
        if end - at >= 16:
            runs.append((at, end))
        at = max(end, at + 1)
    pieces, at = [], 0
    for start, end in [*runs, (len(blocks), len(blocks))]:
        first = at
        for block in range(at, start):
            length = block + 1 - first
            if (length >= 8 and cuts(blocks[block])) or length == 128 or block + 1 == start:
                pieces.append((PieceKind.DATA, first, block + 1))
                first = block + 1
        if end > start:
            pieces.append((PieceKind.ZERO, start, end))
        at = end
    return [(kind, a * BLOCK, min(b * BLOCK, len(data))) for kind, a, b in pieces]


def in_parts(data: bytes, sizes: list[int]) -> list[tuple[PieceKind, int, int]]:
    """Cut in parts of the given sizes, joining zero runs as a map does."""
    chunker = Chunker(KEY)
    found: list[tuple[PieceKind, int, int]] = []
    place = decided = number = 0
    while place < len(data):
        end = min(len(data), place + sizes[number % len(sizes)])
        number += 1
        part = memoryview(data)[place:end]
        if len(part) >= 16 * BLOCK and not any(part):
            pieces = chunker.decide_zeros(len(part), final=end == len(data))
        else:
            pieces = chunker.decide(chunker.examine(part), final=end == len(data))
        assert contiguous(pieces)
        for piece in pieces:
            row = (piece.kind, decided + piece.start, decided + piece.end)
            if found and row[0] is PieceKind.ZERO is found[-1][0]:
                row = (PieceKind.ZERO, found.pop()[1], row[2])
            found.append(row)
        place = end
        decided = found[-1][2] if found else 0
        assert chunker.undecided == place - decided <= MOST_UNDECIDED
    return found


def contiguous(pieces: list[Piece]) -> bool:
    ends = [0, *(piece.end for piece in pieces)]
    return [piece.start for piece in pieces] == ends[:-1]


def sample(seed: int, stretches: list[tuple[bool, int]], tail: int) -> bytes:
    noise = random.Random(seed)
    body = b"".join(
        bytes(BLOCK * count) if zero else noise.randbytes(BLOCK * count)
        for zero, count in stretches
    )
    return body + noise.randbytes(tail)


@pytest.mark.parametrize("size", [BLOCK, 40 * BLOCK, 1 << 20, 4 << 20, 64 << 20])
def test_like_the_plain_reading(size: int) -> None:
    stretches = [(False, 900), (True, 15), (False, 70), (True, 16), (False, 3), (True, 500)]
    data = sample(1, stretches + stretches, 123)
    assert in_parts(data, [size]) == plainly(data)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 60)), min_size=1, max_size=8),
    st.integers(0, BLOCK - 1),
    st.lists(st.integers(1, 90), min_size=1, max_size=4),
    st.integers(0, 5),
)
def test_parts_do_not_matter(
    stretches: list[tuple[bool, int]], tail: int, sizes: list[int], seed: int
) -> None:
    data = sample(seed, stretches, tail)
    assert in_parts(data, [size * BLOCK for size in sizes]) == plainly(data)


def test_average_and_bounds() -> None:
    data = sample(3, [(False, 40_000)], 0)
    lengths = [(end - start) // BLOCK for _, start, end in in_parts(data, [4 << 20])]
    assert min(lengths[:-1]) >= 8
    assert max(lengths) <= 128
    assert 30 < sum(lengths) / len(lengths) < 45


def test_the_key_decides() -> None:
    data = memoryview(sample(4, [(False, 4000)], 0))
    one, other = Chunker(b"a" * 32), Chunker(b"b" * 32)
    assert one.decide(one.examine(data), final=True) != other.decide(
        other.examine(data), final=True
    )
