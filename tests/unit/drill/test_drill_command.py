import json
from pathlib import Path

import pytest

from imager.console import run
from imager.repository.keyring import LockedRecoveryKey
from tests.conftest import Tiny

SECRET = "correct horse battery"


@pytest.fixture
def phrase(tmp_path: Path) -> Path:
    path = tmp_path / "phrase"
    path.write_text(SECRET + "\n")
    return path


@pytest.fixture
def key(tiny: Tiny, tmp_path: Path) -> Path:
    path = tmp_path / "recovery.key"
    LockedRecoveryKey.lock(tiny.key, SECRET, "test", tiny.open().id).write(path)
    return path


def _fails(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str]:
    code = run(["drill", *map(str, words)])
    return code, capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["/repo"], ["/repo", "latest", "--fixture", "uefi-ext4"]])
def test_it_wants_one_machine_or_fixtures(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = _fails(capsys, *words)
    assert code == 2
    assert "REPO and IMAGE, or --fixture" in text


def test_a_store_without_a_key_for_the_guest_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    code, text = _fails(capsys, "ssh://backup@nobody.invalid/srv/images", "latest")
    assert code == 2
    assert "Give one with --ssh-key FILE" in text


@pytest.mark.parametrize("words", [["--fixture", "a"], ["/repo", "latest", "--report", "there"]])
def test_only_a_report_of_fixtures_is_resumed(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = _fails(capsys, *words, "--resume")
    assert code == 2
    assert "--resume goes with --report" in text


def test_one_store_takes_one_fixture(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["/repo", "--fixture", "uefi-ext4", "--fixture", "bios-ext4"]
    code, text = _fails(capsys, *words)
    assert code == 2
    assert "there can be one --fixture" in text


def test_no_repository(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert _fails(capsys, tmp_path / "nothing", "latest")[0] == 11


def test_no_recovery_key(
    tiny: Tiny,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    code, text = _fails(capsys, tiny.path, "latest")
    assert code == 22
    assert "there is no recovery key at" in text


def test_wrong_passphrase(
    tiny: Tiny, key: Path, phrase: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    phrase.write_text("something else\n")
    words = (tiny.path, "latest", "--recovery-key", key, "--passphrase-file", phrase)
    assert _fails(capsys, *words)[0] == 21


def test_unknown_image(
    tiny: Tiny, key: Path, phrase: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (tiny.path, "ward", "--recovery-key", key, "--passphrase-file", phrase)
    code, text = _fails(capsys, *words)
    assert code == 16
    assert "'ward'" in text


def test_what_is_no_medium_is_found_out_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    iso = tmp_path / "rescue.iso"
    iso.write_bytes(b"no ISO" * 20_000)
    code, text = _fails(capsys, "--fixture", "uefi-ext4", "--iso", iso)
    assert code == 60
    assert "is no rescue medium" in text


def test_a_drill_that_fails_ends_with_the_table_and_its_own_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("restore.drill.accelerator._DEVICE", tmp_path / "no-kvm")
    words = ["--fixture", "no-such-machine", "--json", "--report", str(tmp_path / "report")]
    with pytest.raises(SystemExit) as ended:
        run(["drill", *words])
    assert ended.value.code == 71
    document = json.loads(capsys.readouterr().out)
    assert document["error"]["id"] == "drill-failed"
    [drill] = document["drills"]
    assert drill["outcome"] == "FAILED"
    assert "no-such-machine" in drill["proof"]
    assert (tmp_path / "report" / "timeline.svg").exists()
