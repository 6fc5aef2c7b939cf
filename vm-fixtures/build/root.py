"""The Debian of a fixture machine as a tar archive: everything that is not its own identity.

Machines with the same packages share one archive. It is kept by a hash of what made it, so the
network is needed once.
"""

import hashlib
import os
import time
from pathlib import Path
from typing import Final

import msgspec

from imager import process
from spec import System

KEEP: Final = 6 * 3600.0  # seconds after its last use that something outdated stays

_TIMEOUT: Final = 3600.0  # seconds; one or two minutes beside a near mirror

# mmdebstrap's own shell hooks; "$1" is the new root. The password is for looking around.
_HOOKS: Final = (
    'echo root:fixture | chroot "$1" chpasswd',
    'rm -rf "$1"/var/cache/apt/* "$1"/var/cache/debconf/*-old "$1"/var/log/*.log "$1"/var/log/apt',
)


def key(system: System) -> str:
    """Return the hash of all that decides the content of the archive."""
    wanted = (system.suite, sorted(set(system.packages)), _HOOKS)
    return hashlib.sha256(msgspec.json.encode(wanted)).hexdigest()[:16]


def archive(system: System, cache: Path) -> Path:
    """Return the archive, made by mmdebstrap unless the cache has it.

    The caller holds the lock of the cache for roots.

    Args:
        system: suite and packages.
        cache: directory.

    Raises:
        ProgramMissing: mmdebstrap is not installed.
        ProgramError: it failed, such as for an unknown package or without network.
    """
    path = cache / f"root-{key(system)}.tar"
    if not path.exists():
        _make(system, path)
    os.utime(path)  # what is used stays
    for other in cache.glob("root-*.tar"):
        if time.time() - other.stat().st_mtime > KEEP:
            other.unlink()
    return path


def _make(system: System, path: Path) -> None:
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    process.run(
        "mmdebstrap",
        "--format=tar",
        "--variant=minbase",
        '--aptopt=Apt::Install-Recommends "false"',
        f"--include={','.join(sorted(set(system.packages)))}",
        *(f"--customize-hook={hook}" for hook in _HOOKS),
        system.suite,
        partial,
        timeout=_TIMEOUT,
    )
    partial.rename(path)
