"""A restored system finds its network on other cards: what is rewritten, pinned, told and left."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from imager.layout.network import NetworkCard
from restore.boot_steps import MapCards
from restore.bootrepair import network
from restore.bootrepair.network import change, examine, is_named_early, names_cards
from restore.bootrepair.network_files import configured_names, find_edits
from restore.bootrepair.settings import make_file, replace_file
from restore.cards import free_cards, match_cards

OLD, NEW = "52:54:00:ab:cd:01", "02:fc:0a:0b:0c:1d"
OLD2, NEW2 = "52:54:00:ab:cd:02", "02:fc:0a:0b:0c:2d"
MAP = {OLD: NEW, OLD2: NEW2}

FILES = {
    "etc/udev/rules.d/70-persistent-net.rules": (
        '# 52:54:00:ab:cd:01\nSUBSYSTEM=="net", ATTR{address}=="52:54:00:ab:cd:01", NAME="eth0"\n',
        '# 52:54:00:ab:cd:01\nSUBSYSTEM=="net", ATTR{address}=="02:fc:0a:0b:0c:1d", NAME="eth0"\n',
    ),
    "etc/systemd/network/10-lan.link": (
        (
            "[Match]\nMACAddress=52-54-00-AB-CD-01 5254.00ab.cd02\n[Link]\n"
            "MACAddress=52:54:00:ab:cd:01\nName=lan0\n"
        ),
        (
            "[Match]\nMACAddress=02-FC-0A-0B-0C-1D 02fc.0a0b.0c2d\n[Link]\n"
            "MACAddress=52:54:00:ab:cd:01\nName=lan0\n"
        ),
    ),
    "etc/systemd/network/20-lan.network": (
        (
            "[Match]\r\nPermanentMACAddress = \\\r\n  52:54:00:ab:cd:01\r\n[Link]\r\n"
            "MACAddress=52:54:00:ab:cd:01\r\n"
        ),
        (
            "[Match]\r\nPermanentMACAddress = \\\r\n  02:fc:0a:0b:0c:1d\r\n[Link]\r\n"
            "MACAddress=52:54:00:ab:cd:01\r\n"
        ),
    ),
    "etc/systemd/network/20-lan.network.d/more.conf": (
        "[Match]\nMACAddress=52:54:00:ab:cd:02\n",
        "[Match]\nMACAddress=02:fc:0a:0b:0c:2d\n",
    ),
    "etc/netplan/01.yaml": (
        (
            "network:\n  ethernets:\n    lan:\n      match:\n        # 52:54:00:ab:cd:01\n"
            '        macaddress: "52:54:00:AB:CD:01"\n      macaddress: 52:54:00:ab:cd:01\n'
            "      set-name: lan\n    b: {match: {macaddress: 52:54:00:ab:cd:02}, dhcp4: true}\n"
            "    c: {macaddress: 52:54:00:ab:cd:02}\n"
        ),
        (
            "network:\n  ethernets:\n    lan:\n      match:\n        # 52:54:00:ab:cd:01\n"
            '        macaddress: "02:FC:0A:0B:0C:1D"\n      macaddress: 52:54:00:ab:cd:01\n'
            "      set-name: lan\n    b: {match: {macaddress: 02:fc:0a:0b:0c:2d}, dhcp4: true}\n"
            "    c: {macaddress: 52:54:00:ab:cd:02}\n"
        ),
    ),
    "etc/NetworkManager/system-connections/lan.nmconnection": (
        (
            "[connection]\nid=gr\xfc\xdf\n[ethernet]\nmac-address=52:54:00:AB:CD:01\n"
            "cloned-mac-address=52:54:00:AB:CD:01\n"
        ),
        (
            "[connection]\nid=gr\xfc\xdf\n[ethernet]\nmac-address=02:FC:0A:0B:0C:1D\n"
            "cloned-mac-address=52:54:00:AB:CD:01\n"
        ),
    ),
    "etc/sysconfig/network-scripts/ifcfg-eth0": (
        'DEVICE=eth0\nHWADDR="52:54:00:AB:CD:01"\nMACADDR=52:54:00:AB:CD:01\n',
        'DEVICE=eth0\nHWADDR="02:FC:0A:0B:0C:1D"\nMACADDR=52:54:00:AB:CD:01\n',
    ),
    "etc/network/interfaces": (
        (
            "rename /mac/52:54:00:ab:cd:01=lan\niface lan inet dhcp\n"
            "  hwaddress ether 52:54:00:ab:cd:01\n  up echo 52:54:00:ab:cd:01\n"
        ),
        (
            "rename /mac/02:fc:0a:0b:0c:1d=lan\niface lan inet dhcp\n"
            "  hwaddress ether 02:fc:0a:0b:0c:1d\n  up echo 52:54:00:ab:cd:01\n"
        ),
    ),
}
OTHERS = {
    "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "etc/netplan/off.yaml.disabled": "match: {macaddress: 52:54:00:ab:cd:01}\n",
    "etc/network/interfaces.d/b": "hwaddress ether 52:54:00:ab:cd:01:99\n",
    "etc/systemd/network/30.network": "[Match]\nMACAddress=52:54:00:ab:cd:0152\nName=eth0\n",
    "etc/udev/rules.d/60-other.rules": f'ATTR{{address}}=="{OLD}", NAME="x"\n',
    "etc/hosts": "127.0.0.1 localhost\n",
}


def plant(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode("latin-1"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system whose udev applies .link files."""
    plant(tmp_path, {"usr/lib/udev/rules.d/80-net-setup-link.rules": "IMPORT\n", **OTHERS})
    (tmp_path / "lib").symlink_to("usr/lib")
    return tmp_path


