"""exFAT on real disk files: the map holds every file, or is everything."""

import os
import random
import struct
from contextlib import ExitStack
from pathlib import Path

import mounts
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
from imager.extents import exfat
from imager.extents.extents import UncertainMapError
from imager.extents.used import used
from imager.units import GIB, MIB
from tests.guest import life

SIZE = 40 * MIB
VARIANTS = {
    "default": (),
    "512": ("-c", "512"),
    "32k": ("-c", "32K"),
    "aligned": ("-b", "4M", "-L", "a label"),
    "packed": ("-c", "8K", "--pack-bitmap"),
}


def make_exfat(disk: Path, options: tuple[str, ...]) -> None:
    """Make a filesystem in the partition of a noisy disk and let it live."""
    make_disk(disk, SIZE)
    with partition_image(disk, SIZE) as image:
        process.run("mkfs.exfat", *options, image)
        with mounts.exfat(image, disk.with_suffix(".mount")) as root:
            life.fill(root, 1)
            life.churn(root, 2)
            life.scatter(root, 30)
            life.fill(root, 3, 40)


FAST = ("512", "32k", "packed")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in VARIANTS
    ],
)
def disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "disk.img"
    make_exfat(path, VARIANTS[request.param])
    return path


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("one") / "disk.img"
    make_exfat(path, VARIANTS["512"])
    return path


def content(image: Path, place: Path) -> dict[str, str]:
    """Return all there is; the checker must find nothing."""
    assert "clean" in process.run("fsck.exfat", "-n", image)
    with mounts.exfat(image, place) as root:
        return life.state(root)


def test_map_holds_all_that_matters(disk: Path, tmp_path: Path) -> None:
    before = digest(disk)
    volume, extents = map_of(disk)
    assert digest(disk) == before
    assert volume.filesystem is not None
    assert volume.filesystem.type == "exfat"
    assert (extents.method, extents.reason) == ("exFAT allocation bitmap", None)
    assert extents.total < 0.75 * volume.length
    original = tmp_path / "original"
    with disk.open("rb") as file:
        original.write_bytes(os.pread(file.fileno(), volume.length, volume.offset))
    process.run(
        "partclone.exfat", "-D", "-s", original, "-o", tmp_path / "map", "-L", "/dev/null", "-F"
    )
    for line in (tmp_path / "map").read_text().splitlines():
        if line.endswith("+"):
            start, length = (int(word, 16) for word in line.split()[:2])
            inside = extents.ranges[extents.ranges[:, 0] <= start][-1]
            assert start + length <= int(inside.sum()), "partclone says that more is used"
    files = content(original, tmp_path / "place")
    assert len(files) > 120
    for seed in (None, 78):
        copy = tmp_path / f"{seed}.img"
        copy_used(disk, volume, extents, copy, seed)
        assert content(copy, tmp_path / f"place-{seed}") == files
        copy.unlink()


class Boot:
    """Where things lie; offsets on the disk."""

    def __init__(self, disk: Path) -> None:
        data = read(disk, START, 512)
        fat, _, heap, self.clusters, self.root = struct.unpack_from("<5I", data, 80)
        self.sector = 1 << data[108]
        self.cluster = self.sector << data[109]
        self.fat = START + fat * self.sector
        self.heap = START + heap * self.sector
        entries = read(disk, self.place(self.root), self.cluster)
        at = next(at for at in range(0, self.cluster, 32) if entries[at] == 0x81)
        self.bitmap = self.place(int.from_bytes(entries[at + 20 : at + 24], "little"))

    def place(self, cluster: int) -> int:
        return self.heap + (cluster - 2) * self.cluster


def checksum(region: bytes) -> int:
    total = 0
    for index, byte in enumerate(region):
        if index not in {106, 107, 112}:
            total = ((total >> 1 | total << 31) + byte) & 0xFFFFFFFF
    return total


def in_boot(disk: Path, offset: int, data: bytes) -> list[Patch]:
    """Change both boot regions, with right checksums, so that only what it says is wrong."""
    found = []
    for place in (START, START + 12 * 512):
        region = bytearray(read(disk, place, 11 * 512))
        region[offset : offset + len(data)] = data
        total = checksum(bytes(region)).to_bytes(4, "little")
        found += [Patch(disk, place, bytes(region)), Patch(disk, place + 11 * 512, total * 128)]
    return found


@pytest.mark.parametrize(
    ("offset", "data", "why"),
    [
        (106, b"\x02", "not unmounted cleanly"),
        (106, b"\x04", "failing"),
        (106, b"\x01", "TexFAT"),
        (110, b"\x02", "TexFAT"),
        (104, b"\x00\x02", "exFAT 2.00"),
        (72, b"\xff\xff\xff", "larger than"),
        (88, b"\x07", "no sense"),
        (96, b"\x00\x00\x00\x00", "no sense"),
        (92, b"\xff\xff\xff\x7f", "no sense"),
    ],
)
def test_boot_sector(one: Path, offset: int, data: bytes, why: str) -> None:
    volume, _ = map_of(one)
    with ExitStack() as stack:
        for patch in in_boot(one, offset, data):
            stack.enter_context(patch)
        assert_whole(one, why, volume)


def test_checksum_of_the_boot_regions(one: Path) -> None:
    for place in (START + 100, START + 3 * 512, START + 12 * 512 + 100):
        with Patch(one, place, b"\x77"):
            assert_whole(one, "wrong checksum")
    with ExitStack() as stack:
        for patch in in_boot(one, 100, b"\x77")[:2]:
            stack.enter_context(patch)
        assert_whole(one, "differ")


