"""Looks for repositories and recovery keys on what is attached to a rescued machine.

Filesystems are mounted read-only, and in a way that does not even replay their journals: a disk
may be the evidence of a crime, or about to be restored to. Those that hold nothing of use are
unmounted again, so that their disks are free as targets.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from imager import process
from imager.errors import ProgramError
from imager.repository.repository import Repository
from restore.medium import RUN

MOUNTS: Final = RUN / "mnt"

# How each filesystem is mounted without a write: type for mount(8), and options.
_HOW: Final = {
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
_RECOVERY_KEY_MARK: Final = b'"remetal recovery key"'
_MOST_KEY: Final = 1 << 16  # bytes; a recovery key has a few thousand
_TIMEOUT: Final = 60.0  # seconds; a failing disk may take its time


@dataclass(frozen=True, slots=True)
class Found:
    """What was found.

    Attributes:
        repositories: directories.
        recovery_keys: files.
    """

    repositories: tuple[Path, ...]
    recovery_keys: tuple[Path, ...]


class _Device(msgspec.Struct):
    path: str
    fstype: str | None
    mountpoints: list[str | None]
    children: list["_Device"] = []


class _Lsblk(msgspec.Struct):
    blockdevices: list[_Device]


def look(places: Sequence[Path]) -> Found:
    """Search places that are reachable already, and everything that can be mounted.

    Args:
        places: directories that may be repositories or hold them.
    """
    repositories: list[Path] = []
    keys: list[Path] = []
    for place in (*places, *_mounted()):
        repositories += repositories_in(place)
        keys += recovery_keys_in(place)
    for place in _mount_all():
        inside = list(repositories_in(place))
        keys_inside = list(recovery_keys_in(place))
        if not inside and not keys_inside:
            with suppress(ProgramError):
                process.run("umount", place, timeout=_TIMEOUT)
        repositories += inside
        keys += keys_inside
    return Found(tuple(dict.fromkeys(repositories)), tuple(dict.fromkeys(keys)))


def repositories_in(place: Path) -> Iterator[Path]:
    """Yield the place itself or the directories right below it that are repositories."""
    if Repository.is_repository(place):
        yield place
        return
    with suppress(OSError):
        for path in sorted(place.iterdir()):
            if path.is_dir() and Repository.is_repository(path):
                yield path


def recovery_keys_in(place: Path) -> Iterator[Path]:
    """Yield the recovery keys right in a place."""
    with suppress(OSError):
        for path in sorted(place.iterdir()):
            if is_recovery_key(path):
                yield path


def is_recovery_key(path: Path) -> bool:
    """Return whether a file is a recovery key, by what it says of itself."""
    try:
        if not path.is_file() or path.stat().st_size > _MOST_KEY:
            return False
        return _RECOVERY_KEY_MARK in path.read_bytes()
    except OSError:
        return False


def _mounted() -> Iterator[Path]:
    """Yield what an earlier look has left mounted."""
    if MOUNTS.is_dir():
        for path in sorted(MOUNTS.iterdir()):
            if path.is_mount():
                yield path


def _mount_all() -> Iterator[Path]:
    """Mount every filesystem that is not in use, and yield where."""
    text = process.run("lsblk", "--json", "--output", "PATH,FSTYPE,MOUNTPOINTS", timeout=_TIMEOUT)
    for device in _flat(msgspec.json.decode(text, type=_Lsblk).blockdevices):
        how = _HOW.get(device.fstype or "")
        if how is None or any(device.mountpoints):
            continue
        place = MOUNTS / Path(device.path).name
        place.mkdir(parents=True, exist_ok=True)
        kind, options = how
        # What can't be mounted is damaged or of a kind this kernel does not know: no repository.
        with suppress(ProgramError):
            process.run("mount", "-t", kind, "-o", options, device.path, place, timeout=_TIMEOUT)
            yield place


def _flat(devices: Sequence[_Device]) -> Iterator[_Device]:
    for device in devices:
        yield device
        yield from _flat(device.children)
