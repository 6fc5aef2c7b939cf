"""ext2, ext3 and ext4 on real disk files: the map holds every file, or is everything."""

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from disk_files import (
    START,
    Patch,
    assert_no_wrong_bit_makes_it_smaller,
    assert_whole,
    copy_used,
    digest,
    make_disk,
    map_of,
    noise,
    tree_digest,
    volume_of,
)

from imager import blockdev, process
from imager.extents.extents import Extents
from imager.extents.used import used
from imager.probe.disk import probe_disk
from imager.units import MIB

SIZE = 64 * MIB
# Without lazy tables, since a noisy disk would give noisy inode tables; some variants keep them.
FULL = ("-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0")
LAZY = ("-E", "nodiscard")

VARIANTS = {
    "ext2": ("-t", "ext2", *FULL),
    "ext3": ("-t", "ext3", *FULL),
    "ext4": ("-t", "ext4", *FULL),
    "ext4-lazy": ("-t", "ext4", *LAZY),
    "ext4-1k": ("-t", "ext4", "-b", "1024", *FULL),
    "ext4-2k": ("-t", "ext4", "-b", "2048", *FULL),
    "ext2-1k": ("-t", "ext2", "-b", "1024", *FULL),
    "no-journal": ("-t", "ext4", "-O", "^has_journal", *FULL),
    "32bit": ("-t", "ext4", "-O", "^64bit", *FULL),
    "no-checksums": ("-t", "ext4", "-O", "^metadata_csum", *FULL),
    "uninit-bg": ("-t", "ext4", "-O", "^metadata_csum,uninit_bg", "-b", "1024", *LAZY),
    "no-flex": ("-t", "ext4", "-O", "^flex_bg", "-b", "1024", *FULL),
    "sparse-super2": ("-t", "ext4", "-O", "sparse_super2,^resize_inode", "-b", "1024", *FULL),
    "meta-bg": ("-t", "ext4", "-O", "meta_bg,^resize_inode", "-b", "1024", *FULL),
    "inline-data": ("-t", "ext4", "-O", "inline_data", "-I", "512", *FULL),
    "orphan-file": ("-t", "ext4", "-O", "orphan_file", *FULL),
    "small-groups": ("-t", "ext4", "-b", "1024", "-g", "1024", *FULL),
    "many-features": ("-t", "ext4", "-O", "casefold,encrypt,project,verity,ea_inode", *FULL),
}


def debugfs(path: Path, *requests: str) -> None:
    name = f"{path}?offset={START}"
    process.run("debugfs", "-w", "-f", "-", name, stdin="\n".join(requests).encode() + b"\n")


def make_tree(root: Path) -> None:
    rng = random.Random(5)
    for folder in range(4):
        (root / f"d{folder}").mkdir(parents=True)
        for index in range(14):
            path = root / f"d{folder}" / f"file{index}"
            path.write_bytes(noise(rng.choice([0, 40, 900, 5_000, 70_000, 700_000]), index))
    (root / "link").symlink_to("d1/file3")
    (root / "long-link").symlink_to("x" * 200)
    with (root / "sparse").open("wb") as file:
        file.truncate(9 * MIB)
        os.pwrite(file.fileno(), b"island" * 900, 5 * MIB)


def make_filesystem(path: Path, options: tuple[str, ...], tree: Path, size: int = SIZE) -> None:
    """Make a filesystem in the partition, fill it, and let it live: deleted and written again."""
    make_disk(path, size)
    if not tree.exists():
        make_tree(tree)
    extended = options[options.index("-E") + 1] + f",offset={START}"
    rest = tuple(word for word in options if word not in {"-E", options[options.index("-E") + 1]})
    process.run("mke2fs", "-q", "-F", *rest, "-E", extended, "-d", tree, path, f"{size // 1024}k")
    requests = [f"rm /d{folder}/file{index}" for folder in range(4) for index in range(0, 14, 3)]
    requests += [f"write {tree}/d2/file{index} /new{index}" for index in range(1, 14, 2)]
    debugfs(path, *requests)


def check_filesystem(path: Path, offset: int, into: Path) -> dict[str, str]:
    """Return all there is in a filesystem; it must be without a fault."""
    name = f"{path}?offset={offset}"
    process.run("e2fsck", "-f", "-n", name)
    into.mkdir()
    process.run("debugfs", "-R", f"rdump / {into}", name)
    return tree_digest(into)


