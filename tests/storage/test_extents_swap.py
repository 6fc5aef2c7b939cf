"""Swap areas: the header page is all there is to keep."""

from pathlib import Path

import pytest
from disk_files import START, Patch, copy_used, digest, make_disk, map_of

from imager import process
from imager.units import MIB

SIZE = 24 * MIB


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    area = tmp_path / "area"
    area.touch(mode=0o600)
    with area.open("wb") as file:
        file.truncate(SIZE - 8192)
    process.run(
        "mkswap", "--label", "swap one", "--uuid", "6ff71707-5bec-48eb-a934-f2c72129d2cd", area
    )
    path = tmp_path / "disk.img"
    make_disk(path, SIZE)
    with path.open("r+b") as file:
        file.seek(START)
        file.write(area.read_bytes()[:4096])
    return path


def test_header_and_what_lies_behind(disk: Path, tmp_path: Path) -> None:
    before = digest(disk)
    volume, extents = map_of(disk)
    assert digest(disk) == before
    assert extents.method == "swap header"
    assert extents.ranges.tolist() == [[0, 4096], [SIZE - 8192, 8192]]
    copy = tmp_path / "copy"
    copy_used(disk, volume, extents, copy, 5)
    found = process.run("blkid", "--probe", "--output", "export", copy)
    assert "TYPE=swap" in found
    assert "LABEL=swap\\ one" in found
    assert "6ff71707-5bec-48eb-a934-f2c72129d2cd" in found


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (4086, b"S1SUSPEND\0"),  # a hibernated system
        (4086, b"SWAP-SPACE"),
        (1024, b"\x02"),
        (1028, b"\xff\xff\xff\x7f"),
        (1028, b"\x00\x00\x00\x00"),
    ],
)
def test_anything_odd_means_whole(disk: Path, offset: int, data: bytes) -> None:
    with Patch(disk, START + offset, data):
        volume, extents = map_of(disk)
    assert extents.ranges.tolist() == [[0, volume.length]]
    assert extents.method == "whole"


def test_pages_of_another_size(disk: Path) -> None:
    with Patch(disk, START + 4086, bytes(10)), Patch(disk, START + 65526, b"SWAPSPACE2"):
        volume, extents = map_of(disk)
        assert volume.filesystem is not None
        assert volume.filesystem.type == "swap"
    assert extents.method == "whole"
    assert "another size" in (extents.reason or "")
