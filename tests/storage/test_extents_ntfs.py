"""NTFS on real disk files: the map holds every file, or is everything."""

import os
import random
import re
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import mounts
import numpy as np
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
    partition_image,
    read,
)

from imager import blockdev, process
from imager.extents import ntfs
from imager.extents.extents import UncertainMapError
from imager.extents.used import used
from imager.units import GIB, MIB
from tests.guest import life

SIZE = 48 * MIB
VARIANTS = {
    "default": (),
    "512": ("-c", "512"),
    "2k": ("-c", "2048"),
    "64k": ("-c", "65536"),
    "128k": ("-c", "131072"),
    "4kn": ("-s", "4096"),
    "compressed": ("-C",),
}


def make_ntfs(disk: Path, options: tuple[str, ...], size: int = SIZE) -> None:
    """Make a filesystem in the partition of a noisy disk and let it live."""
    make_disk(disk, size)
    with partition_image(disk, size) as image:
        process.run("mkntfs", "-q", "-F", "-Q", *options, image)
        with mounts.ntfs(image, disk.with_suffix(".mount")) as root:
            life.fill(root, 1)
            life.churn(root, 2)
            life.scatter(root, 150, 4096)
            life.fill(root, 3, 60)


FAST = ("512", "4kn", "compressed")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in VARIANTS
    ],
)
def disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "disk.img"
    make_ntfs(path, VARIANTS[request.param])
    return path


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("one") / "disk.img"
    make_ntfs(path, VARIANTS["512"])
    return path


def content(image: Path, place: Path) -> dict[str, str]:
    """Return all there is; ntfs-3g's own checks must find nothing."""
    assert "NTFS volume version is 3.1" in process.run("ntfsfix", "-n", image)
    with mounts.ntfs(image, place, "ro") as root:
        return life.state(root)


def partclone_map(image: Path, folder: Path) -> list[tuple[int, int]]:
    """Return the used ranges as partclone sees them."""
    domain = folder / "domain"
    process.run("partclone.ntfs", "-D", "-s", image, "-o", domain, "-L", "/dev/null", "-F")
    rows = re.findall(r"^(0x\w+)\s+(0x\w+)\s+\+$", domain.read_text(), re.MULTILINE)
    return [(int(start, 16), int(length, 16)) for start, length in rows]


def test_map_holds_all_that_matters(disk: Path, tmp_path: Path) -> None:
    before = digest(disk)
    volume, extents = map_of(disk)
    assert digest(disk) == before
    assert volume.filesystem is not None
    assert volume.filesystem.type == "ntfs"
    assert (extents.method, extents.reason) == ("NTFS cluster bitmap", None)
    assert extents.total < 0.85 * volume.length
    original = tmp_path / "original"
    with disk.open("rb") as file:
        original.write_bytes(os.pread(file.fileno(), volume.length, volume.offset))
    files = content(original, tmp_path / "place")
    assert len(files) > 150
    theirs = partclone_map(original, tmp_path)
    end = volume.length - 2 * extents.block_size
    ours = [row for row in extents.ranges.tolist() if row[0] < end]
    assert [start for start, _ in theirs] == [start for start, _ in ours]
    assert 0 <= extents.total - sum(length for _, length in theirs) <= 2 * extents.block_size
    for seed in (None, 78):
        copy = tmp_path / f"{seed}.img"
        copy_used(disk, volume, extents, copy, seed)
        assert content(copy, tmp_path / f"place-{seed}") == files
        copy.unlink()


@dataclass
class Places:
    """Where the metadata of the one disk lies."""

    cluster: int
    record: int
    mft: int
    mirror: int
    bitmap: int
    log: int


def places(disk: Path) -> Places:
    with disk.open("rb") as file:
        boot = os.pread(file.fileno(), 512, START)
        image = disk.with_suffix(".ntfs")
        image.write_bytes(os.pread(file.fileno(), SIZE, START))
    cluster = int.from_bytes(boot[11:13], "little") * boot[13]

    def first(number: int, kind: str) -> int:
        text = process.run("ntfsinfo", "-f", "-v", "-i", str(number), image)
        found = re.search(rf"attribute \{kind} .*?LCN\s+Length\s+0x0\s+0x(\w+)", text, re.DOTALL)
        assert found
        return START + int(found[1], 16) * cluster

    try:
        return Places(
            cluster, 1024, *(first(number, "$DATA") for number in (0, 1)),
            first(6, "$DATA"), first(2, "$DATA"),
        )  # fmt: skip
    finally:
        image.unlink()


