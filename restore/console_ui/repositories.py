"""Looks for repositories and keys on what is attached to a rescued machine.

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
_SSH_KEY_MARK: Final = b"-----BEGIN OPENSSH PRIVATE KEY-----"
_CREDENTIALS_MARK: Final = b"aws_access_key_id"
_MOST_KEY: Final = 1 << 16  # bytes; the largest kind of key has a few thousand
_TIMEOUT: Final = 60.0  # seconds; a failing disk may take its time


@dataclass(frozen=True, slots=True)
class Found:
    """What was found.

    Attributes:
        repositories: directories.
        recovery_keys: files.
        ssh_keys: files with private keys for SSH.
        credentials: files with the keys of S3 stores.
    """

    repositories: tuple[Path, ...] = ()
    recovery_keys: tuple[Path, ...] = ()
    ssh_keys: tuple[Path, ...] = ()
    credentials: tuple[Path, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing of use."""
        return not (self.repositories or self.recovery_keys or self.ssh_keys or self.credentials)


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
    found = [inside(place) for place in (*places, *_mounted())]
    for place in _mount_all():
        here = inside(place)
        if here.is_empty:
            with suppress(ProgramError):
                process.run("umount", place, timeout=_TIMEOUT)
        found.append(here)
    return Found(
        tuple(dict.fromkeys(path for each in found for path in each.repositories)),
        tuple(dict.fromkeys(path for each in found for path in each.recovery_keys)),
        tuple(dict.fromkeys(path for each in found for path in each.ssh_keys)),
        tuple(dict.fromkeys(path for each in found for path in each.credentials)),
    )


def inside(place: Path) -> Found:
    """Return what a place is, or holds right below it."""
    return Found(
        tuple(repositories_in(place)),
        tuple(_files_with(_RECOVERY_KEY_MARK, place)),
        tuple(_files_with(_SSH_KEY_MARK, place)),
        tuple(_files_with(_CREDENTIALS_MARK, place)),
    )


def repositories_in(place: Path) -> Iterator[Path]:
    """Yield the place itself or the directories right below it that are repositories."""
    if Repository.is_repository(place):
        yield place
        return
    with suppress(OSError):
        for path in sorted(place.iterdir()):
            if path.is_dir() and Repository.is_repository(path):
                yield path


def _files_with(mark: bytes, place: Path) -> Iterator[Path]:
    """Yield the small files right in a place that say of themselves what they are."""
    with suppress(OSError):
        for path in sorted(place.iterdir()):
            if _holds(mark, path):
                yield path


def _holds(mark: bytes, path: Path) -> bool:
    try:
        # A link may lead to something that never ends.
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _MOST_KEY:
            return False
        return mark in path.read_bytes()
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
