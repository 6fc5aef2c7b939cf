"""A restore that nobody watches: the order comes in a shared directory, the report goes there.

Whatever happens, a report is written before this ends, and the machine is never left to start
from a half-restored disk: after a failure it is powered off, whatever the order says.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from imager.commands.secrets import load_recovery_key
from imager.console import Output
from imager.errors import ConfigError, RemetalError
from imager.repository.repository import Repository
from restore import job
from restore.log import RestoreLog, write_durably
from restore.medium import AtEnd
from restore.planner import Wishes

ORDER: Final = "job.json"
REPORT: Final = "report.json"
LOG: Final = "restore.log"


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What shall be restored.

    Attributes:
        repository: where it is in this system.
        image: `latest`, a machine's name, or the beginning of an image's id.
        recovery_key: file in the shared directory.
        passphrase_file: likewise.
        verify: read back all that was written.
        at_end: what follows when all went well.
        maps: saved disk → target, as with `--map`; by default disks are recognised.
        log_to_esp: also leave the log on the restored machine.
    """

    repository: str
    image: str
    recovery_key: str
    passphrase_file: str
    verify: bool = True
    at_end: AtEnd = AtEnd.POWEROFF
    maps: dict[str, str] = msgspec.field(default_factory=dict)
    log_to_esp: bool = False


def run(out: Output, share: Path, mount_repository: Callable[[], None]) -> AtEnd:
    """Do what the order in the share says, and report there.

    Args:
        out: the console.
        share: the shared directory, writable.
        mount_repository: makes the repository reachable.

    Returns:
        What follows.
    """
    log = RestoreLog(share / LOG)
    at_end = AtEnd.POWEROFF
    try:
        with log.watch():
            order = read_order(share)
            mount_repository()
            restore(out, share, order, log)
        at_end = order.at_end
    except RemetalError as error:
        out.remark(f"remetal: {error.message}")
        out.remark(error.hint)
    except Exception as error:  # noqa: BLE001  nobody is there: the report must tell of anything
        log.fail(RemetalError(f"{type(error).__name__}: {error}"))
        out.remark(f"remetal: {type(error).__name__}: {error}")
    finally:
        write_durably(share / REPORT, json.dumps(log.report(), indent=2).encode())
    return at_end


def read_order(share: Path) -> Order:
    """Return the order in a share.

    Raises:
        ConfigError: there is none, or it is no order.
    """
    path = share / ORDER
    try:
        return msgspec.json.decode(path.read_bytes(), type=Order)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path} is no order for a restore: {error}") from error


def restore(out: Output, share: Path, order: Order, log: RestoreLog) -> None:
    """Restore what the order names, without a question.

    Raises:
        RemetalError: it could not be done; nothing was written unless the plan is in the log.
    """
    out.say(f"Unattended restore of {order.image} from {order.repository}")
    repository = Repository.open(order.repository)
    unlocked = load_recovery_key(
        out, repository, share / order.recovery_key, share / order.passphrase_file
    )
    opened = job.open_saved(out, repository, order.image, unlocked, log)
    wishes = Wishes(verify=order.verify, boot_entries=True, log_to_esp=order.log_to_esp)
    mapping = {saved: Path(target) for saved, target in order.maps.items()}
    plan = job.prepare(repository, opened, mapping, wishes, log)
    for line in plan.lines():
        out.say(line)
    job.carry_out(out, opened, plan, log)
    out.say(f"{plan.machine} is restored.")
