"""Disks put together from files: table, filesystems and boot code.

Everything is made in place, in a sparse file, at the offset of its partition. Only XFS, which no
program fills from a directory with all its attributes, is mounted for it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import layout_order
import tree
from imager import process
from imager.errors import ConfigError, ProgramError
from imager.units import KIB
from spec import Disk, Filesystem, FilesystemType, Layout, Loader, Machine, PartitionType, TableKind
from template import render

_SECTOR: Final = 512
_MBR_CODE: Final = 440  # bytes before the disk signature
_SWAP_HEADER: Final = 4096  # mkswap writes into the first page only
_CORE_AT: Final = 0x5C  # in boot.img: sector of the core, 64 bits
_REST_AT: Final = 0x1F4  # in the core's first sector: sector of the rest of it, 64 bits
_DRIVE_CHECK: Final = 0x66  # in GRUB's boot.img: a jump that distrusts the BIOS's drive number
_NUMBER: Final = re.compile(r"\d+$")  # at the end of sfdisk's name for a partition
_BY_PATH: Final = Layout()
_GRUB_MODULES: Final = ("biosdisk", "part_msdos", "part_gpt", "ext2", "search_fs_uuid")
_TYPES: Final = {
    TableKind.GPT: {
        "bios-boot": "21686148-6449-6E6F-744E-656564454649",
        "esp": "uefi",
        "linux": "linux",
        "lvm": "lvm",
        "raid": "raid",
        "swap": "swap",
        "windows": "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7",
    },
    TableKind.MBR: {
        "esp": "uefi",
        "linux": "linux",
        "lvm": "lvm",
        "raid": "raid",
        "swap": "swap",
        "extended": "extended",
        "windows": "7",
    },
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
        _install_grub(*boot, _room_for_grub(machine.disk[0], images[0], places))
    return tuple(images)


def partition(disk: Disk, image: Path) -> dict[str, Place]:
    """Make a sparse image with the disk's partition table.

    Returns:
        Where every partition lies, by `DISK/PARTITION`.
    """
    sparse(image, disk.size)
    process.run("sfdisk", "--quiet", image, stdin=sfdisk_script(disk).encode())
    table = read_table(image)
    names = {each.number: each.name for each in disk.partition}
    return {
        f"{disk.name}/{names[number]}": Place(
            image, entry["start"] * _SECTOR, entry["size"] * _SECTOR
        )
        for number, entry in table.items()
    }


def sparse(path: Path, size: int) -> None:
    """Make a file that is one hole."""
    with path.open("xb") as file:
        file.truncate(size)


def sfdisk_script(disk: Disk) -> str:
    """Return what makes sfdisk write the table of a disk, whatever its sectors are."""
    return render("sfdisk", disk=disk, types=_TYPES[disk.table])


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
    elif filesystem.type is FilesystemType.XFS:
        _xfs(filesystem, place, content)
    else:
        _ext4(filesystem, place, content, layout)


def _swap(filesystem: Filesystem, place: Place) -> None:
    area = place.image.with_suffix(".swap")
    sparse(area, place.length)
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


def _xfs(filesystem: Filesystem, place: Place, content: Path) -> None:
    label = ("-L", filesystem.label) if filesystem.label else ()
    mountpoint = place.image.with_suffix(".mount")
    mountpoint.mkdir()
    with _loop(place) as device:
        process.run("mkfs.xfs", "-q", "-m", f"uuid={filesystem.uuid}", *label, device)
        process.run("mount", "-t", "xfs", device, mountpoint)
        try:
            process.run("cp", "--archive", f"{content}/.", mountpoint)
        finally:
            process.run("umount", mountpoint)
    mountpoint.rmdir()


@contextmanager
def _loop(place: Place) -> Iterator[Path]:
    """Yield a device that is a place on a disk."""
    part = ("--offset", str(place.offset), "--sizelimit", str(place.length))
    device = process.run("losetup", "--find", "--show", *part, place.image).strip()
    try:
        yield Path(device)
    finally:
        process.run("losetup", "--detach", device)


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
    """Return GRUB's first sector and its core, which finds the filesystem of /boot by its UUID."""
    early = directory / "early.cfg"
    boot, folder = machine.boot_folder()
    early.write_text(render("early.cfg", boot_uuid=boot.uuid, folder=folder, on_esp=False))
    core = directory / "core.img"
    process.run(
        *("grub-mkimage", "--format=i386-pc", "--directory", modules, "--config", early),
        *("--prefix", f"{folder}/grub", "--output", core, *_GRUB_MODULES),
    )
    result = ((modules / "boot.img").read_bytes(), core.read_bytes())
    early.unlink()
    core.unlink()
    return result


def _room_for_grub(disk: Disk, image: Path, places: Mapping[str, Place]) -> Place:
    """Return where GRUB's core goes: the BIOS boot partition, else the gap behind the MBR."""
    for each in disk.partition:
        if each.type is PartitionType.BIOS_BOOT:
            return places[f"{disk.name}/{each.name}"]
    first = min(place.offset for place in places.values() if place.image == image)
    return Place(image, _SECTOR, first - _SECTOR)


def _install_grub(boot: bytes, core: bytes, room: Place) -> None:
    if len(core) > room.length:
        raise ConfigError(
            f"GRUB's core of {len(core)} bytes does not fit into {room.length}",
            hint="Let the first partition start at 1 MiB or later, or give bios-boot 1 MiB.",
        )
    sector = room.offset // _SECTOR
    code, parts = bytearray(boot[:_MBR_CODE]), bytearray(core)
    code[_DRIVE_CHECK : _DRIVE_CHECK + 2] = b"\x90\x90"
    code[_CORE_AT : _CORE_AT + 8] = sector.to_bytes(8, "little")
    parts[_REST_AT : _REST_AT + 8] = (sector + 1).to_bytes(8, "little")
    _write_at(room.image, 0, bytes(code))
    _write_at(room.image, room.offset, bytes(parts))


def _write_at(image: Path, offset: int, data: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(data)
