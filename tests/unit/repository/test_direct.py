"""Writing past the page cache gives the same file as any other way."""

import errno
import fcntl
import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from imager.repository.backend.direct import DirectWriter
from imager.units import MIB
from tests.direct_io import takes_direct

SIZES = [0, 1, 4095, 4096, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 9 * MIB + 12_345]


def in_parts(data: bytes, seed: int) -> list[bytes]:
    rng, parts, at = random.Random(seed), [], 0
    while at < len(data):
        size = rng.choice([1, 77, 5000, 300_000, 5 * MIB])
        parts.append(data[at : at + size])
        at += size
    return parts


def written(path: Path, parts: Sequence[bytes]) -> None:
    with path.open("xb", buffering=0) as file:
        writer = DirectWriter(file.fileno())
        for part in parts:
            writer.write([part])
        writer.finish()


@pytest.mark.parametrize("size", SIZES)
def test_the_file_is_what_was_given(size: int, tmp_path: Path) -> None:
    data = random.Random(size).randbytes(size)
    written(tmp_path / "file", in_parts(data, size))
    assert (tmp_path / "file").read_bytes() == data


def test_large_runs_go_past_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = os.writev

    def writev(descriptor: int, parts: Sequence[memoryview]) -> int:
        is_direct = bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)
        seen.append((is_direct, sum(map(len, parts))))
        return real(descriptor, parts)

    monkeypatch.setattr(os, "writev", writev)
    written(tmp_path / "file", [bytes(10 * MIB + 5)])
    can = takes_direct(tmp_path)
    assert seen == [(can, 4 * MIB), (can, 4 * MIB), (False, 2 * MIB + 5)]


@pytest.mark.parametrize("cut", [0, 1000])
def test_a_filesystem_that_can_not(
    cut: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may say so at once, or after it took a part that ends anywhere."""
    real = os.writev
    direct = 0

    def writev(descriptor: int, parts: Sequence[memoryview]) -> int:
        nonlocal direct
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            direct += 1
            if direct > 1 or not cut:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            fcntl.fcntl(descriptor, fcntl.F_SETFL, 0)
            count = real(descriptor, [parts[0][:cut]])
            fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_DIRECT)
            return count
        return real(descriptor, parts)

    monkeypatch.setattr(os, "writev", writev)
    data = random.Random(1).randbytes(9 * MIB)
    written(tmp_path / "file", [data])
    assert (tmp_path / "file").read_bytes() == data
    assert direct == (1 + bool(cut) if takes_direct(tmp_path) else 0)


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb", buffering=0) as file:
        writer = DirectWriter(file.fileno())
        writer.write([b"more than nothing"])
        with pytest.raises(OSError, match="No space left"):
            writer.finish()


def test_two_at_once_share_nothing(tmp_path: Path) -> None:
    data = [random.Random(seed).randbytes(9 * MIB) for seed in (1, 2)]
    files = [(tmp_path / str(number)).open("xb", buffering=0) for number in (1, 2)]
    writers = [DirectWriter(file.fileno()) for file in files]
    for at in range(0, 9 * MIB, MIB):
        for writer, own in zip(writers, data, strict=True):
            writer.write([own[at : at + MIB]])
    for number, (writer, file) in enumerate(zip(writers, files, strict=True)):
        writer.finish()
        file.close()
        assert (tmp_path / str(number + 1)).read_bytes() == data[number]