def in_record(disk: Path, number: int, find: bytes, shift: int, data: bytes) -> list[Patch]:
    """Return patches of a record and of its mirror, at some distance of what is found in it."""
    where = places(disk)
    base = where.mft + number * where.record
    offset = read(disk, base, where.record).index(find) + shift
    found = [Patch(disk, base + offset, data)]
    if number < 4:
        found.append(Patch(disk, where.mirror + number * where.record + offset, data))
    return found


# The attribute of kind VOLUME_INFORMATION, resident, 12 bytes of value
INFORMATION = b"\x70\x00\x00\x00\x28\x00\x00\x00\x00"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x03\x01\x01\x00", "not unmounted cleanly"),
        (b"\x03\x01\x04\x00", "has work to do"),
        (b"\x03\x01\x00\x40", "has work to do"),
        (b"\x01\x02\x00\x00", "NTFS 1.2"),
        (b"\x04\x00\x00\x00", "NTFS 4.0"),
        (b"\x03\x01\x80\x80", None),
        (b"\x03\x01\x40\x00", "has work to do"),
    ],
)
def test_state_of_the_volume(one: Path, data: bytes, why: str | None) -> None:
    with ExitStack() as stack:
        for patch in in_record(one, 3, INFORMATION, 24 + 8, data):
            stack.enter_context(patch)
        if why is None:
            assert map_of(one)[1].method == "NTFS cluster bitmap"
        else:
            assert_whole(one, why)


def restart_page(sequence: int, major: int, client: int, flags: int) -> bytes:
    """A page of the log as Windows writes it."""
    page = bytearray(4096)
    page[0:4] = b"RSTR"
    page[4:8] = b"\x1e\x00\x09\x00"
    page[16:20] = page[20:24] = (4096).to_bytes(4, "little")
    page[24:26] = b"\x30\x00"
    page[26:30] = b"\x01\x00" + major.to_bytes(2, "little")
    page[0x30:0x38] = sequence.to_bytes(8, "little")
    page[0x38:0x40] = (
        b"\x01\x00\xff\xff" + client.to_bytes(2, "little") + flags.to_bytes(2, "little")
    )
    for end in range(512, 4097, 512):
        page[end - 2 : end] = b"\x07\x00"
    page[0x1E:0x20] = b"\x07\x00"
    return bytes(page)


@pytest.mark.parametrize(
    ("pages", "why"),
    [
        (((5, 1, 0xFFFF, 0), (6, 1, 0xFFFF, 0)), None),
        (((5, 1, 0, 2), (6, 1, 0, 2)), None),
        (((5, 1, 0xFFFF, 0), (6, 1, 0, 0)), "waits to be replayed"),
        (((6, 1, 0, 0), (5, 1, 0xFFFF, 0)), "waits to be replayed"),
        (((6, 2, 0xFFFF, 0), (5, 2, 0xFFFF, 0)), "fast startup"),
    ],
)
def test_log(one: Path, pages: tuple[tuple[int, int, int, int], ...], why: str | None) -> None:
    data = b"".join(restart_page(*page) for page in pages)
    with Patch(one, places(one).log, data):
        if why is None:
            assert map_of(one)[1].method == "NTFS cluster bitmap"
        else:
            assert_whole(one, why)
    for broken in (
        b"CHKD" + data[4:],
        data[:510] + b"\x08" + data[511:],
        b"\xff" * 4096 + data[4096:],
    ):
        with Patch(one, places(one).log, broken):
            assert_whole(one, "the log makes no sense")


def test_log_that_is_not_empty(one: Path) -> None:
    with Patch(one, places(one).log + 100_000, b"X"):
        assert_whole(one, "holds something")


