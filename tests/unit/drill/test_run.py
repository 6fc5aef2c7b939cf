import json
from pathlib import Path

import pytest

from imager.errors import OutputExists, UsageError
from imager.repository.backend.place import Place
from imager.repository.keyring import LockedRecoveryKey
from restore.drill import bring_back, run
from restore.drill.bring_back import Drill, Settings
from restore.drill.qemu import TCG, Firmware
from restore.drill.report import Outcome
from restore.drill.scenario import Medium
from tests.conftest import Tiny

SECRET = "correct horse battery"
_WAIT = slice(0x1C, 0x28)  # of the boot sector: the part that waits for a byte


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "drills"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    return place


@pytest.fixture
def subject(tiny: Tiny, tmp_path: Path) -> run.Subject:
    image = tiny.add({"disk0/whole": b"content" * 100_000}, tmp_path)
    key = tmp_path / "recovery.key"
    LockedRecoveryKey.lock(tiny.key, SECRET, "test", tiny.open().id).write(key)
    return run.open_subject(Place(str(tiny.path)), image, key, SECRET)


@pytest.fixture
def choices(boot_disk: Path, tmp_path: Path) -> run.Choices:
    """A "medium" that powers off at once and has restored nothing."""
    sector = bytearray(boot_disk.read_bytes())
    sector[_WAIT] = b"\x90" * (_WAIT.stop - _WAIT.start)
    iso = tmp_path / "medium.iso"
    iso.write_bytes(sector)
    return run.Choices(None, Medium.USB, iso, tmp_path / "cache")


def _restore(
    boot_disk: Path, monkeypatch: pytest.MonkeyPatch, prompt: bytes = b"tiny login: \0"
) -> None:
    """Let the rescue put a boot sector onto the first disk."""
    sector = bytearray(boot_disk.read_bytes()[:512])
    sector[0x40 : 0x40 + len(prompt)] = prompt

    def rescue(self: Drill, *_: object) -> None:
        disk = self._places.disk(0)
        size = disk.stat().st_size
        disk.write_bytes(sector.ljust(size, b"\0"))

    monkeypatch.setattr(Drill, "_rescue", rescue)


def test_a_rescue_that_restores_nothing_fails_and_leaves_evidence_without_secrets(
    subject: run.Subject, choices: run.Choices, folders: Path
) -> None:
    said: list[str] = []
    result = run.drill_image(subject, choices, Settings(TCG, said.append))
    assert result.outcome is Outcome.FAILED
    assert "without a report" in result.proof
    assert result.rto is None
    assert result.kept is not None
    assert result.kept.parent == folders
    assert "HELLO" in (result.kept / "rescue-ttyS0.log").read_text()
    assert json.loads((result.kept / "report.json").read_text())["drills"][0]["name"] == "tiny"
    left = {path.name for path in result.kept.rglob("*") if path.is_file()}
    assert not left & {"disk0.raw", "recovery.key", "passphrase"}
    assert any("rescue: failed after" in line for line in said)


def test_a_machine_with_a_login_prompt_came_back_and_nothing_is_left(
    subject: run.Subject,
    choices: run.Choices,
    folders: Path,
    boot_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _restore(boot_disk, monkeypatch)
    result = run.drill_image(subject, choices, Settings(TCG, lambda _: None))
    assert result.outcome is Outcome.PROVEN, result.proof
    assert "tiny login:" in result.proof
    assert result.rto is not None
    assert result.used_bytes == subject.used_bytes
    assert list(folders.iterdir()) == []


def test_what_is_to_be_kept_is_kept_without_secrets(
    subject: run.Subject,
    choices: run.Choices,
    tmp_path: Path,
    boot_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _restore(boot_disk, monkeypatch)
    settings = Settings(TCG, lambda _: None, keep=tmp_path / "kept")
    result = run.drill_image(subject, choices, settings)
    assert result.kept == tmp_path / "kept" / "tiny"
    left = {path.name for path in result.kept.rglob("*") if path.is_file()}
    assert {"disk0.raw", "restored.png", "report.json", "timeline.svg", "job.json"} <= left
    assert not left & {"recovery.key", "passphrase"}
    with pytest.raises(OutputExists):
        run.drill_image(subject, choices, settings)


def test_a_machine_that_shows_nothing_did_not_come_back(
    subject: run.Subject,
    choices: run.Choices,
    folders: Path,
    boot_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bring_back, "_PROOF_LIMIT", 3.0)
    _restore(boot_disk, monkeypatch, b"GRUB error: no such partition\0")
    result = run.drill_image(subject, choices, Settings(TCG, lambda _: None))
    assert result.outcome is Outcome.FAILED
    assert result.kept is not None
    assert (result.kept / "restored.png").exists()
    assert "no such partition" in result.proof


def test_a_drill_that_is_stopped_leaves_nothing(
    subject: run.Subject, choices: run.Choices, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Drill, "_rescue", stop)
    with pytest.raises(KeyboardInterrupt):
        run.drill_image(subject, choices, Settings(TCG, lambda _: None))
    assert list(folders.iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        run.drill_image(subject, choices, Settings(TCG, lambda _: None, keep=folders))
    assert not [path for path in folders.rglob("*") if path.name in {"recovery.key", "passphrase"}]


def test_a_bios_machine_is_not_drilled_under_uefi(
    subject: run.Subject, choices: run.Choices, folders: Path
) -> None:
    wrong = run.Choices(Firmware.UEFI, choices.medium, choices.iso, choices.cache)
    with pytest.raises(UsageError, match="starts from bios, not from uefi"):
        run.drill_image(subject, wrong, Settings(TCG, lambda _: None))
    assert list(folders.iterdir()) == []