def tree(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", FILES)
def test_an_address_is_replaced_where_it_chooses_a_card_and_nowhere_else(
    name: str, root: Path
) -> None:
    before, after = FILES[name]
    plant(root, {name: before})
    found = list(find_edits(root, MAP))
    assert [str(edit.path) for edit in found] == [f"/{name}"]
    assert found[0].after.decode("latin-1") == after


def test_addresses_may_be_swapped(root: Path) -> None:
    name = "etc/systemd/network/10.link"
    plant(root, {name: f"[Match]\nMACAddress={OLD} {OLD2}\n"})
    (edit,) = find_edits(root, {OLD: OLD2, OLD2: OLD})
    assert edit.after.decode() == f"[Match]\nMACAddress={OLD2} {OLD}\n"


def card(
    mac: str | None, place: str, name: str | None = None, *predicted: str, driver: str = "igb"
) -> NetworkCard:
    return NetworkCard(name, predicted, mac, driver, place)


SAVED = card(OLD, "0000:01:00.0", "enp1s0", "enp1s0")
HERE = card(NEW, "0000:05:00.0", "enp5s0", "enp5s0", driver="e1000e")


def step(
    saved: Sequence[NetworkCard] = (SAVED,), here: Sequence[NetworkCard] = (HERE,)
) -> MapCards:
    matches = match_cards(saved, here)
    return MapCards((), tuple(each for each in matches if each.differs), free_cards(matches, here))


def apply(root: Path, wanted: MapCards) -> list[str]:
    found = examine(root, wanted)
    return [*change(root, found), *found.notes]


def test_a_name_is_pinned_to_the_card_that_takes_the_place(root: Path) -> None:
    before = tree(root)
    notes = apply(root, step())
    path = "etc/systemd/network/10-remetal-enp1s0.link"
    text = (root / path).read_text()
    assert f"[Match]\nMACAddress={NEW}\nPermanentMACAddress={NEW}\n" in text
    assert text.endswith("\n[Link]\nName=enp1s0\n")
    assert (root / path).stat().st_mode & 0o777 == 0o644
    assert {name: seen for name, seen in tree(root).items() if name != path} == before
    (note,) = notes
    assert note.startswith(f"/{path}: enp1s0 is {NEW} now, it was {OLD} at 0000:01:00.0")


def test_nothing_is_written_for_cards_that_are_the_same(root: Path) -> None:
    plant(root, {name: before for name, (before, _) in FILES.items()})
    before = tree(root)
    assert not examine(root, step(here=(SAVED,))).changes
    assert apply(root, step(here=(SAVED,))) == []
    assert tree(root) == before


def test_the_same_card_in_another_slot_keeps_its_name(root: Path) -> None:
    moved = replace(HERE, mac=OLD)
    assert step(here=(moved,)).addresses == {}
    apply(root, step(here=(moved,)))
    assert f"MACAddress={OLD}" in (root / "etc/systemd/network/10-remetal-enp1s0.link").read_text()


def test_a_card_that_moved_and_is_named_by_its_address_needs_nothing(root: Path) -> None:
    plant(root, {"etc/systemd/network/10-lan.link": FILES["etc/systemd/network/10-lan.link"][0]})
    assert not examine(root, step(here=(replace(HERE, mac=OLD),))).changes


def test_what_the_system_itself_names_is_not_pinned(root: Path) -> None:
    for name in ("etc/systemd/network/10-lan.link", "etc/udev/rules.d/70-persistent-net.rules"):
        plant(root, {name: FILES[name][0]})
        found = examine(root, step())
        assert found.pins == ()
        assert [str(edit.path) for edit in found.edits] == [f"/{name}"]
        (root / name).unlink()


def test_a_link_file_that_gives_no_name_is_told(root: Path) -> None:
    plant(
        root, {"etc/systemd/network/50.link": f"[Match]\nMACAddress={OLD}\n[Link]\nMTUBytes=9000\n"}
    )
    (changed, note) = apply(root, step())
    assert changed == f"/etc/systemd/network/50.link: {OLD} is {NEW} now"
    assert "gives it no name" in note


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({"etc/network/interfaces": "auto ens3.7\n#iface enp1s0 inet dhcp\n"}, {"ens3"}),
        ({"etc/netplan/a.yaml": "  ethernets:\n    enp1s0: {dhcp4: true}\n"}, {"enp1s0"}),
        ({"etc/sysconfig/network-scripts/ifcfg-enp1s0": "ONBOOT=yes\n"}, {"enp1s0"}),
        ({"etc/network/interfaces": "auto enp1s0f1\nauto xenp1s0\nauto ens33\n"}, set()),
    ],
)
def test_the_name_is_the_one_that_the_configuration_speaks_of(
    files: dict[str, str], names: set[str], root: Path
) -> None:
    plant(root, files)
    assert configured_names(root, ("ens3", "enp1s0")) == names
    unnamed = card(OLD, "0000:01:00.0", None, "ens3", "enp1s0")
    found = examine(root, step((unnamed,)))
    assert {pin.name for pin in found.pins} == names
    assert any("is not pinned" in note for note in found.notes) is not bool(names)


