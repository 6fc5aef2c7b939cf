"""Layers as their own tools make them in a guest: what the probe says of them, byte for byte."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from disk_files import Patch, read

from imager import blockdev, process
from imager.capture.planner import plan
from imager.errors import SourceError
from imager.extents.extents import Extents
from imager.extents.used import used_of_machine
from imager.layout import codec
from imager.layout.bcache import BcacheRole, BcacheState
from imager.layout.disk import Disk, Volume, VolumeRole
from imager.layout.firmware import FirmwareKind
from imager.layout.machine import Machine
from imager.layout.mdraid import MdArray, MdState, MdVersion
from imager.probe.disk import probe_disk
from imager.probe.machine import ProbeSource, probe_machine
from imager.probe.mdraid_superblock import read_superblock, superblock_places
from imager.units import KIB, MIB
from tests.guest import layers
from tests.guest.guest import guest
from tests.guest.layered_disks import Layered, layered_disks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

MEMBER = "linux_raid_member"


@pytest.fixture(scope="session")
def made() -> Layered:
    return layered_disks()


def probe(*disks: Path) -> Machine:
    sources = [
        ProbeSource(disk, disk.name, blockdev.identify(disk).identity, False, ()) for disk in disks
    ]
    return probe_machine(sources, "layered")


@pytest.fixture(scope="session")
def machine(made: Layered) -> Machine:
    return probe(*made.disks)


def volume(machine: Machine, name: str) -> Volume:
    return next(volume for _, volume in machine.volumes() if volume.id == name)


def array(machine: Machine, name: str) -> MdArray:
    return next(one for one in machine.layers.md if one.name == name)


def detail(made: Layered, name: str) -> dict[str, str]:
    """What mdadm said in the guest."""
    return dict(line.split("=", 1) for line in made.facts[name].splitlines())


@pytest.mark.parametrize(
    ("name", "version", "level"),
    [
        ("esp", "1.0", "raid1"),
        ("boot", "1.2", "raid1"),
        ("old", "0.90", "raid1"),
        ("pv", "1.1", "raid1"),
        ("fast", "1.2", "raid0"),
        ("whole", "1.0", "raid1"),
    ],
)
def test_arrays_are_what_mdadm_says(
    name: str, version: str, level: str, made: Layered, machine: Machine
) -> None:
    said = detail(made, name)
    found = array(machine, "" if version == "0.90" else f"rack7:{name}")
    assert (found.version, found.level) == (version, level)
    assert found.uuid.replace("-", "") == said["MD_UUID"].replace(":", "")
    assert said["MD_METADATA"] == version
    assert said["MD_LEVEL"] == level
    assert said.get("MD_NAME", "") == found.name
    assert found.disks == int(said["MD_DEVICES"]) == 2
    assert not found.degraded
    assert found.absent == 0
    assert [(member.number, member.role) for member in found.members] == [(0, 0), (1, 1)]
    assert {member.state for member in found.members} == {MdState.ACTIVE}
    assert found.is_sound
    assert found.chunk == (64 * KIB if level == "raid0" else 0)
    assert found.bitmap == (name == "boot")


def test_members_of_mirrors_are_members_and_no_filesystems(machine: Machine) -> None:
    """Their filesystem begins where they do, and ends before the superblock."""
    for number, name in ((1, "rack7:esp"), (3, "")):
        for disk in ("disk0", "disk1"):
            filesystem = volume(machine, f"{disk}/p{number}").filesystem
            assert filesystem is not None
            assert (filesystem.type, filesystem.label or "") == (MEMBER, name)
    inside = {
        one.name: one.filesystem.type if one.filesystem else None for one in machine.layers.md
    }
    assert inside == {
        "rack7:esp": "vfat",
        "rack7:boot": "ext4",
        "": "ext4",
        "rack7:pv": "LVM2_member",
        "rack7:fast": None,
        "rack7:whole": None,
    }


def test_a_whole_disk_may_carry_the_table_of_its_mirror(machine: Machine) -> None:
    found = array(machine, "rack7:whole")
    assert [member.place for member in found.members] == ["disk2", "disk3"]
    for disk in machine.disks[2:]:
        assert disk.table is not None
        assert sum(one.length for one in disk.volumes) == disk.identity.size
        kinds = [one.filesystem.type for one in disk.volumes if one.filesystem]
        assert kinds == ["vfat", "ext4"]


def test_a_mirrored_efi_system_partition_is_one(made: Layered) -> None:
    assert probe(*made.disks[:2]).firmware.kind is FirmwareKind.UEFI
    assert probe(*made.disks[2:]).firmware.kind is FirmwareKind.UEFI


def test_luks(machine: Machine) -> None:
    second, first = machine.layers.luks
    assert (second.place, second.version, second.label) == ("disk0/p6", 2, "vault")
    assert (second.cipher, second.key_slots, second.header) == ("aes-xts-plain64", 1, 16 * MIB)
    assert (first.place, first.version, first.label) == ("disk1/p6", 1, None)
    assert (first.cipher, first.key_slots, first.header) == ("aes-xts-plain64", 1, 2 * MIB)
    for container in (first, second):
        filesystem = volume(machine, container.place).filesystem
        assert filesystem is not None
        assert (filesystem.type, filesystem.uuid) == ("crypto_LUKS", container.uuid)


def test_a_physical_volume_in_a_mirror(made: Layered, machine: Machine) -> None:
    (group,) = machine.layers.volume_groups
    assert (group.name, group.uuid, group.extent) == ("data", made.facts["vgs"], MIB)
    (physical,) = group.physical
    assert physical.uuid == made.facts["pvs"]
    assert physical.place == array(machine, "rack7:pv").id
    assert [(one.name, one.size, one.kinds) for one in group.logical] == [
        ("root", 12 * MIB, ("linear",)),
        ("var", 8 * MIB, ("linear",)),
    ]


def test_btrfs_on_two_devices(machine: Machine) -> None:
    (pool,) = machine.layers.btrfs
    assert (pool.label, pool.devices, pool.absent) == ("pool", 2, 0)
    assert [(one.place, one.number) for one in pool.members] == [("disk0/p7", 1), ("disk1/p7", 2)]
    filesystem = volume(machine, "disk0/p7").filesystem
    assert filesystem is not None
    assert filesystem.uuid == pool.uuid


def test_bcache(machine: Machine) -> None:
    backing, cache = machine.layers.bcache
    assert (backing.place, backing.role) == ("disk0/p8", BcacheRole.BACKING)
    assert (backing.state, backing.writeback) == (BcacheState.DIRTY, True)
    assert (cache.place, cache.role, cache.set_uuid) == (
        "disk1/p8", BcacheRole.CACHE, backing.set_uuid,
    )  # fmt: skip
    assert backing.set_uuid is not None
    assert machine.layers.torn() == ()


def test_what_is_on_no_captured_disk_is_named(made: Layered, machine: Machine) -> None:
    assert machine.layers.lacking() == ()
    found = probe(made.disks[0]).layers
    said = "\n".join(found.lacking())
    for word in ("'boot'", "'esp'", "'fast'", "btrfs 'pool'", "cache of the bcache backing device"):
        assert word in said
    assert "VG" not in said
    assert [one.place for one in found.torn()] == ["disk0/p8"]


def test_it_goes_through_the_image_format(machine: Machine) -> None:
    assert codec.decode(codec.encode(machine), Machine, "it") == machine


def test_words(machine: Machine) -> None:
    describe = machine.layers.describe
    assert describe("disk1/p1") == (
        "member 2 of 2 of RAID1 md 'esp' (metadata 1.0)", "holding vfat",
    )  # fmt: skip
    assert describe("disk0/p4") == (
        "member 1 of 2 of RAID1 md 'pv' (metadata 1.1)",
        "physical volume of VG 'data' with LVs root, var",
    )
    assert describe("disk0/p6") == ("LUKS2 container 'vault'",)
    assert describe("disk1/p7") == ("device of btrfs 'pool' on 2 devices",)
    assert describe("disk3") == ("member 2 of 2 of RAID1 md 'whole' (metadata 1.0)",)


@pytest.fixture
def writable(made: Layered, tmp_path: Path) -> Iterator[list[Path]]:
    copies = [tmp_path / disk.name for disk in made.disks]
    for disk, copy in zip(made.disks, copies, strict=True):
        process.run("cp", "--sparse=always", disk, copy)
    yield copies
    shutil.rmtree(tmp_path)


def test_a_damaged_superblock_is_none(writable: list[Path], machine: Machine) -> None:
    for number, version in ((1, MdVersion.V1_0), (2, MdVersion.V1_2), (3, MdVersion.V0_90)):
        part = volume(machine, f"disk0/p{number}")
        place = part.offset + dict(superblock_places(part.length))[version]
        (byte,) = read(writable[0], place + 40, 1)
        with Patch(writable[0], place + 40, bytes([byte ^ 1])):
            found = probe(writable[0])
        assert all(member.place != part.id for one in found.layers.md for member in one.members)
        assert len(found.layers.md) == 4


def test_the_second_header_of_luks_counts(writable: list[Path], machine: Machine) -> None:
    part = volume(machine, "disk0/p6")
    right = next(one for one in machine.layers.luks if one.place == part.id)
    for place in (part.offset + 100, part.offset + 5000):
        with Patch(writable[0], place, b"damage"):
            (found,) = probe(writable[0]).layers.luks
            assert found == replace(right, damaged_header=True)


def test_a_member_that_missed_something(writable: list[Path], machine: Machine) -> None:
    """The array is what the member that saw the last change says."""
    part = volume(machine, "disk0/p3")
    place = part.offset + dict(superblock_places(part.length))[MdVersion.V0_90]
    data = bytearray(read(writable[0], place, 4096))
    words = memoryview(data).cast("I")
    words[39] += 2
    words[38] = (words[38] + 2) & 0xFFFFFFFF
    with Patch(writable[0], place, bytes(data)):
        found = array(probe(*writable), "")
    assert not found.is_sound
    assert found.members[0].events == found.members[1].events + 2


def test_the_end_of_the_disk_and_of_its_last_partition(made: Layered, tmp_path: Path) -> None:
    """A superblock there belongs to one of them only, whatever libblkid says of both."""
    member = made.disks[2]
    size = member.stat().st_size
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(MIB + size)
    process.run("sfdisk", "--quiet", disk, stdin=b"label: dos\nstart=2048, type=83\n")
    with disk.open("r+b") as file:
        os.pwrite(file.fileno(), member.read_bytes(), MIB)
    found = probe(disk)
    (one,) = found.layers.md
    assert [part.place for part in one.members] == ["disk0/p1"]
    assert found.disks[0].table is not None


def test_0_90_at_the_end_of_the_last_partition(
    made: Layered, machine: Machine, tmp_path: Path
) -> None:
    part = volume(machine, "disk0/p3")
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(MIB + part.length)
    process.run("sfdisk", "--quiet", disk, stdin=b"label: dos\nstart=2048, type=fd\n")
    with disk.open("r+b") as file:
        os.pwrite(file.fileno(), read(made.disks[0], part.offset, part.length), MIB)
    (one,) = probe(disk).layers.md
    assert [member.place for member in one.members] == ["disk0/p1"]


def whole_disk_of(source: Path, part: Volume, target: Path) -> Disk:
    """Copy a partition so that it is a disk, and probe that."""
    target.write_bytes(read(source, part.offset, part.length))
    return probe_disk(target, "disk0", blockdev.identify(target).identity)


@pytest.mark.parametrize("number", [2, 3, 4, 5])
def test_whole_disks(number: int, made: Layered, machine: Machine, tmp_path: Path) -> None:
    part = volume(machine, f"disk0/p{number}")
    disk = whole_disk_of(made.disks[0], part, tmp_path / "disk")
    (one,) = disk.volumes
    assert (one.role, one.length) == (VolumeRole.WHOLE_DISK, part.length)
    assert one.filesystem is not None
    assert one.filesystem.type == MEMBER
    (found,) = probe(tmp_path / "disk").layers.md
    assert [member.place for member in found.members] == ["disk0/whole"]


def test_json(machine: Machine) -> None:
    document = codec.document(machine)["layers"]
    assert json.loads(json.dumps(document))["md"][0]["members"][0]["place"] == "disk0/p1"


def extents_of(disks: Sequence[Path], machine: Machine) -> list[tuple[int, Volume, Extents]]:
    places = [
        (number, volume) for number, disk in enumerate(machine.disks) for volume in disk.volumes
    ]
    found = used_of_machine([(disks[number], volume) for number, volume in places], machine.layers)
    return [(*place, extents) for place, extents in zip(places, found, strict=True)]


def test_mirrors_come_back_from_what_their_maps_name(
    made: Layered, machine: Machine, writable: list[Path], tmp_path: Path
) -> None:
    restored = [tmp_path / f"restored{number}" for number in range(len(writable))]
    for source, target in zip(writable, restored, strict=True):
        target.write_bytes(b"\xa5" * source.stat().st_size)
    saved = 0
    for number, part, extents in extents_of(writable, machine):
        if extents.method.endswith("in md RAID1"):
            saved += part.length - extents.total
        with writable[number].open("rb") as reader, restored[number].open("r+b") as writer:
            for offset, length in extents.ranges.tolist():
                data = os.pread(reader.fileno(), length, part.offset + offset)
                os.pwrite(writer.fileno(), data, part.offset + offset)
    assert saved > 100 * MIB
    program = (
        "import json, layers\n"
        "for disks in ('abcd', 'efgh'):\n"
        "    found = layers.examine(*(f'/dev/vd{letter}' for letter in disks))\n"
        "    print(json.dumps(found), flush=True)\n"
    )
    module = Path(layers.__file__)
    printed = guest().run(
        program, [*writable, *restored], tmp_path / "guest", modules=(module,), timeout=600
    )
    before, after = map(json.loads, printed.splitlines())
    assert after == before
    assert len(before["/dev/md1"]) == 5
    assert len(before["/dev/data/root"]) == 5
    assert before["md1"][1] == "none\n"


def test_of_a_mirror_all_is_kept_that_is_no_data(made: Layered, machine: Machine) -> None:
    """The superblock of an EFI system partition on md 1.0 lies behind its FAT."""
    methods = {}
    for number, part, extents in extents_of(made.disks, machine):
        array = machine.layers.array_of(part.id)
        if array is None or array.level != "raid1":
            continue
        methods[part.id] = extents.method
        with made.disks[number].open("rb") as file:
            superblock = read_superblock(file.fileno(), part.offset, part.length)
        assert superblock is not None
        kept = np.zeros(part.length // 512, dtype=bool)
        for offset, length in extents.ranges.tolist():
            kept[offset // 512 : (offset + length) // 512] = True
        end = superblock.data_offset + superblock.size
        assert kept[: superblock.data_offset // 512].all()
        assert kept[-(-end // 512) :].all()
        assert kept[superblock.place // 512 : superblock.place // 512 + 8].all()
        assert not kept.all()
    assert methods["disk0/p1"] == "FAT, in md RAID1"
    assert methods["disk1/p2"] == "ext block bitmap, in md RAID1"
    assert methods["disk0/p4"] == "LVM extents, in md RAID1"


@pytest.mark.parametrize("change", ["events", "dirty", "absent array"])
def test_members_that_may_differ_are_read_whole(
    change: str, writable: list[Path], machine: Machine
) -> None:
    part = volume(machine, "disk0/p3")
    place = part.offset + dict(superblock_places(part.length))[MdVersion.V0_90]
    data = bytearray(read(writable[0], place, 4096))
    words = memoryview(data).cast("I")
    if change == "events":
        words[39], words[38] = words[39] + 2, (words[38] + 2) & 0xFFFFFFFF
    elif change == "dirty":
        words[33], words[38] = words[33] & ~1, (words[38] - 1) & 0xFFFFFFFF
    else:
        words[5], words[38] = words[5] ^ 1, words[38] + (1 if words[5] & 1 == 0 else -1)
    with Patch(writable[0], place, bytes(data)):
        changed = probe(*writable)
        if change == "absent array":
            changed = replace(changed, layers=machine.layers)
        found = {item.id: extents for _, item, extents in extents_of(writable, changed)}
    names = ["disk0/p3"] if change == "absent array" else ["disk0/p3", "disk1/p3"]
    for name in names:
        assert (found[name].method, found[name].total) == ("whole", part.length)
        assert found[name].reason
    assert found["disk0/p1"].method == "FAT, in md RAID1"


def test_striped_members_are_read_whole(made: Layered, machine: Machine) -> None:
    found = {item.id: extents for _, item, extents in extents_of(made.disks, machine)}
    assert found["disk0/p5"].method == "whole"
    assert "RAID0 is not looked into" in (found["disk0/p5"].reason or "")


def test_a_capture_without_the_cache_of_bcache_is_refused(made: Layered) -> None:
    disk = made.disks[0]
    source = ProbeSource(disk, disk.name, blockdev.identify(disk).identity, False, ())
    with pytest.raises(SourceError, match=r"disk0/p8 is a bcache backing device whose newest data"):
        plan([source], "half")
    assert plan([source], "half", forensic=True).size
