"""The network cards of this machine, as sysfs and udev show them. Only reads."""

import array
import fcntl
import re
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from imager import sysfs
from imager.layout.network import NetworkCard

NET: Final = Path("/sys/class/net")
UDEV: Final = Path("/run/udev/data")

_ETHERNET: Final = "1"  # ARPHRD_ETHER of <linux/if_arp.h>, also of wireless cards
_PERMANENT: Final = "0"  # NET_ADDR_PERM of <linux/netdevice.h>
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
# What udev's net_id makes of a card, in the order in which systemd's own 99-default.link tries it.
_NAMES: Final = (
    "ID_NET_NAME_FROM_DATABASE",
    "ID_NET_NAME_ONBOARD",
    "ID_NET_NAME_SLOT",
    "ID_NET_NAME_PATH",
    "ID_NET_NAME_MAC",
)
_SIOCETHTOOL: Final = 0x8946  # <linux/sockios.h>
_GET_PERMANENT: Final = 0x20  # ETHTOOL_GPERMADDR of <linux/ethtool.h>
_COMMAND: Final = struct.Struct("II")  # struct ethtool_perm_addr: command, bytes of the address
_REQUEST: Final = struct.Struct("16sP16x")  # struct ifreq: name, pointer to the command
_MOST_BYTES: Final = 32  # MAX_ADDR_LEN


def permanent_address(name: str) -> str | None:
    """Return what a driver says is the address that its card was made with; None if it says none."""
    command = array.array("B", _COMMAND.pack(_GET_PERMANENT, _MOST_BYTES) + bytes(_MOST_BYTES))
    request = _REQUEST.pack(name.encode(), command.buffer_info()[0])
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            fcntl.ioctl(asker, _SIOCETHTOOL, request)
    except OSError:
        return None
    answer = command.tobytes()
    length = _COMMAND.unpack_from(answer)[1]
    return answer[_COMMAND.size :][:length].hex(":")


def physical_cards(
    net: Path = NET,
    udev: Path = UDEV,
    ask: Callable[[str], str | None] = permanent_address,
) -> tuple[NetworkCard, ...]:
    """Return the physical Ethernet and wireless cards, each with the name that it has now.

    Virtual functions that this machine itself cuts its cards into are none, nor is the fast lane
    of a virtual card that has one (both have the same address).

    Args:
        net: where the kernel shows network interfaces.
        udev: where udev keeps what it knows of devices.
        ask: returns the permanent address of the card with a name.

    Raises:
        OSError: the interfaces can't be listed.
    """
    return tuple(
        NetworkCard(
            name=node.name,
            predicted=tuple(_predicted(udev / f"n{sysfs.read_text(node / 'ifindex')}")),
            mac=_permanent(node, ask),
            driver=_link(node / "device" / "driver"),
            place=_place(node),
        )
        for node in sorted(net.iterdir())
        if _is_card(node)
    )


def _is_card(node: Path) -> bool:
    device = node / "device"
    return (
        device.exists()
        and not (device / "physfn").exists()
        and not (node / "master" / "device").exists()
        and sysfs.read_text(node / "type") == _ETHERNET
    )


def _permanent(node: Path, ask: Callable[[str], str | None]) -> str | None:
    mac = (ask(node.name) or "").lower()
    if not _MAC.fullmatch(mac) and sysfs.read_text(node / "addr_assign_type") == _PERMANENT:
        mac = sysfs.read_text(node / "address").lower()
    is_one = _MAC.fullmatch(mac) and set(mac) - set("0:") and set(mac) - set("f:")
    return mac if is_one else None


def _place(node: Path) -> str:
    device = (node / "device").resolve()
    # Devices of virtio are numbered as they are found; what they are plugged into stays.
    while _link(device / "subsystem") == "virtio":
        device = device.parent
    port = sysfs.read_text(node / "dev_port")
    return f"{device.name}/{port}" if port not in {"", "0"} else device.name


def _predicted(record: Path) -> Iterator[str]:
    """Yield the names in what udev keeps of a card; none where it keeps nothing."""
    lines = sysfs.read_text(record).splitlines()
    values = dict(line[2:].split("=", 1) for line in lines if re.match(r"E:[^=]+=", line))
    yield from dict.fromkeys(values[key] for key in _NAMES if values.get(key))


def _link(path: Path) -> str | None:
    return path.resolve().name if path.is_symlink() else None
