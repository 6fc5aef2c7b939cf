"""The network of the rescue system, in a network namespace with cards of its own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bootmedia.templates import render
from imager.errors import ConfigError, StoreUnreachable
from imager.network_settings import NetworkSettings
from imager.repository.backend.endpoint import Endpoint
from restore import network

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs root")

_SETTINGS = NetworkSettings(interface="card0", address="10.9.0.2/24", gateway="10.9.0.1")
_ELSEWHERE = Endpoint("10.77.0.5", 2222)


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)


def _found(endpoint: Endpoint = _ELSEWHERE) -> tuple[str, str]:
    last = network.diagnose(endpoint, patience=0.3)[-1]
    assert bool(last.advice) is not last.is_right
    return last.subject, last.text


def each_thing_that_is_missing() -> None:
    assert _found() == ("card", "this machine has no network card that the medium knows")
    _ip("link add card0 type veth peer name switch0")
    assert _found() == ("link", "no network card has a link")
    _ip("link set switch0 up")
    _ip("link set card0 up")
    assert not network.is_up()
    assert _found()[0] == "address"
    with pytest.raises(ConfigError, match="no network card eno7") as caught:
        network.bring_up(NetworkSettings("eno7", "10.9.0.2/24"))
    assert "card0 (" in caught.value.hint
    network.bring_up(NetworkSettings(address="10.9.0.2/24"))
    assert network.is_up()
    assert _found() == ("route", "there is no way from here to 10.77.0.5")
    assert _found(Endpoint("nobody.invalid", 22))[0] == "name"
    network.bring_up(_SETTINGS)
    assert _found() == (
        "TCP",
        "port 2222 of 10.77.0.5 can't be reached: nothing came back within 0 s",
    )


def a_store_that_answers() -> None:
    _ip("link add card0 type veth peer name switch0")
    _ip("link set switch0 up")
    _ip("link set lo up")
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        network.need(_SETTINGS, Endpoint("10.9.0.2", port))
    network.take_down()
    assert not network.is_up()
    with pytest.raises(StoreUnreachable, match="refused") as caught:
        network.need(_SETTINGS, Endpoint("10.9.0.2", port), patience=1.0)
    assert "See that the store runs" in caught.value.hint


def an_address_set_by_hand_stays() -> None:
    _ip("link add card0 type veth peer name switch0")
    _ip("link set switch0 up")
    _ip("link set card0 up")
    _ip("address add 10.9.0.7/24 dev card0")
    with pytest.raises(StoreUnreachable):
        network.need(_SETTINGS, Endpoint("10.9.0.7", 1), patience=1.0)
    assert [card.addresses for card in network.cards() if card.name == "card0"] == [
        ("10.9.0.7/24",)
    ]


def both_sorts_of_addresses() -> None:
    _ip("link add card0 type veth peer name switch0")
    _ip("link set switch0 up")
    addresses = ("10.9.0.2/24", "2001:db8::2/64")
    gateways, servers = ("10.9.0.1", "fe80::1"), ("10.9.0.1", "2001:db8::53")
    network.bring_up(NetworkSettings("card0", addresses, gateways, servers))
    (card,) = [card for card in network.cards() if card.name == "card0"]
    assert set(card.addresses) == set(addresses)
    assert network._RESOLVER.read_text() == "nameserver 10.9.0.1\nnameserver 2001:db8::53\n"
    routes = subprocess.run(["ip", "-6", "route"], check=True, capture_output=True, text=True)
    assert "default via fe80::1 dev card0" in routes.stdout


@contextmanager
def _dhcp_server(*options: str) -> Iterator[None]:
    """Answer at the other end of card0's cable; card1 has none."""
    _ip("link add card1 type veth peer name switch1")
    _ip("link add card0 type veth peer name switch0")
    config = network.FOLDER.parent / "udhcpd.conf"
    lines = ("interface switch0", "start 10.9.0.50", "end 10.9.0.50", "option subnet 255.255.255.0")
    own = (f"lease_file {config}.leases", f"pidfile {config}.pid")
    config.write_text("".join(f"{line}\n" for line in (*lines, *own, *options)))
    Path(f"{config}.leases").touch()
    steps = "echo && read _ && ip link set switch0 up && ip address add 10.9.0.1/24 dev switch0"
    argv = ["unshare", "--net", "sh", "-c", f"{steps} && exec busybox udhcpd -f {config}"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdout.readline()  # it has its own namespace now
        _ip(f"link set switch0 netns {server.pid}")
        _ip(f"link set switch1 netns {server.pid}")
        server.stdin.write(b"\n")
        server.stdin.flush()
        try:
            yield
        finally:
            network.take_down()
            server.kill()


def _routes() -> list[str]:
    done = subprocess.run(["ip", "-4", "route"], check=True, capture_output=True, text=True)
    return [" ".join(line.split()[:3]) for line in done.stdout.splitlines()]


def an_address_from_dhcp_on_the_card_that_has_a_link() -> None:
    with _dhcp_server("option router 10.9.0.1", "option dns 10.9.0.53", "option domain example"):
        started = time.monotonic()
        network.bring_up(NetworkSettings())
        assert time.monotonic() - started < 10  # nobody waits for the card without a link
        assert network.is_up()
        found = {card.name: card.addresses for card in network.cards()}
        assert found["card0"] == ("10.9.0.50/24",)
        assert found["card1"] == ()
        assert "default via 10.9.0.1" in _routes()
        assert network._RESOLVER.read_text() == "search example\nnameserver 10.9.0.53\n"
        network.bring_up(NetworkSettings(interface="card0", dns="10.9.0.7"))
        assert network._RESOLVER.read_text().startswith("nameserver 10.9.0.7\n")
    assert not network.is_up()


def routes_that_dhcp_names_count_instead_of_the_router() -> None:
    routes = "option staticroutes 10.77.0.0/16 10.9.0.2, 0.0.0.0/0 10.9.0.3"
    with _dhcp_server("option router 10.9.0.1", routes):
        network.bring_up(NetworkSettings())
        assert {"10.77.0.0/16 via 10.9.0.2", "default via 10.9.0.3"} <= set(_routes())
        assert "default via 10.9.0.1" not in _routes()


_SCENES = (
    an_address_from_dhcp_on_the_card_that_has_a_link,
    routes_that_dhcp_names_count_instead_of_the_router,
    each_thing_that_is_missing,
    a_store_that_answers,
    an_address_set_by_hand_stays,
    both_sorts_of_addresses,
)


@pytest.mark.parametrize("scene", _SCENES, ids=lambda scene: scene.__name__)
def test_the_network(scene: Callable[[], None], tmp_path: Path) -> None:
    argv = ["unshare", "--net", sys.executable, __file__, scene.__name__, tmp_path]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    script = folder / "dhcp"
    script.write_text(
        render("dhcp.sh.j2", folder=folder / "network", resolver=folder / "resolv.conf")
    )
    script.chmod(0o755)
    network._DHCP_SCRIPT = str(script)  # type: ignore[misc]
    network.FOLDER = folder / "network"  # type: ignore[misc]
    network._RESOLVER = folder / "resolv.conf"  # type: ignore[misc]
    globals()[sys.argv[1]]()
