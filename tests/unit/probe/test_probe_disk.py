"""Real partition tables in disk files: what the probe makes of them."""

import os
import struct
import uuid
import zlib
from pathlib import Path

import pytest

from imager import blockdev, process
from imager.errors import SourceError, TruncatedSource
from imager.layout.disk import Disk, VolumeRole
from imager.layout.filesystem import Filesystem
from imager.layout.partition_table import TableKind
from imager.probe.disk import probe_disk
from imager.units import MIB

LINUX = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"


def make(path: Path, size: int, script: str) -> None:
    with path.open("wb") as file:
        file.truncate(size)
    process.run("sfdisk", "--quiet", path, stdin=script.encode())


def probe(path: Path) -> Disk:
    return probe_disk(path, "disk0", blockdev.identify(path).identity)


def write(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), data, offset)


def assert_covers(disk: Disk) -> None:
    """All but large gaps is in a volume, in order, without overlap."""
    position = 0
    for volume in disk.volumes:
        assert volume.offset >= position
        if volume.offset > position:
            assert volume.role is VolumeRole.GAP
        assert volume.length > 0
        position = volume.end
    assert position == disk.identity.size
    assert len({volume.id for volume in disk.volumes}) == len(disk.volumes)


def holds(disk: Disk, offset: int, length: int) -> bool:
    return any(volume.offset <= offset and offset + length <= volume.end for volume in disk.volumes)


GPT = f"""label: gpt
label-id: 3E1FB4EF-7B75-4D7E-8D39-0E3B4C0C1B11
start=2048, size=16M, type={ESP}, name="EFI system", uuid=11111111-2222-4333-8444-555555555555
size=24M, name="grün 1", attrs="RequiredPartition,LegacyBIOSBootable,GUID:59,GUID:63"
"""


