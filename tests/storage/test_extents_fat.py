"""FAT12, FAT16 and FAT32 on real disk files: the map holds every file, or is everything."""

import os
import random
import re
import struct
from pathlib import Path

import pytest
from disk_files import (
    START,
    Patch,
    assert_whole,
    copy_used,
    covers,
    digest,
    make_disk,
    map_of,
    noise,
    read,
    tree_digest,
)

from imager import process
from imager.extents.used import used
from imager.units import KIB, MIB

KINDS = {
    "fat12": (8 * MIB, ("-F", "12")),
    "fat12-odd": (5 * MIB + 3 * 512, ("-F", "12", "-s", "8", "-a")),
    "fat16": (48 * MIB, ("-F", "16")),
    "fat32": (80 * MIB, ("-F", "32")),
    "fat32-esp": (140 * MIB, ("-F", "32", "-s", "4", "-n", "EFI")),
}


def mtools(verb: str, path: Path, *words: str | Path) -> str:
    return process.run(verb, "-i", f"{path}@@{START}", *words, env={"MTOOLS_SKIP_CHECK": "1"})


def make_filesystem(path: Path, size: int, options: tuple[str, ...], scratch: Path) -> None:
    """Make a filesystem in the partition, fill it, and let it live: deleted and written again."""
    make_disk(path, size)
    process.run(
        "mkfs.fat", *options, "-i", "1234abcd", "--offset", str(START // 512), path,
        str(size // KIB),
    )  # fmt: skip
    rng = random.Random(3)
    scratch.mkdir()
    mtools("mmd", path, "::/EFI", "::/EFI/debian", "::/a long name of a folder")
    folders = ("", "EFI/", "EFI/debian/", "a long name of a folder/")
    for index in range(60):
        name = f"{folders[index % 4]}file {index} with a long name.bin"
        local = scratch / "file"
        local.write_bytes(noise(rng.choice([0, 10, 3_000, 30_000, 90_000]), index))
        mtools("mcopy", path, local, f"::/{name}")
        if index % 5 == 4:
            victim = index - 3
            mtools("mdel", path, f"::/{folders[victim % 4]}file {victim} with a long name.bin")


def content(path: Path, offset: int, into: Path) -> dict[str, str]:
    """Return all there is in a filesystem; it must be without a fault."""
    into.mkdir()
    single = into.with_suffix(".fat")
    size = path.stat().st_size - offset - (MIB if offset else 0)
    with path.open("rb") as file:
        file.seek(offset)
        single.write_bytes(file.read(size))
    process.run("fsck.fat", "-n", single)
    process.run("mcopy", "-s", "-n", "-m", "-i", single, "::/", into)
    single.unlink()
    return tree_digest(into)


@pytest.fixture(scope="module", params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    path = folder / "disk.img"
    size, options = KINDS[request.param]
    make_filesystem(path, size, options, folder / "scratch")
    return path


def bits(path: Path) -> int:
    return int(path.parent.name.split("fat")[1][:2])


def test_map_holds_all_that_matters(disk: Path, tmp_path: Path) -> None:
    before = digest(disk)
    volume, extents = map_of(disk)
    assert digest(disk) == before
    assert volume.filesystem is not None
    assert volume.filesystem.type == "vfat"
    assert (extents.method, extents.reason) == ("FAT", None)
    assert extents.total < 0.7 * volume.length
    original = content(disk, START, tmp_path / "original")
    assert len(original) > 45
    for name, seed in (("blank", None), ("noisy", 78)):
        copy = tmp_path / f"{name}.img"
        copy_used(disk, volume, extents, copy, seed)
        assert content(copy, 0, tmp_path / name) == original


class Boot:
    """The fields of a boot sector that say where the tables lie."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.data = os.pread(file.fileno(), 512, START)
        self.sector, self.per_cluster, self.reserved, _, self.roots = struct.unpack_from(
            "<HBHBH", self.data, 11
        )
        short, self.info = struct.unpack_from("<H24xH", self.data, 22)
        self.table = (short or struct.unpack_from("<I", self.data, 36)[0]) * self.sector
        self.tables = [START + self.reserved * self.sector + copy * self.table for copy in (0, 1)]
        self.root = self.tables[1] + self.table
        self.data_area = self.root + self.roots * 32


def flipped(path: Path, *places: int) -> list[Patch]:
    return [Patch(path, place, bytes([read(path, place, 1)[0] ^ 0xFF])) for place in places]


def test_copies_that_differ(disk: Path) -> None:
    for table in Boot(disk).tables:
        (patch,) = flipped(disk, table + 40)
        with patch:
            assert_whole(disk, "differ")


def test_not_unmounted(disk: Path) -> None:
    kind = bits(disk)
    with Patch(disk, START + (65 if kind == 32 else 37), b"\x01"):
        assert_whole(disk, "not unmounted cleanly")
    if kind == 12:
        return
    boot = Boot(disk)
    offset, value = (3, b"\x7f") if kind == 16 else (7, b"\x07")
    with Patch(disk, boot.tables[0] + offset, value), Patch(disk, boot.tables[1] + offset, value):
        assert_whole(disk, "not unmounted cleanly")


@pytest.mark.parametrize("name", ["EFI", "EFI/file 5 with a long name.bin"])
@pytest.mark.parametrize("which", [0, -1])
def test_lost_in_both_copies(disk: Path, name: str, which: int) -> None:
    """The first or last cluster of a directory or a file, which both copies say is free."""
    text = mtools("mshowfat", disk, f"::/{name}")
    cluster = [int(number) for number in re.findall(r"\d+", text.split("<", 1)[1])][which]
    kind = bits(disk)
    place, width = cluster * kind // 8, kind // 8 + (kind == 12)
    tables = Boot(disk).tables
    data = int.from_bytes(read(disk, tables[0] + place, width), "little")
    mask = (1 << kind) - 1 << (4 if kind == 12 and cluster % 2 else 0)
    changed = (data & ~mask).to_bytes(width, "little")
    with Patch(disk, tables[0] + place, changed), Patch(disk, tables[1] + place, changed):
        assert_whole(disk, "")


@pytest.mark.parametrize(
    ("offset", "data", "why"),
    [
        (11, b"\x00\x03", "no sense"),
        (13, b"\x03", "no sense"),
        (14, b"\x00\x00", "no sense"),
        (16, b"\x01", "copies"),
        (21, b"\x12", "no sense"),
    ],
)
def test_boot_sector(disk: Path, offset: int, data: bytes, why: str) -> None:
    volume, _ = map_of(disk)
    with Patch(disk, START + offset, data):
        assert_whole(disk, why, volume)


def test_information_sector(disk: Path) -> None:
    if bits(disk) != 32:
        pytest.skip("only FAT32 has one")
    boot = Boot(disk)
    place = START + boot.info * boot.sector
    with Patch(disk, place + 488, b"\x07\x00\x00\x00"):
        assert_whole(disk, "free clusters")
    with Patch(disk, place + 488, b"\xff\xff\xff\xff"):
        assert map_of(disk)[1].method == "FAT"
    with Patch(disk, place + 508, b"X"):
        assert_whole(disk, "damaged")


def test_two_ways_into_a_directory(disk: Path) -> None:
    boot = Boot(disk)
    root = boot.root if boot.roots else boot.data_area
    entries = read(disk, root, 2048)
    folders = [place for place in range(0, 2048, 32) if entries[place + 11] & 0x3F == 0x10]
    cluster = entries[folders[0] + 26 : folders[0] + 28]
    with Patch(disk, root + folders[1] + 26, cluster):
        assert_whole(disk, "two ways")
    with Patch(disk, root + folders[1] + 26, b"\xf0\xff"):
        assert_whole(disk, "does not exist" if bits(disk) != 32 else "")


def test_without_any_directory(tmp_path: Path) -> None:
    """Nothing confirms where the clusters of a FAT16 lie that holds files only."""
    for kind, expected in (("16", "whole"), ("32", "FAT")):
        disk = tmp_path / kind
        make_disk(disk, 48 * MIB, seed=None)
        process.run("mkfs.fat", "-F", kind, "--offset", str(START // 512), disk, str(48 * KIB))
        assert map_of(disk)[1].method == "FAT"
        if kind == "16":
            (tmp_path / "file").write_bytes(noise(9000, 1))
            mtools("mcopy", disk, tmp_path / "file", "::/")
        assert map_of(disk)[1].method == expected


def test_no_single_wrong_byte_makes_the_map_smaller(disk: Path) -> None:
    """Not in the boot sector, nor in both copies of the table at once."""
    volume, right = map_of(disk)
    boot = Boot(disk)
    rng = random.Random(9)
    width = min(boot.table, 3000)
    places = [[START + rng.randrange(90)] for _ in range(150)]
    for _ in range(300):
        within = rng.randrange(width)
        places.append([table + within for table in boot.tables])
    methods = []
    for group in places:
        bit = 1 << rng.randrange(8)
        changed = bytes([read(disk, group[0], 1)[0] ^ bit])
        patches = [Patch(disk, place, changed) for place in group]
        for patch in patches:
            patch.__enter__()
        found = used(disk, volume)
        for patch in patches:
            patch.__exit__()
        assert covers(found, right), f"bytes {[place - START for place in group]} of the volume"
        methods.append(found.method)
    assert methods.count("whole") > 100
    assert map_of(disk)[1].method == "FAT"
