"""btrfs on real disk files, one or several: the maps hold every file, or are everything."""

import os
import random
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import google_crc32c
import pytest
from btrfs_disks import SIZE, check, devices, live, make, pool
from disk_files import (
    START,
    Patch,
    assert_no_wrong_bit_makes_it_smaller,
    copy_used,
    covers,
    digest,
    make_disk,
    map_of,
    volume_of,
)
from kernel_mounts import cut_off, fill, mounted

from imager import process
from imager.extents.extents import Extents
from imager.extents.used import used, used_of_machine
from imager.layout.disk import Volume
from imager.layout.layers import Layers
from imager.units import KIB, MIB

METHOD = "btrfs trees"

# Number of devices, options of mkfs and mount.
VARIANTS = {
    "default": (1, (), ("compress=zstd",)),
    "single": (1, ("-m", "single", "-d", "single"), ()),
    "dup": (1, ("-m", "dup", "-d", "dup"), ()),
    "mixed": (1, ("-M",), ("compress=lzo",)),
    "mixed-dup": (1, ("-M", "-m", "dup", "-d", "dup"), ()),
    "nodes-of-4k": (1, ("-n", "4096"), ()),
    "nodes-of-64k": (1, ("-n", "65536"), ("compress=zlib",)),
    "xxhash": (1, ("--csum", "xxhash"), ()),
    "sha256": (1, ("--csum", "sha256"), ()),
    "blake2": (1, ("--csum", "blake2"), ()),
    "quota": (1, ("-R", "quota"), ()),
    "old-features": (1, ("-O", "^no-holes,^skinny-metadata,^extref"), ()),
    "raid0": (2, ("-m", "raid0", "-d", "raid0"), ("compress=zstd",)),
    "raid0-of-3": (3, ("-m", "raid1", "-d", "raid0"), ()),
    "raid1": (2, ("-m", "raid1", "-d", "raid1"), ("compress=zstd",)),
    "raid1-of-3": (3, ("-m", "raid1", "-d", "raid1"), ()),
    "raid10": (4, ("-m", "raid10", "-d", "raid10"), ("compress=zstd",)),
    "raid1c3": (3, ("-m", "raid1c3", "-d", "raid1c3"), ()),
    "raid1c4": (4, ("-m", "raid1c4", "-d", "raid1c4"), ()),
    "raid5": (3, ("-m", "raid5", "-d", "raid5"), ()),
    "raid6": (4, ("-m", "raid6", "-d", "raid6"), ()),
    "single-of-2": (2, ("-m", "raid1", "-d", "single"), ()),
}
QUICK = {"default", "mixed", "raid10"}


def maps(disks: Sequence[Path]) -> list[tuple[Volume, Extents]]:
    volumes = [volume_of(disk) for disk in disks]
    found = used_of_machine(list(zip(disks, volumes, strict=True)), Layers())
    return list(zip(volumes, found, strict=True))


def assert_equal_copies(disks: Sequence[Path], folder: Path) -> list[Extents]:
    """Copies that hold nothing but the map must be as sound and as full as the original."""
    before = [digest(disk) for disk in disks]
    found = maps(disks)
    assert [digest(disk) for disk in disks] == before
    with devices(disks) as attached:
        original = check(attached, folder / "mnt")
    assert len(original) > 600
    copies = [folder / f"copy{index}.img" for index in range(len(disks))]
    for disk, copy, (volume, extents) in zip(disks, copies, found, strict=True):
        assert (extents.method, extents.reason) == (METHOD, None)
        copy_used(disk, volume, extents, copy, 77)
    with devices(copies, partitioned=False) as attached:
        assert check(attached, folder / "mnt") == original
    return [extents for _, extents in found]


@pytest.mark.parametrize(
    "variant",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS],
)
def test_map_holds_all_that_matters(variant: str, tmp_path: Path) -> None:
    count, options, how = VARIANTS[variant]
    disks = [tmp_path / f"disk{index}.img" for index in range(count)]
    size = 256 * MIB if variant == "dup" else SIZE
    make(disks, *options, size=size)
    with devices(disks) as attached, pool(attached, tmp_path / "mnt", *how) as root:
        live(root)
    for extents in assert_equal_copies(disks, tmp_path):
        assert extents.total < 0.6 * size