@pytest.mark.parametrize(
    ("header", "is_whole"),
    [(b"hibr", True), (b"HIBR", True), (b"RSTR", True), (b"wake", False), (b"", False)],
)
def test_hibernated(tmp_path: Path, header: bytes, is_whole: bool) -> None:
    image = tmp_path / "volume.img"
    with image.open("wb") as file:
        file.truncate(16 * MIB)
    process.run("mkntfs", "-q", "-F", "-Q", image)
    with mounts.ntfs(image, tmp_path / "mount") as root:
        (root / "folder").mkdir()
        (root / "folder" / "hiberfil.sys").write_bytes(b"hibr" + bytes(9_000))
        (root / "HiberFil.sys").write_bytes(header.ljust(4, b"\0") + bytes(200_000))
    with blockdev.open_disk(image) as fd:
        if is_whole:
            with pytest.raises(UncertainMapError, match="hibernated"):
                ntfs.read(fd, 0, 16 * MIB)
        else:
            assert ntfs.read(fd, 0, 16 * MIB).method == "NTFS cluster bitmap"


def test_backup_and_what_lies_behind(one: Path) -> None:
    volume, extents = map_of(one)
    ends = extents.ranges[:, 0] + extents.ranges[:, 1]
    assert int(ends[-1]) == volume.length
    assert read(one, volume.end - 512, 512) == read(one, volume.offset, 512)


