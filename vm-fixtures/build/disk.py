"""Disks put together from files: table, filesystems and boot code, without mounts or loop devices.

Everything is made in place, in a sparse file, at the offset of its partition.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import layout_order
import tree
from imager import process
from imager.errors import ConfigError, ProgramError
from imager.units import KIB
from spec import Disk, Filesystem, FilesystemType, Layout, Loader, Machine, TableKind
from template import render

_SECTOR: Final = 512
_MBR_CODE: Final = 440  # bytes before the disk signature
_SWAP_HEADER: Final = 4096  # mkswap writes into the first page only
_DRIVE_CHECK: Final = 0x66  # in GRUB's boot.img: a jump that distrusts the BIOS's drive number
_NUMBER: Final = re.compile(r"\d+$")  # at the end of sfdisk's name for a partition
_BY_PATH: Final = Layout()
_GRUB_MODULES: Final = ("biosdisk", "part_msdos", "part_gpt", "ext2", "search_fs_uuid")
_TYPES: Final = {
    TableKind.GPT: {"esp": "uefi", "linux": "linux", "swap": "swap"},
    TableKind.MBR: {"esp": "uefi", "linux": "linux", "swap": "swap", "extended": "extended"},
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a partition lies.

    Attributes:
        image: file of the disk.
        offset: first byte.
        length: bytes.
    """

    image: Path
    offset: int
    length: int


def assemble(machine: Machine, content: Path, directory: Path) -> tuple[Path, ...]:
    """Make the disks of a machine.

    Args:
        machine: what they are like.
        content: all files of the machine; it is taken apart on the way.
        directory: receives disk0.img, disk1.img, …; must be on the filesystem of `content`.

    Returns:
        The image files, in the order of the machine's disks.

    Raises:
        ConfigError: something does not fit.
        ProgramError: a tool failed.
    """
    places: dict[str, Place] = {}
    images = []
    for number, disk in enumerate(machine.disk):
        image = directory / f"disk{number}.img"
        places |= partition(disk, image)
        images.append(image)
    boot = None
    if machine.boot.loader is Loader.GRUB_PC:
        boot = _grub_core(machine, content / "usr/lib/grub/i386-pc", directory)
    parts = tree.split(machine, content, directory / "parts")
    for each in machine.filesystem:
        part = parts.get(each.mountpoint or "")
        make(each, places[each.on], part, machine.layout)
    if boot is not None:
        first = min(place.offset for place in places.values() if place.image == images[0])
        _install_grub(images[0], *boot, room=first)
    return tuple(images)


def partition(disk: Disk, image: Path) -> dict[str, Place]:
    """Make a sparse image with the disk's partition table.

    Returns:
        Where every partition lies, by `DISK/PARTITION`.
    """
    with image.open("xb") as file:
        file.truncate(disk.size)
    script = render("sfdisk", disk=disk, types=_TYPES[disk.table])
    process.run("sfdisk", "--quiet", image, stdin=script.encode())
    table = read_table(image)
    names = {each.number: each.name for each in disk.partition}
    return {
        f"{disk.name}/{names[number]}": Place(
            image, entry["start"] * _SECTOR, entry["size"] * _SECTOR
        )
        for number, entry in table.items()
    }


def read_table(image: Path) -> Mapping[int, dict[str, Any]]:
    """Return sfdisk's description of each partition of an image, by number."""
    found = json.loads(process.run("sfdisk", "--json", image))["partitiontable"]
    return {int(_NUMBER.findall(entry["node"])[0]): entry for entry in found["partitions"]}


def make(
    filesystem: Filesystem, place: Place, content: Path | None, layout: Layout = _BY_PATH
) -> None:
    """Make a filesystem or swap area with its content.

    Args:
        filesystem: type, identity.
        place: where.
        content: directory whose files it receives; None for swap.
        layout: the order in which ext4 receives them.
    """
    if filesystem.type is FilesystemType.SWAP:
        _swap(filesystem, place)
    elif content is None:
        raise ConfigError(f"{filesystem.on}: a {filesystem.type} without mountpoint has no content")
    elif filesystem.type is FilesystemType.VFAT:
        _vfat(filesystem, place, content)
    else:
        _ext4(filesystem, place, content, layout)