def test_cut_off_between_two_transactions(tmp_path: Path) -> None:
    """What is on the disk is then a whole filesystem of a moment ago."""
    disk, cut = tmp_path / "disk.img", tmp_path / "cut.img"
    make([disk])
    with devices([disk]) as attached, pool(attached, tmp_path / "mnt", "commit=300") as root:
        live(root)
        os.sync()
        (root / "later").write_bytes(b"not yet on disk" * 9_000)
        (root / "sub" / "second-name").unlink()
        cut_off(disk, cut)
    assert_equal_copies([cut], tmp_path)


@pytest.mark.slow
def test_frozen(tmp_path: Path) -> None:
    disk, cut = tmp_path / "disk.img", tmp_path / "cut.img"
    make([disk])
    with devices([disk]) as attached, pool(attached, tmp_path / "mnt") as root:
        live(root)
        process.run("fsfreeze", "--freeze", root)
        try:
            cut_off(disk, cut)
        finally:
            process.run("fsfreeze", "--unfreeze", root)
    assert_equal_copies([cut], tmp_path)


def assert_whole(disks: Sequence[Path], why: str) -> None:
    for volume, extents in maps(disks):
        assert extents.method == "whole"
        assert extents.ranges.tolist() == [[0, volume.length]]
        assert why in (extents.reason or "")


def test_a_log_tree_means_whole(tmp_path: Path) -> None:
    disk, cut = tmp_path / "disk.img", tmp_path / "cut.img"
    make([disk])
    with devices([disk]) as attached, pool(attached, tmp_path / "mnt", "commit=300") as root:
        os.sync()
        with (root / "file").open("wb") as file:
            file.write(b"database" * 9_000)
            file.flush()
            os.fsync(file.fileno())
        cut_off(disk, cut)
    assert_whole([cut], "not unmounted cleanly")
    assert map_of(disk)[1].method == METHOD


def make_without_free_space_tree(disk: Path, at: Path) -> None:
    """As all filesystems were that btrfs-progs before 5.15 have made."""
    make([disk], "-R", "^free-space-tree", "-m", "single", "-n", "4096")
    with devices([disk]) as attached, pool(attached, at, "space_cache=v1") as root:
        live(root)


