"""What directories promise besides what every backend does."""

import errno
import math
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imager.errors import NoRoom, ObjectDamaged, ObjectLocked
from imager.repository.backend import directory
from imager.repository.backend.directory import DirectoryBackend


@pytest.fixture
def small_filesystem(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_no_room(small_filesystem: Path) -> None:
    backend = DirectoryBackend(small_filesystem / "store")
    backend.put_new("packs/a", [b"a" * 1_000_000])
    with pytest.raises(NoRoom):
        backend.put_new("packs/b", [b"b" * 3_000_000])
    assert [entry.name for entry in backend.list("")] == ["packs/a"]
    left = [path for path in small_filesystem.rglob("*") if path.is_file()]
    assert len(left) == 1
    assert backend.put_new("packs/c", [b"c" * 100_000])


def test_stale_temporary_files_go(tmp_path: Path) -> None:
    backend = DirectoryBackend(tmp_path)
    backend.put_new("packs/a", [b"a"])
    old, fresh = tmp_path / "incoming/old", tmp_path / "incoming/fresh"
    old.write_bytes(b"")
    fresh.write_bytes(b"")
    os.utime(old, (0, 0))
    backend.tidy()
    assert not old.exists()
    assert fresh.exists()


@pytest.mark.parametrize("days", [-400, 400])
def test_what_is_stale_goes_by_the_clock_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    """Another machine is writing; the clock of this one is wrong."""
    backend = DirectoryBackend(tmp_path)
    backend.put_new("images/a", [b"a"])
    fresh, old = tmp_path / "incoming" / "fresh", tmp_path / "incoming" / "old"
    fresh.touch()
    old.touch()
    before = time.time() - 25 * 3600
    os.utime(old, (before, before))
    forged = time.time() + days * 24 * 3600
    monkeypatch.setattr(time, "time", lambda: forged)
    backend.tidy()
    assert [path.name for path in (tmp_path / "incoming").iterdir()] == ["fresh"]


def test_what_is_found_done_is_made_durable_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who did it may have been killed before the directory was flushed."""
    backend = DirectoryBackend(tmp_path)
    backend.put_new("packs/a", [b"a"])
    flushed: list[Path] = []
    monkeypatch.setattr(directory, "_flush_directory", flushed.append)
    assert not backend.put_new("packs/a", [b"a"])
    backend.delete("packs/b")
    assert flushed == [tmp_path / "packs"] * 2


def test_a_folder_that_can_not_be_listed_is_not_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = DirectoryBackend(tmp_path)
    backend.put_new("images/a", [b"a"])

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(ObjectDamaged):
        list(backend.list("images/"))


@pytest.mark.parametrize("attribute", ["+i", "+a"])
@pytest.mark.parametrize("what", ["packs/ab/1", "packs/ab"])
def test_what_is_locked_stays_until_the_lock_is_lifted(
    ext4: Path, attribute: str, what: str
) -> None:
    backend = DirectoryBackend(ext4)
    backend.put_new("packs/ab/1", [b"one"])
    assert backend.locked_until("packs/ab/1") is None
    subprocess.run(["chattr", attribute, ext4 / what], check=True)
    assert backend.locked_until("packs/ab/1") == math.inf
    with pytest.raises(ObjectLocked, match="packs/ab/1"):
        backend.delete("packs/ab/1")
    assert backend.get("packs/ab/1") == b"one"
    subprocess.run(["chattr", "-i", "-a", ext4 / what], check=True)
    assert backend.locked_until("packs/ab/1") is None
    backend.delete("packs/ab/1")
    assert backend.locked_until("packs/ab/1") is None


def test_a_store_whose_folders_only_take_in_can_be_written_to(ext4: Path) -> None:
    backend = DirectoryBackend(ext4)
    backend.put_new("images/1", [b"one"])
    subprocess.run(["chattr", "+a", ext4 / "images"], check=True)
    backend.put_new("images/2", [b"two"])
    assert backend.get("images/2") == b"two"


def test_nothing_is_locked_where_nothing_can_be(small_filesystem: Path) -> None:
    backend = DirectoryBackend(small_filesystem)
    backend.put_new("packs/a", [b"a"])
    assert backend.locked_until("packs/a") is None