def test_a_card_that_is_in_the_way_of_a_name_gets_another(root: Path) -> None:
    here = (HERE, card("02:00:00:00:00:99", "0000:01:00.0", "x", "enp1s0", driver="r8169"))
    wanted = replace(step(), free=(here[1],))
    apply(root, wanted)
    names = sorted(path.name for path in (root / "etc/systemd/network").glob("*.link"))
    assert names == ["10-remetal-enp1s0.link", "10-remetal-enx020000000099.link"]


@pytest.mark.parametrize("mask", ["link", "empty"])
def test_without_link_files_the_rules_of_old_name_the_card(mask: str, root: Path) -> None:
    masked = root / "etc/udev/rules.d/80-net-setup-link.rules"
    masked.symlink_to("/dev/null") if mask == "link" else masked.touch()
    before = tree(root)
    (note,) = apply(root, step())
    assert "By hand: enp1s0 is" in note
    assert tree(root) == before
    rules = root / "etc/udev/rules.d/70-persistent-net.rules"
    rules.write_text("# nothing")
    apply(root, step())
    assert rules.read_text() == (
        '# nothing\nSUBSYSTEM=="net", ACTION=="add", DRIVERS=="?*", '
        f'ATTR{{address}}=="{NEW}", ATTR{{type}}=="1", NAME="enp1s0"\n'
    )