def files_of(disk: Path) -> list[tuple[int, bytes]]:
    """Return the stream entries of the root and the first folder, with their places."""
    boot = Boot(disk)
    found: list[tuple[int, bytes]] = []
    waiting = [boot.root]
    while waiting:
        place = boot.place(waiting.pop())
        data = read(disk, place, boot.cluster)
        for at in range(0, boot.cluster, 32):
            if data[at] == 0xC0 and data[at + 1] & 1:
                found.append((place + at, data[at : at + 32]))
                if data[at - 32 + 4] & 0x10:
                    waiting.append(int.from_bytes(data[at + 20 : at + 24], "little"))
    return found


def test_bitmap_that_lost_a_bit(one: Path) -> None:
    boot = Boot(one)
    entries = files_of(one)
    firsts = [int.from_bytes(entry[20:24], "little") for _, entry in entries]
    assert len({entry[1] & 2 for _, entry in entries}) == 2, "contiguous and chained ones"
    for cluster in [boot.root, *(first for first in firsts[:40] if first)]:
        index = cluster - 2
        byte = read(one, boot.bitmap + index // 8, 1)[0] & ~(1 << index % 8)
        with Patch(one, boot.bitmap + index // 8, bytes([byte])):
            assert_whole(one, "clusters are free")


def test_chain_that_is_broken(one: Path) -> None:
    boot = Boot(one)
    chained = [entry for _, entry in files_of(one) if not entry[1] & 2]
    first = int.from_bytes(chained[0][20:24], "little")
    assert int.from_bytes(chained[0][24:32], "little") > 2 * boot.cluster
    for link, why in (
        (0, "does not exist"),
        (first, "own the same cluster"),
        (0xFFFFFFFF, "longer than its chain"),
        (0xFFFFFFF7, "does not exist"),
        (boot.clusters + 2, "does not exist"),
    ):
        with Patch(one, boot.fat + 4 * first, link.to_bytes(4, "little")):
            assert_whole(one, why)
    with Patch(one, boot.fat, b"\x00"):
        assert_whole(one, "does not begin as it must")


def test_entries_that_make_no_sense(one: Path) -> None:
    place, entry = files_of(one)[0]
    with Patch(one, place + 8, bytes([entry[8] ^ 1])):
        assert_whole(one, "wrong checksum")
    with Patch(one, place, b"\x8a"):
        assert_whole(one, "")
    with Patch(one, place - 32, b"\x05"):
        assert_whole(one, "out of order")
    boot = Boot(one)
    with Patch(one, boot.place(boot.root), b"\x86"):
        assert_whole(one, "unknown kind")


def test_bad_clusters_are_left_out(tmp_path: Path) -> None:
    image = tmp_path / "volume"
    image.write_bytes(noise(8 * MIB, 4))
    process.run("mkfs.exfat", "-c", "4K", image)
    with image.open("rb") as file:
        boot = file.read(512)
    fat, _, heap, clusters, root = struct.unpack_from("<5I", boot, 80)
    with blockdev.open_disk(image) as fd, ExitStack() as stack:
        plain = exfat.read(fd, 0, 8 * MIB)
        bad = clusters - 10
        stack.enter_context(Patch(image, fat * 512 + 4 * bad, b"\xf7\xff\xff\xff"))
        entries = blockdev.read_at(fd, heap * 512 + (root - 2) * 4096, 4096)
        at = next(at for at in range(0, 4096, 32) if entries[at] == 0x81)
        bitmap = heap * 512 + (int.from_bytes(entries[at + 20 : at + 24], "little") - 2) * 4096
        stack.enter_context(
            Patch(image, bitmap + (bad - 2) // 8, bytes([1 << (bad - 2) % 8 | 1 << (bad - 1) % 8]))
        )
        found = exfat.read(fd, 0, 8 * MIB)
        assert found.total == plain.total + (4096 if (bad - 2) % 8 != 7 else 0)


def test_large_volume_and_large_clusters(tmp_path: Path) -> None:
    for cluster in ("128K", "32M"):
        image = tmp_path / cluster
        with image.open("wb") as file:
            file.truncate(900 * GIB)
        process.run("mkfs.exfat", "-c", cluster, image)
        with blockdev.open_disk(image) as fd:
            extents = exfat.read(fd, 0, 900 * GIB)
        assert extents.method == "exFAT allocation bitmap"
        assert extents.total < 256 * MIB


def test_too_small(tmp_path: Path) -> None:
    image = tmp_path / "volume"
    image.write_bytes(bytes(100))
    with blockdev.open_disk(image) as fd, pytest.raises(UncertainMapError, match="too small"):
        exfat.read(fd, 0, 100)


def test_no_single_wrong_byte_makes_the_map_smaller(one: Path) -> None:
    """Neither in the bitmap, the FAT nor the directories."""
    volume, right = map_of(one)
    boot = Boot(one)
    streams = [place for place, _ in files_of(one)]
    rng = random.Random(9)
    chosen = [START + rng.randrange(120) for _ in range(20)]
    for _ in range(25):
        chosen.append(boot.bitmap + rng.randrange(boot.clusters // 8))
        chosen.append(boot.fat + rng.randrange(boot.clusters * 4))
        chosen.append(rng.choice(streams) + rng.randrange(-32, 64))
    methods = []
    for place in chosen:
        changed = bytes([read(one, place, 1)[0] ^ 1 << rng.randrange(8)])
        with Patch(one, place, changed):
            found = used(one, volume)
        assert covers(found, right), f"byte {place - START} of the volume"
        methods.append(found.method)
    assert methods.count("whole") > 30
    assert map_of(one)[1].method == "exFAT allocation bitmap"
