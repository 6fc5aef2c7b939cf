"""LVM physical volumes: every extent that a logical volume has is in the map, or all is."""

import random
import re
import zlib
from contextlib import ExitStack
from pathlib import Path

import pytest
from disk_files import Patch, noise, read
from lvm_tools import run, tools

from imager import blockdev, process
from imager.extents import lvm
from imager.extents.extents import Extents, UncertainMapError
from imager.extents.used import used
from imager.layout.disk import VolumeRole
from imager.probe.disk import probe_disk
from imager.units import MIB

SIZE = 80 * MIB


def new_volume(folder: Path, name: str, extents: int, *words: str) -> None:
    words = ("-an", "-Zn", "-Wn", "-y", "-n", name, "-l", str(extents), *words)
    run(folder, "lvcreate", "vg", *words)


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume group on two disks that has seen many changes."""
    folder = tmp_path_factory.mktemp("group")
    for number in range(2):
        (folder / f"disk{number}").write_bytes(noise(SIZE, number))
    with tools(folder, folder / "disk0", folder / "disk1") as devices:
        for device in devices:
            process.run("wipefs", "--all", device)
            run(
                folder, "pvcreate", "-y", "--pvmetadatacopies", "2", "--metadatasize", "60k", device
            )
        run(folder, "vgcreate", "-s", "1m", "vg", *devices)
        for number in range(20):
            new_volume(folder, f"v{number}", 1 + number % 4)
        for number in range(0, 20, 3):
            run(folder, "lvremove", "-y", f"vg/v{number}")
        new_volume(folder, "striped", 8, "-i", "2")
        run(folder, "lvextend", "-l", "+12", "vg/v1")
        run(folder, "lvrename", "vg/v2", "pv0")  # a name that is a physical volume's too
        run(folder, "lvchange", "--addtag", "kept", "vg/v4")
        run(folder, "vgchange", "--addtag", "site-1", "vg")
    return folder


def map_of(disk: Path) -> Extents:
    (volume,) = probe_disk(disk, "disk0", blockdev.identify(disk).identity).volumes
    assert volume.role is VolumeRole.WHOLE_DISK
    assert volume.filesystem is not None
    assert volume.filesystem.type == "LVM2_member"
    return used(disk, volume)


def assert_whole(disk: Path, why: str) -> None:
    extents = map_of(disk)
    assert (extents.method, extents.ranges.tolist()) == ("whole", [[0, disk.stat().st_size]])
    assert why in (extents.reason or "")


def test_what_lvm_says_is_used(group: Path) -> None:
    with tools(group, group / "disk0", group / "disk1") as devices:
        report = run(
            group, "pvs", "--segments", "--noheadings", "--nosuffix", "--units", "b",
            "-o", "pv_name,pvseg_start,pvseg_size,segtype,pe_start", *devices,
        )  # fmt: skip
    for number, device in enumerate(devices):
        allocated: list[tuple[int, int]] = []
        for line in report.splitlines():
            name, start, size, kind, first = line.split()
            if name == device and kind != "free":
                allocated.append((int(first) + int(start) * MIB, int(size) * MIB))
        assert allocated
        extents = map_of(group / f"disk{number}")
        assert (extents.method, extents.reason, extents.block_size) == ("LVM extents", None, MIB)
        covered = [
            (int(offset), int(offset + length)) for offset, length in extents.ranges.tolist()
        ]
        for offset, length in allocated:
            assert any(low <= offset and offset + length <= high for low, high in covered)
        assert extents.total - sum(size for _, size in allocated) <= 2 * MIB


def text_places(disk: Path) -> list[tuple[int, int, int]]:
    """Return (header, first byte, bytes) of the text in each metadata area."""
    data = disk.read_bytes()
    found = []
    for match in re.finditer(re.escape(b" LVM2 x[5A%r0N*>"), data):
        header = match.start() - 4
        start, count = (
            int.from_bytes(data[header + at : header + at + 8], "little") for at in (40, 48)
        )
        found.append((header, header + start, count))
    assert len(found) == 2
    return found


def checksum(data: bytes) -> bytes:
    return (zlib.crc32(data, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF).to_bytes(4, "little")


def with_text(disk: Path, change: tuple[bytes, bytes]) -> list[Patch]:
    """Replace words of the text in both areas, with right checksums."""
    found = []
    for header, start, count in text_places(disk):
        head = bytearray(read(disk, header, 512))
        size = int.from_bytes(head[32:40], "little")
        text = read(disk, start, min(count, header + size - start))
        text += read(disk, header + 512, count - len(text))
        assert change[0] in text
        changed = text.replace(*change)
        head[40:48] = (512).to_bytes(8, "little")
        head[48:56] = len(changed).to_bytes(8, "little")
        head[56:60] = checksum(changed)
        head[0:4] = checksum(bytes(head[4:512]))
        found += [Patch(disk, header, bytes(head)), Patch(disk, header + 512, changed)]
    return found


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b'"RESIZEABLE"', b'"EXPORTED"', "exported"),
        (b'"RESIZEABLE"', b'"CLUSTERED"', "shared"),
        (b"max_lv = 0", b'lock_type = "sanlock"', "shared"),
        (b"max_lv = 0", b"surprise = 0", "not known here: surprise"),
        (b'"RESIZEABLE"', b'"SURPRISE"', "not known here: SURPRISE"),
        (b'status = ["ALLOCATABLE"]', b'status = ["MISSING"]', "missing"),
        (b"pe_start", b"ba_start = 10\npe_start", "boot loader"),
        (b'"VISIBLE"]', b'"VISIBLE", "LOCKED"]', "pvmove"),
        (b'"VISIBLE"]', b'"VISIBLE", "SURPRISE"]', "not known here: SURPRISE"),
        (b'type = "striped"', b'type = "surprise"', "kind not known here"),
        (b'type = "striped"', b'type = "striped"\nelsewhere = "pv1"', "unknown way: elsewhere"),
        (b"stripe_count = 2", b"stripe_count = 3", "stripes"),
        (b"start_extent = 0", b"start_extent = 1", "gap"),
        (b"segment_count = 1", b"segment_count = 0", "more segments"),
        (b'format = "lvm2"', b'format = "lvm9"', "unknown format"),
        (b"physical_volumes {", b"physical {", ""),
        (b"pe_count = ", b"pe_count = 9", ""),
        (b"dev_size = 1", b"dev_size = 2", "disagree about the size"),
        (b'"pv0",', b'"pv9",', "not there"),
        (b"seqno = ", b"seqno = [", "parsed"),
    ],
)
def test_metadata_that_is_not_understood(group: Path, old: bytes, new: bytes, why: str) -> None:
    disk = group / "disk0"
    with ExitStack() as stack:
        for patch in with_text(disk, (old, new)):
            stack.enter_context(patch)
        assert_whole(disk, why)


def test_overlapping_volumes(group: Path) -> None:
    disk = group / "disk0"
    text = read(disk, *text_places(disk)[0][1:])
    stripe = next(match for match in re.finditer(rb'"pv0", (\d+)', text) if match[1] != b"0")
    with ExitStack() as stack:
        for patch in with_text(disk, (stripe[0], b'"pv0", 0')):
            stack.enter_context(patch)
        assert_whole(disk, "same extents")


def test_damage(group: Path) -> None:
    disk = group / "disk0"
    label = next(at for at in range(0, 2048, 512) if read(disk, at, 8) == b"LABELONE")
    (first, text, _), (second, _, _) = text_places(disk)
    with (
        Patch(disk, label + 40, bytes([read(disk, label + 40, 1)[0] ^ 4])),
        blockdev.open_disk(disk) as fd,
        pytest.raises(UncertainMapError, match="label of LVM is damaged"),
    ):
        lvm.read(fd, 0, SIZE)
    for place, why in (
        (first + 200, "header of a metadata area"),
        (second + 10, "header of a metadata area"),
        (text + 30, "wrong checksum"),
    ):
        with Patch(disk, place, bytes([read(disk, place, 1)[0] ^ 4])):
            assert_whole(disk, why)
    head = bytearray(read(disk, first, 512))
    for change, why in (
        ((64, b"\x00\x08"), "not committed"),
        ((60, b"\x02"), "makes no sense"),
        ((60, b"\x01"), None),  # one area not in use: the other one counts
    ):
        changed = bytearray(head)
        changed[change[0] : change[0] + len(change[1])] = change[1]
        changed[0:4] = checksum(bytes(changed[4:]))
        with Patch(disk, first, bytes(changed)):
            if why:
                assert_whole(disk, why)
            else:
                assert map_of(disk).method == "LVM extents"
    with ExitStack() as stack:
        for patch in with_text(disk, (b"seqno = ", b"seqno = 9"))[:2]:
            stack.enter_context(patch)
        assert_whole(disk, "areas of the physical volume differ")


def test_without_a_group(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(SIZE)
    with tools(tmp_path, disk) as (device,):
        run(tmp_path, "pvcreate", "-y", device)
    assert_whole(disk, "does not hold the metadata")


def test_metadata_that_goes_round(tmp_path: Path) -> None:
    """The area is a ring: after enough changes the text begins near its end."""
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(SIZE)
    went_round = False
    with tools(tmp_path, disk) as (device,):
        run(tmp_path, "pvcreate", "-y", "--metadatasize", "32k", "--dataalignment", "64k", device)
        run(tmp_path, "vgcreate", "vg", device)
        for number in range(8):
            new_volume(tmp_path, f"v{number}", 1)
    with tools(tmp_path, disk):
        for number in range(40):
            run(tmp_path, "vgchange", "--addtag", f"tag{number}", "vg")
            with blockdev.open_disk(disk) as fd:
                extents = lvm.read(fd, 0, SIZE)
            data = disk.read_bytes()[:MIB]
            header = data.index(b" LVM2 x[5A%r0N*>") - 4
            size, start, count = (
                int.from_bytes(data[header + at : header + at + 8], "little") for at in (32, 40, 48)
            )
            went_round = went_round or start + count > size
            assert 8 * 4 * MIB < extents.total <= 9 * 4 * MIB
            if went_round:
                break
    assert went_round


def test_no_single_wrong_byte_is_overlooked(group: Path) -> None:
    disk = group / "disk0"
    right = map_of(disk)
    rng = random.Random(3)
    (first, text, count), _ = text_places(disk)
    chosen = [first + rng.randrange(512) for _ in range(30)]
    chosen += [text + rng.randrange(count) for _ in range(60)]
    with blockdev.open_disk(disk) as fd:
        for place in chosen:
            with (
                Patch(disk, place, bytes([read(disk, place, 1)[0] ^ 1 << rng.randrange(8)])),
                pytest.raises(UncertainMapError),
            ):
                lvm.read(fd, 0, SIZE)
    assert map_of(disk).ranges.tolist() == right.ranges.tolist()
