"""The network of the rescue system, in a network namespace with cards of its own."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from imager.errors import StoreUnreachable
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
        network.need(_SETTINGS, Endpoint("10.9.0.2", port))
    assert "See that the store runs" in caught.value.hint


def an_address_set_by_hand_stays() -> None:
    _ip("link add card0 type veth peer name switch0")
    _ip("link set switch0 up")
    _ip("link set card0 up")
    _ip("address add 10.9.0.7/24 dev card0")
    with pytest.raises(StoreUnreachable):
        network.need(_SETTINGS, Endpoint("10.9.0.7", 1))
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


_SCENES = (
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
    network.FOLDER = folder / "network"  # type: ignore[misc]
    network._RESOLVER = folder / "resolv.conf"  # type: ignore[misc]
    globals()[sys.argv[1]]()
