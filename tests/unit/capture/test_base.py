"""A capture upon the image before gives the same content as one from nothing."""

import random
import tempfile
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from imager.capture import base as base_module
from imager.capture.base import Fresh, Known, divide
from imager.capture.chunker import BLOCK
from imager.capture.pipeline import Pipeline
from imager.extents.extents import Extents
from imager.layout.disk import Volume, VolumeRole
from imager.repository.chunk import FREE, ID, ZERO, Codec
from imager.repository.ids import NOWHERE
from imager.repository.volume_map import Root, Runs, TreeWriter, runs
from imager.units import KIB, MIB

KEY = bytes(range(32))
SIZE = 24 * MIB
Ranges = list[tuple[int, int]]


def identify(data: bytes | memoryview) -> bytes:
    return blake3(data, key=KEY).digest()


class Tree(TreeWriter):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.runs = runs([])

    def add(self, volume_map: Runs) -> None:
        self.runs = np.concatenate((self.runs, volume_map))

    def finish(self) -> Root:
        return Root(ZERO, 0)


class Memory:
    """What a pipeline needs of a session; keeps plaintexts by their ids."""

    cut_key = KEY

    def __init__(self) -> None:
        self.chunks: dict[bytes, bytes] = {}
        self.lost: set[bytes] = set()
        self.relied = 0
        self.sent = 0
        self.tree = Tree()

    def identify(self, data: memoryview) -> bytes:
        return identify(data)

    def holders(self, ids: NDArray[np.void]) -> NDArray[np.int64]:
        known = self.chunks.keys() - self.lost
        return np.array([0 if row.tobytes() in known else NOWHERE for row in ids], dtype=np.int64)

    def rely_on(self, packs: NDArray[np.int64]) -> None:
        self.relied += int((packs != NOWHERE).sum())

    def claim(self, identities: Sequence[bytes]) -> list[bool]:
        return [identity not in self.chunks or identity in self.lost for identity in identities]

    def compress(self, chunk: memoryview) -> tuple[bytes, Codec]:
        return bytes(chunk), Codec.STORED

    def seal(self, _identity: bytes, _length: int, body: bytes, _codec: Codec) -> bytearray:
        return bytearray(body)

    def add(self, identity: bytes, blob: bytearray, length: int, _codec: Codec) -> None:
        assert len(blob) == length
        self.sent += length
        self.chunks[identity] = bytes(blob)
        self.lost.discard(identity)

    def new_map(self) -> Tree:
        self.tree = Tree()
        return self.tree


def captured(session: Memory, content: bytes, extents: Ranges, base: Sequence[Runs] = ()) -> Runs:
    volume = Volume("volume", VolumeRole.WHOLE_DISK, 0, len(content))
    found = Extents(np.array(extents, dtype=np.uint64).reshape(-1, 2), "test", None, BLOCK)
    moved: list[int] = []
    with tempfile.TemporaryFile() as file, Pipeline(session, 2) as pipeline:  # type: ignore[arg-type]
        file.write(content)
        file.flush()
        pipeline.add_volume(file.fileno(), volume, found, moved.append, base)
    assert sum(moved) == sum(length for _, length in extents)
    return session.tree.runs


def check_map(volume_map: Runs, content: bytes, extents: Ranges, session: Memory) -> None:
    """Every byte of the extents is in the map, nothing else, and neighbours are joined."""
    is_used = np.zeros(len(content), dtype=np.bool_)
    for offset, length in extents:
        is_used[offset : offset + length] = True
    offset, before = 0, b""
    for length, raw in volume_map.tolist():
        identity, piece = bytes(raw), content[offset : offset + length]
        if identity == FREE:
            assert not is_used[offset : offset + length].any()
        else:
            assert is_used[offset : offset + length].all()
            expected = ZERO if identity == ZERO else identify(piece)
            assert identity == expected
            assert session.chunks[identity] == piece if identity != ZERO else not any(piece)
        assert identity not in {ZERO, FREE} or identity != before
        before, offset = identity, offset + length
    assert offset == len(content)


def split(volume_map: Runs, size: int) -> list[Runs]:
    return [volume_map[start : start + size] for start in range(0, len(volume_map), size)]


