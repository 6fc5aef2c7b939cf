"""The EFI system partition: a small FAT image with Debian's signed boot loaders."""

from pathlib import Path
from typing import Final

from bootmedia.initramfs import build_time
from bootmedia.rootfs import Base
from bootmedia.templates import render
from imager import process
from imager.units import KIB, round_up

# What the firmware looks for on a removable medium, and the names these loaders look for.
LOADERS: Final = {
    "EFI/BOOT/BOOTX64.EFI": "shim.efi",
    "EFI/BOOT/grubx64.efi": "grub.efi",
    "EFI/BOOT/mmx64.efi": "mok-manager.efi",
}
_LABEL: Final = "REMETAL_EFI"
_ROOM: Final = 128 * KIB  # for the tables of FAT and the small files


def build(base: Base, marker: str, serial: int, work: Path) -> Path:
    """Make the FAT image and return its path.

    Args:
        base: brings the boot loaders.
        marker: path of a file that only this medium has; the boot loader finds the medium by it.
        serial: 32-bit number of the FAT filesystem.
        work: folder for the image.

    Raises:
        ProgramError: mtools can't write it.
    """
    image = work / "efi.img"
    stub = work / "find_medium.cfg"
    stub.write_text(render("find_medium.cfg.j2", marker=marker))
    # Debian's loaders for CDs read the first, those for disks the second.
    files = {name: base.part(part) for name, part in LOADERS.items()}
    files |= {"boot/grub/grub.cfg": stub, "EFI/debian/grub.cfg": stub}
    size = round_up(sum(path.stat().st_size for path in files.values()) + _ROOM, 64 * KIB)
    # mtools knows SOURCE_DATE_EPOCH, and would compare the image with a disk's geometry.
    environment = {"SOURCE_DATE_EPOCH": str(build_time()), "MTOOLS_SKIP_CHECK": "1"}
    sectors = str(size // 512)
    process.run(
        *("mformat", "-C", "-i", image, "-T", sectors, "-h", "16", "-s", "32"),
        *("-v", _LABEL, "-N", f"{serial:08x}", "::"),
        env=environment,
    )
    folders = ("EFI", "EFI/BOOT", "EFI/debian", "boot", "boot/grub")
    process.run("mmd", "-i", image, *(f"::/{name}" for name in folders), env=environment)
    for name, path in files.items():
        process.run("mcopy", "-i", image, path, f"::/{name}", env=environment)
    return image
