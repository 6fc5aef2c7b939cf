"""Layers on volumes of which the ends are kept as real tools wrote them in a guest.

`tests/storage/test_guest_layers.py` looks at whole machines of them.
"""

import os
from pathlib import Path

import pytest

from imager import blockdev, process
from imager.errors import SourceError, UnreadableSource
from imager.layout.bcache import BcacheState
from imager.layout.disk import VolumeRole
from imager.layout.filesystem import Filesystem
from imager.layout.layers import Layers
from imager.layout.machine import Machine
from imager.layout.mdraid import MdVersion
from imager.probe import disk as probe_disk_module
from imager.probe.filesystem import Signature
from imager.probe.machine import ProbeSource, probe_machine
from imager.probe.mdraid_superblock import superblock_places
from imager.units import KIB, MIB
from tests.vectors import layer_files

ARRAYS = {
    "md-1.0-vfat": (MdVersion.V1_0, "raid1", "vfat"),
    "md-1.2-ext4": (MdVersion.V1_2, "raid1", "ext4"),
    "md-0.90-ext4": (MdVersion.V0_90, "raid1", "ext4"),
    "md-1.1-lvm": (MdVersion.V1_1, "raid1", "LVM2_member"),
    "md-1.2-raid0": (MdVersion.V1_2, "raid0", None),
}


def probe(*disks: Path) -> Machine:
    sources = [
        ProbeSource(disk, disk.name, blockdev.identify(disk).identity, False, ()) for disk in disks
    ]
    return probe_machine(sources, "web01")


def in_partition(path: Path, name: str) -> Path:
    length, _, _ = layer_files.ends(name)
    with path.open("wb") as file:
        file.truncate(2 * MIB + length)
    script = f"label: gpt\nstart=2048, size={length // 512}\n"
    process.run("sfdisk", "--quiet", path, stdin=script.encode())
    layer_files.put(path, MIB, name)
    return path


def whole(path: Path, name: str) -> Path:
    path.touch()
    layer_files.put(path, 0, name)
    return path


def write(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), data, offset)


@pytest.mark.parametrize("is_whole", [False, True])
@pytest.mark.parametrize("name", ARRAYS)
def test_md_on_partitions_and_whole_disks(name: str, is_whole: bool, tmp_path: Path) -> None:
    version, level, inside = ARRAYS[name]
    machine = probe((whole if is_whole else in_partition)(tmp_path / "disk", name))
    (array,) = machine.layers.md
    (member,) = array.members
    place = "disk0/whole" if is_whole else "disk0/p1"
    assert (array.version, array.level, member.place) == (version, level, place)
    assert (array.filesystem.type if array.filesystem else None) == inside
    assert array.absent == 1
    volume = next(volume for _, volume in machine.volumes() if volume.id == place)
    assert volume.filesystem is not None
    assert (volume.filesystem.type, volume.filesystem.uuid) == ("linux_raid_member", array.uuid)
    if is_whole:
        assert (volume.role, volume.length) == (VolumeRole.WHOLE_DISK, layer_files.ends(name)[0])


@pytest.mark.parametrize("name", ["md-1.2-raid0", "md-1.2-ext4"])
def test_a_table_on_a_disk_with_the_superblock_at_its_start_is_a_leftover(
    name: str, tmp_path: Path
) -> None:
    """What it points at is the array's, and could be taken for a filesystem that is gone."""
    length, first, _ = layer_files.ends(name)
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(length)
    process.run("sfdisk", "--quiet", disk, stdin=b"label: gpt\nsize=4M\n")
    before = probe(disk)
    assert before.disks[0].table is not None
    write(disk, 4096, first[4096:8192])  # the backup of the GPT is still there
    machine = probe(disk)
    (volume,) = machine.disks[0].volumes
    assert volume.role is VolumeRole.WHOLE_DISK
    assert [array.version for array in machine.layers.md] == [MdVersion.V1_2]


def striped(path: Path, size: int, level: int) -> None:
    """Make a member of md 0.90 of another level whose array carries a table beyond this disk."""
    content = bytearray(layer_files.volume("md-0.90-ext4"))
    place = dict(superblock_places(len(content)))[MdVersion.V0_90]
    words = memoryview(content)[place : place + 4096].cast("I")
    words[38] = (words[38] - words[7] + level) & 0xFFFFFFFF
    words[7] = level
    words.release()
    path.write_bytes(content)
    large = path.with_suffix(".large")
    with large.open("wb") as file:
        file.truncate(size)
    process.run("sfdisk", "--quiet", large, stdin=b"label: gpt\nstart=2048, size=30M\n")
    write(path, 0, large.read_bytes()[: 64 * KIB])


