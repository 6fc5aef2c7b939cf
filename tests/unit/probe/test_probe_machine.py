"""A machine's id is the same at every capture, and never a placeholder."""

from dataclasses import replace
from pathlib import Path

import pytest

from imager import blockdev, process
from imager.errors import UsageError
from imager.layout import codec
from imager.layout.firmware import FirmwareKind
from imager.layout.machine import Machine
from imager.layout.network import NetworkCard
from imager.probe import machine as module
from imager.probe.machine import ProbeSource, probe_machine, this_machine_id

UUID = "4C4C4544-0042-3510-8052-B4C04F4E3132"
MACHINE_ID = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("dmi", "machine_id", "expected"),
    [
        (UUID, MACHINE_ID, UUID.lower()),
        ("00000000-0000-0000-0000-000000000000", MACHINE_ID, MACHINE_ID),
        ("03000200-0400-0500-0006-000700080009", MACHINE_ID, MACHINE_ID),
        ("Not Settable", MACHINE_ID, MACHINE_ID),
        (None, MACHINE_ID, MACHINE_ID),
        (None, "uninitialized", None),
        (None, None, None),
    ],
)
def test_id(dmi: str | None, machine_id: str | None, expected: str | None, tmp_path: Path) -> None:
    for name, text in (("dmi", dmi), ("machine-id", machine_id)):
        if text is not None:
            (tmp_path / name).write_text(text + "\n")
    assert this_machine_id(tmp_path / "dmi", tmp_path / "machine-id") == expected


def source(path: Path) -> ProbeSource:
    return ProbeSource(path, f"/srv/{path.name}", blockdev.identify(path).identity, False, ())


def make(path: Path) -> ProbeSource:
    process.run("truncate", "-s", "32M", path)
    process.run("sfdisk", "--quiet", path, stdin=b"label: gpt\nsize=8M\nsize=8M\n")
    return source(path)


def test_disk_files_speak_for_themselves(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    machine = probe_machine([first, second], "web01")
    assert machine.name == "web01"
    assert [disk.id for disk in machine.disks] == ["disk0", "disk1"]
    assert [disk.origin for disk in machine.disks] == ["/srv/a", "/srv/b"]
    assert machine.firmware.kind is FirmwareKind.BIOS
    assert codec.decode(codec.encode(machine), Machine, "it") == machine
    assert machine.cards == ()  # those of this host are not theirs


def test_disks_of_this_machine_bring_its_network_cards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = NetworkCard("eth0", (), "52:54:00:aa:00:01", "igb", "0000:01:00.0")
    monkeypatch.setattr(module, "read_cards", lambda *_: (card,))
    here, elsewhere = replace(make(tmp_path / "a"), of_this_machine=True), make(tmp_path / "b")
    assert probe_machine([here], "web01").cards == (card,)
    assert probe_machine([here, elsewhere], "web01").cards == ()


def test_the_id_of_disk_files_stays(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    machine_id = probe_machine([first], "web01").id
    moved = tmp_path / "moved"
    (tmp_path / "a").rename(moved)
    process.run("truncate", "-s", "48M", moved)
    assert probe_machine([source(moved)], "other").id == machine_id
    assert probe_machine([second], "web01").id != machine_id


def test_no_disk() -> None:
    with pytest.raises(UsageError):
        probe_machine([], "x")
