"""An opened target holds what was written, whichever way it went, and reads what the disk has."""

import errno
import fcntl
import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imager.direct_io import page_buffer
from imager.errors import WriteFailed
from imager.units import KIB, MIB
from restore.device import OpenTarget, make_file
from restore.target import Target, TargetKind
from tests.direct_io import takes_direct

SIZE = 64 * MIB


@pytest.fixture
def target(tmp_path: Path) -> Target:
    path = tmp_path / "disk.raw"
    target = Target(
        "disk0", path, TargetKind.NEW_FILE, SIZE, SIZE, 512, None, None, "a disk", "named"
    )
    make_file(target)
    return target


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[bool, int]]]:
    """Return what is written: whether past the cache, and bytes."""
    found: list[tuple[bool, int]] = []
    real = os.pwritev

    def pwritev(descriptor: int, parts: Sequence[memoryview], offset: int) -> int:
        count = real(descriptor, parts, offset)
        found.append((bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT), count))
        return count

    monkeypatch.setattr(os, "pwritev", pwritev)
    return found


def paged(data: bytes) -> memoryview:
    buffer = page_buffer(len(data))
    buffer[:] = data
    return buffer


def test_all_that_threads_write_is_there(target: Target) -> None:
    """Neighbours share no page, or do, and go by different ways."""
    rng = random.Random(4)
    expected, places, offset = bytearray(SIZE), [], 0
    while offset < SIZE - 2 * MIB:
        size = rng.choice([512, 3000, 64 * KIB, 256 * KIB, MIB, MIB + 512])
        data = rng.randbytes(size)
        expected[offset : offset + size] = data
        places.append((offset, paged(data) if rng.random() < 0.7 else memoryview(data)))
        offset += size + rng.choice([0, 0, 512, 4096])
        if rng.random() < 0.3:
            offset = -(-offset // 4096) * 4096
    rng.shuffle(places)

    def write(place: tuple[int, memoryview]) -> None:
        offset, data = place
        cut = len(data) // 2 // 4096 * 4096
        opened.write(offset, data[:cut], data[cut:])

    with OpenTarget(target) as opened:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, places))
        opened.flush()
        opened.forget()
        back = page_buffer(SIZE)
        opened.read_into(0, back)
    assert bytes(back) == bytes(expected)
    assert target.path.read_bytes() == bytes(expected)


def test_long_whole_pages_go_past_the_cache(target: Target, seen: list[tuple[bool, int]]) -> None:
    can = takes_direct(target.path.parent)
    data = paged(random.Random(1).randbytes(MIB))
    with OpenTarget(target) as opened:
        opened.write(0, data)
        opened.write(2 * MIB, data[: 256 * KIB], data[256 * KIB : 512 * KIB])
        opened.write(4 * MIB, data[: 128 * KIB])
        opened.write(6 * MIB + 512, data)
        opened.write(8 * MIB, data[: MIB - 512])
    assert seen == [
        (can, MIB),
        (can, 512 * KIB),
        (False, 128 * KIB),
        (False, MIB),
        (False, MIB - 512),
    ]


def test_what_is_refused_past_the_cache_goes_through_it(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwritev

    def pwritev(descriptor: int, parts: Sequence[memoryview], offset: int) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            if offset > MIB:
                raise OSError(errno.EINVAL, "larger units, please")
            return real(descriptor, [parts[0][: 128 * KIB]], offset)
        return real(descriptor, parts, offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    data = paged(random.Random(2).randbytes(2 * MIB))
    with OpenTarget(target) as opened:
        opened.write(0, data)
        opened.write(4 * MIB, data)
        opened.flush()
    assert target.path.read_bytes()[: 2 * MIB] == bytes(data)
    assert target.path.read_bytes()[4 * MIB : 6 * MIB] == bytes(data)


def test_an_error_of_the_disk_names_the_first_byte_that_is_missing(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwritev

    def pwritev(descriptor: int, parts: Sequence[memoryview], offset: int) -> int:
        if offset >= MIB:
            raise OSError(errno.EIO, "a bad sector")
        return real(descriptor, [parts[0][: MIB - offset]], offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    with (
        OpenTarget(target) as opened,
        pytest.raises(WriteFailed, match=f"writing {MIB} bytes at byte {MIB} "),
    ):
        opened.write(0, paged(bytes(2 * MIB)))
