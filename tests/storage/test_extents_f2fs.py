"""F2FS made and filled by its own tools: the map holds every block, or is everything.

What the kernel writes is in test_guest_filesystems.py.
"""

import os
import random
import re
import struct
import zlib
from contextlib import ExitStack
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
    partition_image,
    read,
)

from imager import process
from imager.extents.used import used
from imager.units import MIB
from tests.guest import life

SIZE = 110 * MIB
BLOCK = 4096
VARIANTS = {
    "default": (),
    "large-nat": ("-i",),
    "attributes": (
        "-O",
        # Not flexible_inline_xattr: sload.f2fs 1.15 takes its room for addresses.
        "extra_attr,inode_checksum,sb_checksum,inode_crtime",
    ),
    "encrypt": ("-O", "encrypt,verity,quota,casefold", "-C", "utf8"),
    "compression": ("-O", "extra_attr,compression"),
    "overprovision": ("-o", "20"),
}


def make_f2fs(disk: Path, options: tuple[str, ...], folder: Path) -> None:
    """Make a filesystem in the partition of a noisy disk, with files in it."""
    make_disk(disk, SIZE)
    with partition_image(disk, SIZE) as image:
        process.run("mkfs.f2fs", "-f", *options, image)
        tree = folder / "tree"
        if not tree.exists():
            tree.mkdir()
            life.fill(tree, 1, 90)
            life.churn(tree, 2)
            (tree / "deep").write_bytes(os.urandom(9 * MIB))  # more than its own addresses
            (tree / "many").mkdir()
            for number in range(300):
                (tree / "many" / f"{number}").write_bytes(b"inline")
        process.run("sload.f2fs", "-f", tree, "-t", "/", image, accept=(0, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("f2fs")


def made(name: str, folder: Path) -> Path:
    path = folder / f"{name}.img"
    if not path.exists():
        make_f2fs(path, VARIANTS[name], folder)
    return path


@pytest.fixture(
    params=[
        pytest.param(name, marks=[] if name == "default" else [pytest.mark.slow])
        for name in VARIANTS
    ],
)
def disk(request: pytest.FixtureRequest, folder: Path) -> Path:
    return made(request.param, folder)


@pytest.fixture
def one(folder: Path) -> Path:
    return made("default", folder)


def check(image: Path) -> str:
    """Return what the checker counts; it must find nothing."""
    text = process.run("fsck.f2fs", "--dry-run", image)
    assert not re.search(r"\[Fail\]", text), text
    return "\n".join(line for line in text.splitlines() if line.startswith("[FSCK]"))


def test_map_holds_all_that_matters(disk: Path, tmp_path: Path) -> None:
    before = digest(disk)
    volume, extents = map_of(disk)
    assert digest(disk) == before
    assert volume.filesystem is not None
    assert volume.filesystem.type == "f2fs"
    assert (extents.method, extents.reason) == ("F2FS segment table", None)
    assert extents.total < 0.75 * volume.length
    original = tmp_path / "original"
    with disk.open("rb") as file:
        original.write_bytes(os.pread(file.fileno(), volume.length, volume.offset))
    found = check(original)
    if disk.stem != "large-nat":  # which partclone does not know
        process.run(
            "partclone.f2fs", "-D", "-s", original, "-o", tmp_path / "map", "-L", "/dev/null", "-F"
        )
        for line in (tmp_path / "map").read_text().splitlines():
            if line.endswith("+"):
                start, length = (int(word, 16) for word in line.split()[:2])
                inside = extents.ranges[extents.ranges[:, 0] <= start][-1]
                assert start + length <= int(inside.sum()), "partclone says that more is used"
    copy = tmp_path / "copy"
    copy_used(disk, volume, extents, copy, 78)
    assert check(copy) == found
    before_blocks, after_blocks = (
        {data[at : at + BLOCK] for at in range(0, len(data), BLOCK)}
        for data in (original.read_bytes(), copy.read_bytes())
    )
    compared = 0
    for path in (disk.parent / "tree").rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            own = {data[at : at + BLOCK] for at in range(0, len(data) - BLOCK, BLOCK)}
            assert own & before_blocks <= after_blocks
            compared += len(own & before_blocks)
    assert compared > 2000


class Areas:
    """Where the tables lie; offsets on the disk."""

    def __init__(self, disk: Path) -> None:
        data = read(disk, START + 1024, 3072)
        (self.sit_segments, self.nat_segments) = struct.unpack_from("<II", data, 56)
        checkpoint, sit, nat = struct.unpack_from("<III", data, 76)
        self.checkpoints = [START + checkpoint * BLOCK + pack * 512 * BLOCK for pack in range(2)]
        self.sit = START + sit * BLOCK
        self.nat = START + nat * BLOCK


def crc(data: bytes) -> bytes:
    return (zlib.crc32(data, 0xF2F52010 ^ 0xFFFFFFFF) ^ 0xFFFFFFFF).to_bytes(4, "little")


def in_checkpoints(disk: Path, offset: int, data: bytes) -> list[Patch]:
    """Change both packs, at both their ends, with right checksums."""
    found = []
    for pack in Areas(disk).checkpoints:
        blocks = int.from_bytes(read(disk, pack + 136, 4), "little")
        for place in (pack, pack + (blocks - 1) * BLOCK):
            block = bytearray(read(disk, place, BLOCK))
            block[offset : offset + len(data)] = data
            block[-4:] = crc(bytes(block[:-4]))
            found.append(Patch(disk, place, bytes(block)))
    return found


@pytest.mark.parametrize(
    "flags", [0x4, 0x5 | 0x2, 0x5 | 0x8, 0x5 | 0x10, 0x5 | 0x800, 0x5 | 0x1000]
)
def test_not_unmounted(one: Path, flags: int) -> None:
    with ExitStack() as stack:
        for patch in in_checkpoints(one, 132, flags.to_bytes(4, "little")):
            stack.enter_context(patch)
        assert_whole(one, "not unmounted cleanly")


@pytest.mark.parametrize(
    ("offset", "why"), [(16, "used blocks"), (144, "nodes"), (140, ""), (136, "")]
)
def test_counts_of_the_checkpoint(one: Path, offset: int, why: str) -> None:
    newest = max(Areas(one).checkpoints, key=lambda pack: read(one, pack, 8)[::-1])
    value = int.from_bytes(read(one, newest + offset, 4), "little")
    for wrong in (value + 1, value - 1):
        with ExitStack() as stack:
            for patch in in_checkpoints(one, offset, wrong.to_bytes(4, "little")):
                stack.enter_context(patch)
            assert_whole(one, why)


def test_damage_of_a_checkpoint(one: Path) -> None:
    for pack in Areas(one).checkpoints:
        with Patch(one, pack + 300, bytes([read(one, pack + 300, 1)[0] ^ 1])):
            assert_whole(one, "wrong checksum")


@pytest.mark.parametrize(
    ("offset", "data", "why"),
    [
        (2180, b"\x02", "not known here: 0x2"),
        (2180, b"\x00\x40", "not known here: 0x4000"),
        (2181, b"\x80", "not known here: 0x8000"),
        (2201, b"/dev/sdb", "several devices"),
        (2794, b"\x04", "errors"),
        (16, b"\x0e", "another size"),
        (36, b"\xff\xff\xff\xff", "larger than"),
        (68, b"\xff\xff", "no sense"),
    ],
)
def test_superblock(one: Path, offset: int, data: bytes, why: str) -> None:
    volume, _ = map_of(one)
    first = Patch(one, START + 1024 + offset, data)
    with first:
        found = used(one, volume)
        if offset < 2762:
            assert (found.method, found.reason) == ("whole", "the two superblocks differ")
        with Patch(one, START + BLOCK + 1024 + offset, data):
            assert_whole(one, why, volume)


def test_segment_table(one: Path) -> None:
    """A used block that is said to be free: alone, with its count, or with another one instead."""
    areas = Areas(one)
    volume, right = map_of(one)
    copy = areas.sit_segments // 2 * 512 * BLOCK
    reasons = set()
    for segment in range(30):
        at = segment // 55 * BLOCK + segment % 55 * 74
        for how in ("alone", "counted", "moved"):
            with ExitStack() as stack:
                for place in (areas.sit + at, areas.sit + copy + at):
                    entry = bytearray(read(one, place, 74))
                    index = next((index for index in range(2, 66) if entry[index]), None)
                    if index is None:
                        continue
                    entry[index] &= entry[index] - 1
                    if how == "moved":
                        free = next(index for index in range(2, 66) if entry[index] != 0xFF)
                        entry[free] |= entry[free] + 1 & 0xFF
                    if how == "counted":
                        count = int.from_bytes(entry[:2], "little") - 1
                        entry[:2] = count.to_bytes(2, "little")
                    stack.enter_context(Patch(one, place, bytes(entry)))
                found = used(one, volume)
                assert covers(found, right)
                reasons.add(found.reason)
    assert len(reasons - {None}) == 2


def test_no_single_wrong_byte_makes_the_map_smaller(one: Path) -> None:
    """In the tables, both copies at once, and in what nodes refer to."""
    volume, right = map_of(one)
    areas = Areas(one)
    rng = random.Random(9)
    used_at = [START + int(offset) for offset, _ in right.ranges[1:-1].tolist()]
    groups = []
    for _ in range(30):
        within = rng.randrange(2000)
        groups.append(
            [areas.sit + within, areas.sit + areas.sit_segments // 2 * 512 * BLOCK + within]
        )
        groups.append([areas.nat + within, areas.nat + 512 * BLOCK + within])
        groups.append([rng.choice(used_at) + rng.randrange(BLOCK)])
        groups.append(
            [
                START + 1024 + rng.randrange(100),
            ]
        )
    methods = []
    for group in groups:
        bit = 1 << rng.randrange(8)
        with ExitStack() as stack:
            for place in group:
                stack.enter_context(Patch(one, place, bytes([read(one, place, 1)[0] ^ bit])))
            found = used(one, volume)
        assert covers(found, right), f"bytes {[place - START for place in group]}"
        methods.append(found.method)
    assert methods.count("whole") > 30
    assert map_of(one)[1].method == "F2FS segment table"


def test_nodes_after_the_last_checkpoint_are_a_doubt(one: Path, tmp_path: Path) -> None:
    """As after a mount, an fsync and a power cut: the checkpoint of the unmount is the newest."""
    disk = tmp_path / "disk"
    process.run("cp", "--sparse=always", one, disk)
    (main,) = struct.unpack("<I", read(disk, START + 1024 + 92, 4))
    (checkpoints,) = struct.unpack("<I", read(disk, START + 1024 + 76, 4))
    packs = [read(disk, START + (checkpoints + 512 * number) * BLOCK, BLOCK) for number in range(2)]
    newest = max(packs, key=lambda pack: struct.unpack_from("<Q", pack)[0])
    (segment,) = struct.unpack_from("<I", newest, 40)
    (block,) = struct.unpack_from("<H", newest, 70)
    at = START + (main + 512 * segment + block) * BLOCK
    assert map_of(disk)[1].reason is None
    with disk.open("r+b") as file:
        os.pwrite(file.fileno(), newest[:8], at + 4084)
    extents = map_of(disk)[1]
    assert extents.method == "whole"
    assert "after the last checkpoint" in (extents.reason or "")
