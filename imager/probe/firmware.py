"""How a machine starts: what its firmware says, or for disk files what their layout says.

Boot entries are read as the firmware keeps them (EFI_LOAD_OPTION of the UEFI specification 2.10,
3.1.3) from efivarfs, whose form is fixed, and not from the words of a program about them.
"""

import struct
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from imager.layout.disk import Disk
from imager.layout.firmware import BootEntry, Firmware, FirmwareKind
from imager.layout.layers import Layers
from imager.layout.machine import outer_filesystem, system_partitions

_EFI: Final = Path("/sys/firmware/efi")
_GLOBAL: Final = "8be4df61-93ca-11d2-aa0d-00e098032b8c"  # EFI_GLOBAL_VARIABLE
_ATTRIBUTES_LENGTH: Final = 4  # efivarfs puts the variable's attributes before its data
_MEDIA: Final = 4  # device path type: media
_HARD_DRIVE: Final = 1  # … its sub-types
_FILE_PATH: Final = 4
_END: Final = 0x7F
# partition number, start, size, signature, kind of table, kind of signature
_DRIVE: Final = struct.Struct("<IQQ16sBB")
_GUID_SIGNATURE: Final = 2


def read_firmware(efi: Path = _EFI) -> Firmware:
    """Return the firmware of the machine that runs this.

    Args:
        efi: where the kernel shows what UEFI told it; missing when it was started by a BIOS.
    """
    if not efi.is_dir():
        return Firmware(FirmwareKind.BIOS)
    variables = efi / "efivars"
    secure_boot = _variable(variables, "SecureBoot")
    return Firmware(
        kind=FirmwareKind.UEFI,
        secure_boot=None if secure_boot is None else secure_boot[:1] == b"\x01",
        boot_entries=tuple(_boot_entries(variables)),
    )


def infer_firmware(disks: Iterable[Disk], layers: Layers) -> Firmware:
    """Return what the disks of a machine that does not run here are made for.

    UEFI when there is an EFI system partition with a FAT filesystem: a BIOS system has no use for
    one, and disks that start either way (cloud images) start by UEFI as well. Otherwise BIOS.
    Secure Boot and boot entries live in the firmware and can't be known from disks. An EFI system
    partition may be mirrored by md, with its filesystem where the firmware expects it.
    """
    for disk, part in system_partitions(disks, layers):
        for volume in disk.volumes:
            filesystem = outer_filesystem(volume, layers)
            if volume.partition == part.number and filesystem and filesystem.type == "vfat":
                return Firmware(FirmwareKind.UEFI)
    return Firmware(FirmwareKind.BIOS)


def decode_boot_entry(data: bytes) -> BootEntry | None:
    """Return the entry that a Boot#### variable holds; None when it starts no file from a GPT disk.

    Args:
        data: EFI_LOAD_OPTION without efivarfs' leading attributes.
    """
    try:
        _attributes, length = struct.unpack_from("<IH", data)
        label_end = _end_of_text(data, 6)
        label = data[6:label_end].decode("utf-16-le")
        partition = loader = None
        for kind, subtype, body in _device_path(data[label_end + 2 :][:length]):
            if (kind, subtype) == (_MEDIA, _HARD_DRIVE):
                signature, _table, signature_kind = _DRIVE.unpack_from(body)[3:]
                if signature_kind == _GUID_SIGNATURE:
                    partition = str(uuid.UUID(bytes_le=signature)).upper()
            elif (kind, subtype) == (_MEDIA, _FILE_PATH):
                loader = (loader or "") + body.decode("utf-16-le").rstrip("\0")
    except (struct.error, UnicodeDecodeError, ValueError):
        return None
    if partition is None or loader is None:
        return None
    return BootEntry(label, partition, loader)


def _boot_entries(variables: Path) -> Iterator[BootEntry]:
    order = _variable(variables, "BootOrder") or b""
    for (number,) in struct.iter_unpack("<H", order[: len(order) // 2 * 2]):
        data = _variable(variables, f"Boot{number:04X}")
        entry = decode_boot_entry(data) if data else None
        if entry is not None:
            yield entry


def _variable(variables: Path, name: str) -> bytes | None:
    try:
        return (variables / f"{name}-{_GLOBAL}").read_bytes()[_ATTRIBUTES_LENGTH:]
    except OSError:
        return None


def _end_of_text(data: bytes, start: int) -> int:
    for position in range(start, len(data) - 1, 2):
        if data[position : position + 2] == b"\0\0":
            return position
    raise ValueError("text without an end")


def _device_path(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    position = 0
    while position + 4 <= len(data):
        kind, subtype, length = struct.unpack_from("<BBH", data, position)
        if kind == _END or length < 4:
            return
        yield kind, subtype, data[position + 4 : position + length]
        position += length
