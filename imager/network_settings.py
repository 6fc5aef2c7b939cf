"""How a rescue system gets its address: what a person wrote down, pure data."""

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

import msgspec

from imager.errors import ConfigError

_CARD: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,14}|([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}")

IpInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class NetworkSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the network is set up; every field may be left out.

    Attributes:
        interface: a network card, by the kernel's name or its hardware address. Without it the
            first card that has a link is taken.
        address: addresses with their prefix length, such as "10.0.0.9/24" or "2001:db8::9/64".
            Without any, DHCP is asked on every card, and IPv6 comes from the routers.
        gateway: one for each sort of address at most.
        dns: name servers; these are asked instead of those that DHCP names.

    Raises:
        ConfigError: a value makes no sense.
    """

    interface: str = ""
    address: str | tuple[str, ...] = ()
    gateway: str | tuple[str, ...] = ()
    dns: str | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.interface and not _CARD.fullmatch(self.interface):
            raise ConfigError(
                f"`interface` can't be {self.interface!r}",
                hint='Give a name such as "eno1", or the hardware address, "52:54:00:12:34:56".',
            )
        networks = [interface.network for interface in self.addresses]
        for gateway in self.gateways:
            is_local = gateway.version == 6 and gateway.is_link_local
            if not is_local and not any(gateway in network for network in networks):
                raise ConfigError(
                    f"`gateway` {gateway} lies in the network of no `address`",
                    hint="Without an `address`, DHCP names the gateway.",
                )
        if len({gateway.version for gateway in self.gateways}) < len(self.gateways):
            raise ConfigError("`gateway` names two for the same sort of address")
        _ = self.name_servers

    @property
    def addresses(self) -> tuple[IpInterface, ...]:
        """The addresses to set; none when DHCP is to be asked."""
        found = []
        for text in _several(self.address):
            if "/" not in text:
                raise _wrong("address", text, '"10.0.0.9/24", with the length of its prefix')
            try:
                found.append(ipaddress.ip_interface(text))
            except ValueError as error:
                raise _wrong("address", text, '"10.0.0.9/24"') from error
        return tuple(found)

    @property
    def gateways(self) -> tuple[IpAddress, ...]:
        """Where packets to other networks go."""
        return tuple(_addresses("gateway", self.gateway))

    @property
    def name_servers(self) -> tuple[IpAddress, ...]:
        """Who is asked for names."""
        return tuple(_addresses("dns", self.dns))


def _addresses(field: str, value: str | tuple[str, ...]) -> Iterable[IpAddress]:
    for text in _several(value):
        try:
            yield ipaddress.ip_address(text)
        except ValueError as error:
            raise _wrong(field, text, '"10.0.0.1"') from error


def _several(value: str | tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,) if value else ()
    return value


def _wrong(field: str, text: str, example: str) -> ConfigError:
    return ConfigError(f"`{field}` can't be {text!r}", hint=f"Such as {example}.")
