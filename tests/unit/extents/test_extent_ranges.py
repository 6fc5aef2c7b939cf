"""The arithmetic of extent maps, against sets of bytes."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imager.extents.extents import UncertainMapError, complement, merged, set_ranges, whole

pairs = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12)


def members(ranges: np.ndarray) -> set[int]:
    return {byte for offset, length in ranges.tolist() for byte in range(offset, offset + length)}


def assert_canonical(ranges: np.ndarray) -> None:
    assert ranges.dtype == np.uint64
    assert ranges.ndim == 2
    assert ranges.shape[1] == 2
    rows = ranges.tolist()
    assert all(length > 0 for _, length in rows)
    for (offset, length), (following, _) in itertools.pairwise(rows):
        assert offset + length < following


@given(pairs)
def test_merged_is_the_union(given_pairs: list[tuple[int, int]]) -> None:
    starts = np.array([start for start, _ in given_pairs], dtype=np.int64)
    ends = np.array([end for _, end in given_pairs], dtype=np.int64)
    found = merged(starts, ends)
    assert_canonical(found)
    assert members(found) == {byte for start, end in given_pairs for byte in range(start, end)}


@given(st.sets(st.integers(0, 63), max_size=40), st.integers(64, 80))
def test_complement_is_the_rest(free: set[int], length: int) -> None:
    starts = np.array(sorted(byte for byte in free if byte - 1 not in free), dtype=np.int64)
    ends = np.array(sorted(byte + 1 for byte in free if byte + 1 not in free), dtype=np.int64)
    found = complement(starts, ends, length)
    assert_canonical(found)
    assert members(found) == set(range(length)) - free


@pytest.mark.parametrize(
    ("starts", "ends"), [([5], [3]), ([0, 4], [5, 9]), ([4, 0], [5, 1]), ([10], [21])]
)
def test_complement_refuses_nonsense(starts: list[int], ends: list[int]) -> None:
    with pytest.raises(UncertainMapError):
        complement(np.array(starts), np.array(ends), 20)


def test_whole() -> None:
    assert whole(17, "why").ranges.tolist() == [[0, 17]]
    assert whole(17, "why").reason == "why"
    assert whole(0).ranges.shape == (0, 2)
    assert whole(0).total == 0


@given(st.lists(st.booleans(), max_size=40))
def test_set_ranges(bits: list[bool]) -> None:
    starts, ends = set_ranges(np.array(bits, dtype=np.bool_))
    rows = list(zip(starts.tolist(), ends.tolist(), strict=True))
    assert all(first < last for first, last in rows)
    assert all(last < first for (_, last), (first, _) in itertools.pairwise(rows))
    found = {index for first, last in rows for index in range(first, last)}
    assert found == {index for index, bit in enumerate(bits) if bit}
