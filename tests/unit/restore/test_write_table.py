"""The table of a fitted disk, written by sfdisk into files as long as disks."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from imager import process
from imager.blockdev import open_disk
from imager.layout.partition_table import PartitionTable, TableKind
from imager.probe.partition_table import read_table
from imager.units import MIB
from restore.device import OpenTarget
from restore.fit_steps import WriteTable
from restore.recreate.partition_table import check_table, write_table
from restore.target import Target, TargetKind

GPT = """\
label: gpt
label-id: 8D2F64B1-77C0-4E0B-9C55-1A3E90D4F201
first-lba: 40
table-length: 64
1 : start=2048, size=20480, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, \
uuid=0C6B1F5E-2D34-4C9A-8F11-5D7E21A90B01, name="EFI: System, 'x'", attrs="RequiredPartition GUID:63"
3 : start=22528, size=100000, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, \
uuid=0C6B1F5E-2D34-4C9A-8F11-5D7E21A90B03, name="root", attrs="LegacyBIOSBootable"
"""
MBR = """\
label: dos
label-id: 0x4c41b1d5
1 : start=2048, size=81920, type=83, bootable
2 : start=83968, size=69632, type=f
5 : start=86016, size=20480, type=82
6 : start=108544, size=45056, type=83
"""


def disk(path: Path, size: int, script: str) -> PartitionTable:
    """Make a disk with a table and boot code."""
    path.write_bytes(b"")
    os.truncate(path, size)
    process.run("sfdisk", path, stdin=script.encode())
    with path.open("r+b") as file:
        file.write(b"\xeb\x63" + b"BOOT" * 109 + b"\x90\x90")
        if script is GPT:
            file.seek(446)
            file.write(b"\x80")  # the protective partition is marked active
    return table_of(path)


def table_of(path: Path) -> PartitionTable:
    with open_disk(path) as fd:
        size = path.stat().st_size
        found = read_table(path, fd, size, 512, signature="dos")  # asked for where there is no GPT
    assert found is not None
    return found.table


def target(path: Path, size: int) -> Target:
    return Target("disk0", path, TargetKind.FILE, size, 2 * size, 512, None, None, "disk0", "named")


def moved(table: PartitionTable, places: dict[int, tuple[int, int]]) -> PartitionTable:
    return replace(
        table,
        partitions=tuple(
            replace(part, offset=places[part.number][0], length=places[part.number][1])
            if part.number in places
            else part
            for part in table.partitions
        ),
    )


def test_a_gpt_for_a_smaller_disk_keeps_all_but_the_places(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    new = moved(disk(path, 64 * MIB, GPT), {3: (11 * MIB, 30 * MIB)})
    before = path.read_bytes()[:512]
    os.truncate(path, 48 * MIB)
    with OpenTarget(target(path, 48 * MIB)) as opened:
        write_table(opened, WriteTable(opened.target, new, first_usable=40, entries=64))
        check_table(opened, new)
    after = path.read_bytes()
    assert table_of(path) == new
    assert after[:447] == before[:447]
    assert int.from_bytes(after[458:462], "little") == 48 * MIB // 512 - 1
    header = after[512:1024]
    assert int.from_bytes(header[40:48], "little") == 40
    assert int.from_bytes(header[80:84], "little") == 64
    assert after[-512:].startswith(b"EFI PART")
    process.run("sfdisk", "--verify", path)


def test_an_mbr_keeps_boot_code_signature_and_logical_partitions(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    old = disk(path, 80 * MIB, MBR)
    new = moved(
        old,
        {
            2: (31 * MIB, 30 * MIB),
            1: (MIB, 30 * MIB),
            5: (32 * MIB, 9 * MIB),
            6: (42 * MIB, 19 * MIB),
        },
    )
    before = path.read_bytes()[:446]
    os.truncate(path, 61 * MIB)
    with OpenTarget(target(path, 61 * MIB)) as opened:
        write_table(opened, WriteTable(opened.target, new))
        check_table(opened, new)
    assert path.read_bytes()[:446] == before
    assert table_of(path) == new


@pytest.mark.parametrize("byte", [b"\xff", b"\x00"])
def test_content_of_partitions_is_not_touched(tmp_path: Path, byte: bytes) -> None:
    path = tmp_path / "disk.raw"
    new = moved(disk(path, 64 * MIB, MBR.split("2 :", maxsplit=1)[0]), {1: (MIB, 30 * MIB)})
    with path.open("r+b") as file:
        file.seek(MIB)
        file.write(byte * (30 * MIB))
    with OpenTarget(target(path, 64 * MIB)) as opened:
        write_table(opened, WriteTable(opened.target, new))
    assert path.read_bytes()[MIB : 31 * MIB] == byte * (30 * MIB)
    assert new.kind is TableKind.MBR
