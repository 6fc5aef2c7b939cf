"""Firmware: what efivarfs shows, and what disks are made for."""

import struct
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imager.layout.disk import Disk, DiskIdentity, Volume, VolumeRole
from imager.layout.filesystem import Filesystem
from imager.layout.firmware import BootEntry, Firmware, FirmwareKind
from imager.layout.layers import Layers
from imager.layout.machine import system_partitions
from imager.layout.mdraid import MdArray, MdMember, MdState, MdVersion
from imager.layout.partition_table import Partition, PartitionTable, TableKind
from imager.probe.firmware import decode_boot_entry, infer_firmware, read_firmware

GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
PART = "11111111-2222-4333-8444-555555555555"
ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
# As `efibootmgr --create` writes it for Debian: HD(1,GPT,…)/File(\EFI\debian\shimx64.efi)
DEBIAN = bytes.fromhex(
    "01000000 6200 640065006200690061006e000000"
    "04012a00 01000000 0008000000000000 0000100000000000 11111111222233438444555555555555 0202"
    "04043400 5c004500460049005c00640065006200690061006e005c007300680069006d007800360034002e00"
    "6500660069000000"
    "7fff0400"
)


def node(kind: int, subtype: int, body: bytes) -> bytes:
    return struct.pack("<BBH", kind, subtype, 4 + len(body)) + body


def option(label: str, *nodes: bytes, extra: bytes = b"") -> bytes:
    path = b"".join(nodes) + node(0x7F, 0xFF, b"")
    head = struct.pack("<IH", 1, len(path)) + label.encode("utf-16-le") + b"\0\0"
    return head + path + extra


def drive(signature: bytes = uuid.UUID(PART).bytes_le, kind: int = 2) -> bytes:
    return node(4, 1, struct.pack("<IQQ16sBB", 1, 2048, 4096, signature, kind, kind))


def file(path: str) -> bytes:
    return node(4, 4, path.encode("utf-16-le") + b"\0\0")


def test_an_entry_as_debian_makes_it() -> None:
    assert decode_boot_entry(DEBIAN) == BootEntry("debian", PART, "\\EFI\\debian\\shimx64.efi")


@pytest.mark.parametrize(
    "data",
    [
        option("UiApp", node(4, 7, bytes(16)), node(4, 6, bytes(16))),  # the firmware's own menu
        option("PXE", node(2, 1, bytes(8)), node(1, 1, bytes(2)), node(3, 11, bytes(33))),
        option("old disk", drive(kind=1), file("\\EFI\\BOOT\\BOOTX64.EFI")),
        option("whole drive", drive()),
        option("any drive", file("\\EFI\\BOOT\\BOOTX64.EFI")),
        b"",
        b"\x01\0\0\0\xff",
        b"\x01\0\0\0\xff\0A\0B\0",
    ],
)
def test_what_starts_no_file_from_a_gpt_disk(data: bytes) -> None:
    assert decode_boot_entry(data) is None


@given(st.binary(max_size=200))
def test_anything_at_all_is_an_entry_or_none(data: bytes) -> None:
    decode_boot_entry(data)
    decode_boot_entry(DEBIAN[:40] + data)


def test_optional_data_and_paths_in_pieces() -> None:
    data = option("Größe", drive(), file("\\EFI"), file("\\x.efi"), extra=b"\x7f\0\xff arguments")
    assert decode_boot_entry(data) == BootEntry("Größe", PART, "\\EFI\\x.efi")


def write_variable(folder: Path, name: str, data: bytes) -> None:
    (folder / f"{name}-{GLOBAL}").write_bytes(b"\x07\0\0\0" + data)


def test_reads_entries_in_boot_order(tmp_path: Path) -> None:
    variables = tmp_path / "efi" / "efivars"
    variables.mkdir(parents=True)
    write_variable(variables, "BootOrder", struct.pack("<4H", 3, 0x1A, 9, 1))
    write_variable(variables, "Boot0001", option("one", drive(), file("\\a")))
    write_variable(variables, "Boot001A", DEBIAN)
    write_variable(variables, "Boot0003", option("menu", node(4, 6, bytes(16))))
    write_variable(variables, "SecureBoot", b"\x01")
    found = read_firmware(tmp_path / "efi")
    assert (found.kind, found.secure_boot) == (FirmwareKind.UEFI, True)
    assert [entry.label for entry in found.boot_entries] == ["debian", "one"]
    write_variable(variables, "SecureBoot", b"\x00")
    assert read_firmware(tmp_path / "efi").secure_boot is False


def test_variables_that_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "efi").mkdir()
    assert read_firmware(tmp_path / "efi") == Firmware(FirmwareKind.UEFI)
    assert read_firmware(tmp_path / "none") == Firmware(FirmwareKind.BIOS)


def make_disk(kind: TableKind, part_type: str, filesystem: str | None) -> Disk:
    part = Partition(1, 1 << 20, 1 << 20, part_type)
    volume = Volume(
        "disk0/p1", VolumeRole.PARTITION, 1 << 20, 1 << 20, 1,
        Filesystem(filesystem) if filesystem else None,
    )  # fmt: skip
    table = PartitionTable(kind, "00000001", (part,))
    return Disk("disk0", "/dev/sda", DiskIdentity(4 << 20, 512), table, (volume,))


@pytest.mark.parametrize(
    ("disk", "kind"),
    [
        (make_disk(TableKind.GPT, ESP, "vfat"), FirmwareKind.UEFI),
        (make_disk(TableKind.MBR, "ef", "vfat"), FirmwareKind.UEFI),
        (make_disk(TableKind.GPT, ESP, None), FirmwareKind.BIOS),
        (make_disk(TableKind.MBR, "83", "ext4"), FirmwareKind.BIOS),
        (make_disk(TableKind.MBR, "0c", "vfat"), FirmwareKind.BIOS),
    ],
)
def test_what_disks_are_made_for(disk: Disk, kind: FirmwareKind) -> None:
    assert infer_firmware([disk], Layers()) == Firmware(kind)


RAID = "A19D880F-05FC-4D3B-A006-743F0F84911E"


@pytest.mark.parametrize(
    ("part_type", "data_offset", "kind"),
    [
        (RAID, 0, FirmwareKind.UEFI),
        (ESP, 0, FirmwareKind.UEFI),
        (RAID, 1 << 20, FirmwareKind.BIOS),  # firmware sees no filesystem there
        (ESP, 1 << 20, FirmwareKind.BIOS),
    ],
)
def test_a_mirrored_system_partition_counts_where_firmware_sees_its_fat(
    part_type: str, data_offset: int, kind: FirmwareKind
) -> None:
    disk = make_disk(TableKind.GPT, part_type, "linux_raid_member")
    member = MdMember("disk0/p1", 0, 0, MdState.ACTIVE, 3, clean=True, data_offset=data_offset)
    array = MdArray(
        "md0", "u", "h:esp", "raid1", MdVersion.V1_0, 2, 0, bitmap=False, degraded=False,
        members=(member,), filesystem=Filesystem("vfat"),
    )  # fmt: skip
    layers = Layers(md=(array,))
    assert infer_firmware([disk], layers) == Firmware(kind)
    found = list(system_partitions([disk], layers))
    assert bool(found) is (kind is FirmwareKind.UEFI or part_type == ESP)