@pytest.mark.parametrize("variant", VARIANTS)
def test_map_holds_all_that_matters(variant: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    make_filesystem(disk, VARIANTS[variant], tmp_path / "tree")
    before = digest(disk)
    volume, extents = map_of(disk)
    assert digest(disk) == before
    assert volume.filesystem is not None
    assert volume.filesystem.type.startswith("ext")
    assert (extents.method, extents.reason) == ("ext block bitmap", None)
    assert extents.total < 0.7 * volume.length
    original = check_filesystem(disk, START, tmp_path / "original")
    assert len(original) > 40
    for name, seed in (("blank", None), ("noisy", 77)):
        copy = tmp_path / f"{name}.img"
        copy_used(disk, volume, extents, copy, seed)
        assert check_filesystem(copy, 0, tmp_path / name) == original


def test_bytes_behind_the_filesystem_are_read(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    make_filesystem(disk, VARIANTS["ext4-1k"], tmp_path / "tree", size=SIZE)
    shorter = SIZE - 3 * MIB - 1536
    process.run(
        "mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-E", f"nodiscard,offset={START}",
        disk, f"{shorter // 1024}k",
    )  # fmt: skip
    volume, extents = map_of(disk)
    assert extents.method == "ext block bitmap"
    end = shorter // 1024 * 1024
    offset, length = extents.ranges[-1].tolist()
    assert offset <= end
    assert offset + length == volume.length


def test_whole_disk_filesystem(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"")
    process.run("mke2fs", "-q", "-F", "-t", "ext4", disk, "64M")
    (volume,) = probe_disk(disk, "disk0", blockdev.identify(disk).identity).volumes
    assert used(disk, volume).method == "ext block bitmap"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a filesystem without any checksums: nothing but the counts protects its bitmaps."""
    folder = tmp_path_factory.mktemp("plain")
    disk = folder / "disk.img"
    options = ("-t", "ext4", "-O", "^metadata_csum,^uninit_bg", "-b", "1024", *FULL)
    make_filesystem(disk, options, folder / "tree", size=40 * MIB)
    return disk


@pytest.fixture(scope="module")
def summed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a filesystem with checksums over all metadata."""
    folder = tmp_path_factory.mktemp("summed")
    disk = folder / "disk.img"
    options = ("-t", "ext4", "-O", "metadata_csum", "-b", "1024", *FULL)
    make_filesystem(disk, options, folder / "tree", size=40 * MIB)
    return disk


def table_blocks(path: Path) -> dict[str, int]:
    """Return where the tables of group 0 lie, from the first descriptor (1 KiB blocks)."""
    with path.open("rb") as file:
        file.seek(START + 2048)
        bitmap, inode_bitmap, inode_table = struct.unpack("<3I", file.read(12))
    return {"bitmap": bitmap, "inode bitmap": inode_bitmap, "inode table": inode_table}


def superblock_patch(path: Path, offset: int, data: bytes) -> Patch:
    return Patch(path, START + 1024 + offset, data)


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ("feature needs_recovery", "journal"),
        ("feature orphan_present", "cleaned up"),
        ("feature FEATURE_C30", "not known"),
        ("feature FEATURE_R29", "not known"),
        ("ssv state 0", "not marked as clean"),
        ("ssv state 3", "not marked as clean"),
        ("ssv free_blocks_count 12345", "superblock disagree"),
        ("set_bg 1 free_blocks_count 12", "group 1 disagree"),
        ("ssv blocks_count 50000", "larger than the volume"),
        ("ssv blocks_count 30000", "dumpe2fs"),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "summed"])
