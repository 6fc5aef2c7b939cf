"""What a second image costs: of the same machine, and of another one built from the same packages."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from restore.drill import fixture

pytestmark = pytest.mark.timeout(3600)


def remetal(*words: str | Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "imager.console", *map(str, words), "--json", "--quiet"],
        capture_output=True,
        text=True,
        check=True,
    )
    document: dict[str, Any] = json.loads(done.stdout)
    return document


class Saved:
    """A repository, and what captures of fixtures into it cost."""

    def __init__(self, folder: Path) -> None:
        self.repository = folder / "repository"
        self._keys = folder / "keys"
        phrase = folder / "phrase"
        phrase.write_text("correct horse battery\n")
        words = ("--keys-dir", self._keys, "--passphrase-file", phrase)
        remetal("init", self.repository, *words)

    @property
    def size(self) -> int:
        return sum(path.stat().st_size for path in self.repository.rglob("*") if path.is_file())

    def capture(self, name: str) -> dict[str, Any]:
        machine = fixture.build(name, lambda _: None)
        credential = ("--credential", self._keys / "capture.credential")
        disks = [word for disk in machine.disks for word in ("--disk", disk.path)]
        return remetal("capture", self.repository, *disks, *credential, "--name", name)


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    return Saved(tmp_path)


def test_nothing_changed_costs_almost_nothing(saved: Saved) -> None:
    first = saved.capture("uefi-ext4")
    before = saved.size
    again = saved.capture("uefi-ext4")
    assert again["new_bytes"] == 0
    assert saved.size - before < first["used_bytes"] / 1000


@pytest.mark.slow
def test_the_same_packages_in_another_order(saved: Saved) -> None:
    saved.capture("bios-ext4")
    twin = saved.capture("bios-ext4-reordered")
    assert twin["new_bytes"] <= 0.35 * twin["used_bytes"]
