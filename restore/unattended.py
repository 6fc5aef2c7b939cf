"""A restore that nobody watches: the order comes in a shared directory, the report goes there.

Whatever happens, a report is written before this ends, and the machine is never left to start
from a half-restored disk: after a failure it is powered off, whatever the order says. The same order
goes on where an interrupted restore stood.
"""

import ipaddress
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from imager.commands.secrets import load_recovery_key, read_passphrase
from imager.console import Output
from imager.errors import ConfigError, RemetalError
from imager.network_settings import NetworkSettings
from imager.repository.backend.endpoint import Endpoint, endpoint_of, is_remote
from imager.repository.backend.place import Place
from imager.repository.repository import Repository
from imager.units import format_duration
from restore import attached, clock, foreign, job, network
from restore.circumstances import Wishes
from restore.log import RestoreLog, write_durably
from restore.medium import AtEnd, Medium
from restore.store_access import StoreAccess

ORDER: Final = "job.json"
REPORT: Final = "report.json"
LOG: Final = "restore.log"
_HOSTS: Final = Path("/etc/hosts")


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What shall be restored.

    Attributes:
        repository: where it is in this system, or a location on the network.
        filesystem: LABEL=... or UUID=... of a filesystem on an attached disk; then `repository` is a
            path within it.
        image: `latest`, a machine's name, or the beginning of an image's id.
        recovery_key: file in the shared directory.
        passphrase_file: likewise.
        verify_written: read back all that was written.
        delta: write only what differs from the image.
        anew: begin from the start, also where an interrupted restore could be resumed.
        fit: let the machine come on smaller disks, and other sectors, as `--fit` does.
        grow: a volume that takes what is free on a larger disk, as with `--grow`.
        at_end: what follows when all went well.
        maps: saved disk → target, as with `--map`; by default disks are recognised.
        leave_out: ids or serials of saved disks that are not restored, as with `--leave-out`.
        overwrite_serials: serial numbers of disks that are overwritten although they hold data of
            something else (`restore.foreign`); of a disk without one, its size in bytes.
        nics: saved network card → card here, as with `--nic`; by default they are recognised.
        boot_repair: rebuild an initramfs that lacks the drivers of this machine's disks, and let the
            restored system find this machine's network cards.
        log_to_esp: also leave the log on the restored machine.
        ssh_key: file in the shared directory that is shown over SSH; without it, and without the
            next one, the passphrase must open the keys on the medium.
        store_credentials: file with the keys of an S3 store; likewise.
        known_hosts: file with the host keys that are trusted; by default those on the medium.
        authorities: file with the certificates that are trusted; likewise.
        network: how this system gets its address; by default as the medium says.
        hosts: names and their addresses, for names that no name server knows.
        set_clock: believe what the store says the time is, before anybody has proved who it is.
    """

    repository: str
    image: str
    recovery_key: str
    passphrase_file: str
    filesystem: str | None = None
    verify_written: bool = False
    delta: bool = False
    anew: bool = False
    fit: bool = False
    grow: str | None = None
    at_end: AtEnd = AtEnd.POWEROFF
    maps: dict[str, str] = msgspec.field(default_factory=dict)
    leave_out: tuple[str, ...] = ()
    overwrite_serials: tuple[str, ...] = ()
    nics: dict[str, str] = msgspec.field(default_factory=dict)
    boot_repair: bool = True
    log_to_esp: bool = False
    ssh_key: str | None = None
    store_credentials: str | None = None
    known_hosts: str | None = None
    authorities: str | None = None
    network: NetworkSettings | None = None
    hosts: dict[str, str] = msgspec.field(default_factory=dict)
    set_clock: bool = False

    def __post_init__(self) -> None:
        for address in self.hosts.values():
            ipaddress.ip_address(address)
        if self.filesystem is not None and not _is_within(self.repository):
            raise ValueError(f"{self.repository} is no path within {self.filesystem}")


def run(out: Output, share: Path, medium: Medium, mount_repository: Callable[[], None]) -> AtEnd:
    """Do what the order in the share says, and report there.

    Args:
        out: the console.
        share: the shared directory, writable.
        medium: what the medium carries.
        mount_repository: makes a repository reachable that the host shares.

    Returns:
        What follows.
    """
    log = RestoreLog(share / LOG)
    at_end = AtEnd.POWEROFF
    try:
        with log.watch():
            order = read_order(share)
            mount_repository()
            restore(out, share, medium, order, log)
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
    except (msgspec.MsgspecError, UnicodeDecodeError, ConfigError) as error:
        raise ConfigError(f"{path} is no order for a restore: {error}") from error


def restore(out: Output, share: Path, medium: Medium, order: Order, log: RestoreLog) -> None:
    """Restore what the order names, without a question.

    Raises:
        RemetalError: it could not be done; nothing was written unless the plan is in the log.
    """
    out.say(f"Unattended restore of {order.image} from {order.repository}")
    phrase = share / order.passphrase_file
    if order.filesystem is not None:
        repository = Repository.open(str(attached.mount_named(order.filesystem) / order.repository))
    elif is_remote(order.repository):
        repository = _open_remote(out, share, medium, order)
    else:
        repository = Repository.open(order.repository)
    unlocked = load_recovery_key(out, repository, share / order.recovery_key, phrase)
    opened = job.open_saved(out, repository, order.image, unlocked, log)
    wishes = Wishes(
        verify_written=order.verify_written,
        delta=order.delta,
        anew=order.anew,
        boot_entries=True,
        boot_repair=order.boot_repair,
        log_to_esp=order.log_to_esp,
        leave_out=order.leave_out,
        fit=order.fit,
        grow=order.grow,
        nics=order.nics,
    )
    mapping = {saved: Path(target) for saved, target in order.maps.items()}
    plan = job.prepare(repository, opened, mapping, wishes, log)
    for line in plan.lines():
        out.say(line)
    foreign.require(plan.targets, order.overwrite_serials)
    job.carry_out(out, opened, plan, log)
    out.say(f"{plan.machine} is restored.")


def _is_within(path: str) -> bool:
    return not Path(path).is_absolute() and ".." not in Path(path).parts


def _open_remote(out: Output, share: Path, medium: Medium, order: Order) -> Repository:
    _name_hosts(order.hosts)
    endpoint = endpoint_of(order.repository)
    network.need(order.network or medium.network, endpoint)
    access = StoreAccess(medium)
    if order.known_hosts is not None:
        access.use_known_hosts(share / order.known_hosts)
    if order.authorities is not None:
        access.use_authorities(share / order.authorities)
    if order.ssh_key is not None:
        access.use_ssh_key(share / order.ssh_key)
    if order.store_credentials is not None:
        access.use_credentials(share / order.store_credentials)
    if access.is_locked and not (access.has_ssh_key or access.has_credentials):
        secret = read_passphrase(share / order.passphrase_file)
        access.unlock(secret or "")
    if order.set_clock and endpoint.is_signed_by_time:
        _set_clock(out, endpoint)
    return Repository.open(Place(order.repository, access.access()))


def _name_hosts(hosts: Mapping[str, str]) -> None:
    if hosts:
        lines = "".join(f"{address} {name}\n" for name, address in hosts.items())
        with _HOSTS.open("a") as file:
            file.write(lines)


def _set_clock(out: Output, endpoint: Endpoint) -> None:
    theirs = clock.store_time(endpoint)
    if theirs is None or abs(theirs - time.time()) <= clock.TOLERANCE:
        return
    away = format_duration(abs(theirs - time.time()))
    out.say(f"The order says to believe {endpoint.host}: the clock is set by {away}.")
    clock.set_clock(theirs)
