import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootmedia import rootfs
from imager import console
from imager.errors import (
    ConfigError,
    NoRoom,
    OutputError,
    OutputExists,
    SecretError,
    WrongPassphrase,
)
from imager.repository.crypto.recipient import RecipientKey
from imager.repository.keyring import LockedRecoveryKey
from imager.units import MIB
from tests.stores.ssh import make_key


@pytest.fixture(autouse=True)
def _warm_cache(base: rootfs.Base, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert base.folder.is_relative_to(cache)
    monkeypatch.setenv("REMETAL_CACHE", str(cache))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 20 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small filesystem needs root")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def test_json_is_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "rescue.iso"
    assert console.run(["media", "build", "-o", str(output), "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["path"] == str(output)
    assert document["size"] == output.stat().st_size
    assert [step["name"] for step in document["steps"]][-1] == "ISO image"
    assert "ISO image" in captured.err


def test_people_see_steps_and_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.run(["media", "build", "-o", str(tmp_path / "rescue.iso")]) == 0
    shown = capsys.readouterr().out
    assert "SHA-256" in shown
    assert "MiB" in shown


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.run(["media", "build", "--help"]) == 0
    assert "remetal media build -o rescue.iso" in capsys.readouterr().out


def test_a_file_that_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "rescue.iso"
    output.write_text("mine")
    assert console.run(["media", "build", "-o", str(output)]) == OutputExists.exit_code
    assert output.read_text() == "mine"
    assert "--force" in capsys.readouterr().err
    assert console.run(["media", "build", "-o", str(output), "--force"]) == 0
    assert output.stat().st_size > MIB


def test_full_disk(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = small_disk / "rescue.iso"
    assert console.run(["media", "build", "-o", str(output)]) == NoRoom.exit_code
    said = capsys.readouterr().err
    assert "no room left for rescue.iso" in said
    assert list(small_disk.iterdir()) == []


def test_full_disk_keeps_the_file_to_be_replaced(small_disk: Path) -> None:
    output = small_disk / "rescue.iso"
    output.write_text("the old one")
    assert console.run(["media", "build", "-o", str(output), "--force"]) == NoRoom.exit_code
    assert output.read_text() == "the old one"
    assert list(small_disk.iterdir()) == [output]


def test_full_cache(small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMETAL_CACHE", str(small_disk))
    output = tmp_path / "rescue.iso"
    assert console.run(["media", "build", "-o", str(output)]) == NoRoom.exit_code
    assert not output.exists()
    assert [path for path in small_disk.iterdir() if path.suffix != ".lock"] == []


def test_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "none" / "rescue.iso"
    assert console.run(["media", "build", "-o", str(output)]) == OutputError.exit_code
    assert "can't be written" in capsys.readouterr().err


def test_unknown_keyboard_names_the_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "medium.toml"
    config.write_text('keyboard = "klingon"')
    output = tmp_path / "rescue.iso"
    argv = ["media", "build", "-o", str(output), "--config", str(config)]
    assert console.run(argv) == ConfigError.exit_code
    assert "de-latin1" in capsys.readouterr().err
    assert not output.exists()


def test_a_key_on_the_medium_makes_the_file_private(tmp_path: Path) -> None:
    key = tmp_path / "my.key"
    LockedRecoveryKey.lock(RecipientKey.generate(), "secret", "test", None).write(key)
    config = tmp_path / "medium.toml"
    config.write_text('recovery-key = "my.key"')
    output = tmp_path / "rescue.iso"
    assert console.run(["media", "build", "-o", str(output), "--config", str(config)]) == 0
    assert stat.S_IMODE(output.stat().st_mode) == 0o600


def _medium_with_key(tmp_path: Path, key_phrase: str, phrase: str) -> tuple[int, Path]:
    make_key(tmp_path / "rescue", key_phrase)
    (tmp_path / "medium.toml").write_text('ssh-key = "rescue"')
    (tmp_path / "phrase").write_text(phrase + "\n")
    output = tmp_path / "rescue.iso"
    argv = ["media", "build", "-o", output, "--config", tmp_path / "medium.toml"]
    argv += ["--passphrase-file", tmp_path / "phrase"]
    return console.run([str(word) for word in argv]), output


@pytest.mark.parametrize("key_phrase", ["", "four random words"])
def test_keys_of_stores_make_the_file_private(tmp_path: Path, key_phrase: str) -> None:
    code, output = _medium_with_key(tmp_path, key_phrase, "four random words")
    assert code == 0
    assert stat.S_IMODE(output.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("key_phrase", "phrase", "code"),
    [
        ("", "short", SecretError.exit_code),
        ("short", "short", SecretError.exit_code),
        ("four random words", "four other words", WrongPassphrase.exit_code),
    ],
)
def test_keys_of_stores_under_a_bad_passphrase_are_refused(
    tmp_path: Path, key_phrase: str, phrase: str, code: int
) -> None:
    found, output = _medium_with_key(tmp_path, key_phrase, phrase)
    assert found == code
    assert not output.exists()
