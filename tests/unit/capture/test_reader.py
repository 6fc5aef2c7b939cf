"""Reading extents: what is read, and that holes of a disk file aren't."""

import errno
import os
import random
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imager import blockdev
from imager.blockdev import DirectDisk
from imager.capture.chunker import BLOCK, MOST_UNDECIDED, PieceKind
from imager.capture.pipeline import stages_of
from imager.capture.reader import ExtentReader, Part, Reader
from imager.direct_io import page_buffer
from imager.errors import TruncatedSource, UnreadableSource
from imager.units import GIB, MIB
from tests.direct_io import takes_direct

KEY = b"k" * 32
MOST = 12 * MIB
Found = list[tuple[PieceKind, int, int, bytes]]


def read(path: Path, base: int, offset: int, length: int) -> Found:
    """Return kind, start, end and content of all pieces, zero runs joined."""
    found: Found = []
    buffer = memoryview(bytearray(MOST_UNDECIDED + MOST))
    with blockdev.open_disk(path) as fd:
        reader = Reader(fd, base, MOST)
        extent = ExtentReader(reader, KEY, stages_of(1))
        for number, part in enumerate(reader.parts(offset, length)):
            first, data, pieces = extent.cut(number, part, buffer)
            for piece in pieces:
                start, end = first + piece.start, first + piece.end
                is_zero = piece.kind is PieceKind.ZERO
                content = b"" if is_zero else bytes(data[piece.start : piece.end])
                if found and is_zero and found[-1][0] is PieceKind.ZERO:
                    start = found.pop()[1]
                found.append((piece.kind, start, end, content))
    return found


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    path = tmp_path / "sparse"
    noise = random.Random(1)
    with path.open("wb") as file:
        for start, size in [
            (0, 3 * MIB),
            (3 * MIB + 5 * BLOCK, 100),
            (20 * MIB, BLOCK),
            (70 * MIB + 3 * BLOCK + 17, 9 * MIB),
            (120 * MIB, 12345),
        ]:
            file.seek(start)
            file.write(noise.randbytes(size))
        file.truncate(150 * MIB + 700)
    return path


@pytest.mark.parametrize(
    ("base", "offset", "length"),
    [
        (0, 0, 150 * MIB + 700),
        (0, 0, 60 * MIB),
        (512, 7 * MIB, 143 * MIB),
        (MIB + 512, 2 * MIB + 3 * BLOCK, 100 * MIB),
        (0, 130 * MIB, 20 * MIB + 700),
    ],
)
def test_holes_change_nothing(
    sparse: Path, tmp_path: Path, base: int, offset: int, length: int
) -> None:
    full = tmp_path / "full"
    subprocess.run(["cp", "--sparse=never", sparse, full], check=True)
    found = read(sparse, base, offset, length)
    assert found == read(full, base, offset, length)
    assert [end for _, _, end, _ in found][-1] == offset + length
    data = full.read_bytes()[base : base + offset + length]
    for kind, start, end, content in found:
        assert data[start:end] == (bytes(end - start) if kind is PieceKind.ZERO else content)


def test_a_hole_of_a_tebibyte_takes_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "huge"
    path.touch()
    os.truncate(path, 1024 * GIB)
    count = 0
    real = blockdev.read_into

    def read_into(fd: int, offset: int, buffer: memoryview) -> None:
        nonlocal count
        count += len(buffer)
        real(fd, offset, buffer)

    monkeypatch.setattr(blockdev, "read_into", read_into)
    assert read(path, 0, 0, 1024 * GIB) == [(PieceKind.ZERO, 0, 1024 * GIB, b"")]
    assert count < BLOCK


@pytest.mark.parametrize(
    ("base", "offset", "size", "is_direct"),
    [
        (0, 0, 2 * MIB, True),
        (BLOCK, MIB, BLOCK, True),
        (512, BLOCK - 512, MIB, True),
        (512, 0, MIB, False),
        (0, MIB, MIB + 512, False),
    ],
)
def test_only_whole_sectors_are_read_past_the_page_cache(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    base: int,
    offset: int,
    size: int,
    is_direct: bool,
) -> None:
    path = tmp_path / "disk"
    data = random.Random(5).randbytes(2 * MIB + 512)
    path.write_bytes(data)
    used: list[int] = []
    real = blockdev.read_into

    def read_into(fd: int, offset: int, buffer: memoryview) -> None:
        used.append(fd)
        real(fd, offset, buffer)

    monkeypatch.setattr(blockdev, "read_into", read_into)
    flags = os.O_DIRECT if takes_direct(tmp_path) else 0
    direct = os.open(path, os.O_RDONLY | flags)
    with blockdev.open_disk(path) as fd:
        buffer = page_buffer(size)
        Reader(fd, base, MOST, DirectDisk(direct, BLOCK)).read(offset, buffer)
        assert used == [direct if is_direct else fd]
    os.close(direct)
    assert bytes(buffer) == data[base + offset : base + offset + size]


def test_what_can_not_be_read_past_the_page_cache_is_read_through_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(BLOCK) + b"x" * BLOCK)
    real = os.preadv
    direct = os.open(path, os.O_RDONLY)

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if fd == direct or offset >= BLOCK:
            raise OSError(errno.EIO, "a bad sector")
        return real(fd, [buffers[0][:BLOCK]], offset)

    monkeypatch.setattr(os, "preadv", preadv)
    with blockdev.open_disk(path) as fd:
        reader = Reader(fd, 0, MOST, DirectDisk(direct, 512))
        buffer = page_buffer(2 * BLOCK)
        reader.read(0, buffer[:BLOCK])
        with pytest.raises(UnreadableSource, match=f"byte {BLOCK} "):
            reader.read(0, buffer)
    os.close(direct)


def test_a_disk_that_ends_too_early_is_an_error(sparse: Path) -> None:
    with pytest.raises(TruncatedSource):
        read(sparse, 0, 0, 200 * MIB)


def test_after_an_error_those_that_come_next_do_not_wait_for_ever(sparse: Path) -> None:
    class Bad(Reader):
        def read(self, offset: int, buffer: memoryview) -> None:
            if offset == 50 * MIB:
                raise UnreadableSource("a bad sector")
            super().read(offset, buffer)

    def work(number: int) -> None:
        buffer = memoryview(bytearray(MOST_UNDECIDED + MOST))
        extent.cut(number, Part(10 * MIB * number, 10 * MIB, False, number == 14), buffer)

    with blockdev.open_disk(sparse) as fd:
        extent = ExtentReader(Bad(fd, 0, MOST), KEY, stages_of(3))
        with ThreadPoolExecutor(3) as pool:
            futures = [pool.submit(work, number) for number in range(15)]
            errors = [type(future.exception(timeout=60)) for future in futures]
    assert errors == [type(None)] * 5 + [UnreadableSource] + [type(None)] * 9