class TestGpt:
    def test_all_fields(self, tmp_path: Path) -> None:
        path = tmp_path / "a disk, with a name.p3"
        make(path, 64 * MIB, GPT)
        disk = probe(path)
        table = disk.table
        assert table is not None
        assert table.kind is TableKind.GPT
        assert table.id == "3E1FB4EF-7B75-4D7E-8D39-0E3B4C0C1B11"
        first, second = table.partitions
        assert (first.number, first.offset, first.length) == (1, MIB, 16 * MIB)
        assert (first.type, first.name) == (ESP, "EFI system")
        assert first.uuid == "11111111-2222-4333-8444-555555555555"
        assert (second.type, second.name) == (LINUX, "grün 1")
        assert second.attributes == "RequiredPartition LegacyBIOSBootable GUID:59,63"
        assert [volume.id for volume in disk.volumes] == [
            "disk0/boot-area", "disk0/p1", "disk0/p2", "disk0/gap1",
        ]  # fmt: skip
        assert_covers(disk)

    def test_numbers_need_not_be_in_order(self, tmp_path: Path) -> None:
        path = tmp_path / "disk"
        process.run("truncate", "-s", "64M", path)
        process.run("sgdisk", "-n", "7:40M:50M", "-n", "3:20M:30M", path)
        disk = probe(path)
        assert disk.table is not None
        assert [part.number for part in disk.table.partitions] == [3, 7]
        ids = [volume.id for volume in disk.volumes]
        assert ids == [
            "disk0/boot-area", "disk0/p3", "disk0/gap1", "disk0/p7", "disk0/gap2",
        ]  # fmt: skip
        assert_covers(disk)

    def test_large_gaps_keep_their_ends(self, tmp_path: Path) -> None:
        path = tmp_path / "disk"
        make(path, 900 * MIB, "label: gpt\nstart=600MiB, size=10MiB\n")
        disk = probe(path)
        places = [(volume.role, volume.offset, volume.length) for volume in disk.volumes]
        assert places == [
            (VolumeRole.BOOT_AREA, 0, 64 * MIB),
            (VolumeRole.GAP, 599 * MIB, MIB),
            (VolumeRole.PARTITION, 600 * MIB, 10 * MIB),
            (VolumeRole.GAP, 610 * MIB, MIB),
            (VolumeRole.GAP, 899 * MIB, MIB),
        ]
        assert_covers(disk)

    def test_backup_amid_an_enlarged_disk_is_kept(self, tmp_path: Path) -> None:
        path = tmp_path / "disk"
        make(path, 200 * MIB, GPT)
        os.truncate(path, 700 * MIB)
        disk = probe(path)
        assert holds(disk, 200 * MIB - 33 * 512, 33 * 512)
        assert not holds(disk, 300 * MIB, 1)
        assert_covers(disk)

    def test_empty_table(self, tmp_path: Path) -> None:
        path = tmp_path / "disk"
        make(path, 300 * MIB, "label: gpt\n")
        disk = probe(path)
        assert disk.table is not None
        assert disk.table.partitions == ()
        assert [volume.length for volume in disk.volumes] == [64 * MIB, MIB]
        assert_covers(disk)

    def test_cut_off(self, tmp_path: Path) -> None:
        path = tmp_path / "disk"
        make(path, 64 * MIB, GPT)
        for size in (64 * MIB - 512, 50 * MIB, 2 * MIB):
            os.truncate(path, size)
            with pytest.raises(TruncatedSource, match="made for at least"):
                probe(path)

    def test_primary_damaged(self, tmp_path: Path) -> None:
        path = tmp_path / "disk"
        make(path, 64 * MIB, GPT)
        before = probe(path)
        write(path, 512 + 60, b"damage")
        assert probe(path) == before

    def test_backup_damaged(self, tmp_path: Path) -> None:
        path = tmp_path / "disk"
        make(path, 64 * MIB, GPT)
        before = probe(path)
        write(path, 64 * MIB - 512, b"damage")
        assert probe(path) == before

    def test_both_damaged_is_read_raw(self, tmp_path: Path) -> None:
        path = tmp_path / "disk"
        make(path, 64 * MIB, GPT)
        write(path, 512, b"damage")
        write(path, 64 * MIB - 512, b"damage")
        (volume,) = probe(path).volumes
        assert (volume.role, volume.length) == (VolumeRole.WHOLE_DISK, 64 * MIB)

    def test_leftover_without_protective_mbr_does_not_count(self, tmp_path: Path) -> None:
        path = tmp_path / "disk"
        make(path, 64 * MIB, GPT)
        mbr = tmp_path / "mbr"
        make(mbr, 64 * MIB, "label: dos\nstart=2048, size=8M\n")
        write(path, 0, mbr.read_bytes()[:512])
        table = probe(path).table
        assert table is not None
        assert table.kind is TableKind.MBR

    def test_overlap(self, tmp_path: Path) -> None:
        path = tmp_path / "disk"
        write_gpt(path, 64 * MIB, 512, [(2048, 9000), (8000, 12000)])
        with pytest.raises(SourceError, match=r"partitions 1 and 2 .* overlap"):
            probe(path)

    def test_beyond_the_end(self, tmp_path: Path) -> None:
        path = tmp_path / "disk"
        write_gpt(path, 64 * MIB, 512, [(2048, 64 * 2048 + 7)])
        with pytest.raises((TruncatedSource, SourceError)):
            probe(path)

    def test_file_with_large_sectors(self, tmp_path: Path) -> None:
        path = tmp_path / "disk"
        write_gpt(path, 64 * MIB, 4096, [(256, 4351), (4352, 8447)])
        disk = probe(path)
        assert disk.identity.logical_sector == 4096
        assert disk.table is not None
        assert [(part.offset, part.length) for part in disk.table.partitions] == [
            (MIB, 16 * MIB),
            (17 * MIB, 16 * MIB),
        ]
        assert_covers(disk)


def write_gpt(path: Path, size: int, sector: int, ranges: list[tuple[int, int]]) -> None:
    """Write a GPT as the UEFI specification says, also ones that no partitioner would write."""
    last = size // sector - 1
    entries = b"".join(
        struct.pack(
            "<16s16sQQQ72s", uuid.UUID(LINUX).bytes_le, uuid.UUID(int=index + 1).bytes_le,
            first, end, 0, f"part {index}".encode("utf-16-le"),
        )
        for index, (first, end) in enumerate(ranges)
    ).ljust(128 * 128, b"\0")  # fmt: skip
    table = -(-len(entries) // sector)

    def header(own: int, other: int, place: int) -> bytes:
        body = struct.pack(
            "<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, own, other, 2 + table,
            last - 1 - table, uuid.UUID(int=99).bytes_le, place, 128, 128, zlib.crc32(entries),
        )  # fmt: skip
        return body[:16] + struct.pack("<I", zlib.crc32(body)) + body[20:]

    mbr = bytes(446) + struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, last)
    with path.open("wb") as file:
        file.truncate(size)
    write(path, 0, mbr.ljust(510, b"\0") + b"\x55\xaa")
    write(path, sector, header(1, last, 2))
    write(path, 2 * sector, entries)
    write(path, (last - table) * sector, entries)
    write(path, last * sector, header(last, 1, last - table))