def test_names_of_the_kernel_and_cards_without_an_address_are_warned_of(root: Path) -> None:
    saved = (replace(SAVED, name="eth0"), card(OLD2, "0000:02:00.0", "eth1"))
    here = (HERE, card(None, "0000:06:00.0", "enp6s0"))
    found = examine(root, step(saved, here))
    assert [pin.name for pin in found.pins] == ["eth0"]
    assert any(note.startswith("WARNING: eth1 can't be pinned") for note in found.notes)
    assert any("udev can't swap" in note for note in found.notes)


def test_files_where_an_old_address_stays_are_named(root: Path) -> None:
    plant(root, {"etc/default/grub": f'GRUB_CMDLINE_LINUX="ifname=eth0:{OLD.upper()}"\n'})
    told = list(network._left(root, step()))
    assert any(line.startswith(f"/etc/default/grub still holds {OLD}") for line in told)
    assert not any("/etc/hosts" in line for line in told)


def test_owner_mode_and_attributes_stay_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "secret.nmconnection"
    path.write_text("old")
    path.chmod(0o640)
    os.setxattr(path, "user.kept", b"value")
    if os.geteuid() == 0:
        os.chown(path, 3, 4)
    before = path.stat()
    replace_file(path, b"new")
    after = path.stat()
    assert path.read_bytes() == b"new"
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode, before.st_uid, before.st_gid,
    )  # fmt: skip
    assert os.getxattr(path, "user.kept") == b"value"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_one_file_that_can_not_be_changed_is_told_and_the_others_go_on(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(root, {name: before for name, (before, _) in FILES.items()})

    def refuse(path: Path, data: bytes) -> None:
        if path.name == "interfaces":
            raise OSError(30, "Read-only file system")
        replace_file(path, data)

    monkeypatch.setattr(network, "replace_file", refuse)
    notes = apply(root, step())
    warnings = [note for note in notes if note.startswith("WARNING: /etc/network/interfaces")]
    assert len(warnings) == 1
    assert len(list(find_edits(root, {OLD: NEW}))) == 1


def test_links_stay_in_the_system(root: Path, tmp_path: Path) -> None:
    plant(root, {"srv/plan": f"network: {{ethernets: {{a: {{match: {{macaddress: {OLD}}}}}}}}}\n"})
    (root / "etc/netplan/linked.yaml").symlink_to("/srv/plan")
    assert apply(root, step())[0].startswith("/etc/netplan/linked.yaml")
    assert NEW in (root / "srv/plan").read_text()
    assert (root / "etc/netplan/linked.yaml").is_symlink()


def test_folders_are_made_where_there_are_none(tmp_path: Path) -> None:
    make_file(tmp_path / "a/b/c", b"x")
    assert (tmp_path / "a/b/c").read_bytes() == b"x"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("library", "crossed", "early"),
    [
        ("lib/systemd/libsystemd-shared-239.so", (), True),
        ("lib/x86_64-linux-gnu/systemd/libsystemd-shared-252.so", (), False),
        ("lib/systemd/libsystemd-shared-255.4-1.fc40.so", (), False),
        ("lib/systemd/libsystemd-shared-255.so", ("enp1s0",), True),
        ("lib/none", (), True),
    ],
)
def test_when_an_initramfs_has_the_last_word(
    library: str, crossed: tuple[str, ...], early: bool, root: Path
) -> None:
    plant(root, {f"usr/{library}": ""})
    assert not is_named_early(root, crossed)  # nothing is pinned
    plant(root, {"etc/systemd/network/10-remetal-enp1s0.link": "[Match]\n"})
    assert is_named_early(root, crossed) is early


def test_an_initramfs_that_names_cards() -> None:
    assert names_cards(["init", "lib/udev/rules.d/80-net-setup-link.rules"])
    assert not names_cards(["init", "lib/udev/rules.d/80-drivers.rules"])
