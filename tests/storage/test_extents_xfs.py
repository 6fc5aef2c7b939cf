"""XFS on real disk files: the map holds every file, or is everything."""

import os
import random
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from disk_files import (
    START,
    Patch,
    assert_no_wrong_bit_makes_it_smaller,
    assert_whole,
    copy_used,
    covers,
    digest,
    make_disk,
    map_of,
    noise,
)
from kernel_mounts import break_up, cut_off, facts, fill, loop, mounted, partition

from imager import process
from imager.extents.extents import Extents
from imager.extents.used import used
from imager.units import MIB

SIZE = 64 * MIB
METHOD = "XFS free space trees"

VARIANTS = {
    "default": (),
    "1k": ("-b", "size=1024"),
    "2k": ("-b", "size=2048"),
    "512-inodes-of-2k": ("-b", "size=4096", "-i", "size=2048"),
    "sectors-of-4k": ("-s", "size=4096"),
    "rmapbt": ("-m", "rmapbt=1", "-b", "size=1024"),
    "rmapbt-reflink-4k": ("-m", "rmapbt=1,reflink=1"),
    "bare": ("-m", "finobt=0,reflink=0,bigtime=0,inobtcount=0", "-i", "sparse=0"),
    "nrext64": ("-i", "nrext64=1"),
    "many-groups": ("-d", "agcount=3"),
    "one-group": ("-d", "agcount=1"),
    "striped": ("-d", "su=64k,sw=2", "-l", "su=64k"),
    "other-name": ("-L", "system", "-n", "size=8192"),
}
# Not every kernel mounts blocks larger than a page of memory (6.12), or version 4.
UNMOUNTED = {
    "v4": ("-m", "crc=0"),
    "v4-512": ("-m", "crc=0", "-b", "size=512"),
    "v4-eager-counts": ("-m", "crc=0", "-l", "lazy-count=0"),
    "v4-log1": ("-m", "crc=0", "-l", "version=1"),
    "v4-ci": ("-m", "crc=0", "-n", "version=ci"),
    "64k": ("-b", "size=65536"),
}
QUICK = {"1k", "rmapbt", "bare", "v4"}


def quick_first(variants: dict[str, tuple[str, ...]]) -> list[object]:
    return [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in variants
    ]


def make(disk: Path, *options: str, size: int = SIZE) -> None:
    make_disk(disk, size)
    with partition(disk) as device:
        process.run("mkfs.xfs", "-q", "-f", "-K", "--unsupported", *options, device)


def make_filled(disk: Path, at: Path, *options: str, **how: object) -> None:
    make(disk, *options)
    reflinks = "reflink=0" not in " ".join(options)
    with partition(disk) as device, mounted(device, at) as root:
        fill(root, reflinks=reflinks, **how)  # type: ignore[arg-type]


def free_according_to_xfs_db(disk: Path) -> tuple[list[tuple[int, int]], int]:
    """Return where free ranges begin and end, in bytes, and how many are kept for the trees.

    Those are among the ranges.
    """
    with partition(disk) as device:
        text = process.run("xfs_db", "-r", "-c", "freesp -d", device)
        shape = process.run(
            "xfs_db", "-r", "-c", "sb 0", "-c", "p blocksize agblocks agcount", device
        )
        block, group, groups = (int(word) for word in re.findall(r"= (\d+)", shape))
        asked = [
            word for number in range(groups) for word in ("-c", f"agf {number}", "-c", "p flcount")
        ]
        kept = re.findall(r"= (\d+)", process.run("xfs_db", "-r", *asked, device))
    rows = [line.split() for line in text.splitlines()]
    found = [
        (int(row[0]) * group + int(row[1]), int(row[2]))
        for row in rows
        if len(row) == 3 and all(word.isdigit() for word in row)
    ]
    ranges = [(start * block, (start + count) * block) for start, count in found]
    return ranges, sum(int(word) for word in kept) * block


