"""What the kernel says about block devices and mounts, in sysfs and /proc.

A device is spoken of by its folder in sysfs (a "node"), and by its number, "major:minor".
"""

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BLOCK: Final = Path("/sys/block")
_DEV: Final = Path("/sys/dev/block")
_BTRFS: Final = Path("/sys/fs/btrfs")


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/self/mountinfo.

    Attributes:
        id: unique among the mounts of now.
        device: number; begins with "0:" when no single device carries the filesystem.
        point: where it is mounted.
        type: of the filesystem.
        source: device or what else is mounted.
        read_only: the filesystem itself can't write, wherever it is mounted.
        options: of the filesystem.
    """

    id: int
    device: str  # "major:minor"
    point: str
    type: str
    source: str
    read_only: bool
    options: str


def number_of(device: int) -> str:
    """Return "major:minor" of a device number as `os.stat` gives it."""
    return f"{os.major(device)}:{os.minor(device)}"


def node_of(number: str) -> Path:
    """Return the folder in sysfs of the block device with this "major:minor"."""
    return (_DEV / number).resolve()


def node_at(device: Path) -> Path:
    """Return the folder in sysfs of the block device at this path."""
    return node_of(number_of(device.stat().st_rdev))


def device_path(node: Path) -> Path:
    """Return the path in /dev that the kernel gives a device."""
    for line in (node / "uevent").read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "DEVNAME":
            return Path("/dev") / value
    return Path("/dev") / node.name.replace("!", "/")


def familiar_path(node: Path) -> Path:
    """Return the path in /dev that people know a device by: LVM's and LUKS' names, not numbers."""
    name = read_text(node / "dm" / "name")
    return Path("/dev/mapper") / name if name else device_path(node)


def partitions(node: Path) -> tuple[Path, ...]:
    """Return the nodes of a disk's partitions, as the kernel knows them now."""
    return tuple(sorted(child.parent for child in node.glob("*/partition")))


def read_text(path: Path) -> str:
    """Return an attribute without the line break; an empty string when there is none."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _unescape(text: str) -> str:
    """Undo the octal escapes of /proc/self/mountinfo and /proc/swaps."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def mounts() -> tuple[Mount, ...]:
    """Return all mounts this process sees."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        head, _, tail = line.partition(" - ")
        fields = head.split()
        kind, source, super_options = tail.split(" ", 2)
        # A filesystem can be read-only itself or only where it is mounted; only the first keeps
        # it from writing (a second mount of the same filesystem may be read-write).
        read_only = "ro" in super_options.split(",")
        found.append(
            Mount(
                id=int(fields[0]),
                device=fields[2],
                point=_unescape(fields[4]),
                type=kind,
                source=_unescape(source),
                read_only=read_only,
                options=_unescape(super_options),
            )
        )
    return tuple(found)


def swaps() -> frozenset[str]:
    """Return the numbers of the devices that are in use as swap."""
    numbers = set()
    for line in Path("/proc/swaps").read_text().splitlines()[1:]:
        path = Path(_unescape(line.split()[0]))
        try:
            status = path.stat()
        except OSError:
            continue
        if stat.S_ISBLK(status.st_mode):
            numbers.add(number_of(status.st_rdev))
    return frozenset(numbers)


def btrfs_numbers(mount: Mount) -> frozenset[str]:
    """Return the device numbers of all devices of a mounted btrfs, whose own number is made up."""
    if mount.type != "btrfs":
        return frozenset()
    try:
        own = number_of(Path(mount.source).stat().st_rdev)
    except OSError:
        return frozenset()
    for filesystem in _BTRFS.glob("*/devices"):
        numbers = frozenset(read_text(device / "dev") for device in filesystem.iterdir())
        if own in numbers:
            return numbers
    return frozenset({own})


def mount_of(path: Path) -> Mount | None:
    """Return the mount a path is reached through, as the kernel says."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        info = Path(f"/proc/self/fdinfo/{fd}").read_text()
    finally:
        os.close(fd)
    match = re.search(r"^mnt_id:\s*(\d+)$", info, re.MULTILINE)
    if match is None:
        return None
    return next((mount for mount in mounts() if mount.id == int(match[1])), None)
