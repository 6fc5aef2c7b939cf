"""A member of an array on a larger disk, or without the others, judged by mdadm."""

import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from imager import process
from imager.errors import VerificationFailed
from imager.layout.mdraid import MdVersion
from imager.probe.mdraid_superblock import (
    SUPERBLOCK_SIZE,
    bitmap_with_events,
    read_superblock,
    superblock_places,
    with_members,
    with_place,
)
from imager.units import KIB, MIB
from restore.device import OpenTarget
from restore.recreate.mdraid import keep_members, kept_ranges, relocate_superblock
from restore.steps import KeepMembers
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


MEMBERS = {**NAMES, MdVersion.V1_1: "md-1.1-lvm", MdVersion.V1_2: "md-1.2-ext4"}
AHEAD = 1 << 32


def keep(
    path: Path, version: MdVersion, *, at: int, length: int, ahead: int = AHEAD
) -> KeepMembers:
    """Return the step that leaves the member at a place alone in its array of two."""
    with path.open("rb") as file:
        found = read_superblock(file.fileno(), at, length)
    assert found is not None
    size = path.stat().st_size
    target = Target("disk0", path, TargetKind.FILE, size, size, 512, None, None, "", "")
    return KeepMembers(
        target, "disk0/p1", "RAID1 md", found.uuid, version, found.number, at, length,
        (found.number,), 1, 2, found.events + ahead,
    )  # fmt: skip


@pytest.fixture(params=MEMBERS)
def member(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, MdVersion, int]:
    """A disk with a member on it from its second MiB on."""
    path = tmp_path / "disk"
    path.write_bytes(b"\xa5" * MIB)
    put(path, MIB, MEMBERS[MdVersion(request.param)])
    length = path.stat().st_size - MIB
    with path.open("ab") as file:
        file.write(b"\x5a" * MIB)
    return path, MdVersion(request.param), length


def alone(path: Path, at: int, length: int) -> Path:
    copy = path.with_name("member")
    copy.write_bytes(path.read_bytes()[at : at + length])
    return copy


def test_mdadm_sees_that_the_other_member_is_gone(member: tuple[Path, MdVersion, int]) -> None:
    path, version, length = member
    before = examined(alone(path, MIB, length))
    step = keep(path, version, at=MIB, length=length)
    with OpenTarget(step.target) as opened:
        keep_members(opened, step)
    text = process.run("mdadm", "--examine", alone(path, MIB, length))
    after = examined(alone(path, MIB, length))
    assert re.search(r"Checksum : \w+ - correct", text)
    assert int(after.pop("Events")) == int(before.pop("Events")) + AHEAD
    if version is MdVersion.V0_90:
        assert re.search(r"^ +1 +1 +0 +0 +1 +faulty removed$", text, re.MULTILINE)
        for name, number in (("Active", "1"), ("Working", "1"), ("Failed", "1"), ("Spare", "0")):
            assert after[f"{name} Devices"] == number
        counted = {"Active Devices", "Working Devices", "Failed Devices", "Total Devices"}
    else:
        assert after["Array State"].startswith("A. ")
        counted = {"Array State"}
    same = before.keys() - counted
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert same >= {"Array UUID" if version is not MdVersion.V0_90 else "UUID", "State"}


def test_only_the_superblock_and_the_head_of_the_bitmap_change(
    member: tuple[Path, MdVersion, int],
) -> None:
    path, version, length = member
    before = path.read_bytes()
    step = keep(path, version, at=MIB, length=length)
    with OpenTarget(step.target) as opened:
        keep_members(opened, step)
    after = path.read_bytes()
    with path.open("rb") as file:
        ranges = kept_ranges(file.fileno(), MIB, length)
    assert len(ranges) == (2 if version is MdVersion.V1_2 else 1)
    allowed = {at for start, size in ranges for at in range(start, start + size)}
    changed = {at for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new}
    assert changed
    assert changed <= allowed
    with OpenTarget(step.target) as opened:
        keep_members(opened, step)
    assert path.read_bytes() == after, "again changes nothing more"


