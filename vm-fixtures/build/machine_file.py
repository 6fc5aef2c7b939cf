"""Reads a fixture machine from its TOML file: strictly, and with errors that say where."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from imager.errors import ConfigError
from imager.units import MIB, format_size, parse_size
from layer_checks import layer_problems
from spec import (
    Disk,
    Filesystem,
    FilesystemType,
    Firmware,
    Loader,
    Machine,
    Naming,
    Partition,
    PartitionType,
    Size,
    TableKind,
)

_NAME: Final = re.compile(r"[a-z][a-z0-9-]*")
_MACHINE_ID: Final = re.compile(r"[0-9a-f]{32}")
_FIRST_LOGICAL: Final = 5
_HINT: Final = "Compare it with the other files in vm-fixtures/machines."
_SYSTEMS: Final = Path(__file__).parent.parent / "systems"
_SECTORS: Final = (512, 4096)


def load(path: Path) -> Machine:
    """Read a machine from a TOML file.

    Its `system` is a table, or the name of a file in vm-fixtures/systems that holds one.

    Raises:
        ConfigError: no such file, not TOML, an unknown or missing key, a value that makes no
            sense; the message says where.
    """
    document = _read(path, "machine")
    if isinstance(system := document.get("system"), str):
        document["system"] = _read(_SYSTEMS / f"{system}.toml", "system")
    try:
        machine = msgspec.convert(document, Machine, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {_readable(str(error))}", hint=_HINT) from error
    problem = next(_problems(machine), None)
    if problem is not None:
        raise ConfigError(f"{path}: {problem}", hint=_HINT)
    return machine


def _read(path: Path, what: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.toml")))
        raise ConfigError(
            f"there is no {what} {path.stem} ({path})",
            hint=f"These are there: {known}." if known else _HINT,
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}", hint=_HINT) from error


def _decode(wanted: type, value: Any) -> Any:
    """Turn a TOML value into a type that TOML does not have; msgspec adds where it stands."""
    if wanted is not Size:
        raise NotImplementedError(wanted)
    if not isinstance(value, str):
        raise TypeError('a size is a text such as "256MiB"')
    size = parse_size(value)
    if size == 0 or size % MIB:
        raise ValueError(f"{value!r} is not a whole number of MiB")
    return Size(size)


def _readable(text: str) -> str:
    """Put msgspec's place (`$.disk[0].size`) in front, as TOML would write it."""
    problem, _, place = text.partition(" - at `$")
    place = place.strip("`.")
    return f"{place}: {problem}" if place else problem


def _problems(machine: Machine) -> Iterator[str]:
    """Yield what makes no sense although each value alone is of its type."""
    if not _NAME.fullmatch(machine.hostname):
        yield f"hostname: {machine.hostname!r} is not a name of lower-case letters, digits, dashes"
    if not _MACHINE_ID.fullmatch(machine.machine_id):
        yield "machine_id: it has 32 hexadecimal digits in lower case"
    if not machine.system.packages:
        yield "system.packages: a machine that boots needs packages"
    yield from _twice("disk.name", [disk.name for disk in machine.disk])
    yield from _twice("disk.serial", [disk.serial for disk in machine.disk])
    for index, disk in enumerate(machine.disk):
        for problem in _disk_problems(disk):
            yield f"disk[{index}] ({disk.name}): {problem}"
    yield from layer_problems(machine)
    yield from _filesystem_problems(machine)
    yield from _boot_problems(machine)


def _twice(what: str, values: list[str]) -> Iterator[str]:
    for value in sorted({value for value in values if values.count(value) > 1}):
        yield f"{what}: {value!r} is there twice"


def _disk_problems(disk: Disk) -> Iterator[str]:
    if len(disk.serial) > 20:
        yield f"serial: {disk.serial!r} is longer than the 20 characters a virtual disk carries"
    if disk.sector not in _SECTORS:
        yield f"sector: {disk.sector} is none of {_SECTORS}"
    if disk.table is TableKind.NONE:
        if disk.partition or disk.table_id:
            yield "table: without one there are neither partitions nor a table_id"
        return
    if not disk.partition:
        yield 'partition: there is none; a disk that holds something as a whole has the table "none"'
    numbers = [partition.number for partition in disk.partition]
    if numbers != sorted(set(numbers)) or (numbers and numbers[0] < 1):
        yield "partition.number: numbers start at 1, rise, and are unique"
    yield from _twice("partition.name", [partition.name for partition in disk.partition])
    if disk.table is TableKind.GPT:
        yield from _gpt_problems(disk)
    else:
        yield from _mbr_problems(disk)
    primary = [p for p in disk.partition if not _is_logical(disk, p)]
    logical = [p for p in disk.partition if _is_logical(disk, p)]
    frame = next((p.size for p in disk.partition if p.type is PartitionType.EXTENDED), None)
    for group, room in ((primary, disk.size), (logical, frame or disk.size)):
        yield from _room_problems(group, room)


