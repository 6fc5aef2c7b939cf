from pathlib import Path

import pytest

from imager.errors import DrillError
from restore.drill import evidence
from restore.drill.qemu import TCG, Drive, Forward, UserNetwork, Vm, VmSpec

BEFORE = {
    "hostname": "ward",
    "packages": {"bash": "5.2", "git": "2.39"},
    "disks": [{"uuid": "a"}, {"uuid": "b"}],
    "swap": None,
    "rows": 17,
}


def test_equal_facts_differ_in_nothing() -> None:
    assert evidence.compare(BEFORE, dict(BEFORE)) == ()
    assert evidence.count(BEFORE) == 7


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"hostname": "other"}, ("hostname", "ward", "other")),
        ({"rows": 18}, ("rows", "17", "18")),
        ({"rows": "17 "}, ("rows", "17", "17 ")),
        ({"swap": "x"}, ("swap", "null", "x")),
        ({"packages": {"bash": "5.2"}}, ("packages / git", "2.39", "(nothing)")),
        ({"disks": [{"uuid": "a"}, {"uuid": "c"}]}, ("disks / 1 / uuid", "b", "c")),
        ({"new": True}, ("new", "(nothing)", "true")),
    ],
)
def test_each_difference_is_named(
    change: dict[str, object], difference: tuple[str, str, str]
) -> None:
    assert evidence.compare(BEFORE, BEFORE | change) == (evidence.Difference(*difference),)


def test_a_list_that_became_empty_is_a_difference() -> None:
    found = evidence.compare({"entries": ["debian"]}, {"entries": []})
    assert [each.fact for each in found] == ["entries", "entries / 0"]


def _guest(boot_disk: Path, network: UserNetwork | None = None) -> VmSpec:
    consoles = (boot_disk.with_name("ttyS0.log"), boot_disk.with_name("ttyS1.log"))
    drive = Drive(boot_disk, snapshot=True)
    return VmSpec("guest", 64, (drive,), serials=consoles, network=network)


def _say(boot_disk: Path, message: bytes) -> None:
    """Let the boot sector say something else."""
    content = bytearray(boot_disk.read_bytes())
    content[0x40 : 0x40 + len(message) + 1] = message + b"\0"
    boot_disk.write_bytes(content)


def test_a_login_prompt_is_proof(boot_disk: Path) -> None:
    _say(boot_disk, b"Debian 12 ttyS0\r\n\r\nward-1 login: ")
    with Vm(_guest(boot_disk), TCG) as vm:
        proof = evidence.wait_for_sign(vm, 60, boot_disk.parent, accept_screen=False)
    assert "ward-1 login:" in proof.text
    assert not proof.weak


def test_a_port_that_only_qemu_accepts_is_no_proof(
    boot_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "_POLL", 0.5)
    network = UserNetwork((Forward(0, 22),))
    with (
        Vm(_guest(boot_disk, network), TCG) as vm,
        pytest.raises(DrillError, match="neither a login prompt"),
    ):
        evidence.wait_for_sign(vm, 2, boot_disk.parent, accept_screen=False)


def test_a_still_screen_counts_only_when_accepted_and_is_weak(
    boot_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "_POLL", 0.5)
    monkeypatch.setattr(evidence, "_STILL", 0.5)
    with Vm(_guest(boot_disk), TCG) as vm:
        vm.wait_serial(0, "HELLO", 60)
        proof = evidence.wait_for_sign(vm, 1, boot_disk.parent, accept_screen=True)
    assert proof.weak


def test_a_machine_that_ends_is_no_proof(boot_disk: Path) -> None:
    with Vm(_guest(boot_disk), TCG) as vm:
        vm.wait_serial(0, "HELLO", 60)
        vm.send(0, "x")
        with pytest.raises(DrillError, match="ended before it was up"):
            evidence.wait_for_sign(vm, 60, boot_disk.parent, accept_screen=True)


@pytest.mark.parametrize(
    "words",
    [
        b"UEFI Interactive Shell v2.2",
        b"[    1.2] Kernel panic - not syncing: VFS",
        b"\r\n(initramfs) ",
        b"grub rescue> ",
    ],
)
def test_a_dead_end_is_not_waited_out(boot_disk: Path, words: bytes) -> None:
    _say(boot_disk, words)
    with Vm(_guest(boot_disk), TCG) as vm, pytest.raises(DrillError, match="dead end"):
        evidence.wait_for_sign(vm, 600, boot_disk.parent, accept_screen=True)
    with Vm(_guest(boot_disk), TCG) as vm, pytest.raises(DrillError, match="dead end"):
        evidence.wait_for_facts(vm, 600)


def test_files_are_named_only_when_facts_say_that_some_differ() -> None:
    before = evidence.Expected({"files": {"/": "hash 1"}}, {"/": {"etc/a": "1", "etc/b": "2"}})
    after = evidence.Expected({"files": {"/": "hash 2"}}, {"/": {"etc/a": "1", "etc/b": "3"}})
    assert [each.fact for each in evidence.compare_all(before, after)] == [
        "files / /",
        "file / / / etc/b",
    ]
    assert evidence.compare_all(before, evidence.Expected(before.facts, after.manifest)) == ()