MBR = """label: dos
label-id: 0xbeefcafe
start=2048, size=16M, bootable
start=40960, size=20M, type=82
start=100000, size=60M, type=5
start=102048, size=10M
start=140000, size=10M
"""


class TestMbr:
    def test_logical_partitions(self, tmp_path: Path) -> None:
        path = tmp_path / "disk"
        make(path, 128 * MIB, MBR)
        disk = probe(path)
        table = disk.table
        assert table is not None
        assert (table.kind, table.id) == (TableKind.MBR, "beefcafe")
        assert [part.number for part in table.partitions] == [1, 2, 3, 5, 6]
        assert [part.type for part in table.partitions] == ["83", "82", "05", "83", "83"]
        assert [part.bootable for part in table.partitions] == [True, False, False, False, False]
        assert [volume.partition for volume in disk.volumes if volume.partition] == [1, 2, 5, 6]
        assert_covers(disk)

    def test_boot_records_far_from_their_partitions_are_kept(self, tmp_path: Path) -> None:
        path = tmp_path / "disk"
        make(path, 900 * MIB, MBR.replace("start=100000, size=60M", "start=100000, size=700M"))
        process.run("sfdisk", "--quiet", "--append", path, stdin=b"start=1200000, size=10M\n")
        process.run("sfdisk", "--quiet", "--delete", path, "5", "6")
        record = 100000 * 512
        disk = probe(path)
        assert disk.table is not None
        assert [part.number for part in disk.table.partitions] == [1, 2, 3, 5]
        assert holds(disk, record, 512)
        assert not holds(disk, record + 100 * MIB, 512)
        assert_covers(disk)

    def test_empty_record_in_the_chain(self, tmp_path: Path) -> None:
        """As fdisk and parted leave it where the first logical partition was deleted."""
        path = tmp_path / "disk"
        make(path, 128 * MIB, MBR)
        write(path, 100000 * 512 + 446, bytes(16))
        disk = probe(path)
        assert disk.table is not None
        assert [(part.number, part.offset) for part in disk.table.partitions[3:]] == [
            (5, 140000 * 512)
        ]
        assert_covers(disk)

    def test_cut_off(self, tmp_path: Path) -> None:
        path = tmp_path / "disk"
        make(path, 128 * MIB, MBR)
        os.truncate(path, 75 * MIB)
        with pytest.raises(TruncatedSource, match="ends at byte"):
            probe(path)

    def test_broken_chain(self, tmp_path: Path) -> None:
        path = tmp_path / "disk"
        make(path, 128 * MIB, MBR)
        write(path, 100000 * 512 + 510, b"\0\0")
        with pytest.raises(SourceError, match="break off at sector 100000"):
            probe(path)

    def test_endless_chain(self, tmp_path: Path) -> None:
        path = tmp_path / "disk"
        make(path, 128 * MIB, MBR)
        entry = struct.pack("<B3sB3sII", 0, bytes(3), 5, bytes(3), 0, 4096)
        write(path, 100000 * 512 + 446 + 16, entry)
        with pytest.raises(SourceError):
            probe(path)

    def test_overlap(self, tmp_path: Path) -> None:
        path = tmp_path / "disk"
        make(path, 128 * MIB, MBR)
        write(path, 446 + 16 + 8, struct.pack("<I", 5000))
        with pytest.raises(SourceError, match="overlap"):
            probe(path)