def test_bitmap_that_lost_a_bit(one: Path) -> None:
    """Whatever used cluster it is: a file, a folder, a table."""
    where = places(one)
    clusters = SIZE // where.cluster
    content = read(one, where.bitmap, clusters // 8)
    bits = np.unpackbits(np.frombuffer(content, dtype=np.uint8), bitorder="little")
    used_clusters = np.flatnonzero(bits[: clusters - 1])
    rng = random.Random(4)
    chosen = [0, int(used_clusters[-1]), *rng.sample(used_clusters.tolist(), 12)]
    for cluster in chosen:
        byte = content[cluster // 8] & ~(1 << cluster % 8)
        with Patch(one, where.bitmap + cluster // 8, bytes([byte])):
            assert_whole(one, "clusters are free")


def test_mirror_that_differs(one: Path) -> None:
    where = places(one)
    with Patch(one, where.mirror + 2 * where.record + 0x50, b"\x55"):
        assert_whole(one, "mirror differ")


def test_record_that_was_torn(one: Path) -> None:
    where = places(one)
    with Patch(one, where.mft + 64 * where.record + 510, b"\x99\x99"):
        assert_whole(one, "in part only")


def test_record_that_is_said_to_be_free(one: Path) -> None:
    where = places(one)
    with Patch(one, where.mft + 64 * where.record + 22, b"\x00"):
        assert_whole(one, "own bitmap disagree")


def test_record_in_the_wrong_place(one: Path) -> None:
    where = places(one)
    moved = read(one, where.mft + 70 * where.record, where.record)
    with Patch(one, where.mft + 72 * where.record, moved):
        assert_whole(one, "not where it should be")


@pytest.mark.parametrize(
    ("offset", "data", "why"),
    [
        (3, b"X", ""),
        (11, b"\x00\x03", "no sense"),
        (13, b"\x03", "no sense"),
        (16, b"\x02", "no sense"),
        (40, b"\xff\xff\xff\xff", "larger than"),
        (48, b"\x09", ""),
        (56, b"\x09", ""),
        (64, b"\xf0", "no sense"),
    ],
)
def test_boot_sector(one: Path, offset: int, data: bytes, why: str) -> None:
    volume, _ = map_of(one)
    with Patch(one, START + offset, data):
        assert_whole(one, why, volume)


def test_bad_clusters_are_left_out(tmp_path: Path) -> None:
    """The stream $Bad, one hole as long as the volume, gets two clusters at its place 3000."""
    image = tmp_path / "volume.img"
    size = 16 * MIB
    with image.open("wb") as file:
        file.truncate(size)
    process.run("mkntfs", "-q", "-F", "-Q", "-c", "4096", image)
    with image.open("rb") as file:
        data = file.read()
    mft = int.from_bytes(data[48:56], "little") * 4096
    record = mft + 8 * 1024
    # Kind DATA, in clusters, name of 4 letters; mapping pairs behind the name: a hole of 4095
    hole = data.index(b"\x02\xff\x0f\x00", record, record + 1024)
    runs = b"\x02\xb8\x0b" + b"\x21\x02\xb8\x0b" + b"\x02\x45\x04" + b"\0"
    start = data.rindex(b"\x80\x00\x00\x00", record, hole)
    length = int.from_bytes(data[start + 4 : start + 8], "little")
    rest = data[start + length : record + 1024]
    grown = (hole - start + len(runs) + 7) // 8 * 8
    attribute = bytearray(data[start:hole] + runs).ljust(grown, b"\0")
    attribute[4:8] = grown.to_bytes(4, "little")
    body = data[record:start] + attribute + rest
    patched = bytearray(body[:1024])
    patched[24:28] = (int.from_bytes(patched[24:28], "little") + grown - length).to_bytes(
        4, "little"
    )
    for end in (512, 1024):
        patched[end - 2 : end] = data[record + end - 2 : record + end]
    with ExitStack() as stack:
        stack.enter_context(Patch(image, record, bytes(patched)))
        fd = stack.enter_context(blockdev.open_disk(image))
        with pytest.raises(UncertainMapError, match="clusters are free"):
            ntfs.read(fd, 0, size)
        text = process.run("ntfsinfo", "-f", "-v", "-i", "6", image)
        found = re.search(r"LCN\s+Length\s+0x0\s+0x(\w+)", text)
        assert found
        stack.enter_context(Patch(image, int(found[1], 16) * 4096 + 3000 // 8, b"\x03"))
        extents = ntfs.read(fd, 0, size)
        assert not np.any(
            (extents.ranges[:, 0] <= 3000 * 4096) & (extents.ranges.sum(1) > 3000 * 4096)
        )


def test_large_clusters_and_a_large_volume(tmp_path: Path) -> None:
    for cluster in (1 * MIB, 2 * MIB):
        image = tmp_path / "volume.img"
        with image.open("wb") as file:
            file.truncate(200 * GIB)
        process.run("mkntfs", "-q", "-F", "-Q", "-c", str(cluster), image)
        with blockdev.open_disk(image) as fd:
            extents = ntfs.read(fd, 0, 200 * GIB)
        assert (extents.method, extents.block_size) == ("NTFS cluster bitmap", cluster)
        assert extents.total < 150 * MIB
        image.unlink()


def test_an_mft_in_many_pieces(tmp_path: Path) -> None:
    """Its list of clusters is longer than one record, so records are needed to read records."""
    image = tmp_path / "volume.img"
    size = 14 * MIB
    image.write_bytes(noise(size, 5))
    process.run("mkntfs", "-q", "-F", "-Q", "-c", "512", "-z", "1", image)
    with mounts.ntfs(image, tmp_path / "mount") as root:
        count = 0
        with suppress(OSError):  # until it is full
            while True:
                (root / f"{count}").write_bytes(b"x" * 1024)
                count += 1
        for number in range(0, count, 2):
            (root / f"{number}").unlink()
        with suppress(OSError):
            for number in range(count):
                (root / f"more {number}").write_bytes(b"y" * 30)
    assert "ATTRIBUTE_LIST" in process.run("ntfsinfo", "-f", "-v", "-i", "0", image)
    with blockdev.open_disk(image) as fd:
        extents = ntfs.read(fd, 0, size)
    assert extents.method == "NTFS cluster bitmap"


def test_no_single_wrong_byte_makes_the_map_smaller(one: Path) -> None:
    volume, right = map_of(one)
    where = places(one)
    rng = random.Random(9)
    chosen = [START + rng.randrange(90) for _ in range(30)]
    for _ in range(50):
        chosen.append(where.mft + rng.randrange(200) * where.record + rng.randrange(400))
        chosen.append(where.bitmap + rng.randrange(SIZE // where.cluster // 8))
    methods = []
    for place in chosen:
        changed = bytes([read(one, place, 1)[0] ^ 1 << rng.randrange(8)])
        with Patch(one, place, changed):
            found = used(one, volume)
        assert covers(found, right), f"byte {place - START} of the volume"
        methods.append(found.method)
    assert methods.count("whole") > 25
    assert map_of(one)[1].method == "NTFS cluster bitmap"
