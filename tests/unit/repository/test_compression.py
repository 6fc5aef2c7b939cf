"""What is compressed, how strongly, and what is stored as it is."""

import random

import pytest
import zstandard

from imager.repository.chunk import Codec
from imager.repository.compression import LEAST_LEVEL, Compressor
from imager.units import KIB

WORDS = [random.Random(number).randbytes(number % 7 + 1).hex().encode() for number in range(500)]
TEXT = b" ".join(random.Random(0).choices(WORDS, k=20_000))[: 128 * KIB]


def noise(seed: int, size: int = 128 * KIB) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of all that was given to zstd."""
    sizes: list[int] = []
    real = zstandard.ZstdCompressor

    class Counted:
        def __init__(self, **options: object) -> None:
            self._zstd = real(**options)  # type: ignore[arg-type]

        def compress(self, data: bytes) -> bytes:
            sizes.append(len(data))
            return self._zstd.compress(data)

    monkeypatch.setattr(zstandard, "ZstdCompressor", Counted)
    return sizes


def test_what_shrinks_is_compressed_and_what_does_not_is_stored() -> None:
    compressor = Compressor(3)
    body, codec = compressor.compress(TEXT)
    assert codec is Codec.ZSTD
    assert zstandard.decompress(bytes(body)) == TEXT
    assert compressor.compress(memoryview(noise(1))) == (noise(1), Codec.STORED)
    assert compressor.compress(b"x") == (b"x", Codec.STORED)


def test_in_a_row_of_noise_only_samples_are_tried(tried: list[int]) -> None:
    compressor = Compressor(1)
    for seed in range(5):
        assert compressor.compress(noise(seed))[1] is Codec.STORED
    assert tried == [128 * KIB, *[16 * KIB] * 4]


def test_what_shrinks_after_noise_is_compressed(tried: list[int]) -> None:
    compressor = Compressor(1)
    compressor.compress(noise(1))
    assert compressor.compress(TEXT)[1] is Codec.ZSTD
    assert compressor.compress(TEXT)[1] is Codec.ZSTD
    assert tried == [128 * KIB, 16 * KIB, 128 * KIB, 128 * KIB]


def test_small_chunks_are_tried_whole(tried: list[int]) -> None:
    compressor = Compressor(1)
    compressor.compress(noise(1))
    assert compressor.compress(TEXT[: 32 * KIB])[1] is Codec.ZSTD
    assert tried[-1] == 32 * KIB


def test_the_level_follows_what_is_the_bound() -> None:
    compressor = Compressor()
    compressor.follow(store_is_behind=False)
    assert compressor.level == LEAST_LEVEL
    fast = len(compressor.compress(TEXT)[0])
    for _ in range(50):
        compressor.follow(store_is_behind=True)
    highest = compressor.level
    assert highest > 9
    assert len(compressor.compress(TEXT)[0]) < fast
    compressor.follow(store_is_behind=False)
    assert compressor.level == highest - 1


def test_a_fixed_level_stays() -> None:
    compressor = Compressor(7)
    for is_behind in (True, True, False):
        compressor.follow(store_is_behind=is_behind)
    assert compressor.level == 7
