"""Network cards, as sysfs shows them: which count, where they are, what they may be called."""

from pathlib import Path

import pytest

from imager import netdev
from imager.layout.network import NetworkCard


class Sysfs:
    """A tree as the kernel lays it out: links in class/net to devices below devices/."""

    def __init__(self, root: Path) -> None:
        self.net = root / "class/net"
        self.udev = root / "udev"
        self._devices = root / "devices"
        self._drivers = root / "drivers"
        for folder in (self.net, self.udev, self._devices):
            folder.mkdir(parents=True)

    def device(self, path: str, bus: str, driver: str | None = None) -> Path:
        device = self._devices / path
        device.mkdir(parents=True, exist_ok=True)
        (self._devices.parent / "bus" / bus).mkdir(parents=True, exist_ok=True)
        (device / "subsystem").symlink_to(self._devices.parent / "bus" / bus)
        if driver:
            (self._drivers / driver).mkdir(parents=True, exist_ok=True)
            (device / "driver").symlink_to(self._drivers / driver)
        return device

    def card(self, name: str, device: Path | None, **values: object) -> Path:
        node = (device or self._devices / "virtual") / "net" / name
        node.mkdir(parents=True)
        known = {"type": 1, "addr_assign_type": 0, "ifindex": len(list(self.net.iterdir())) + 1}
        for key, value in {**known, **values}.items():
            (node / key).write_text(f"{value}\n")
        if device is not None:
            (node / "device").symlink_to(device)
        (self.net / name).symlink_to(node)
        return node

    def read(self, **permanent: str) -> tuple[NetworkCard, ...]:
        return netdev.physical_cards(self.net, self.udev, permanent.get)


@pytest.fixture
def tree(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path)


def test_a_card_with_all_that_is_known_of_it(tree: Sysfs) -> None:
    tree.card(
        "eno1", tree.device("pci0000:00/0000:01:00.0", "pci", "igb"), address="52:54:00:AA:00:01"
    )
    (tree.udev / "n1").write_text(
        "I:123\nE:ID_NET_NAME_PATH=enp1s0\nE:ID_NET_NAME_MAC=enx525400aa0001\n"
        "E:ID_NET_NAME_ONBOARD=eno1\nE:ID_PATH=pci-0000:01:00.0\nG:systemd\n"
    )
    assert tree.read() == (
        NetworkCard(
            "eno1", ("eno1", "enp1s0", "enx525400aa0001"), "52:54:00:aa:00:01", "igb",
            "0000:01:00.0",
        ),
    )  # fmt: skip


def test_what_is_made_by_software_is_none(tree: Sysfs) -> None:
    port = tree.device("pci0000:00/0000:01:00.0", "pci", "ixgbe")
    tree.card("lo", None, type=772)
    tree.card("br0", None)
    tree.card("ib0", tree.device("pci0000:00/0000:09:00.0", "pci", "mlx5_core"), type=32)
    virtual = tree.device("pci0000:00/0000:01:10.0", "pci", "ixgbevf")
    (virtual / "physfn").symlink_to(port)
    tree.card("eth9", virtual)
    tree.card("eth0", port)
    assert [card.name for card in tree.read()] == ["eth0"]


def test_the_fast_lane_of_a_virtual_card_is_part_of_it_and_a_port_of_a_bond_is_not(
    tree: Sysfs,
) -> None:
    vmbus = tree.device("vmbus/3f1c9a05", "vmbus", "hv_netvsc")
    lane = tree.card("enP1s1", tree.device("pci0001:00/0001:00:02.0", "pci", "mlx5_core"))
    (lane / "master").symlink_to(tree.card("eth0", vmbus))
    bond = tree.card("bond0", None)
    port = tree.card("eth1", tree.device("pci0000:00/0000:01:00.0", "pci", "igb"))
    (port / "master").symlink_to(bond)
    assert [(card.name, card.place) for card in tree.read()] == [
        ("eth0", "3f1c9a05"),
        ("eth1", "0000:01:00.0"),
    ]


def test_the_address_is_the_permanent_one(tree: Sysfs) -> None:
    for number, assigned in enumerate((3, 3, 1, 0)):
        device = tree.device(f"pci0000:00/0000:0{number}:00.0", "pci", "igb")
        address = f"02:00:00:00:00:0{number}" if number < 3 else "00:00:00:00:00:00"
        tree.card(f"eth{number}", device, addr_assign_type=assigned, address=address)
    found = {card.name: card.mac for card in tree.read(eth0="52:54:00:AA:00:01", eth1="")}
    assert found == {"eth0": "52:54:00:aa:00:01", "eth1": None, "eth2": None, "eth3": None}


def test_a_place_does_not_depend_on_the_order_of_discovery(tree: Sysfs) -> None:
    tree.device("pci0000:00/0000:00:03.0", "pci", "virtio-pci")
    tree.card("a", tree.device("pci0000:00/0000:00:03.0/virtio2", "virtio", "virtio_net"))
    twins = tree.device("pci0000:00/0000:05:00.0", "pci", "mlx4_core")
    tree.card("b", twins, dev_port=0)
    tree.card("c", twins, dev_port=1)
    found = {card.name: (card.driver, card.place) for card in tree.read()}
    assert found == {
        "a": ("virtio_net", "0000:00:03.0"),
        "b": ("mlx4_core", "0000:05:00.0"),
        "c": ("mlx4_core", "0000:05:00.0/1"),
    }


def test_a_driver_is_asked_for_the_permanent_address() -> None:
    assert netdev.permanent_address("no-such-card") is None
    for card in netdev.physical_cards():
        assert card.mac in {None, netdev.permanent_address(card.name or "")}
