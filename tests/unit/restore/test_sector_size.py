"""Which disks can come on sectors of another size, and what becomes of what they hold."""

import struct
from collections.abc import Sequence
from dataclasses import replace

import pytest
from memory_image import disk

from imager.errors import TargetError
from imager.layout.disk import Disk, DiskIdentity, Volume, VolumeRole
from imager.layout.filesystem import Filesystem
from imager.layout.partition_table import Partition, PartitionTable, TableKind
from restore import fit
from restore.sector_size import Part, on_sectors

KIB, MIB = 1 << 10, 1 << 20
SIZE = 64 * MIB
BIOS_BOOT = "21686148-6449-6E6F-744E-656564454649"
LINUX = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
LARGE = DiskIdentity(SIZE, 4096)


class Bytes:
    """Content with some bytes at some places."""

    size = SIZE

    def __init__(self, places: dict[int, bytes]) -> None:
        self._data = bytearray(128 * KIB)
        for offset, data in places.items():
            self._data[offset : offset + len(data)] = data

    def read(self, offset: int, length: int) -> bytearray:
        return self._data[offset : offset + length]


def ext(block: int) -> Bytes:
    counts = struct.pack("<7I", 100, 1000, 0, 500, 50, 0, block.bit_length() - 11)
    groups = struct.pack("<3I", 8192, 8192, 100)
    return Bytes({1024: counts, 1024 + 32: groups, 1024 + 56: struct.pack("<H", 0xEF53)})


def xfs(sector: int, log: int = 0, quotas: int = 0) -> Bytes:
    sizes = struct.pack(">4sIQQ", b"XFSB", 4096, 1000, 0)
    numbers = {102: sector, 194: log, 176: quotas}
    places = {at: number.to_bytes(2, "big") for at, number in numbers.items()}
    return Bytes({0: sizes, 48: (8).to_bytes(8, "big"), **places})


def fat(sector: int) -> Bytes:
    return Bytes({11: sector.to_bytes(2, "little")})


BTRFS = Bytes({0x10090: (4096).to_bytes(4, "little")})


def saved(kind: str | None, part_type: str = LINUX, offset: int = MIB, sector: int = 512) -> Disk:
    """A disk with one partition, and a gap behind it."""
    length = 16 * MIB
    volumes = (
        Volume("disk0/boot-area", VolumeRole.BOOT_AREA, 0, offset),
        Volume(
            "disk0/p1", VolumeRole.PARTITION, offset, length, 1, Filesystem(kind) if kind else None
        ),
        Volume("disk0/gap1", VolumeRole.GAP, offset + length, SIZE - offset - length),
    )
    table = PartitionTable(TableKind.GPT, "T", (Partition(1, offset, length, part_type, "U", ""),))
    made = disk(size=SIZE, volumes=volumes)
    return replace(made, table=table, identity=replace(made.identity, logical_sector=sector))


def come(
    kind: str | None,
    content: Bytes,
    old: Disk | None = None,
    target: DiskIdentity = LARGE,
    *,
    has_boot_code: bool = False,
) -> fit.Fitted:
    was = old or saved(kind)
    held = Filesystem(kind) if kind else None

    def parts(volume: Volume) -> Sequence[Part]:
        return [(volume.id, held, content)]

    return on_sectors(was, fit.exact(was), target, parts, has_boot_code=has_boot_code)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("ext4", ext(4096)),
        ("btrfs", BTRFS),
        ("xfs", xfs(4096)),
        ("xfs", xfs(4096, 4096)),
        ("swap", Bytes({})),
        ("vfat", fat(4096)),  # made with -S 4096 on a disk with smaller ones
    ],
)
def test_what_asks_for_whole_sectors_stays(kind: str, content: Bytes) -> None:
    fitted = come(kind, content)
    assert fitted.remade == ()
    assert fitted.places == ()
    assert fitted.has_new_table
    assert [volume.id for volume in fitted.disk.volumes] == ["disk0/boot-area", "disk0/p1"]
    assert fitted.dropped == ("disk0/gap1",)
    assert fitted.disk.identity.logical_sector == 4096


@pytest.mark.parametrize(
    ("kind", "content", "why"),
    [
        ("ext4", ext(1024), "ext4 asks the disk for 1024 bytes"),
        ("ext4", Bytes({}), "of ext4 it is not known"),
        ("xfs", xfs(512), "xfs asks the disk for 512 bytes"),
        ("xfs", xfs(4096, 512), "xfs asks the disk for 512 bytes"),
        ("ntfs", Bytes({}), "NTFS is not used"),
        ("exfat", Bytes({}), "exFAT is not used"),
        ("crypto_LUKS", Bytes({}), "of crypto_LUKS it is not known"),
        ("linux_raid_member", Bytes({}), "of linux_raid_member it is not known"),
        (None, Bytes({}), "of what has no known filesystem it is not known"),
    ],
)
def test_what_asks_for_less_or_is_not_known_is_refused(
    kind: str | None, content: Bytes, why: str
) -> None:
    with pytest.raises(TargetError, match=why) as caught:
        come(kind, content)
    assert "Nothing was written" in caught.value.hint


def test_an_xfs_of_smaller_sectors_is_made_anew_where_one_can_be() -> None:
    old = saved("xfs")
    boot, part, gap = old.volumes
    large = replace(part, length=300 * MIB)
    wide = replace(old, volumes=(boot, large, replace(gap, offset=large.end)))
    assert come("xfs", xfs(512), wide).remade == ("disk0/p1",)
    assert come("xfs", xfs(4096), wide).remade == ()
    for content in (xfs(512, quotas=1), Bytes({})):
        with pytest.raises(TargetError):
            come("xfs", content, wide)


def test_a_fat_is_made_anew_in_a_partition_alone() -> None:
    assert come("vfat", fat(512)).remade == ("disk0/p1",)
    whole = disk(size=SIZE, volumes=(Volume("disk0/whole", VolumeRole.WHOLE_DISK, 0, SIZE, None),))
    with pytest.raises(TargetError, match="vfat asks the disk for 512"):
        come("vfat", fat(512), whole)


@pytest.mark.parametrize("kind", ["linux_raid_member", "crypto_LUKS", "ext4", None])
def test_on_smaller_sectors_nearly_everything_stays(kind: str | None) -> None:
    small = DiskIdentity(SIZE, 512)
    old = saved(kind, sector=4096)
    assert come(kind, Bytes({}), old, small).remade == ()
    assert come("vfat", fat(4096), saved("vfat", sector=4096), small).remade == ("disk0/p1",)
    with pytest.raises(TargetError, match="NTFS"):
        come("ntfs", Bytes({}), saved("ntfs", sector=4096), small)


def test_what_counts_sectors_at_the_start_is_refused() -> None:
    with pytest.raises(TargetError, match="a BIOS starts from it"):
        come("ext4", ext(4096), has_boot_code=True)
    old = saved("ext4")
    assert old.table is not None
    mbr = replace(old, table=replace(old.table, kind=TableKind.MBR))
    with pytest.raises(TargetError, match="MBR counts in sectors"):
        come("ext4", ext(4096), mbr)
    # Debian's cloud images have one beside the EFI system partition: no UEFI reads it.
    assert come(None, Bytes({}), saved(None, BIOS_BOOT)).remade == ()


def test_a_partition_must_begin_and_end_with_a_sector() -> None:
    with pytest.raises(TargetError, match="disk0/p1 does not begin and end with a whole one"):
        come("ext4", ext(4096), saved("ext4", offset=63 * 512))
