import hashlib
import json
import struct
import subprocess
from pathlib import Path

import pycdlib
import pytest

from bootmedia import iso
from bootmedia.config import MediumConfig
from bootmedia.medium import VOLUME_ID, MediumReport, build_medium
from bootmedia.rootfs import Base
from imager.errors import MediumError
from imager.units import MIB


def _bytes(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def test_size_and_hash(medium: MediumReport) -> None:
    assert medium.size == medium.path.stat().st_size
    assert medium.size <= 130 * MIB
    assert medium.size % MIB == 0
    with medium.path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == medium.sha256
    assert medium.volume_id == VOLUME_ID


def test_it_fits_into_half_of_1_gib_when_unpacked(medium: MediumReport) -> None:
    # The kernel gives its first root half of the memory, about 437 MiB of 1 GiB.
    assert medium.unpacked < 380 * MIB


def test_partition_tables_are_in_order(medium: MediumReport) -> None:
    done = subprocess.run(
        ["sgdisk", "--verify", medium.path], capture_output=True, text=True, check=True
    )
    # Where it finds no table at all, sgdisk checks one of its own making.
    assert done.stdout.strip().startswith("No problems found")
    assert done.stderr == ""


def test_the_efi_partition_is_the_fat_image_on_the_iso(medium: MediumReport) -> None:
    done = subprocess.run(
        ["sfdisk", "--json", medium.path], capture_output=True, text=True, check=True
    )
    table = json.loads(done.stdout)["partitiontable"]
    (partition,) = table["partitions"]
    assert table["label"] == "gpt"
    assert partition["type"] == "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
    fat = _bytes(medium.path, partition["start"] * 512, partition["size"] * 512)
    assert fat[54:59] == b"FAT12" or fat[54:59] == b"FAT16"
    offset = f"{medium.path}@@{partition['start'] * 512}"
    done = subprocess.run(
        ["mdir", "-b", "-/", "-i", offset, "::"], capture_output=True, text=True, check=True
    )
    assert "::/EFI/BOOT/BOOTX64.EFI" in done.stdout
    assert "::/boot/grub/grub.cfg" in done.stdout


def test_boot_sector_leads_to_the_bios_image(medium: MediumReport) -> None:
    mbr = _bytes(medium.path, 0, 512)
    assert mbr[510:] == b"\x55\xaa"
    assert mbr[450] == 0xEE
    assert mbr[462] == 0x80  # some BIOSes want an active entry, whatever it holds
    (follow,) = struct.unpack_from("<Q", mbr, 0x1B0)
    image = (follow - 4) * 512
    # GRUB's own list of blocks there names the sector behind its first.
    (second,) = struct.unpack("<Q", _bytes(medium.path, image + 2548, 8))
    assert second == follow + 1
    # El Torito's boot information table names the same place, in sectors of 2048 bytes.
    _, own = struct.unpack("<II", _bytes(medium.path, image + 8, 8))
    assert own * 2048 == image


def test_another_program_finds_both_boot_entries(medium: MediumReport) -> None:
    done = subprocess.run(
        ["xorriso", "-indev", medium.path, "-report_el_torito", "plain"],
        capture_output=True,
        text=True,
        check=True,
    )
    images = [line for line in done.stdout.splitlines() if line.startswith("El Torito boot img")]
    assert [line.split(":")[1].split()[1:3] for line in images] == [["BIOS", "y"], ["UEFI", "y"]]


def test_files_are_reachable_by_every_kind_of_name(medium: MediumReport, base: Base) -> None:
    iso = pycdlib.PyCdlib()
    iso.open(str(medium.path))
    for facade in (iso.get_rock_ridge_facade(), iso.get_joliet_facade()):
        assert facade.get_record("/boot/vmlinuz").get_data_length() > 0
        assert facade.get_record(f"/.disk/remetal-{medium.medium}") is not None
        size = base.initramfs.stat().st_size
        assert facade.get_record("/boot/base.img").get_data_length() == size
    iso.close()


def test_equal_input_gives_equal_files(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    config = MediumConfig()
    first = build_medium(tmp_path / "a.iso", config, cache, lambda _: None)
    second = build_medium(tmp_path / "b.iso", config, cache, lambda _: None)
    assert first.sha256 == second.sha256


def test_files_are_read_from_it_again(medium: MediumReport, base: Base) -> None:
    assert iso.read(medium.path, "boot/vmlinuz") == base.part("vmlinuz").read_bytes()
    assert medium.medium.encode() in iso.read(medium.path, ".disk/info")


def test_what_is_no_medium_is_said(medium: MediumReport, tmp_path: Path) -> None:
    with pytest.raises(MediumError, match="boot/nothing"):
        iso.read(medium.path, "boot/nothing")
    for content in (b"", b"no ISO" * 20_000):
        (tmp_path / "other.iso").write_bytes(content)
        with pytest.raises(MediumError, match="no rescue medium"):
            iso.read(tmp_path / "other.iso", ".disk/info")
