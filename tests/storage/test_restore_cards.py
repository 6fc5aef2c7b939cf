"""Network cards are mapped on real filesystems of loop devices, and only where something differs."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from boot_steps import carried_out
from disk_files import digest
from kernel_mounts import loop, mounted

from imager import netdev, process
from imager.layout.network import NetworkCard
from imager.units import MIB
from restore.boot_steps import DiskDrivers, MapCards, RepairInitramfs
from restore.bootrepair.network import change, examine, map_cards
from restore.bootrepair.repair import repair
from restore.cards import match_cards
from restore.target import Target, TargetKind
from tests.guest.small_system import INITRAMFS, plant

OLD, NEW = "52:54:00:ab:cd:01", "02:fc:0a:0b:0c:1d"
RULES = "lib/udev/rules.d/80-net-setup-link.rules"
PIN = "etc/systemd/network/10-remetal-enp1s0.link"
PLAN = "etc/netplan/lan.yaml"
MACHINE_ID = "0123456789abcdef0123456789abcdef\n"
SAVED = NetworkCard("enp1s0", ("enp1s0",), OLD, "igb", "0000:01:00.0")
HERE = NetworkCard("enp5s0", ("enp5s0",), NEW, "e1000e", "0000:05:00.0")


def networked(root: Path) -> None:
    for name, text in (
        (RULES, "IMPORT\n"),
        ("etc/machine-id", MACHINE_ID),
        (PLAN, f"network:\n  ethernets:\n    enp1s0:\n      match:\n        macaddress: {OLD}\n"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    argv = ["busybox", "cpio", "-o", "-H", "newc", "-F", str(root / INITRAMFS)]
    names = f"{RULES}\nlib/modules/6.1.0-test/virtio_blk.ko\n"
    subprocess.run(argv, input=names.encode(), cwd=root, check=True, capture_output=True)


def without_network(root: Path) -> None:
    (root / "etc/machine-id").write_text(MACHINE_ID)


def make(folder: Path, furnish: Callable[[Path], None]) -> Path:
    disk = folder / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(64 * MIB)
    process.run("mke2fs", "-q", "-t", "ext4", disk)
    with loop(disk) as device, mounted(device, folder / "mnt") as root:
        plant(root, "")
        furnish(root)
    return disk


def disks(device: Path) -> tuple[DiskDrivers, ...]:
    target = Target("disk0", device, TargetKind.DEVICE, 1, 1, 512, None, None, "", "")
    return (DiskDrivers(target, "/dev/sda", ()),)


def test_a_system_that_needs_nothing_keeps_every_byte(tmp_path: Path) -> None:
    disk = make(tmp_path, without_network)
    before = digest(disk)
    with loop(disk) as device:
        (note,) = map_cards(MapCards(disks(device), match_cards([SAVED], [HERE])), tmp_path / "at")
    assert f"By hand: enp1s0 is {NEW} now" in note
    assert digest(disk) == before


def test_files_are_changed_and_named_one_by_one(tmp_path: Path) -> None:
    disk = make(tmp_path, networked)
    with loop(disk) as device:
        notes = carried_out(MapCards(disks(device), match_cards([SAVED], [HERE])))
        told = [note.removeprefix(f"{device}: ") for note in notes]
    assert told[0] == f"/{PLAN}: {OLD} is {NEW} now"
    assert told[1].startswith(f"/{PIN}: enp1s0 is {NEW} now")
    # Nothing that was written holds the old address.
    assert len(told) == 2
    with loop(disk) as device, mounted(device, tmp_path / "mnt") as root:
        assert f"macaddress: {NEW}\n" in (root / PLAN).read_text()
        assert "Name=enp1s0\n" in (root / PIN).read_text()
        assert (root / "etc/machine-id").read_text() == MACHINE_ID
        assert [path.name for path in (root / PLAN).parent.iterdir()] == ["lan.yaml"]
    assert process.run("e2fsck", "-fn", disk, accept=(0,))


def test_udev_takes_the_name_from_the_file_for_this_card_and_no_other(tmp_path: Path) -> None:
    here = [card for card in netdev.physical_cards() if card.mac is not None]
    if not here or not Path("/etc/systemd/network").is_dir() or not shutil.which("udevadm"):
        pytest.skip("this host has no physical network card, or no udev")
    plant(tmp_path, "")
    networked(tmp_path)
    found = examine(tmp_path, MapCards((), match_cards([SAVED], here[:1])))
    assert list(change(tmp_path, found))

    def name_of(card: str) -> str:
        script = 'mount --bind "$1" /etc/systemd/network && exec udevadm test-builtin '
        script += '--action=add net_setup_link "/sys/class/net/$2"'
        argv = ("unshare", "--mount", "sh", "-c", script, "sh", (tmp_path / PIN).parent, card)
        said = process.run(*argv, timeout=60)
        return dict(line.partition("=")[::2] for line in said.splitlines())["ID_NET_NAME"]

    assert name_of(here[0].name or "") == "enp1s0"
    # A bridge that has its port's address, as most have.
    process.run("ip", "link", "add", "alike0", "address", here[0].mac or "", "type", "bridge")
    try:
        assert name_of("alike0") == "alike0"
    finally:
        process.run("ip", "link", "del", "alike0")


@pytest.mark.parametrize(
    ("crossed", "version", "rebuilt"),
    [(None, 239, False), ((), 252, False), (("enp1s0",), 252, True), ((), 239, True)],
)
def test_the_initramfs_is_made_anew_only_where_its_names_would_stand(
    crossed: tuple[str, ...] | None, version: int, rebuilt: bool, tmp_path: Path
) -> None:
    def furnish(root: Path) -> None:
        networked(root)
        (root / "lib/systemd").mkdir()
        (root / f"lib/systemd/libsystemd-shared-{version}.so").touch()

    disk = make(tmp_path, furnish)
    with loop(disk) as device:
        map_cards(MapCards(disks(device), match_cards([SAVED], [HERE])), tmp_path / "at")
        (note,) = repair(RepairInitramfs(disks(device), crossed), tmp_path / "at")
    assert ("lacked the names of the network cards and was rebuilt" in note) is rebuilt
    with loop(disk) as device, mounted(device, tmp_path / "mnt") as root:
        assert (root / f"{INITRAMFS}.before-remetal").exists() is rebuilt
