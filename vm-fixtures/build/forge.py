"""Disks that only a kernel can put together: md, LUKS, LVM, btrfs, NTFS, disks without a table.

The machine's own kernel does it, in a virtual machine whose system is the tree of the machine:
see `guest/forge.py`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import tree
from disk import sfdisk_script, sparse
from imager import process
from imager.units import MIB
from restore.drill.accelerator import choose
from restore.drill.qemu import Drive, Vm, VmSpec
from spec import Machine, TableKind, encode

_FOLDER: Final = Path("usr/local/lib/forge")
_LABEL: Final = "forge"
_ROOM: Final = 256 * MIB  # beside the files: metadata, and what the forge writes itself
_TIMEOUT: Final = 1800.0  # seconds; about 200 under TCG on a free machine
_END_TIMEOUT: Final = 120.0
_MEMORY_MIB: Final = 1536
_REPORT: Final = 1


def forge(machine: Machine, content: Path, directory: Path) -> tuple[Path, ...]:
    """Make the disks of a machine in a virtual machine.

    Args:
        machine: what they are like.
        content: all files of the machine; those that the forge needs are added.
        directory: receives disk0.img, disk1.img, …

    Returns:
        The image files, in the order of the machine's disks.

    Raises:
        ProgramError: a tool failed.
        DrillError: the forge did not come to its end; with the end of its console.
    """
    _equip(machine, content)
    own = directory / "forge.img"
    sparse(own, _size(content) + _ROOM)
    process.run("mke2fs", "-q", "-F", "-t", "ext4", "-L", _LABEL, "-d", content, own)
    images = tuple(_blank(machine, directory))
    (kernel,) = (content / "boot").glob("vmlinuz-*")
    (initrd,) = (content / "boot").glob("initrd.img-*")
    drives = (
        Drive(image, bus=disk.bus, serial=disk.serial, sector=disk.sector)
        for image, disk in zip(images, machine.disk, strict=True)
    )
    spec = VmSpec(
        name=f"{machine.hostname}-forge",
        memory_mib=_MEMORY_MIB,
        drives=(Drive(own), *drives),
        serials=(directory / "forge-console.log", directory / "forge-report.log"),
        kernel=kernel,
        initrd=initrd,
        append=f"root=LABEL={_LABEL} rw console=ttyS0 panic=-1 quiet init=/{_FOLDER}/forge.py",
    )
    with Vm(spec, choose().accelerator) as vm:
        vm.wait_serial(_REPORT, r"REMETAL-FORGED", _TIMEOUT)
        vm.wait_exit(_END_TIMEOUT)
    own.unlink()
    return images


def _equip(machine: Machine, content: Path) -> None:
    """Put the forge and all that it needs to know among the files."""
    folder = content / _FOLDER
    folder.mkdir()
    program = folder / "forge.py"
    program.write_bytes((tree.GUEST / "forge.py").read_bytes())
    program.chmod(0o755)
    (folder / "machine.json").write_bytes(encode(machine))
    for disk in machine.disk:
        if disk.table is not TableKind.NONE:
            (folder / f"{disk.name}.sfdisk").write_text(sfdisk_script(disk))


def _size(content: Path) -> int:
    """Return how much room files take in blocks of 4 KiB, rounded up to whole MiB."""
    text = process.run("du", "--summarize", "--apparent-size", "--block-size=4K", content)
    used = process.run("du", "--summarize", "--block-size=1M", content)
    return max(int(text.split()[0]) * 4096, int(used.split()[0]) * MIB) // MIB * MIB


def _blank(machine: Machine, directory: Path) -> Iterator[Path]:
    for number, disk in enumerate(machine.disk):
        image = directory / f"disk{number}.img"
        sparse(image, disk.size)
        yield image
