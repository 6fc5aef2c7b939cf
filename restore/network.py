"""The network of the rescue system: brought up when somebody needs it, and looked at when it fails.

Nothing here runs before a repository on the network is wanted: a restore from an attached disk
needs no network, and waits for none.
"""

import ipaddress
import os
import selectors
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from imager import netdev, process
from imager.errors import ConfigError, StoreUnreachable
from imager.layout.network import NetworkCard
from imager.network_settings import NetworkSettings
from imager.repository.backend.endpoint import Endpoint
from restore.medium import RUN

FOLDER: Final = RUN / "network"
_DHCP_SCRIPT: Final = "/usr/local/lib/remetal/dhcp"
_RESOLVER: Final = Path("/etc/resolv.conf")
_TIMEOUT: Final = 30.0  # seconds for one `ip`
_LINK_SECONDS: Final = 10.0  # a switch needs some seconds to find out how fast a new link is
_LEASE_SECONDS: Final = 20.0
_CONNECT_SECONDS: Final = 5.0
_PATIENCE: Final = 90.0  # a port of a switch may pass nothing for its first half minute


@dataclass(frozen=True, slots=True)
class Card:
    """A network card.

    Attributes:
        name: the kernel's.
        hardware_address: as "52:54:00:12:34:56".
        has_link: something answers at the other end of its cable.
        addresses: that it has, with their prefix length; those that lead further than the cable.
        hardware: what it is; None where it is made by software.
    """

    name: str
    hardware_address: str
    has_link: bool
    addresses: tuple[str, ...] = ()
    hardware: NetworkCard | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that has to be so before a repository can be reached.

    Attributes:
        subject: in one word.
        is_right: whether it is so.
        text: what was found.
        advice: what to do; empty when all is right.
    """

    subject: str
    is_right: bool
    text: str
    advice: str = ""


class _AddressInfo(msgspec.Struct):
    local: str
    prefixlen: int
    scope: str


class _Interface(msgspec.Struct):
    ifname: str
    link_type: str
    flags: list[str]
    address: str = ""
    addr_info: list[_AddressInfo] = []


class _Route(msgspec.Struct):
    dev: str = ""
    gateway: str = ""


def cards() -> tuple[Card, ...]:
    """Return the network cards of this machine.

    Raises:
        ProgramError: `ip` fails.
        OSError: sysfs can't be read.
    """
    hardware = {card.name: card for card in netdev.physical_cards()}
    found = msgspec.json.decode(_ip("-json", "address"), type=list[_Interface])
    return tuple(
        Card(
            each.ifname,
            each.address,
            "LOWER_UP" in each.flags,
            tuple(
                f"{info.local}/{info.prefixlen}"
                for info in each.addr_info
                if info.scope == "global"
            ),
            hardware.get(each.ifname),
        )
        for each in found
        if each.link_type == "ether"
    )


def is_up() -> bool:
    """Whether some card has a link and an address.

    Raises:
        ProgramError: `ip` fails.
    """
    return any(card.has_link and card.addresses for card in cards())


def bring_up(settings: NetworkSettings) -> None:
    """Give the machine its address: the one written down, or what DHCP gives, card by card.

    When it returns there may still be no network; `diagnose` says why. DHCP then goes on asking, so
    that a cable that is plugged in later is found. Done before is undone first.

    Args:
        settings: what was written down.

    Raises:
        ConfigError: this machine has no such card.
        ProgramError: `ip` fails.
    """
    take_down()
    FOLDER.mkdir(parents=True, exist_ok=True)
    found = cards()
    wanted = [card for card in found if _is_meant(card, settings.interface)]
    if found and not wanted:
        raise ConfigError(
            f"this machine has no network card {settings.interface}",
            hint=f"It has {', '.join(f'{card.name} ({card.hardware_address})' for card in found)}.",
        )
    for card in wanted:
        _ip("link", "set", card.name, "up")
    if settings.name_servers:
        # First in the order of names, and so asked first.
        (FOLDER / "0.resolv").write_text(_resolver(settings.name_servers))
    if settings.addresses:
        _set(_with_link([card.name for card in wanted]), settings)
    elif wanted:
        _ask(wanted)
    _RESOLVER.write_text("".join(path.read_text() for path in sorted(FOLDER.glob("*.resolv"))))


def take_down() -> None:
    """End what an earlier `bring_up` has started, and forget its addresses.

    Raises:
        ProgramError: `ip` fails.
    """
    for path in FOLDER.glob("*.pid"):
        with suppress(OSError, ValueError):
            os.kill(int(path.read_text()), signal.SIGTERM)
    shutil.rmtree(FOLDER, ignore_errors=True)
    for card in cards():
        _ip("address", "flush", "dev", card.name, "scope", "global")


def diagnose(endpoint: Endpoint, *, patience: float = _CONNECT_SECONDS) -> tuple[Check, ...]:
    """Return what was looked at on the way to a host, up to the first thing that is wrong.

    Args:
        endpoint: host and port of the repository.
        patience: seconds for the connection.

    Raises:
        ProgramError: `ip` fails.
    """
    done: list[Check] = []
    for check in _checks(endpoint, patience):
        done.append(check)
        if not check.is_right:
            break
    return tuple(done)


def need(settings: NetworkSettings, endpoint: Endpoint, *, patience: float = _PATIENCE) -> None:
    """Make sure that a host can be reached, bringing the network up if it is not.

    Args:
        settings: what was written down.
        endpoint: host and port of the repository.
        patience: seconds for which it is looked again.

    Raises:
        StoreUnreachable: it can't, all that time; the sentence says what is missing.
        ConfigError: the card that was written down is none of this machine's.
        ProgramError: `ip` fails.
    """
    if not is_up():
        bring_up(settings)
    deadline = time.monotonic() + patience
    while not (last := diagnose(endpoint)[-1]).is_right and time.monotonic() < deadline:
        time.sleep(1.0)  # what it waits for happens on other machines, and nothing tells of it
    if not last.is_right:
        raise StoreUnreachable(last.text, hint=last.advice)


def _checks(endpoint: Endpoint, patience: float) -> Iterator[Check]:
    found = cards()
    yield _check_cards(found)
    yield _check_links(found)
    yield _check_addresses(found)
    addresses = _look_up(endpoint)
    yield _check_name(endpoint, addresses)
    yield _check_route(addresses[0])
    yield _check_connection(endpoint, patience)


def _check_cards(found: Sequence[Card]) -> Check:
    if found:
        names = ", ".join(f"{card.name} ({card.hardware_address})" for card in found)
        return Check("card", is_right=True, text=names)
    return Check(
        "card",
        is_right=False,
        text="this machine has no network card that the medium knows",
        advice="Put another card in, or restore from an attached disk; some cards need firmware "
        "that is not free, and is not on the medium (`dmesg` in a shell names it).",
    )


def _check_links(found: Sequence[Card]) -> Check:
    linked = [card.name for card in found if card.has_link]
    if linked:
        return Check("link", is_right=True, text=f"up on {', '.join(linked)}")
    return Check(
        "link",
        is_right=False,
        text="no network card has a link",
        advice="Plug the cable in, look at the lamps at both of its ends, then retry.",
    )


def _check_addresses(found: Sequence[Card]) -> Check:
    held = [f"{address} on {card.name}" for card in found for address in card.addresses]
    if held:
        return Check("address", is_right=True, text=", ".join(held))
    return Check(
        "address",
        is_right=False,
        text="no DHCP server gave this machine an address",
        advice="Retry, or type the address of this machine.",
    )


def _check_name(endpoint: Endpoint, addresses: Sequence[str]) -> Check:
    if addresses:
        return Check("name", is_right=True, text=f"{endpoint.host} is {', '.join(addresses)}")
    servers = [line.split()[-1] for line in _resolver_lines()]
    asked = f"name server {', '.join(servers)}" if servers else "no name server was given"
    return Check(
        "name",
        is_right=False,
        text=f"nobody knows the name {endpoint.host} ({asked})",
        advice="Give another name server, or write the repository with its address instead of its name.",
    )


def _check_route(address: str) -> Check:
    text = process.run("ip", "-json", "route", "get", address, timeout=_TIMEOUT, accept=range(256))
    routes = msgspec.json.decode(text, type=list[_Route]) if text.strip() else []
    if routes:
        through = f" through {routes[0].gateway}" if routes[0].gateway else ""
        return Check("route", is_right=True, text=f"to {address}{through} on {routes[0].dev}")
    return Check(
        "route",
        is_right=False,
        text=f"there is no way from here to {address}",
        advice="Give the gateway: type the address of this machine, and the gateway with it.",
    )


def _check_connection(endpoint: Endpoint, patience: float) -> Check:
    try:
        socket.create_connection((endpoint.host, endpoint.port), patience).close()
    except (OSError, UnicodeError) as error:
        reason = (
            f"nothing came back within {patience:.0f} s"
            if isinstance(error, TimeoutError)
            else str(getattr(error, "strerror", None) or error).lower()
        )
        return Check(
            "TCP",
            is_right=False,
            text=f"port {endpoint.port} of {endpoint.host} can't be reached: {reason}",
            advice="See that the store runs, and that no firewall stands between.",
        )
    return Check("TCP", is_right=True, text=f"{endpoint.host} answers at port {endpoint.port}")


def _look_up(endpoint: Endpoint) -> tuple[str, ...]:
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # a name may have a form that is none
        return ()
    return tuple(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def _resolver_lines() -> list[str]:
    with suppress(OSError):
        lines = _RESOLVER.read_text().splitlines()
        return [line for line in lines if line.startswith("nameserver ")]
    return []


def _is_meant(card: Card, interface: str) -> bool:
    return not interface or interface.lower() in {card.name.lower(), card.hardware_address.lower()}


def _with_link(wanted: Sequence[str]) -> Card | None:
    """Return the first of some cards that has a link, or gets one soon; else the first."""
    deadline = time.monotonic() + _LINK_SECONDS
    while found := [card for card in cards() if card.name in wanted]:
        linked = [card for card in found if card.has_link]
        if linked or time.monotonic() > deadline:
            return (linked or found)[0]
        time.sleep(0.1)  # the kernel tells of it by netlink only
    return None


def _set(card: Card | None, settings: NetworkSettings) -> None:
    if card is None:
        return
    for address in settings.addresses:
        # Nobody else is asked whether the address is free: an answer would take a second.
        extra = ("nodad",) if isinstance(address, ipaddress.IPv6Interface) else ()
        _ip("address", "replace", str(address), "dev", card.name, *extra)
    for gateway in settings.gateways:
        _ip("route", "replace", "default", "via", str(gateway), "dev", card.name)


def _ask(wanted: Sequence[Card]) -> None:
    """Ask for addresses on all cards at once, and return when the first one has come."""
    with selectors.DefaultSelector() as selector:
        running: dict[int, tuple[Card, subprocess.Popen[bytes]]] = {}
        for card in wanted:
            client = process.start(*_dhcp_client(card))
            descriptor = os.pidfd_open(client.pid)
            selector.register(descriptor, selectors.EVENT_READ)
            running[descriptor] = (card, client)
        deadline = time.monotonic() + _LEASE_SECONDS
        has_address = False
        while running and not has_address and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                card, client = running.pop(key.fd)
                selector.unregister(key.fd)
                os.close(key.fd)
                client.wait()
                has_address |= (FOLDER / f"{card.name}.lease").exists()
        for descriptor in running:
            os.close(descriptor)


def _dhcp_client(card: Card) -> tuple[str, ...]:
    """Return the DHCP client: its first process ends with the first address or after some tries.

    What it leaves behind goes on: it tries again, and renews what it was given.
    """
    words = ("busybox", "udhcpc", "-b", "-S", "-t", "4", "-T", "3", "-A", "10", "-i", card.name)
    pid = str(FOLDER / f"{card.name}.pid")
    return (*words, "-p", pid, "-s", _DHCP_SCRIPT, "-O", "staticroutes")


def _resolver(servers: Sequence[object]) -> str:
    return "".join(f"nameserver {server}\n" for server in servers)


def _ip(*words: str) -> str:
    return process.run("ip", *words, timeout=_TIMEOUT)
