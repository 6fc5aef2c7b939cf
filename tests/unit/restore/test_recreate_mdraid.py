"""A member of an array on a larger disk, judged by mdadm."""

import re
import struct
from pathlib import Path

import pytest

from imager import process
from imager.errors import VerificationFailed
from imager.layout.mdraid import MdVersion
from imager.probe.mdraid_superblock import SUPERBLOCK_SIZE, superblock_places, with_place
from imager.units import KIB, MIB
from restore.device import OpenTarget
from restore.recreate.mdraid import relocate_superblock
from restore.target import Target, TargetKind
from tests.vectors.layer_files import put

NAMES = {MdVersion.V1_0: "md-1.0-vfat", MdVersion.V0_90: "md-0.90-ext4"}
MORE = 3 * MIB + 5 * 512
SET_UUID = slice(16, 32)


@pytest.fixture(params=NAMES)
def version(request: pytest.FixtureRequest) -> MdVersion:
    return MdVersion(request.param)


@pytest.fixture
def disk(version: MdVersion, tmp_path: Path) -> Path:
    """A larger disk, with what the old one held at its start."""
    path = tmp_path / "disk"
    path.touch()
    put(path, 0, NAMES[version])
    return path


def grown(path: Path) -> Target:
    old = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(old + MORE)
    return Target("disk0", path, TargetKind.FILE, old + MORE, old, 512, None, None, "", "")


def examined(path: Path) -> dict[str, str]:
    text = process.run("mdadm", "--examine", path)
    found = dict(re.findall(r"^ *([A-Z][\w ]+?) : (.*)$", text, re.MULTILINE))
    for of_place in ("Super Offset", "Checksum", "Unused Space"):
        found.pop(of_place, None)
    return found


def test_mdadm_finds_the_member_and_all_it_says(disk: Path, version: MdVersion) -> None:
    before = examined(disk)
    target = grown(disk)
    assert "a92b4efc" not in process.run("mdadm", "--examine", disk, accept=range(9))
    with OpenTarget(target) as opened:
        relocate_superblock(opened, version)
    assert examined(disk) == before
    with disk.open("rb") as file:
        old = dict(superblock_places(target.saved_size))[version]
        file.seek(old)
        assert not any(file.read(target.saved_size - old))


def test_a_bitmap_moves_with_its_superblock(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.touch()
    put(disk, 0, NAMES[MdVersion.V1_0])
    place = dict(superblock_places(disk.stat().st_size))[MdVersion.V1_0]
    with disk.open("r+b") as file:
        file.seek(place)
        data = bytearray(file.read(SUPERBLOCK_SIZE))
        struct.pack_into("<I", data, 8, 1)  # has a bitmap
        struct.pack_into("<i", data, 96, -16)
        file.seek(place)
        file.write(with_place(bytes(data), MdVersion.V1_0, place))
        # mdadm believes in a bitmap of this array only: magic, version 4, UUID of the array.
        bitmap = b"bitm" + struct.pack("<I", 4) + data[SET_UUID] + bytes(range(200))
        file.seek(place - 8 * KIB)
        file.write(bitmap)
    target = grown(disk)
    with OpenTarget(target) as opened:
        relocate_superblock(opened, MdVersion.V1_0)
    with disk.open("rb") as file:
        file.seek(dict(superblock_places(target.size))[MdVersion.V1_0] - 8 * KIB)
        assert file.read(len(bitmap)) == bitmap
        file.seek(place - 8 * KIB)
        assert not any(file.read(target.saved_size - place))
    assert "Internal Bitmap : -16 sectors" in process.run("mdadm", "--examine", disk)


def test_a_disk_without_such_a_superblock_is_left_alone(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"content" * 100_000)
    target = grown(disk)
    before = disk.read_bytes()
    with OpenTarget(target) as opened, pytest.raises(VerificationFailed, match="no md superblock"):
        relocate_superblock(opened, MdVersion.V1_0)
    assert disk.read_bytes() == before
