"""The rescue system that this runs on: what the medium says of itself, shares, and how it ends."""

from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from imager import process
from imager.errors import ConfigError, MediumError
from imager.network_settings import NetworkSettings

# The description that a rescue medium carries of itself; nowhere else is there such a file.
DESCRIPTION: Final = Path("/etc/remetal/medium.json")

RUN: Final = Path("/run/remetal")
JOB_TAG: Final = "remetal-job"
REPOSITORY_TAG: Final = "remetal-repository"
_VIRTIO_9P: Final = Path("/sys/bus/virtio/drivers/9pnet_virtio")
# 1 MiB a message: with the small default a repository is read at a tenth of the speed.
_OPTIONS: Final = "trans=virtio,version=9p2000.L,msize=1048576"


class AtEnd(StrEnum):
    """What follows a restore."""

    POWEROFF = "poweroff"
    REBOOT = "reboot"
    SHELL = "shell"


@dataclass(frozen=True, slots=True)
class Medium:
    """What the person who built the medium put on it.

    Attributes:
        title: in their words.
        version: of remetal on it.
        repositories: places of repositories.
        recovery_key: one that is on the medium, still under its passphrase, or None.
        network: how it gets its address.
        known_hosts: host keys of SSH servers, or None.
        store_keys: what is shown to stores, still under its passphrase, or None.
        authorities: certificates that vouch for TLS stores, or None.
    """

    title: str
    version: str
    repositories: tuple[str, ...] = ()
    recovery_key: Path | None = None
    network: NetworkSettings = field(default_factory=NetworkSettings)
    known_hosts: Path | None = None
    store_keys: Path | None = None
    authorities: Path | None = None


class _Description(msgspec.Struct, frozen=True):
    title: str
    version: str
    repositories: tuple[str, ...] = ()
    recovery_key: str | None = None
    network: NetworkSettings = NetworkSettings()
    known_hosts: str | None = None
    store_keys: str | None = None
    authorities: str | None = None


def on_medium(description: Path = DESCRIPTION) -> bool:
    """Return whether this system was started from a rescue medium."""
    return description.exists()


def read_medium(description: Path = DESCRIPTION) -> Medium:
    """Return what the medium says of itself.

    Raises:
        MediumError: this is no rescue system.
    """
    try:
        found = msgspec.json.decode(description.read_bytes(), type=_Description)
    except FileNotFoundError as error:
        raise MediumError(
            "this system was not started from a rescue medium",
            hint="Make one with `remetal media build`; on a running system use `remetal restore`.",
        ) from error
    except (OSError, msgspec.MsgspecError, ConfigError) as error:
        raise MediumError(f"the medium's own description can't be read: {error}") from error
    return Medium(
        found.title,
        found.version,
        found.repositories,
        _path(found.recovery_key),
        found.network,
        _path(found.known_hosts),
        _path(found.store_keys),
        _path(found.authorities),
    )


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def find_shares(driver: Path = _VIRTIO_9P) -> frozenset[str]:
    """Return the tags of the directories that the host of a virtual machine shares with it."""
    tags = set()
    for path in driver.glob("*/mount_tag"):
        with suppress(OSError):
            tags.add(path.read_bytes().rstrip(b"\0\n").decode(errors="replace"))
    return frozenset(tags)


def mount_share(tag: str, place: Path, *, read_only: bool) -> None:
    """Mount a shared directory; done already is fine.

    Raises:
        ProgramError: it can't be mounted.
    """
    if place.is_mount():
        return
    place.mkdir(parents=True, exist_ok=True)
    options = _OPTIONS + (",ro" if read_only else "")
    process.run("mount", "-t", "9p", "-o", options, tag, place, timeout=60)


def end(how: AtEnd) -> None:
    """Stop or restart the machine; its first process does that, when the console is quiet.

    Raises:
        ProgramError: the rescue system's own command fails.
    """
    if how is not AtEnd.SHELL:
        process.run(how.value, timeout=60)
