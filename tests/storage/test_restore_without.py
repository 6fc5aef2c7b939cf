"""Restores without one of the saved disks: on the command line, by order, and in the dialogue."""

import json
import shutil
from pathlib import Path

import click
import pytest
from restored_disks import PASSPHRASE, ROOT_AT, SIZE, Saved, digest, extracted, run
from test_restore_rescue import Person, image_number

from imager import process
from imager.blockdev import BlockDisk
from imager.console import Output
from imager.layout.disk import DiskIdentity
from imager.units import MIB
from restore import unattended
from restore.console_ui.dialogue import Dialogue
from restore.console_ui.repositories import Found
from restore.console_ui.terminal import Terminal
from restore.medium import AtEnd, Medium
from restore.unattended import REPORT


@pytest.fixture(scope="module")
def two(saved: Saved, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A repository with a machine that starts from one disk, and has its data on another."""
    folder = tmp_path_factory.mktemp("two")
    data = folder / "data"
    with data.open("wb") as file:
        file.truncate(32 * MIB)
    process.run("mke2fs", "-q", "-F", "-t", "ext4", "-L", "srv", data)
    (folder / "passphrase").write_text(PASSPHRASE + "\n")
    made = Saved(folder, folder / "repository", saved.gpt, data)
    words = ["--keys-dir", str(folder / "keys"), "--passphrase-file", str(folder / "passphrase")]
    assert run(["init", str(made.repository), *words]) == 0
    for name, disk in (("uefi", saved.gpt), ("bios", saved.mbr)):
        assert made.capture(disk, "--disk", str(data), "--name", name) == 0
    return made


def test_the_rest_comes_back_and_what_is_lost_is_named(
    two: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, both = tmp_path / "alone", tmp_path / "both"
    words = ["--map", f"disk0={alone}", "--leave-out", "disk1", "--yes", "--verify-written"]
    assert two.restore("uefi", *words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Note: Left out: disk1, saved from" in said
    assert 'Lost, since nothing else holds it: disk1/whole (ext4 "srv")' in said
    words = ["--map", f"disk0={both}", "--map", f"disk1={tmp_path / 'data'}", "--yes"]
    assert two.restore("uefi", *words) == 0
    # A loader was copied onto the ESP of each, at different times.
    rests = [
        digest(extracted(disk, ROOT_AT, SIZE - ROOT_AT, tmp_path / "part"))
        for disk in (alone, both)
    ]
    assert rests[0] == rests[1]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("uefi", "disk0 holds the only EFI system partition"),
        ("bios", "disk0 is the only one with boot code, which a BIOS starts from"),
    ],
)
def test_a_needed_disk_is_refused_before_anything_is_written(
    image: str, reason: str, two: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "target"
    words = ["--map", f"disk1={target}", "--leave-out", "disk0", "--yes"]
    assert two.restore(image, *words) == 59
    assert reason in capsys.readouterr().err
    assert not target.exists()


@pytest.mark.parametrize("words", [["--leave-out", "disk7"], ["--leave-out", "disk0"]])
def test_what_makes_no_sense_is_refused(two: Saved, tmp_path: Path, words: list[str]) -> None:
    assert two.restore("uefi", "--map", f"disk0={tmp_path / 'target'}", *words, "--yes") == 2
    assert not (tmp_path / "target").exists()


def test_a_refusal_names_the_option(
    two: Saved,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("imager.blockdev.list_disks", tuple)
    words = ["uefi", "--map", f"disk0={tmp_path / 'target'}", "--dry-run"]
    assert two.restore(*words) == 45
    said = " ".join(capsys.readouterr().err.split())
    assert "no disk here can take disk1" in said
    assert "It can be left out: --leave-out disk1" in said
    assert "Lost, since nothing else holds it: disk1/whole" in said
    assert two.restore(*words, "--leave-out", "disk1") == 0


def test_an_order_leaves_disks_out(two: Saved, tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    shutil.copy(two.folder / "keys" / "recovery.key", share)
    (share / "passphrase").write_text(PASSPHRASE + "\n")
    order = {
        "repository": str(two.repository),
        "image": "uefi",
        "recovery_key": "recovery.key",
        "passphrase_file": "passphrase",
        "maps": {"disk0": str(tmp_path / "target.raw")},
        "leave_out": ["disk1"],
    }
    (share / "job.json").write_text(json.dumps(order))
    unattended.run(Output(), share, Medium("Rescue", "1"), lambda: None)
    report = json.loads((share / REPORT).read_text())
    assert report["outcome"] == "restored"
    assert any("Left out: disk1" in line for line in report["plan"])


def test_a_person_leaves_a_disk_out(
    two: Saved,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "remetal.passphrase").write_text(PASSPHRASE + "\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(store))
    disk = tmp_path / "one.raw"
    with disk.open("wb") as file:
        file.truncate(SIZE)
    here = BlockDisk(
        disk, DiskIdentity(SIZE, 512), (), read_only=False, removable=False, is_device=False
    )
    monkeypatch.setattr("imager.blockdev.list_disks", lambda: (here,))
    # The machine does not come up without the first disk: the question comes again.
    person = Person(
        "1", "1", image_number(capsys, "uefi"), "leave", "1", "1", "leave", "", "", "overwrite", "reboot"
    )  # fmt: skip
    monkeypatch.setattr(click, "prompt", person.prompt)

    def look(_: list[Path]) -> Found:
        return Found((two.repository,), (two.folder / "keys" / "recovery.key",))

    dialogue = Dialogue(Terminal(Output()), Medium("Rescue", "1"), look, tmp_path / "log")
    assert dialogue.run() is AtEnd.REBOOT
    assert not person.lines
    said = " ".join(capsys.readouterr().out.split())
    assert "leave leave it out, where the machine comes up without it" in said
    assert "It did not work: the machine does not come up without what is left out: disk0" in said
    assert "Left out: disk1" in said
    assert any(disk.read_bytes()[:MIB])