def test_contradictions_mean_whole(
    request_: str, why: str, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source: Path = request.getfixturevalue(kind)
    disk = tmp_path / "disk.img"
    disk.write_bytes(source.read_bytes())
    debugfs(disk, request_)
    assert digest(disk) != digest(source)
    # Where there are checksums, debugfs leaves a group's own one behind, which is noticed first.
    assert_whole(disk, "group 1" if kind == "summed" and "set_bg" in request_ else why)


@pytest.mark.parametrize(("feature", "why"), [("bigalloc", "bigalloc"), ("mmp", "multi-mount")])
def test_features_that_mean_whole(feature: str, why: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    make_filesystem(disk, ("-t", "ext4", "-O", feature, *FULL), tmp_path / "tree")
    assert_whole(disk, why)


def test_lost_bit_without_checksums(plain: Path) -> None:
    place = START + 1024 * table_blocks(plain)["bitmap"]
    with Patch(plain, place, b"\x0f"):
        assert_whole(plain, "group 0 disagree")
    with Patch(plain, place, bytes(1024)):
        assert_whole(plain, "group 0 disagree")
    assert map_of(plain)[1].method == "ext block bitmap"


def test_tables_that_are_called_free(plain: Path, tmp_path: Path) -> None:
    """Counts that still add up do not help: another block was marked as used instead."""
    disk = tmp_path / "disk.img"
    for name, block in table_blocks(plain).items():
        disk.write_bytes(plain.read_bytes())
        data = bytearray(disk.read_bytes()[START + 1024 * table_blocks(plain)["bitmap"] :][:1024])
        data[(block - 1) // 8] &= ~(1 << (block - 1) % 8) & 0xFF
        index = next(index for index in range(1024) if data[index] == 0)
        data[index] = 1
        with Patch(disk, START + 1024 * table_blocks(plain)["bitmap"], bytes(data)):
            assert_whole(disk, "tables are free"), name


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ("superblock", "Superblock checksum does not match"),
        ("descriptors", "descriptor of group 1 has a wrong checksum"),
        ("bitmap", "Block bitmap checksum does not match"),
    ],
)
def test_wrong_checksums(table: str, why: str, summed: Path) -> None:
    """Also where all counts still add up: a used and a free block have changed places."""
    bitmap = START + 1024 * table_blocks(summed)["bitmap"]
    with summed.open("rb") as file:
        data = os.pread(file.fileno(), 1024, bitmap)
        full = data.rindex(b"\xff")
        place, change = {
            "superblock": (START + 1024 + 0x34, b"\x77"),
            "descriptors": (START + 2048 + 64 + 0x10, b"\x77"),
            "bitmap": (bitmap, data[:full] + b"\xfe" + data[full + 1 :].replace(b"\0", b"\1", 1)),
        }[table]
    with Patch(summed, place, change):
        assert_whole(summed, why)
    assert map_of(summed)[1].method == "ext block bitmap"


@pytest.mark.parametrize("kind", ["plain", "summed"])
def test_no_single_wrong_byte_makes_the_map_smaller(
    kind: str, request: pytest.FixtureRequest
) -> None:
    disk: Path = request.getfixturevalue(kind)
    tables = table_blocks(disk)
    rng = random.Random(11)
    places = [START + 1024 + rng.randrange(0x160) for _ in range(60)]  # superblock
    places += [START + 2048 + rng.randrange(5 * 64) for _ in range(60)]  # descriptors
    places += [START + 1024 * tables["bitmap"] + rng.randrange(1024) for _ in range(40)]
    assert_no_wrong_bit_makes_it_smaller(disk, places, rng)


class TestTrustsNothingBlindly:
    """What dumpe2fs might say one day, or on a disk that changes under it."""

    @pytest.mark.parametrize(
        ("spoil", "why"),
        [
            (lambda text: text.replace("Group 3:", "Gruppe 3:"), "disagree about the block groups"),
            (lambda text: text.replace("  Free blocks: ", "  Freie: ", 1), "list the free blocks"),
            (lambda text: text[: text.index("Group 4:")], "every block group"),
            (
                lambda text: text.replace("  Free blocks: ", "  Free blocks: 70000-70001, ", 1),
                "beyond its group",
            ),
            (lambda text: text.replace("  Free blocks: ", "  Free blocks: x, ", 1), "unknown form"),
            (lambda _: "", "list the free blocks"),
        ],
    )
    def test_spoiled_report(
        self,
        plain: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        spoil: Callable[[str], str],
        why: str,
    ) -> None:
        volume = volume_of(plain)
        text = spoil(process.run("dumpe2fs", f"{plain}?offset={START}"))
        self.pretend(text, "", tmp_path, monkeypatch)
        found: Extents = used(plain, volume)
        assert found.method == "whole"
        assert why in (found.reason or "")

    @pytest.mark.parametrize(
        ("end", "why"), [("", None), ("echo no >&2", "content with it: no"), ("exit 3", "code 3")]
    )
    def test_complaints(
        self,
        plain: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        end: str,
        why: str | None,
    ) -> None:
        volume = volume_of(plain)
        text = process.run("dumpe2fs", f"{plain}?offset={START}")
        self.pretend(text, end, tmp_path, monkeypatch)
        found = used(plain, volume)
        assert found.method == ("whole" if why else "ext block bitmap")
        assert (why or "") in (found.reason or "")

    def pretend(self, text: str, end: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put a dumpe2fs first in the path that says something else."""
        (folder / "report").write_text(text)
        program = folder / "dumpe2fs"
        program.write_text(f"#!/bin/sh\necho dumpe2fs 1.47.0 >&2\ncat {folder / 'report'}\n{end}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