def some_extents(rng: random.Random) -> Ranges:
    cuts = sorted(rng.sample(range(SIZE // BLOCK), 2 * rng.choice([1, 2, 9, 200])))
    return [(a * BLOCK, (b - a) * BLOCK) for a, b in zip(cuts[::2], cuts[1::2], strict=True)]


def some_content(rng: random.Random) -> bytearray:
    content = bytearray(rng.randbytes(SIZE))
    for _ in range(rng.randrange(12)):
        overwrite(content, rng, bytes)
    return content


def overwrite(content: bytearray, rng: random.Random, make: Callable[[int], bytes]) -> None:
    size = rng.choice([1, BLOCK, 70 * KIB, MIB, 5 * MIB])
    start = rng.randrange(SIZE - size)
    content[start : start + size] = make(size)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1 << 32), st.integers(1, 300))
def test_the_map_is_right_whatever_changed(seed: int, part: int) -> None:
    rng = random.Random(seed)
    content, extents, session = some_content(rng), some_extents(rng), Memory()
    first = captured(session, bytes(content), extents)
    check_map(first, content, extents, session)
    for _ in range(rng.randrange(6)):
        overwrite(content, rng, rng.choice([rng.randbytes, bytes]))
    if rng.random() < 0.5:
        extents = some_extents(rng)
    gone = rng.sample(sorted(session.chunks), len(session.chunks) // 9)
    session.lost = set(gone)
    again = captured(session, bytes(content), extents, split(first, part))
    check_map(again, content, extents, session)
    assert not session.lost & {bytes(raw) for _, raw in again.tolist()}


def test_an_unchanged_volume_is_sent_not_again_and_counts_on_each_chunk() -> None:
    rng = random.Random(7)
    content, extents, session = bytes(some_content(rng)), some_extents(rng), Memory()
    first = captured(session, content, extents)
    session.sent = session.relied = 0
    again = captured(session, content, extents, [first])
    assert (again == first).all()
    assert session.sent == 0
    assert session.relied == sum(bytes(raw) not in {ZERO, FREE} for _, raw in first.tolist())


def test_of_what_changed_little_more_is_sent() -> None:
    rng = random.Random(8)
    content, session = bytearray(rng.randbytes(SIZE)), Memory()
    first = captured(session, bytes(content), [(0, SIZE)])
    session.sent = 0
    content[9 * MIB : 10 * MIB] = rng.randbytes(MIB)
    captured(session, bytes(content), [(0, SIZE)], [first])
    assert MIB <= session.sent <= 2 * MIB


def test_zeros_that_grew_are_one_run() -> None:
    content, session = bytearray(random.Random(9).randbytes(SIZE)), Memory()
    content[8 * MIB : 8 * MIB + 256 * KIB] = bytes(256 * KIB)
    first = captured(session, bytes(content), [(0, SIZE)])
    content[8 * MIB : 9 * MIB] = bytes(MIB)
    again = captured(session, bytes(content), [(0, SIZE)], [first])
    check_map(again, content, [(0, SIZE)], session)


@pytest.mark.parametrize("base_size", [0, MIB, SIZE, 2 * SIZE])
def test_a_base_of_something_else_does_no_harm(base_size: int) -> None:
    rng = random.Random(base_size)
    other = rng.randbytes(base_size)
    session, extents = Memory(), some_extents(rng)
    base = [captured(session, other, [(0, base_size)])] if base_size else []
    content = bytes(some_content(rng))
    check_map(captured(session, content, extents, base), content, extents, session)


@settings(deadline=None)
@given(st.integers(0, 1 << 32))
def test_what_is_known_together_has_nothing_fresh_between_and_is_not_too_large(seed: int) -> None:
    rng = random.Random(seed)
    extents, most = some_extents(rng), 2 * MIB
    lengths = [rng.randrange(1, 128) * BLOCK for _ in range(SIZE // BLOCK // 40)]
    kinds = [rng.choice([ZERO, FREE, b"\1" * 32, b"\2" * 32]) for _ in lengths]
    base = runs(list(zip(lengths, kinds, strict=True)))

    def holders(ids: NDArray[np.void]) -> NDArray[np.int64]:
        return np.where(ids == np.frombuffer(b"\1" * 32, ID)[0], 5, NOWHERE)

    found: Ranges = []
    for stretch in divide(np.array(extents, dtype=np.uint64), [base], holders, most):
        if isinstance(stretch, Fresh):
            found.append((stretch.offset, stretch.offset + stretch.length))
            continue
        assert isinstance(stretch, Known)
        assert stretch.size <= most
        is_zero = np.array([row.tobytes() == ZERO for row in stretch.runs["id"]])
        assert (stretch.packs == np.where(is_zero, NOWHERE, 5)).all()
        found += zip(stretch.offsets.tolist(), stretch.ends.tolist(), strict=True)
    assert found == sorted(found)
    assert joined(found) == joined([(offset, offset + length) for offset, length in extents])


def joined(found: Ranges) -> Ranges:
    done: Ranges = []
    for start, end in found:
        if done and done[-1][1] == start:
            done[-1] = done[-1][0], end
        else:
            done.append((start, end))
    return done


def test_long_zeros_are_looked_at_as_ever() -> None:
    base = runs([(base_module.MOST_BLOCKS * BLOCK + BLOCK, ZERO)])
    extents = np.array([[0, SIZE]], dtype=np.uint64)

    def holders(ids: NDArray[np.void]) -> NDArray[np.int64]:
        return np.full(len(ids), NOWHERE)

    assert list(divide(extents, [base], holders, 16 * MIB)) == [Fresh(0, SIZE)]
