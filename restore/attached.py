"""Filesystems of attached disks, mounted so that nothing is written to them.

Not even a journal is replayed: a disk may be the evidence of a crime, or about to be restored to.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from imager import process
from imager.errors import ConfigError, ProgramError
from restore.medium import RUN

MOUNTS: Final = RUN / "mnt"

# How each filesystem is mounted without a write: type for mount(8), and options.
UNTOUCHED: Final = {
    "ext2": ("ext2", "ro"),
    "ext3": ("ext4", "ro,noload"),
    "ext4": ("ext4", "ro,noload"),
    "xfs": ("xfs", "ro,norecovery"),
    "btrfs": ("btrfs", "ro,rescue=nologreplay"),
    "vfat": ("vfat", "ro"),
    "exfat": ("exfat", "ro"),
    "ntfs": ("ntfs-3g", "ro"),
    "iso9660": ("iso9660", "ro"),
    "udf": ("udf", "ro"),
}
_TIMEOUT: Final = 60.0  # seconds; a failing disk may take its time


class _Device(msgspec.Struct):
    path: str
    fstype: str | None
    mountpoints: list[str | None]
    children: list["_Device"] = []


class _Lsblk(msgspec.Struct):
    blockdevices: list[_Device]


def mounted() -> Iterator[Path]:
    """Yield what is mounted already."""
    if MOUNTS.is_dir():
        for path in sorted(MOUNTS.iterdir()):
            if path.is_mount():
                yield path


def mount_all() -> Iterator[Path]:
    """Mount every filesystem that is not in use, and yield where."""
    text = process.run("lsblk", "--json", "--output", "PATH,FSTYPE,MOUNTPOINTS", timeout=_TIMEOUT)
    for device in _flat(msgspec.json.decode(text, type=_Lsblk).blockdevices):
        if device.fstype not in UNTOUCHED or any(device.mountpoints):
            continue
        # What can't be mounted is damaged or of a kind this kernel does not know.
        with suppress(ProgramError):
            yield _mount(Path(device.path), device.fstype)


def mount_named(name: str) -> Path:
    """Mount the filesystem of a name, and return where; if it is mounted here already, only that.

    Args:
        name: LABEL=... or UUID=..., as blkid shows them.

    Raises:
        ConfigError: no filesystem has it, more than one has, or it is none that can be mounted so.
        ProgramError: it can't be mounted.
    """
    listing = ("blkid", "--cache-file", os.devnull)
    devices = process.run(
        *listing, "--match-token", name, "--output", "device", accept=(0, 2), timeout=_TIMEOUT
    ).split()
    if len(devices) != 1:
        problem = f"{', '.join(devices)} all have" if devices else "no filesystem here has"
        raise ConfigError(f"{problem} {name}", hint="`blkid` lists what is here.")
    (device,) = map(Path, devices)
    words = ("--match-tag", "TYPE", "--output", "value", device)
    kind = process.run(*listing, *words, accept=(0, 2), timeout=_TIMEOUT).strip()
    if kind not in UNTOUCHED:
        raise ConfigError(
            f"{device}, which has {name}, is no filesystem that is mounted here: {kind}",
            hint=f"A repository may lie on {', '.join(UNTOUCHED)}.",
        )
    place = _place(device)
    return place if place.is_mount() else _mount(device, kind)


def unmount(place: Path) -> None:
    """Let go of a filesystem, so that its disk is free; one that is in use stays."""
    with suppress(ProgramError):
        process.run("umount", place, timeout=_TIMEOUT)


def _place(device: Path) -> Path:
    return MOUNTS / device.name


def _mount(device: Path, filesystem: str) -> Path:
    kind, options = UNTOUCHED[filesystem]
    place = _place(device)
    place.mkdir(parents=True, exist_ok=True)
    process.run("mount", "-t", kind, "-o", options, device, place, timeout=_TIMEOUT)
    return place


def _flat(devices: Sequence[_Device]) -> Iterator[_Device]:
    for device in devices:
        yield device
        yield from _flat(device.children)
