"""A minute of torture, and proof that the power cut is worth fearing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture.powerloss import cut_power
from tests.torture.shim import Kind, Step, applies


def test_a_minute_of_torture() -> None:
    """In a process of its own, because it changes how large packs are."""
    words = [sys.executable, "-m", "tests.torture", "--seconds", "60", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert (found["images_lost"], found["lies"], found["errors"]) == (0, 0, 0), done.stderr
    assert found["sent_again"] == 0, done.stderr
    assert done.returncode == 0
    assert {row["operation"] for row in found["rows"]} >= {
        "capture",
        "prune, condemn",
        "prune, remove",
        "check",
        "repair",
    }
    assert {row["kind"] for row in found["rows"]} == set(Kind)


def _entry(step: Step, path: Path, note: int | None) -> str:
    return json.dumps({"n": 1, "step": step, "path": str(path), "note": note})


@pytest.fixture
def store(tmp_path: Path) -> tuple[Path, Path, Path]:
    root, attic, log = tmp_path / "root", tmp_path / "attic", tmp_path / "log"
    root.mkdir()
    attic.mkdir()
    return root, attic, log


def test_a_file_that_was_not_flushed_can_vanish(store: tuple[Path, Path, Path]) -> None:
    root, attic, log = store
    left = set()
    for seed in range(40):
        path = root / "file"
        path.write_bytes(b"content" * 1000)
        inode = path.stat().st_ino
        log.write_text(
            "\n".join((_entry(Step.CREATE, path, inode), _entry(Step.WRITE, path, inode)))
        )
        cut_power(log, root, attic, str(seed))
        left.add(path.stat().st_size if path.exists() else None)
        path.unlink(missing_ok=True)
        for kept in attic.iterdir():
            kept.unlink()
    assert {None, 0, 7000} < left


def test_what_was_flushed_stays(store: tuple[Path, Path, Path]) -> None:
    root, attic, log = store
    path = root / "file"
    path.write_bytes(b"content")
    inode = path.stat().st_ino
    steps = (
        (Step.CREATE, path, inode),
        (Step.WRITE, path, inode),
        (Step.SYNC, path, inode),
        (Step.SYNC_FOLDER, root, root.stat().st_ino),
    )
    log.write_text("\n".join(_entry(*step) for step in steps))
    for seed in range(40):
        cut_power(log, root, attic, str(seed))
        assert path.read_bytes() == b"content"


def test_a_removed_file_can_come_back(store: tuple[Path, Path, Path]) -> None:
    root, attic, log = store
    path = root / "file"
    path.write_bytes(b"content")
    inode = path.stat().st_ino
    path.rename(attic / str(inode))
    log.write_text(_entry(Step.UNLINK, path, inode))
    left = set()
    for seed in range(40):
        cut_power(log, root, attic, str(seed))
        left.add(path.exists())
        path.unlink(missing_ok=True)
    assert left == {True, False}


def test_short_writes_are_for_writes_only() -> None:
    assert [step for step in Step if applies(Kind.SHORT, step)] == [Step.WRITE]
