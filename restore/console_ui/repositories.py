"""Looks for repositories and keys on what is attached to a rescued machine.

Filesystems are mounted as `restore.attached` does. Those that hold nothing of use are unmounted
again, so that their disks are free as targets.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imager.repository.repository import Repository
from restore import attached

_RECOVERY_KEY_MARK: Final = b'"remetal recovery key"'
_SSH_KEY_MARK: Final = b"-----BEGIN OPENSSH PRIVATE KEY-----"
_CREDENTIALS_MARK: Final = b"aws_access_key_id"
_MOST_KEY: Final = 1 << 16  # bytes; the largest kind of key has a few thousand


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


def look(places: Sequence[Path]) -> Found:
    """Search places that are reachable already, and everything that can be mounted.

    Args:
        places: directories that may be repositories or hold them.
    """
    found = [inside(place) for place in (*places, *attached.mounted())]
    for place in attached.mount_all():
        here = inside(place)
        if here.is_empty:
            attached.unmount(place)
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
