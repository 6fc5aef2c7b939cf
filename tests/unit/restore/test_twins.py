"""Disks that stay and carry what is restored are told of by name."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from imager import blockdev, process
from imager.blockdev import BlockDisk
from imager.layout.machine import Machine
from imager.probe.machine import ProbeSource, probe_machine
from imager.units import MIB
from restore.match import Basis, Match, Survey
from restore.targets import surroundings
from restore.twins import twin_notes
from tests.vectors import layer_files

UUID = "6ff71707-5bec-48eb-a934-f2c72129d2cd"


def disk_with(path: Path, content: str | bytes) -> Path:
    """Make a disk of one partition, which holds bytes or the layer of a name."""
    length = layer_files.ends(content)[0] if isinstance(content, str) else len(content)
    with path.open("wb") as file:
        file.truncate(2 * MIB + length)
    script = f"label: gpt\nstart=2048, size={length // 512}\n"
    process.run("sfdisk", "--quiet", path, stdin=script.encode())
    if isinstance(content, str):
        layer_files.put(path, MIB, content)
    else:
        with path.open("r+b") as file:
            os.pwrite(file.fileno(), content, MIB)
    return path


def machine_of(*disks: Path) -> Machine:
    sources = [
        ProbeSource(disk, disk.name, blockdev.identify(disk).identity, False, ()) for disk in disks
    ]
    return probe_machine(sources, "web01")


def seen(path: Path) -> BlockDisk:
    disk = blockdev.identify(path)
    return replace(disk, identity=replace(disk.identity, serial="S3R1AL"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("md-1.2-ext4", "RAID1 md 'boot' (metadata 1.2)"),
        ("md-1.1-lvm", "VG 'data' with LVs root, var"),
        ("luks1", "LUKS1 container"),
        ("luks2", "LUKS2 container 'vault'"),
        ("btrfs", "btrfs"),
        ("bcache-backing", "bcache backing device"),
    ],
)
def test_layers(name: str, words: str, tmp_path: Path) -> None:
    saved = machine_of(disk_with(tmp_path / "saved", name))
    twin = disk_with(tmp_path / "twin", name)
    other = disk_with(tmp_path / "other", bytes(4 * MIB))
    (note,) = twin_notes(saved, [seen(other), seen(twin)])
    assert words.partition(" with")[0] in note
    assert "serial S3R1AL" in note
    assert str(twin) in note
    assert "Detach it before the restored machine starts, or wipe it" in note
    assert "GPT" not in note


def test_tables_and_filesystems(tmp_path: Path) -> None:
    filesystem = tmp_path / "filesystem"
    with filesystem.open("wb") as file:
        file.truncate(8 * MIB)
    process.run("mke2fs", "-q", "-t", "ext4", "-U", UUID, filesystem)
    content = filesystem.read_bytes()
    disk = disk_with(tmp_path / "saved", content)
    saved = machine_of(disk)
    clone = tmp_path / "clone"
    clone.write_bytes(disk.read_bytes())
    moved = disk_with(tmp_path / "moved", content)
    first, second = twin_notes(saved, [seen(clone), seen(moved)])
    table = saved.disks[0].table
    assert table is not None
    assert f"GPT {table.id}, ext4 {UUID}" in first
    assert f": ext4 {UUID}." in second


def test_a_group_of_the_same_name(tmp_path: Path) -> None:
    saved = machine_of(disk_with(tmp_path / "saved", "md-1.1-lvm"))
    (group,) = saved.layers.volume_groups
    layers = replace(saved.layers, md=(), volume_groups=(replace(group, uuid="another"),))
    twin = disk_with(tmp_path / "twin", "md-1.1-lvm")
    (note,) = twin_notes(replace(saved, layers=layers), [seen(twin)])
    assert "the same as this machine: VG 'data'." in note


def test_a_disk_that_can_not_be_understood_holds_nothing_up(tmp_path: Path) -> None:
    saved = machine_of(disk_with(tmp_path / "saved", "luks1"))
    broken = disk_with(tmp_path / "broken", bytes(8 * MIB))
    os.truncate(broken, 3 * MIB)
    gone = seen(disk_with(tmp_path / "gone", bytes(8 * MIB)))
    gone.path.unlink()
    assert twin_notes(saved, [seen(broken), gone]) == ()


def test_only_what_is_restored_to_disks_here_has_twins(tmp_path: Path) -> None:
    content = "luks2"
    saved = machine_of(disk_with(tmp_path / "saved", content))
    twin = replace(seen(disk_with(tmp_path / "twin", content)), is_device=True)
    target = replace(seen(tmp_path / "saved"), is_device=True)
    survey = Survey((twin, target), {}, {})
    for is_device, count in ((True, 1), (False, 0)):
        match = Match(saved.disks[0], replace(target, is_device=is_device), Basis.NAMED)
        notes = surroundings(saved, [match], survey).twins
        assert len(notes) == count
        assert all(str(twin.path) in note for note in notes)