@pytest.mark.slow
def test_without_a_free_space_tree_all_other_trees_are_the_witness(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    make_without_free_space_tree(disk, tmp_path / "mnt")
    (extents,) = assert_equal_copies([disk], tmp_path)
    assert extents.total < 0.6 * SIZE


def test_an_extent_that_lies_elsewhere_without_a_free_space_tree(tmp_path: Path) -> None:
    """All counts still add up; but a file refers to what is called free."""
    disk = tmp_path / "disk.img"
    make_without_free_space_tree(disk, tmp_path / "mnt")
    volume, right = map_of(disk)
    reasons = set()
    for place in leaves(disk, 2):
        data = block(disk, place)
        for _, kind, _, at, _ in items(data):
            (start,) = struct.unpack_from("<Q", data, at)
            false = data[:at] + struct.pack("<Q", start + 4096) + data[at + 8 :]
            if kind == 168:
                with Patch(disk, place, summed(false)):
                    found = used(disk, volume)
                assert covers(found, right)
                assert found.method == "whole"
                reasons.add(found.reason)
    assert "the extent tree says that a file's content is free" in reasons


@pytest.mark.slow
def test_one_that_grew_shrank_and_was_balanced(tmp_path: Path) -> None:
    disks = [tmp_path / f"disk{index}.img" for index in range(3)]
    size = 300 * MIB  # the kernel shrinks no device below 256 MiB
    make(disks[:2], "-m", "raid1", "-d", "single", size=size)
    make_disk(disks[2], size, seed=None)
    with devices(disks) as attached, pool(attached[:2], tmp_path / "mnt") as root:
        live(root)
        process.run("btrfs", "device", "add", "-f", "-K", attached[2], root)
        process.run("btrfs", "device", "remove", attached[0], root)
        process.run("btrfs", "filesystem", "resize", f"2:{size - 12 * MIB - 8 * KIB}", root)
        process.run("btrfs", "balance", "start", "-dconvert=raid0", "-mconvert=raid0", "-f", root)
    for extents in assert_equal_copies(disks[1:], tmp_path):
        assert extents.total < 0.6 * size
    # The end of the second device is no longer part of it, and is read.
    (volume, shrunk), _ = maps(disks[1:])
    offset, length = shrunk.ranges[-1].tolist()
    assert offset <= size - 12 * MIB
    assert offset + length == volume.length


class TestDevicesThatDontFit:
    @pytest.fixture(scope="class")
    @staticmethod
    def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
        folder = tmp_path_factory.mktemp("pair")
        disks = [folder / "one.img", folder / "two.img"]
        make(disks, "-m", "raid1", "-d", "raid1")
        assert [extents.method for _, extents in maps(disks)] == [METHOD, METHOD]
        return disks

    def test_one_is_missing(self, pair: list[Path]) -> None:
        for disk in pair:
            assert_whole([disk], "spans 2 devices, of which 1 can be seen")
            volume = volume_of(disk)
            assert used(disk, volume).method == "whole"

    def test_one_is_there_twice(self, pair: list[Path], tmp_path: Path) -> None:
        copy = tmp_path / "copy.img"
        cut_off(pair[0], copy)
        assert_whole([pair[0], copy], "the same device")
        assert_whole([*pair, copy], "the same device")

    def test_one_is_of_another_moment(self, pair: list[Path], tmp_path: Path) -> None:
        copies = [tmp_path / "one.img", tmp_path / "two.img"]
        for disk, copy in zip(pair, copies, strict=True):
            cut_off(disk, copy)
        with devices(copies) as attached, pool(attached, tmp_path / "mnt") as root:
            (root / "file").write_bytes(b"new")
        assert_whole([copies[0], pair[1]], "same moment")

    def test_others_on_the_machine_are_none_of_its_business(
        self, pair: list[Path], tmp_path: Path
    ) -> None:
        other = tmp_path / "other.img"
        make([other])
        found = maps([pair[0], other, pair[1]])
        assert [extents.method for _, extents in found] == [METHOD] * 3
        assert [extents.method for _, extents in maps([pair[0], other])] == ["whole", METHOD]


def test_a_seed_and_what_grew_from_it(tmp_path: Path) -> None:
    seed, sprout = tmp_path / "seed.img", tmp_path / "sprout.img"
    make([seed], "-m", "single")
    with devices([seed]) as attached:
        with pool(attached, tmp_path / "mnt") as root:
            fill(root, files=30)
        process.run("btrfstune", "-S", "1", attached[0])
    make_disk(sprout, SIZE, seed=None)
    with devices([seed, sprout]) as attached, mounted(attached[0], tmp_path / "mnt") as root:
        process.run("btrfs", "device", "add", "-f", "-K", attached[1], root)
        process.run("mount", "-o", "remount,rw", root)
        (root / "new").write_bytes(b"grown" * 9_000)
    assert_whole([seed], "seed for other")
    assert_whole([sprout], "")


@pytest.mark.slow
def test_a_changed_uuid(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    make([disk])
    with devices([disk]) as attached:
        with pool(attached, tmp_path / "mnt") as root:
            live(root)
        process.run("btrfstune", "-m", attached[0])
    assert_equal_copies([disk], tmp_path)


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a filesystem with one copy of everything, and trees of several levels."""
    folder = tmp_path_factory.mktemp("lived")
    disk = folder / "disk.img"
    make([disk], "-m", "single", "-d", "single", "-n", "4096")
    with devices([disk]) as attached, pool(attached, folder / "mnt") as root:
        live(root)
        (root / "large").write_bytes(os.urandom(9 * MIB))
    yield disk
    assert map_of(disk)[1].method == METHOD


TREES = {"root": 1, "extent": 2, "chunk": 3, "device": 4, "free-space": 10}


def leaves(disk: Path, tree: int) -> list[int]:
    """Return where the leaves of a tree lie in the disk file."""
    with devices([disk]) as attached:
        name = {1: "root", 3: "chunk"}.get(tree, str(tree))
        text = process.run(
            "btrfs", "inspect-internal", "dump-tree", "--hide-names", "-t", name, attached[0]
        )
        chunks = process.run("btrfs", "inspect-internal", "dump-tree", "-t", "chunk", attached[0])
    found = [int(word) for word in re.findall(r"^leaf (\d+) items", text, re.MULTILINE)]
    form = r"CHUNK_ITEM (\d+)\).*?length (\d+).*?stripe 0 devid 1 offset (\d+)"
    shifts = [tuple(map(int, words)) for words in re.findall(form, chunks, re.DOTALL)]
    return [
        START + address - start + offset
        for address in found
        for start, length, offset in shifts
        if start <= address < start + length
    ]


def block(disk: Path, place: int, size: int = 4096) -> bytes:
    with disk.open("rb") as file:
        return os.pread(file.fileno(), size, place)


def summed(data: bytes) -> bytes:
    return struct.pack("<I", google_crc32c.value(data[32:])) + bytes(28) + data[32:]


@pytest.mark.parametrize("tree", TREES)
def test_wrong_checksums(tree: str, lived: Path) -> None:
    found = leaves(lived, TREES[tree])
    assert found
    for place in {found[0], found[len(found) // 2], found[-1]}:
        for offset in (0, 4_000):
            (byte,) = block(lived, place + offset, 1)
            with Patch(lived, place + offset, bytes([byte ^ 4])):
                assert_whole([lived], "wrong checksum")


def items(data: bytes) -> list[tuple[int, int, int, int, int]]:
    """Return key, and place in the block of the item and its content, of a leaf."""
    (count,) = struct.unpack_from("<I", data, 96)
    found = []
    for index in range(count):
        at = 101 + 25 * index
        owner, kind, offset, place, _ = struct.unpack_from("<QBQII", data, at)
        found.append((owner, kind, offset, at, 101 + place))
    return found


# Tree, type of an item, whether in the key, offset there, form, change, what may be said.
LIES = {
    "an extent begins later": (2, 168, True, 0, "<Q", 4096, ""),
    "an extent is shorter": (2, 168, True, 9, "<Q", -4096, ""),
    "an extent is something else": (2, 168, True, 8, "<B", 2, ""),
    "a tree block lies elsewhere": (2, 169, True, 0, "<Q", 4096, ""),
    "a group has less in use": (2, 192, False, 0, "<Q", -4096, "used bytes"),
    "a group is of another kind": (2, 192, False, 16, "<Q", 8, "groups and chunks"),
    "a group is longer": (2, 192, True, 9, "<Q", 4096, ""),
    "free space begins earlier": (10, 199, True, 0, "<Q", -4096, ""),
    "free space is longer": (10, 199, True, 9, "<Q", 4096, ""),
    "free space has another count": (10, 198, False, 0, "<I", 1, "its counts"),
    "a bit more is free": (10, 200, False, 0, "<B", None, ""),
    "a chunk lies elsewhere": (3, 228, False, 56, "<Q", 65536, ""),
    "a chunk is longer": (3, 228, False, 0, "<Q", 65536, ""),
    "a chunk is of another kind": (3, 228, False, 24, "<Q", 1 << 20, "profile"),
    "a chunk lies on another device": (3, 228, False, 48, "<Q", 1, ""),
    "a chunk has a device with another name": (3, 228, False, 64, "<Q", 1, "another device"),
    "a device is larger": (3, 216, False, 8, "<Q", 4096, "about the devices"),
    "a place is longer": (4, 204, False, 24, "<Q", 65536, "device tree"),
    "a place lies elsewhere": (4, 204, True, 9, "<Q", 65536, "device tree"),
    "a tree begins elsewhere": (1, 132, False, 176, "<Q", 4096, "something else"),
    "a tree is younger": (1, 132, False, 160, "<Q", 1, "something else"),
}


@pytest.mark.parametrize("lie", LIES)
def test_items_that_lie_with_a_right_checksum(lie: str, lived: Path) -> None:
    """The first and the last item of the kind in some leaves."""
    tree, kind, in_key, offset, form, change, why = LIES[lie]
    tried = 0
    for place in leaves(lived, tree):
        data = block(lived, place)
        found = [item for item in items(data) if item[1] == kind]
        # Of roots only the trees that are read; no system chunks, which the superblock has too.
        found = [item for item in found if kind != 132 or item[0] in {2, 4, 10}]
        found = [item for item in found if kind != 228 or not data[item[4] + 24] & 2]
        for _, _, _, at, content in found[:1] + found[-1:]:
            where = (at if in_key else content) + offset
            (value,) = struct.unpack_from(form, data, where)
            new = value ^ (0xFF & -value or 1) if change is None else value + change
            false = data[:where] + struct.pack(form, new) + data[where + struct.calcsize(form) :]
            with Patch(lived, place, summed(false)):
                assert_whole([lived], why)
            tried += 1
        if tried > 6:
            break
    assert tried


SUPERBLOCK_LIES = {
    "magic": (64, 1, None),
    "flags": (56, 4, "state"),
    "seeding": (60, 1, "seed"),
    "generation": (72, 1, "something else"),
    "root": (81, 16, "something else"),
    "chunk root": (89, 16, None),
    "log root": (97, 16, "not unmounted cleanly"),
    "used bytes": (121, 16, "used bytes"),
    "devices": (136, 1, "spans 2 devices"),
    "unknown compatible feature": (172, 1, "not known here"),
    "unknown read-only feature": (182, 1, "not known here"),
    "unknown feature": (190, 4, "not known here"),
    "zoned": (189, 0x10, "zoned"),
    "extent tree v2": (189, 0x20, "extent tree v2"),
    "stripe tree": (189, 0x40, "stripe tree"),
    "checksums": (196, 9, "checksum"),
    "device": (201, 1, None),
    "size of the device": (209 + 2, 1, None),
    "allocated on the device": (217 + 2, 1, "about the devices"),
    "name of the device": (267, 1, "about the devices"),
    "system chunks": (811 + 17 + 56 + 2, 1, None),
}


@pytest.mark.parametrize("lie", SUPERBLOCK_LIES)
def test_superblocks_that_lie_with_a_right_checksum(lie: str, lived: Path) -> None:
    offset, change, why = SUPERBLOCK_LIES[lie]
    volume = volume_of(lived)
    patches = []
    for place in (64 * KIB, 64 * MIB):
        data = block(lived, START + place)
        false = data[:offset] + bytes([data[offset] + change & 0xFF]) + data[offset + 1 :]
        patches.append(Patch(lived, START + place, summed(false)))
    with patches[0], patches[1]:
        found = used(lived, volume)
    assert found.method == "whole"
    assert (why or "") in (found.reason or "")


@pytest.mark.parametrize("place", [64 * KIB, 64 * MIB])
def test_superblocks_that_differ(place: int, lived: Path) -> None:
    volume = volume_of(lived)
    data = block(lived, START + place)
    label = data[:299] + b"other" + data[304:]
    for false, why in ((label, "wrong checksum"), (summed(label), "differ"), (bytes(4096), "")):
        with Patch(lived, START + place, false):
            found = used(lived, volume)
        assert found.method == "whole"
        assert why in (found.reason or "")


def test_no_single_wrong_byte_makes_the_map_smaller(lived: Path) -> None:
    rng = random.Random(23)
    blocks = [place for tree in TREES.values() for place in leaves(lived, tree)]
    places = [rng.choice(blocks) + rng.randrange(4096) for _ in range(150)]
    places += [START + 64 * KIB + rng.randrange(4096) for _ in range(50)]
    assert_no_wrong_bit_makes_it_smaller(lived, places, rng)


def test_no_wrong_bytes_under_a_right_checksum_make_the_map_smaller(lived: Path) -> None:
    """A few bytes at once, in what matters most: headers, keys, and the ends of leaves."""
    volume, right = map_of(lived)
    rng = random.Random(29)
    blocks = [place for tree in TREES.values() for place in leaves(lived, tree)]
    blocks += [START + 64 * KIB] * 20
    outcomes = set()
    for turn in range(300):
        place = rng.choice(blocks)
        false = bytearray(block(lived, place))
        for _ in range(rng.randrange(1, 4)):
            at = rng.choice([rng.randrange(32, 400), rng.randrange(32, 4096)])
            false[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        with Patch(lived, place, summed(bytes(false))):
            found = used(lived, volume)
        assert covers(found, right), f"turn {turn}"
        outcomes.add(found.method)
    assert outcomes == {"whole", METHOD}