def test_the_bitmap_is_as_new_as_its_superblock(tmp_path: Path) -> None:
    """Else the kernel calls it out of date; and no older device is caught up with its bits alone."""
    path = tmp_path / "disk"
    path.touch()
    put(path, 0, MEMBERS[MdVersion.V1_2])
    step = keep(path, MdVersion.V1_2, at=0, length=path.stat().st_size)
    with OpenTarget(step.target) as opened:
        keep_members(opened, step)
    with path.open("rb") as file:
        _, (start, _) = kept_ranges(file.fileno(), 0, path.stat().st_size)
    bitmap = tmp_path / "bitmap"  # mdadm takes what is no device for a bitmap of its own
    bitmap.write_bytes(path.read_bytes()[start : start + MIB])
    text = process.run("mdadm", "--examine-bitmap", bitmap)
    said = dict(re.findall(r"^ +([A-Z][\w ]+?) : (.*)$", text, re.MULTILINE))
    assert int(said["Events"]) == int(said["Events Cleared"]) == step.events


def test_a_bitmap_of_another_array_is_left_alone() -> None:
    identity = bytes(range(16))
    mine = "00010203-0405-0607-0809-0a0b0c0d0e0f"
    head = b"bitm" + struct.pack("<I16sQQ", 4, identity, 5, 3)
    newer = b"bitm" + struct.pack("<I16sQQ", 4, identity, 9, 9)
    assert bitmap_with_events(head, mine, 9) == newer
    # With 0.90 the kernel has the words of the UUID in its own order.
    assert bitmap_with_events(head, "03020100-0706-0504-0b0a-09080f0e0d0c", 9) == newer
    other = "00010203-0405-0607-0809-0a0b0c0d0e00"
    unknown = head[:4] + struct.pack("<I", 6) + head[8:]
    for same, uuid in ((head, other), (b"none" + head[4:], mine), (unknown, mine)):
        assert bitmap_with_events(same, uuid, 9) == same


@pytest.mark.parametrize("wrong", ["uuid", "number", "version"])
def test_another_superblock_is_left_alone(member: tuple[Path, MdVersion, int], wrong: str) -> None:
    path, version, length = member
    other = {
        "uuid": "0" * 8 + "-0000-0000-0000-" + "0" * 12,
        "number": 7,
        "version": next(each for each in MdVersion if each is not version),
    }
    step = replace(keep(path, version, at=MIB, length=length), **{wrong: other[wrong]})
    before = path.read_bytes()
    with OpenTarget(step.target) as opened, pytest.raises(VerificationFailed, match="RAID1 md"):
        keep_members(opened, step)
    assert path.read_bytes() == before


def test_spares_and_what_failed_before_stay_what_they_are() -> None:
    """Of six devices that a superblock of 1.x knows, one stays: the roles of disks become faulty."""
    data = bytearray(SUPERBLOCK_SIZE)
    roles = (0, 1, 2, 0xFFFF, 0xFFFE, 0xFFFD)
    struct.pack_into("<I", data, 220, len(roles))
    struct.pack_into(f"<{len(roles)}H", data, 256, *roles)
    changed = with_members(bytes(data), MdVersion.V1_2, {0}, 40)
    found = struct.unpack_from(f"<{len(roles)}H", changed, 256)
    assert found == (0, 0xFFFE, 0xFFFE, 0xFFFF, 0xFFFE, 0xFFFD)
    assert struct.unpack_from("<Q", changed, 200) == (40,)


def test_0_90_counts_a_spare_that_is_gone_no_longer() -> None:
    words = [0] * 1024
    words[9:11] = [3, 2]  # in all, disks
    words[34:38] = [2, 3, 0, 1]  # active, working, failed, spare
    words[39:43] = [12, 0, 12, 0]
    for number, state in ((0, 6), (1, 6), (2, 0)):
        words[128 + 32 * number : 133 + 32 * number] = [number, 8, number, number, state]
    changed = struct.unpack(
        "<1024I", with_members(struct.pack("<1024I", *words), MdVersion.V0_90, {0}, AHEAD + 12)
    )
    assert changed[9] == 1
    assert changed[34:38] == (1, 1, 1, 0)
    assert changed[39:43] == (12, 1, 12, 1)
    assert changed[160:165] == (1, 0, 0, 1, 9)
    assert changed[192:197] == (0, 0, 0, 0, 0)
    assert changed[38] == sum(changed) - changed[38]