def assert_agrees_with_xfs_db(disk: Path) -> Extents:
    volume, extents = map_of(disk)
    assert (extents.method, extents.reason) == (METHOD, None)
    theirs, kept = free_according_to_xfs_db(disk)
    is_free = np.ones(volume.length // 512, dtype=bool)
    for offset, length in extents.ranges.tolist():
        is_free[offset // 512 : (offset + length) // 512] = False
    assert is_free.sum() * 512 == sum(end - start for start, end in theirs) - kept
    for start, end in theirs:
        is_free[start // 512 : end // 512] = False
    assert not is_free.any()
    return extents


def assert_equal_copies(disk: Path, folder: Path) -> None:
    """Copies that hold nothing but the map must be as sound and as full as the original."""
    volume, extents = map_of(disk)
    with partition(disk) as device, mounted(device, folder / "mnt", "ro") as root:
        original = facts(root)
    assert len(original) > 330
    for name, seed in (("blank", None), ("noisy", 77)):
        copy = folder / f"{name}.img"
        copy_used(disk, volume, extents, copy, seed)
        with loop(copy) as device:
            process.run("xfs_repair", "-n", "-o", "force_geometry", device)
            with mounted(device, folder / "mnt", "ro") as root:
                assert facts(root) == original
        copy.unlink()


@pytest.mark.parametrize("variant", quick_first(VARIANTS))
def test_map_holds_all_that_matters(variant: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    make_filled(disk, tmp_path / "mnt", *VARIANTS[variant])
    before = digest(disk)
    volume, extents = map_of(disk)
    assert digest(disk) == before
    assert volume.filesystem is not None
    assert volume.filesystem.type == "xfs"
    assert_agrees_with_xfs_db(disk)
    assert extents.total < 0.7 * volume.length
    assert_equal_copies(disk, tmp_path)


@pytest.mark.parametrize("variant", quick_first(UNMOUNTED))
def test_what_the_kernel_here_does_not_mount(variant: str, tmp_path: Path) -> None:
    disk, tree = tmp_path / "disk.img", tmp_path / "tree"
    tree.mkdir()
    lines = ["/boot/none", "100 100", "d--755 0 0"]
    for index in range(200):
        (tree / f"f{index}").write_bytes(noise(index * 300, index))
        lines.append(f"f{index} ---644 0 0 {tree}/f{index}")
    (tmp_path / "proto").write_text("\n".join([*lines, "$", "$", ""]))
    size = 200 * MIB if variant == "64k" else SIZE
    make(disk, *UNMOUNTED[variant], "-p", str(tmp_path / "proto"), size=size)
    extents = assert_agrees_with_xfs_db(disk)
    volume, _ = map_of(disk)
    assert extents.total < 0.75 * volume.length
    metadump = []
    for name, source in (("original", None), ("noisy", 77)):
        copy = tmp_path / f"{name}.img"
        copy_used(disk, volume, extents, copy, source)
        process.run("xfs_repair", "-n", copy)
        process.run("xfs_metadump", "-o", "-g", copy, tmp_path / name)
        metadump.append(digest(tmp_path / name))
    assert metadump[0] == metadump[1]


def test_after_growing(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    make(disk, "-d", f"size={40 * MIB},agcount=2")
    with partition(disk) as device, mounted(device, tmp_path / "mnt") as root:
        fill(root, files=60)
        process.run("xfs_growfs", "-D", "15000", root)
        (root / "later").write_bytes(noise(5 * MIB, 9))
    extents = assert_agrees_with_xfs_db(disk)
    volume, _ = map_of(disk)
    offset, length = extents.ranges[-1].tolist()
    assert offset <= 15000 * 4096
    assert offset + length == volume.length  # what lies behind the filesystem is read
    assert_equal_copies(disk, tmp_path)


def test_unmounts_and_power_cuts_at_all_places_of_the_log(tmp_path: Path) -> None:
    """The log is a ring: it is clean or not wherever it begins, also after many rounds."""
    disk, copy = tmp_path / "disk.img", tmp_path / "cut.img"
    rng = random.Random(3)
    make(disk, "-m", "rmapbt=1", "-b", "size=1024", size=48 * MIB)
    for _ in range(10):
        with partition(disk) as device, mounted(device, tmp_path / "mnt") as root:
            for index in range(rng.randrange(1, 500)):
                (root / f"file{rng.randrange(700)}").write_bytes(noise(rng.randrange(9_000), index))
            process.run("sync", "--file-system", root)
            cut_off(disk, copy)
        assert_agrees_with_xfs_db(disk)
        assert_whole(copy, "not unmounted cleanly")


# In the log that mkfs writes: offset, what is there, what is put there.
LOG_LIES = {
    "no unmount": (512 + 9, b"\x20", b"\0"),
    "two operations": (40, b"\0\0\0\1", b"\0\0\0\2"),
    "longer": (12, b"\0\0", b"\0\1"),
    "no record": (0, b"\xfe\xed\xba\xbe", b"\0\0\0\1"),
    "something behind": (2 * 512, b"\0\0\0\0", b"\0\0\0\1"),
    "something far behind": (90 * 512, b"\0\0\0\0", b"\0\0\0\1"),
}


@pytest.mark.parametrize("lie", LOG_LIES)
def test_logs_that_are_not_quite_clean(lie: str, fresh: tuple[Path, int]) -> None:
    disk, log = fresh
    offset, before, after = LOG_LIES[lie]
    with disk.open("rb") as file:
        assert os.pread(file.fileno(), len(before), log + offset) == before
    assert map_of(disk)[1].method == METHOD
    with Patch(disk, log + offset, after):
        assert map_of(disk)[1].method == "whole"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Return a filesystem that was never mounted, and where its log begins in the file."""
    disk = tmp_path_factory.mktemp("fresh") / "disk.img"
    make(disk, size=48 * MIB)
    with partition(disk) as device:
        words = ["-c", "sb 0", "-c", "p logstart agblocks agblklog blocksize"]
        text = process.run("xfs_db", "-r", *words, device)
    start, blocks, shift, size = (int(word) for word in re.findall(r"= (\d+)", text))
    group, block = start >> shift, start & (1 << shift) - 1
    return disk, START + (group * blocks + block) * size


def test_frozen_is_not_unmounted(tmp_path: Path) -> None:
    disk, copy = tmp_path / "disk.img", tmp_path / "cut.img"
    make(disk)
    with partition(disk) as device, mounted(device, tmp_path / "mnt") as root:
        (root / "file").write_bytes(noise(MIB, 3))
        process.run("fsfreeze", "--freeze", root)
        try:
            cut_off(disk, copy)
        finally:
            process.run("fsfreeze", "--unfreeze", root)
    assert_whole(copy, "not unmounted cleanly")


def test_log_on_another_device_means_whole(tmp_path: Path) -> None:
    disk, log = tmp_path / "disk.img", tmp_path / "log"
    log.touch()
    os.truncate(log, 64 * MIB)
    make(disk, "-l", f"logdev={log}")
    assert_whole(disk, "another device")


def test_realtime_device_means_whole(tmp_path: Path) -> None:
    disk, realtime = tmp_path / "disk.img", tmp_path / "realtime"
    realtime.touch()
    os.truncate(realtime, 64 * MIB)
    make(disk, "-r", f"rtdev={realtime}", "-m", "reflink=0")
    assert_whole(disk, "realtime")


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Return one filesystem with checksums and owners, one with checksums only, one of version 4.

    With blocks of 1 KiB, so that their trees have several levels.
    """
    folder = tmp_path_factory.mktemp("lived")
    made = {}
    for name, options in (("rmap", "rmapbt=1"), ("summed", "rmapbt=0")):
        made[name] = folder / f"{name}.img"
        make(made[name], "-m", options, "-b", "size=1024", "-d", "agcount=1", size=48 * MIB)
        with partition(made[name]) as device, mounted(device, folder / "mnt") as root:
            fill(root, files=60)
            break_up(root, 400)
    made["v4"] = folder / "v4.img"
    make(made["v4"], "-m", "crc=0", "-b", "size=1024", "-d", "agcount=2", size=48 * MIB)
    yield made
    for path in made.values():
        assert map_of(path)[1].method == METHOD


def header(disk: Path, sector: int) -> bytes:
    with disk.open("rb") as file:
        return os.pread(file.fileno(), 512, START + 512 * sector)


def summed(data: bytes, crc_at: int) -> bytes:
    """Return metadata with a right checksum."""
    blank = data[:crc_at] + bytes(4) + data[crc_at + 4 :]
    return data[:crc_at] + struct.pack("<I", google_crc32c.value(blank)) + data[crc_at + 4 :]


def changed(data: bytes, offset: int, form: str, value: int) -> bytes:
    size = struct.calcsize(form)
    return data[:offset] + struct.pack(form, value) + data[offset + size :]


# Sector of the header, where its checksum is, the field, how it is changed, what is said.
LIES = {
    "free blocks in the superblock": (0, 224, 144, ">Q", 7, "superblock disagree"),
    "inodes in the superblock": (0, 224, 128, ">Q", 64, "superblock disagree"),
    "blocks in the superblock": (0, 224, 8, ">Q", 9, None),
    "needs a repair": (0, 224, 216, ">I", 0x10, "need of a repair"),
    "unknown read-only feature": (0, 224, 212, ">I", 1 << 20, "not known here"),
    "unknown incompatible feature": (0, 224, 216, ">I", 1 << 20, "not known here"),
    "unknown log feature": (0, 224, 220, ">I", 1, "not known here"),
    "version 6": (0, 224, 100, ">H", 1, "not known here"),
    "being made": (0, 224, 126, "B", 1, "no sense"),
    "free blocks of a group": (1, 216, 52, ">I", 1, "disagree about the free blocks"),
    "longest free range": (1, 216, 56, ">I", 1, "disagree about the free blocks"),
    "blocks of the trees": (1, 216, 60, ">I", 1, "superblock disagree"),
    "root by block": (1, 216, 16, ">I", 1, "damaged"),
    "root by size": (1, 216, 20, ">I", 1, "damaged"),
    "levels by block": (1, 216, 28, ">I", 1, "damaged"),
    "levels beyond reason": (1, 216, 28, ">I", 100, "no sense"),
    "free list": (1, 216, 48, ">I", 1, "free list"),
    "length of a group": (1, 216, 12, ">I", 1, "header"),
    "inodes of a group": (2, 312, 16, ">I", 64, "about the inodes"),
    "free inodes of a group": (2, 312, 28, ">I", 1, "about the inodes"),
    "root of the inodes": (2, 312, 20, ">I", 1, "damaged"),
}


@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie_with_a_right_checksum(lie: str, lived: dict[str, Path]) -> None:
    sector, crc_at, offset, form, change, why = LIES[lie]
    disk = lived["summed"]
    data = header(disk, sector)
    (value,) = struct.unpack_from(form, data, offset)
    false = summed(changed(data, offset, form, value + change), crc_at)
    with Patch(disk, START + 512 * sector, false):
        if why is None:
            assert map_of(disk)[1].method == "whole"
        else:
            assert_whole(disk, why)


@pytest.mark.parametrize("sector", range(4))
def test_wrong_checksums_of_headers(sector: int, lived: dict[str, Path]) -> None:
    disk = lived["summed"]
    data = header(disk, sector)
    place = {0: 150, 1: 100, 2: 45, 3: 400}[sector]
    with Patch(disk, START + 512 * sector + place, bytes([data[place] ^ 1])):
        assert_whole(disk, "checksum")


def leaf(disk: Path, tree: int) -> tuple[int, bytes]:
    """Return place and content of the first leaf of a tree of free space; blocks of 1 KiB."""
    free = header(disk, 1)
    (root,) = struct.unpack_from(">I", free, 16 + 4 * tree)
    (levels,) = struct.unpack_from(">I", free, 28 + 4 * tree)
    with disk.open("rb") as file:
        data = os.pread(file.fileno(), 1024, START + root * 1024)
        for _ in range(levels - 1):
            head = 56 if data[:4] in {b"AB3B", b"AB3C"} else 16
            room = (1024 - head) // 12
            (root,) = struct.unpack_from(">I", data, head + room * 8)
            data = os.pread(file.fileno(), 1024, START + root * 1024)
    return START + root * 1024, data


def test_trees_here_have_several_levels(lived: dict[str, Path]) -> None:
    assert struct.unpack_from(">2I", header(lived["summed"], 1), 28)[0] > 1


@pytest.mark.parametrize("tree", [0, 1])
@pytest.mark.parametrize("kind", ["rmap", "summed", "v4"])
def test_records_that_lie_with_a_right_checksum(
    kind: str, tree: int, lived: dict[str, Path]
) -> None:
    """Each record in turn begins a block too early, ends one too late, or is missing."""
    disk = lived[kind]
    place, data = leaf(disk, tree)
    head = 16 if kind == "v4" else 56
    (count,) = struct.unpack_from(">H", data, 6)
    for index in range(0, count, max(1, count // 8)):
        at = head + 8 * index
        start, length = struct.unpack_from(">2I", data, at)
        for record in ((start - 1, length + 1), (start, length + 1), (start - 1, length)):
            false = data[:at] + struct.pack(">2I", *record) + data[at + 8 :]
            with Patch(disk, place, false if kind == "v4" else summed(false, 52)):
                assert map_of(disk)[1].method == "whole"


def test_both_trees_and_all_counts_lie(lived: dict[str, Path]) -> None:
    """The last line: a file's block that everything says is free has an owner."""
    disk = lived["rmap"]
    _, before = map_of(disk)
    places = [leaf(disk, 0), leaf(disk, 1)]
    (count,) = struct.unpack_from(">H", places[0][1], 6)
    records = list(struct.iter_unpack(">2I", places[0][1][56 : 56 + 8 * count]))
    other_count = struct.unpack_from(">H", places[1][1], 6)[0]
    others = list(struct.iter_unpack(">2I", places[1][1][56 : 56 + 8 * other_count]))
    # A range in the first leaf of both that moves by one block and stays apart from the others.
    ends = {start + length for start, length in records}
    start, length = next(
        found for found in records[1:] if found in others and found[0] - 1 not in ends
    )
    patches = []
    for place, data in places:
        old, new = struct.pack(">2I", start, length), struct.pack(">2I", start - 1, length)
        at = data.index(old, 56)
        patches.append(Patch(disk, place, summed(data[:at] + new + data[at + 8 :], 52)))
    with patches[0], patches[1]:
        assert_whole(disk, "of owners disagree")
    assert map_of(disk)[1].total == before.total


@pytest.mark.parametrize("kind", ["rmap", "summed", "v4"])
def test_no_single_wrong_byte_makes_the_map_smaller(kind: str, lived: dict[str, Path]) -> None:
    disk = lived[kind]
    rng = random.Random(17)
    places = [START + 512 * sector + rng.randrange(240) for sector in range(4) for _ in range(25)]
    for tree in (0, 1):
        place, data = leaf(disk, tree)
        (count,) = struct.unpack_from(">H", data, 6)
        places += [place + rng.randrange(56 + 8 * count) for _ in range(25)]
    assert_no_wrong_bit_makes_it_smaller(disk, places, rng)


@pytest.mark.parametrize("kind", ["rmap", "summed", "v4"])
def test_no_wrong_bytes_under_a_right_checksum_make_the_map_smaller(
    kind: str, lived: dict[str, Path]
) -> None:
    disk = lived[kind]
    volume, right = map_of(disk)
    rng = random.Random(31)
    blocks = [(START + 512 * sector, 512, crc) for sector, crc in enumerate((224, 216, 312, 32))]
    blocks += [(leaf(disk, tree)[0], 1024, 52) for tree in (0, 1)]
    for turn in range(200):
        place, size, crc_at = rng.choice(blocks)
        with disk.open("rb") as file:
            false = bytearray(os.pread(file.fileno(), size, place))
        for _ in range(rng.randrange(1, 3)):
            false[rng.randrange(280 if size == 512 else size)] = rng.choice(
                [0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)]
            )
        with Patch(disk, place, bytes(false) if kind == "v4" else summed(bytes(false), crc_at)):
            found = used(disk, volume)
        assert covers(found, right), f"turn {turn}"