class TestFilesystems:
    def test_labels_as_people_write_them(self, tmp_path: Path) -> None:
        path = tmp_path / "disk"
        make(path, 64 * MIB, GPT)
        process.run(
            "mke2fs", "-q", "-F", "-t", "ext4", "-L", 'a b="ü"\\', "-E", f"offset={17 * MIB}",
            "-U", "6ff71707-5bec-48eb-a934-f2c72129d2cd", path, "24M",
        )  # fmt: skip
        process.run("mkfs.fat", "-i", "1234ABCD", "--offset", "2048", path, str(16 * 1024))
        found = [volume.filesystem for volume in probe(path).volumes if volume.partition]
        assert found == [
            Filesystem("vfat", "1234-ABCD", None),
            Filesystem("ext4", "6ff71707-5bec-48eb-a934-f2c72129d2cd", 'a b="ü"\\'),
        ]

    def test_two_that_exclude_each_other_are_none(self, tmp_path: Path) -> None:
        path = tmp_path / "disk"
        make(path, 64 * MIB, GPT)
        process.run("mkfs.fat", "-F", "32", "--offset", "2048", path, str(16 * 1024))
        write(path, MIB + 0x10040, b"_BHRfS_M")
        volume = probe(path).volumes[1]
        assert (volume.partition, volume.filesystem) == (1, None)

    def test_fat_over_the_whole_disk_is_no_table(self, tmp_path: Path) -> None:
        path = tmp_path / "disk"
        process.run("truncate", "-s", "16M", path)
        process.run("mkfs.fat", "-F", "16", path)
        disk = probe(path)
        assert disk.table is None
        (volume,) = disk.volumes
        assert volume.role is VolumeRole.WHOLE_DISK
        assert volume.filesystem is not None
        assert volume.filesystem.type == "vfat"

    @pytest.mark.parametrize("make_it", [("mke2fs", "-q", "-F"), ("mkfs.fat", "-F", "32")])
    def test_whole_disk_cut_off(self, make_it: tuple[str, ...], tmp_path: Path) -> None:
        path = tmp_path / "disk"
        process.run("truncate", "-s", "64M", path)
        process.run(*make_it, path)
        probe(path)
        os.truncate(path, 60 * MIB)
        with pytest.raises(TruncatedSource, match=r"cut off: its .* spans 64\.0 MiB"):
            probe(path)

    def test_nothing_at_all(self, tmp_path: Path) -> None:
        path = tmp_path / "disk"
        process.run("truncate", "-s", "3M", path)
        (volume,) = probe(path).volumes
        assert (volume.id, volume.length, volume.filesystem) == ("disk0/whole", 3 * MIB, None)


def test_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    make(path, 64 * MIB, GPT)
    before = path.read_bytes(), path.stat().st_mtime_ns
    path.chmod(0o400)
    probe(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_an_empty_mbr_is_no_table(tmp_path: Path) -> None:
    """exFAT on a whole stick looks like one; so does a filesystem behind a table of old."""
    stick, old = tmp_path / "stick", tmp_path / "old"
    for path in (stick, old):
        with path.open("wb") as file:
            file.truncate(300 * MIB)
    process.run("mkfs.exfat", stick)
    process.run("mke2fs", "-q", "-t", "ext4", old)
    process.run("sfdisk", "--quiet", "--wipe=never", old, stdin=b"label: dos\n")
    for path, kind in ((stick, "exfat"), (old, "ext4")):
        disk = probe(path)
        assert disk.table is None
        (volume,) = disk.volumes
        assert (volume.role, volume.length) == (VolumeRole.WHOLE_DISK, 300 * MIB)
        assert volume.filesystem is not None
        assert volume.filesystem.type == kind


def md_superblock(sectors: int) -> bytes:
    """Return what md 1.2 keeps 4 KiB into a member (linux/raid/md_p.h)."""
    data = bytearray(260)
    struct.pack_into("<II", data, 0, 0xA92B4EFC, 1)
    data[16:32] = uuid.uuid4().bytes
    data[32:37] = b"h:md0"
    struct.pack_into("<IQ", data, 72, 1, sectors - 2048)  # level and size
    struct.pack_into("<I", data, 92, 2)  # disks
    struct.pack_into("<QQQ", data, 128, 2048, sectors - 2048, 8)
    struct.pack_into("<I", data, 220, 2)
    total = sum(struct.unpack("<65I", data))
    struct.pack_into("<I", data, 216, ((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF)
    return bytes(data)


@pytest.mark.parametrize("partitions", ["", "start=2048, size=10M\n"])
def test_beside_a_signature_of_the_whole_disk_every_gap_is_kept(
    tmp_path: Path, partitions: str
) -> None:
    """A member of md 1.2 on a disk that had a GPT: it keeps the first sectors and the backup."""
    path = tmp_path / "disk"
    make(path, 400 * MIB, f"label: gpt\n{partitions}")
    write(path, 4096, md_superblock(400 * MIB // 512))
    assert sum(volume.length for volume in probe(path).volumes) == 400 * MIB