@pytest.mark.parametrize("level", [0, 5])
def test_the_table_of_an_array_does_not_cut_a_striped_member(level: int, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    striped(disk, 40 * MIB, level)
    machine = probe(disk)
    assert machine.disks[0].table is None
    (array,) = machine.layers.md
    assert (array.level, array.filesystem) == (f"raid{level}", None)
    # Without the superblock it is a disk that was cut off.
    place = dict(superblock_places(disk.stat().st_size))[MdVersion.V0_90]
    write(disk, place, bytes(4))
    with pytest.raises(SourceError, match="made for at least"):
        probe(disk)


def test_a_superblock_before_the_disks_own_gpt_is_a_leftover(tmp_path: Path) -> None:
    disk = whole(tmp_path / "disk", "md-0.90-ext4")
    process.run("sfdisk", "--quiet", "--wipe=never", disk, stdin=b"label: gpt\nsize=4M\n")
    machine = probe(disk)
    assert machine.layers.md == ()
    assert machine.disks[0].table is not None
    assert sum(volume.length for volume in machine.disks[0].volumes) == disk.stat().st_size


def test_the_places_are_those_of_mdadm() -> None:
    """For sizes of every kind: multiples of 64 KiB and of 4 KiB, and a sector more or less."""
    for size in (MIB, MIB + 512, MIB - 512, MIB + 60 * KIB, 10 * MIB + 4096, 10 * MIB + 3584):
        places = dict(superblock_places(size))
        sectors = size // 512
        assert places[MdVersion.V0_90] == ((sectors & ~127) - 128) * 512
        assert places[MdVersion.V1_0] == ((sectors - 16) & ~7) * 512
    assert superblock_places(4096) == ((MdVersion.V1_1, 0),)


def test_others(tmp_path: Path) -> None:
    names = ("luks1", "luks2", "btrfs", "bcache-backing", "bcache-cache")
    disks = [in_partition(tmp_path / name, name) for name in names]
    layers = probe(*disks).layers
    assert [(one.place, one.version) for one in layers.luks] == [("disk0/p1", 1), ("disk1/p1", 2)]
    assert [(one.devices, one.absent) for one in layers.btrfs] == [(2, 1)]
    assert [(one.place, one.state) for one in layers.bcache] == [
        ("disk3/p1", BcacheState.DIRTY), ("disk4/p1", None),
    ]  # fmt: skip


@pytest.mark.parametrize("name", sorted(path.name for path in layer_files.FOLDER.iterdir()))
def test_cut_off_anywhere_nothing_breaks(name: str, tmp_path: Path) -> None:
    """What a probe makes of less and less of a layer; a disk may be refused, and nothing else."""
    disk = whole(tmp_path / "disk", name)
    for size in (disk.stat().st_size - 4096, MIB, 33 * KIB, 4608, 512):
        os.truncate(disk, size)
        try:
            machine = probe(disk)
        except SourceError:
            continue
        machine.layers.describe("disk0/whole")


def test_what_can_not_be_read_holds_no_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad sector where a superblock might have been, in free space of a filesystem, say."""
    disk = in_partition(tmp_path / "disk", "md-0.90-ext4")
    length, _, _ = layer_files.ends("md-0.90-ext4")
    assert len(probe(disk).layers.md) == 1
    places = [MIB + place for _, place in superblock_places(length)]
    read_at = blockdev.read_at

    def bad(fd: int, offset: int, length: int) -> bytes:
        if any(offset <= place < offset + length for place in places):
            raise UnreadableSource("a bad sector")
        return read_at(fd, offset, length)

    monkeypatch.setattr(blockdev, "read_at", bad)
    assert probe(disk).layers == Layers()


def test_a_member_is_one_whatever_libblkid_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken for the FAT that begins where it does, it would lose the superblock behind that."""
    disk = in_partition(tmp_path / "disk", "md-1.0-vfat")
    seen = Signature(Filesystem("vfat", "AAAA-BBBB"), None)
    monkeypatch.setattr(probe_disk_module, "read_signature", lambda *_: seen)
    volume = next(item for _, item in probe(disk).volumes() if item.partition == 1)
    assert volume.filesystem is not None
    assert volume.filesystem.type == "linux_raid_member"