def _room_problems(partitions: list[Partition], room: int) -> Iterator[str]:
    for partition in partitions[:-1]:
        if partition.size is None:
            yield f"partition {partition.name}: only the last one may take all that is left"
    needed = sum(partition.size or MIB for partition in partitions)
    if needed + MIB > room:
        yield f"partitions need {format_size(needed + MIB)}, there is room for {format_size(room)}"


def _is_logical(disk: Disk, partition: Partition) -> bool:
    return disk.table is TableKind.MBR and partition.number >= _FIRST_LOGICAL


def _gpt_problems(disk: Disk) -> Iterator[str]:
    for partition in disk.partition:
        if partition.uuid is None:
            yield f"partition {partition.name}: an entry of a GPT needs a uuid"
        if partition.type is PartitionType.EXTENDED or partition.bootable:
            yield f"partition {partition.name}: a GPT knows neither extended nor bootable"


def _mbr_problems(disk: Disk) -> Iterator[str]:
    if not re.fullmatch(r"[0-9a-f]{8}", disk.table_id):
        yield "table_id: the signature of an MBR has eight hexadecimal digits in lower case"
    extended = [p for p in disk.partition if p.type is PartitionType.EXTENDED]
    if len(extended) > 1:
        yield "partition: an MBR has at most one extended partition"
    for partition in disk.partition:
        if partition.uuid is not None:
            yield f"partition {partition.name}: an MBR keeps no uuid per partition"
        if partition.type is PartitionType.BIOS_BOOT:
            yield f"partition {partition.name}: an MBR has a gap for GRUB, and no bios-boot partition"
        if _is_logical(disk, partition) and not extended:
            yield f"partition {partition.name}: number 5 and up need an extended partition"
        if partition.type is PartitionType.EXTENDED and _is_logical(disk, partition):
            yield f"partition {partition.name}: an extended partition has a number from 1 to 4"


def _filesystem_problems(machine: Machine) -> Iterator[str]:
    devices = set(machine.devices())
    places = [f"{each.on} {each.subvolume or ''}".strip() for each in machine.filesystem]
    yield from _twice("filesystem.on", places)
    mountpoints = [each.mountpoint for each in machine.filesystem if each.mountpoint is not None]
    yield from _twice("filesystem.mountpoint", mountpoints)
    if "/" not in mountpoints:
        yield 'filesystem: none is mounted at "/"'
    for index, each in enumerate(machine.filesystem):
        for name in (each.on, each.mirror or each.on):
            if name not in devices:
                there = ", ".join(sorted(devices))
                yield f"filesystem[{index}].on: there is no {name!r}; there are {there}"
        yield from (f"filesystem[{index}].{problem}" for problem in _mount_problems(each))


def _mount_problems(each: Filesystem) -> Iterator[str]:
    if each.type is FilesystemType.SWAP and each.mountpoint is not None:
        yield "mountpoint: swap is not mounted"
    if each.type is not FilesystemType.SWAP and not (each.mountpoint or "").startswith("/"):
        yield f"mountpoint: {each.type} needs one that starts with /"
    if each.type is not FilesystemType.BTRFS and (each.subvolume or each.mirror):
        yield f"type: {each.type} has neither subvolumes nor a mirror of its own"


def _naming_problems(machine: Machine) -> Iterator[str]:
    if machine.boot.naming is not Naming.KERNEL:
        return
    plain = {f"{disk.name}/{part.name}" for disk in machine.disk for part in disk.partition}
    for each in machine.filesystem:
        if each.on not in plain:
            yield f"boot.naming: {each.on} is no partition, and has a lasting name anyway"
    if not any(each.type is FilesystemType.SWAP for each in machine.filesystem):
        yield "boot.naming: without swap there is no resume device to name"


def _boot_problems(machine: Machine) -> Iterator[str]:
    loaders = {
        Firmware.BIOS: (Loader.GRUB_PC,),
        Firmware.UEFI: (Loader.GRUB_EFI_SIGNED, Loader.SYSTEMD_BOOT),
    }
    if machine.boot.loader not in loaders[machine.firmware]:
        names = " or ".join(loaders[machine.firmware])
        yield f"boot.loader: {machine.firmware} firmware starts {names}"
    yield from _naming_problems(machine)
    if machine.firmware is Firmware.UEFI:
        esp = [each for each in machine.filesystem if each.mountpoint == "/boot/efi"]
        if not esp or esp[0].type is not FilesystemType.VFAT:
            yield 'filesystem: UEFI firmware needs a vfat at "/boot/efi"'
    elif machine.disk and machine.disk[0].table is TableKind.GPT:
        types = [partition.type for partition in machine.disk[0].partition]
        if types.count(PartitionType.BIOS_BOOT) != 1:
            yield "disk[0].partition: GRUB for BIOS needs an MBR, or one bios-boot partition"
