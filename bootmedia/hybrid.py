"""What makes an ISO boot from a USB stick as well: a boot sector for BIOS and a GPT for UEFI.

Written into a finished ISO, whose first 32 KiB are free for this. Such an ISO must not be
rewritten by ISO tools: the GPT at its end would be lost.

Offsets are those of GRUB's own images (`boot_hybrid.img` and the El Torito image), numbers of
sectors count 512 bytes.
"""

import struct
import uuid
import zlib
from typing import BinaryIO, Final

from bootmedia.iso import SECTOR as ISO_SECTOR
from bootmedia.iso import BootImages
from imager.units import MIB, round_up

_SECTOR: Final = 512
_PER_ISO_SECTOR: Final = ISO_SECTOR // _SECTOR
_ENTRIES: Final = 128
_ENTRY_SIZE: Final = 128
_TABLE_SECTORS: Final = _ENTRIES * _ENTRY_SIZE // _SECTOR
_HEADER_SIZE: Final = 92
_FIRST_USABLE: Final = 2 + _TABLE_SECTORS
_ESP_TYPE: Final = uuid.UUID("C12A7328-F81F-11D2-BA4B-00A0C93EC93B")
_PARTITION_NAME: Final = "remetal-efi"

_MBR_KERNEL_SECTOR: Final = 0x1B0  # 64 bits in boot_hybrid.img: where the BIOS boot image goes on
_MBR_SIGNATURE: Final = 0x1B8
_MBR_TABLE: Final = 0x1BE
_ELTORITO_BLOCK_LIST: Final = 2548  # 64 bits in the El Torito image: its own second sector
_NO_GEOMETRY: Final = b"\xfe\xff\xff"  # cylinder, head and sector that mean "see the sector number"


def make_hybrid(file: BinaryIO, images: BootImages, boot_sector: bytes, medium: uuid.UUID) -> int:
    """Add boot sector and partition table to an ISO.

    Args:
        file: the finished ISO, opened for reading and writing in binary.
        images: where its boot images lie.
        boot_sector: GRUB's boot_hybrid.img.
        medium: the identifiers of disk and partition are made from it.

    Returns:
        The new size, a whole number of MiB.
    """
    size = round_up(file.seek(0, 2) + (1 + _TABLE_SECTORS) * _SECTOR, MIB)
    file.truncate(size)
    bios = images.bios * _PER_ISO_SECTOR
    _write(file, bios * _SECTOR + _ELTORITO_BLOCK_LIST, struct.pack("<Q", bios + 5))
    sectors = size // _SECTOR
    table = _gpt_entries(images, uuid.uuid5(medium, "partition"))
    last = sectors - 1
    backup = last - _TABLE_SECTORS
    _write(file, 0, _mbr(boot_sector, bios, sectors, medium))
    _write(file, _SECTOR, _gpt_header(1, last, 2, table, medium))
    _write(file, 2 * _SECTOR, table)
    _write(file, backup * _SECTOR, table)
    _write(file, last * _SECTOR, _gpt_header(last, 1, backup, table, medium))
    return size


def _write(file: BinaryIO, offset: int, data: bytes) -> None:
    file.seek(offset)
    file.write(data)


def _mbr_entry(flag: int, kind: int, first: int, count: int) -> bytes:
    return struct.pack("<B3sB3sII", flag, _NO_GEOMETRY, kind, _NO_GEOMETRY, first, count)


def _mbr(boot_sector: bytes, bios: int, sectors: int, medium: uuid.UUID) -> bytes:
    mbr = bytearray(boot_sector[:_SECTOR])
    struct.pack_into("<Q", mbr, _MBR_KERNEL_SECTOR, bios + 4)
    struct.pack_into("<I", mbr, _MBR_SIGNATURE, medium.time_low)
    # The entry that protects the GPT; and an empty active one, since some BIOSes boot from
    # nothing that has no active partition.
    entries = _mbr_entry(0x00, 0xEE, 1, sectors - 1) + _mbr_entry(0x80, 0x00, 0, 0)
    mbr[_MBR_TABLE:_SECTOR] = entries.ljust(64, b"\0") + b"\x55\xaa"
    return bytes(mbr)


def _gpt_entries(images: BootImages, unique: uuid.UUID) -> bytes:
    first = images.efi * _PER_ISO_SECTOR
    last = first + images.efi_size // _SECTOR - 1
    entry = _ESP_TYPE.bytes_le + unique.bytes_le + struct.pack("<QQQ", first, last, 0)
    entry += _PARTITION_NAME.encode("utf-16-le").ljust(72, b"\0")
    return entry.ljust(_ENTRIES * _ENTRY_SIZE, b"\0")


def _gpt_header(own: int, other: int, table_at: int, table: bytes, medium: uuid.UUID) -> bytes:
    last_usable = max(own, other) - _TABLE_SECTORS - 1

    def packed(checksum: int) -> bytes:
        return struct.pack(
            "<8sIIIIQQQQ16sQIII",
            *(b"EFI PART", 0x00010000, _HEADER_SIZE, checksum, 0),
            *(own, other, _FIRST_USABLE, last_usable, medium.bytes_le),
            *(table_at, _ENTRIES, _ENTRY_SIZE, zlib.crc32(table)),
        )

    return packed(zlib.crc32(packed(0))).ljust(_SECTOR, b"\0")