def _swap(filesystem: Filesystem, place: Place) -> None:
    area = place.image.with_suffix(".swap")
    with area.open("xb") as file:
        file.truncate(place.length)
    area.chmod(0o600)
    label = ("--label", filesystem.label) if filesystem.label else ()
    process.run("mkswap", "--uuid", filesystem.uuid, *label, area)
    with area.open("rb") as file:
        header = file.read(_SWAP_HEADER)
    area.unlink()
    _write_at(place.image, place.offset, header)


def _vfat(filesystem: Filesystem, place: Place, content: Path) -> None:
    label = ("-n", filesystem.label) if filesystem.label else ()
    process.run(
        *("mkfs.vfat", "-F", "32", "-s", "1", "-i", filesystem.uuid.replace("-", ""), *label),
        *("--offset", str(place.offset // _SECTOR), "-h", str(place.offset // _SECTOR)),
        *(place.image, str(place.length // KIB)),
    )
    entries = sorted(content.iterdir())
    if entries:
        target = f"{place.image}@@{place.offset}"
        process.run("mcopy", "-i", target, "-s", "-p", "-m", *entries, "::/")


def _ext4(filesystem: Filesystem, place: Place, content: Path, layout: Layout) -> None:
    links, directories = layout_order.link(content, layout)
    label = ("-L", filesystem.label) if filesystem.label else ()
    # Without lazy initialisation: the kernel would go on writing after the first mount.
    extended = f"offset={place.offset},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0"
    process.run(
        *("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-U", filesystem.uuid, *label),
        *("-E", extended, "-d", content, place.image, f"{place.length // KIB}k"),
    )
    if links:
        _remove(place, links, directories)


def _remove(place: Place, files: list[str], directories: list[str]) -> None:
    """Remove names and then directories, the outermost last, from an ext4.

    Raises:
        ProgramError: debugfs could not.
    """
    image = f"{place.image}?offset={place.offset}"
    commands = [*(f"rm {name}" for name in files), *(f"rmdir {name}" for name in directories)]
    process.run("debugfs", "-w", "-f", "-", image, stdin="\n".join(commands).encode())
    # debugfs exits with 0 whatever happens. It removes empty directories only, so all went well
    # if the outermost is gone.
    argv = ("debugfs", "-R", f"stat {directories[-1]}", image)
    if process.run(*argv):
        raise ProgramError(argv, 0, f"{directories[-1]} can't be removed")


def _grub_core(machine: Machine, modules: Path, directory: Path) -> tuple[bytes, bytes]:
    """Return GRUB's first sector and its core, which finds the root filesystem by its UUID."""
    early = directory / "early.cfg"
    early.write_text(render("early.cfg", root_uuid=machine.at("/").uuid, on_esp=False))
    core = directory / "core.img"
    process.run(
        *("grub-mkimage", "--format=i386-pc", "--directory", modules, "--config", early),
        *("--prefix", "/boot/grub", "--output", core, *_GRUB_MODULES),
    )
    result = ((modules / "boot.img").read_bytes(), core.read_bytes())
    early.unlink()
    core.unlink()
    return result


def _install_grub(image: Path, boot: bytes, core: bytes, *, room: int) -> None:
    if _SECTOR + len(core) > room:
        raise ConfigError(
            f"GRUB's core of {len(core)} bytes does not fit before the first partition",
            hint="Let the first partition start at 1 MiB or later.",
        )
    code = bytearray(boot[:_MBR_CODE])
    code[_DRIVE_CHECK : _DRIVE_CHECK + 2] = b"\x90\x90"
    _write_at(image, 0, bytes(code))
    _write_at(image, _SECTOR, core)


def _write_at(image: Path, offset: int, data: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(data)
