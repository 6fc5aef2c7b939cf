"""What the drill and the rescue system tell each other over the job share."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import msgspec

from imager.errors import DrillError, DrillFailed
from restore.drill.reach import Reach
from restore.medium import AtEnd
from restore.unattended import ORDER, REPORT, Order

_RECOVERY_KEY: Final = "recovery.key"
_PHRASE: Final = "passphrase"
_SSH_KEY: Final = "ssh.key"
_CREDENTIALS: Final = "store.credentials"
_KNOWN_HOSTS: Final = "known_hosts"
_AUTHORITIES: Final = "authorities.pem"


class RescueError(msgspec.Struct, frozen=True):
    """Why a restore failed, as `--json` says it."""

    id: str
    message: str
    hint: str
    exit_code: int


class RescueStep(msgspec.Struct, frozen=True):
    """A step of the restore."""

    name: str
    seconds: float
    bytes: int | None = None


class RescueReport(msgspec.Struct, frozen=True):
    """What the rescue system did.

    Attributes:
        outcome: "restored" or "failed".
        error: None unless it failed.
        steps: in order.
        plan: what was to be done, line by line.
    """

    outcome: Literal["restored", "failed"]
    error: RescueError | None
    steps: tuple[RescueStep, ...]
    plan: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Special:
    """What an order says beside the usual.

    Attributes:
        maps: saved disk -> target, where it is not for the restore to find out.
        leave_out: ids of saved disks that are not restored.
        fit: shrink what has room where a disk is smaller.
    """

    maps: Mapping[str, str] = field(default_factory=dict)
    leave_out: tuple[str, ...] = ()
    fit: bool = False


USUAL: Final = Special()


def place_order(
    folder: Path,
    way: Reach,
    image: str,
    recovery_key: Path,
    secret: str,
    special: Special = USUAL,
) -> None:
    """Fill the job share, readable by its owner only; what is in it from before goes.

    Args:
        folder: the share; made here.
        way: to the repository.
        image: id of the image.
        recovery_key: file that opens it.
        secret: passphrase of the recovery key.
        special: what the order says beside the usual.
    """
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    given = {
        _RECOVERY_KEY: recovery_key.read_bytes(),
        _PHRASE: f"{secret}\n".encode(),
        _SSH_KEY: way.ssh_key,
        _CREDENTIALS: way.credentials,
        _KNOWN_HOSTS: way.known_hosts,
        _AUTHORITIES: way.authorities,
    }
    for name, content in given.items():
        if content is not None:
            with open(folder / name, "xb", opener=_private) as file:
                file.write(content)
    order = Order(
        repository=way.location,
        filesystem=way.filesystem,
        image=image,
        recovery_key=_RECOVERY_KEY,
        passphrase_file=_PHRASE,
        verify_written=True,
        leave_out=special.leave_out,
        fit=special.fit,
        at_end=AtEnd.POWEROFF,
        ssh_key=_SSH_KEY if way.ssh_key is not None else None,
        store_credentials=_CREDENTIALS if way.credentials is not None else None,
        known_hosts=_KNOWN_HOSTS if way.known_hosts is not None else None,
        authorities=_AUTHORITIES if way.authorities is not None else None,
        hosts=way.hosts,
        maps=dict(special.maps),
    )
    (folder / ORDER).write_bytes(msgspec.json.encode(order))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def forget_secrets(folder: Path) -> None:
    """Remove keys and passphrase from the share, also when a drill's folder is kept."""
    for name in (_RECOVERY_KEY, _PHRASE, _SSH_KEY, _CREDENTIALS):
        (folder / name).unlink(missing_ok=True)


def read_report(folder: Path) -> tuple[RescueReport, float]:
    """Return what the rescue system reports, and when it did (seconds since the epoch).

    Raises:
        DrillError: it wrote no report, or one that can't be read.
        DrillFailed: the restore failed; the sentence says why.
    """
    place = folder / REPORT
    try:
        report = msgspec.json.decode(place.read_bytes(), type=RescueReport)
        written = place.stat().st_mtime
    except FileNotFoundError as error:
        raise DrillError("the rescue system powered off without a report") from error
    except msgspec.MsgspecError as error:
        raise DrillError(f"the rescue system's report can't be read: {error}") from error
    if report.outcome == "failed":
        reason = report.error.message if report.error else "no reason given"
        hint = report.error.hint if report.error else None
        raise DrillFailed(f"the restore failed: {reason}", hint=hint)
    return report, written
