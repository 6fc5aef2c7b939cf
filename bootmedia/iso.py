"""The ISO 9660 image: El Torito boot entries for BIOS and UEFI, Rock Ridge and Joliet names.

The only user of pycdlib. What makes the same file boot from a USB stick is `hybrid`'s.
"""

import functools
import io
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final
from unittest import mock

import pycdlib

from bootmedia.initramfs import build_time
from imager.errors import MediumError

SECTOR: Final = 2048  # bytes of a sector of a CD

_BIOS_IMAGE: Final = "boot/grub/eltorito.img"
_EFI_IMAGE: Final = "boot/grub/efi.img"
_CATALOGUE: Final = "boot/grub/boot.cat"


@dataclass(frozen=True, slots=True)
class BootImages:
    """Where the boot images lie in the ISO.

    Attributes:
        bios: first sector (of 2048 bytes) of the BIOS boot image.
        efi: first sector of the EFI system partition.
        efi_size: its bytes.
    """

    bios: int
    efi: int
    efi_size: int


def write(
    file: BinaryIO,
    volume_id: str,
    files: Mapping[str, Path | bytes],
    bios_image: Path,
    efi_image: Path,
) -> BootImages:
    """Write the ISO into an empty, seekable file.

    Args:
        file: opened for writing in binary.
        volume_id: name of the volume: A to Z, digits and "_", at most 32.
        files: content by path; folders come by themselves.
        bios_image: GRUB's image for El Torito without emulation.
        efi_image: the FAT image of `esp`.

    Raises:
        OSError: the file can't be written; ENOSPC when there is no room.
    """
    everything = {**files, _BIOS_IMAGE: bios_image, _EFI_IMAGE: efi_image}
    folders = {parent for name in everything for parent in PurePosixPath(name).parents}
    with _clock():
        iso = pycdlib.PyCdlib()
        iso.new(
            interchange_level=3,
            joliet=3,
            rock_ridge="1.09",
            vol_ident=volume_id,
            sys_ident="LINUX",
        )
        for folder in sorted(folders - {PurePosixPath()}):
            iso.add_directory(
                _iso_path(folder), rr_name=folder.name, joliet_path=f"/{folder}", file_mode=0o40555
            )
        for name, content in sorted(everything.items()):
            path = PurePosixPath(name)
            add = (
                functools.partial(iso.add_fp, io.BytesIO(content), len(content))
                if isinstance(content, bytes)
                else functools.partial(iso.add_file, str(content))
            )
            add(
                iso_path=_iso_path(path) + ";1",
                rr_name=path.name,
                joliet_path=f"/{path}",
                file_mode=0o100444,
            )
        iso.add_eltorito(
            _iso_path(PurePosixPath(_BIOS_IMAGE)) + ";1",
            bootcatfile=_iso_path(PurePosixPath(_CATALOGUE)) + ";1",
            rr_bootcatname=PurePosixPath(_CATALOGUE).name,
            joliet_bootcatfile=f"/{_CATALOGUE}",
            boot_load_size=4,
            boot_info_table=True,
        )
        iso.add_eltorito(_iso_path(PurePosixPath(_EFI_IMAGE)) + ";1", efi=True)
        iso.write_fp(file)
    images = BootImages(
        _first_sector(iso, _BIOS_IMAGE), _first_sector(iso, _EFI_IMAGE), efi_image.stat().st_size
    )
    iso.close()
    return images


def read(iso_file: Path, name: str) -> bytes:
    """Return the content of a file on an ISO that `write` made.

    Raises:
        MediumError: it is no ISO, or has no such file.
    """
    content = io.BytesIO()
    iso = pycdlib.PyCdlib()
    try:
        iso.open(str(iso_file))
        iso.get_file_from_iso_fp(content, iso_path=_iso_path(PurePosixPath(name)) + ";1")
        iso.close()
    except (pycdlib.pycdlibexception.PyCdlibException, OSError) as error:
        raise MediumError(
            f"{iso_file} is no rescue medium: {name} can't be read from it: {error}",
            hint="Build one with `remetal media build`.",
        ) from error
    return content.getvalue()


def _iso_path(path: PurePosixPath) -> str:
    """Return a path in the few letters ISO 9660 allows; a name has one dot at most, inside."""
    names = []
    for part in path.parts:
        stem, dot, suffix = part.upper().rpartition(".")
        stem = re.sub(r"[^A-Z0-9_]", "_", stem)
        suffix = re.sub(r"[^A-Z0-9_]", "_", suffix)
        names.append(f"{stem}{dot}{suffix}" if stem else f"{'_' if dot else ''}{suffix}")
    return "/" + "/".join(names)


def _first_sector(iso: pycdlib.PyCdlib, name: str) -> int:
    record = iso.get_record(iso_path=_iso_path(PurePosixPath(name)) + ";1")
    if record.inode is None:
        raise MediumError(f"{name} has no content on the ISO")
    sector: int = record.inode.extent_location()
    return sector


@contextmanager
def _clock() -> Iterator[None]:
    """Hold pycdlib's clock at SOURCE_DATE_EPOCH, where that is set; it has no parameter for it."""
    if "SOURCE_DATE_EPOCH" not in os.environ:
        yield
        return
    with mock.patch.object(time, "time", return_value=float(build_time())):
        yield
