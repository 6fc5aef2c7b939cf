"""What every backend promises (`imager.repository.backend.protocol`), against the real thing."""

import errno
import math
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imager.errors import NoRoom, ObjectDamaged, ObjectLocked, ObjectMissing, OutputError
from imager.repository.backend import directory
from imager.repository.backend.directory import DirectoryBackend
from imager.repository.backend.protocol import Backend


@pytest.fixture(params=["directory"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    return DirectoryBackend(tmp_path / "store")


def test_put_and_get(backend: Backend) -> None:
    assert backend.put_new("packs/ab/abcd", [b"one ", bytearray(b"two "), memoryview(b"three")])
    assert backend.get("packs/ab/abcd") == b"one two three"
    assert backend.get_range("packs/ab/abcd", 4, 3) == b"two"


def test_many_parts(backend: Backend) -> None:
    parts = [bytes([number % 256]) * 100 for number in range(3000)]
    backend.put_new("packs/many", parts)
    assert backend.get("packs/many") == b"".join(parts)


def test_an_object_never_changes(backend: Backend) -> None:
    assert backend.put_new("images/a", [b"first"])
    assert not backend.put_new("images/a", [b"second"])
    assert backend.get("images/a") == b"first"


def test_missing(backend: Backend) -> None:
    with pytest.raises(ObjectMissing):
        backend.get("images/none")
    with pytest.raises(ObjectMissing):
        backend.get_range("images/none", 0, 1)
    assert list(backend.list("images/")) == []


def test_range_beyond_the_end(backend: Backend) -> None:
    backend.put_new("images/a", [b"1234"])
    with pytest.raises(ObjectDamaged):
        backend.get_range("images/a", 2, 3)


def test_names_can_not_leave_the_store(backend: Backend) -> None:
    for name in ("../outside", "images/../../outside", "/etc/passwd"):
        with pytest.raises((ObjectMissing, OutputError)):
            backend.get(name)


def test_list(backend: Backend) -> None:
    for name in ("packs/ab/1", "packs/cd/2", "images/3"):
        backend.put_new(name, [b"x" * 5])
    assert [entry.name for entry in backend.list("packs/")] == ["packs/ab/1", "packs/cd/2"]
    entry = next(iter(backend.list("images/")))
    assert (entry.name, entry.size) == ("images/3", 5)
    assert entry.modified > 0
    assert not [name for name in backend.list("") if "incoming" in name.name]


def test_delete(backend: Backend) -> None:
    backend.put_new("packs/ab/1", [b"one"])
    backend.put_new("packs/ab/2", [b"two"])
    backend.delete("packs/ab/1")
    backend.delete("packs/ab/1")
    backend.delete("packs/never/there")
    assert [entry.name for entry in backend.list("packs/")] == ["packs/ab/2"]
    with pytest.raises(ObjectMissing):
        backend.get("packs/ab/1")
    assert backend.put_new("packs/ab/1", [b"again"])


def test_clock_is_that_of_the_listing(backend: Backend) -> None:
    before = backend.now()
    backend.put_new("images/a", [b"a"])
    after = backend.now()
    assert before <= next(iter(backend.list("images/"))).modified <= after
    assert [entry.name for entry in backend.list("")] == ["images/a"]


def test_what_is_brought_back_may_keep_its_time(backend: Backend) -> None:
    before = backend.now()
    backend.put_new("images/a", [b"a"], before - 5000)
    modified = next(iter(backend.list("images/"))).modified
    assert modified == pytest.approx(before - 5000, abs=2) or before <= modified <= backend.now()


def _put(backend: Backend, number: int) -> bool:
    return backend.put_new("images/contested", [bytes([number]) * 100_000])


def test_of_many_at_the_same_time_one_wins(backend: Backend) -> None:
    context = multiprocessing.get_context("fork")
    with context.Pool(8) as pool:
        won = pool.starmap(_put, [(backend, number) for number in range(32)])
    assert sum(won) == 1
    assert backend.get("images/contested") == bytes([won.index(True)]) * 100_000


def _endless(backend: Backend, pipe: int) -> None:
    for number in range(10**6):
        backend.put_new(f"packs/{number}", [b"whole" * 20_000])
        os.write(pipe, b".")


def test_killed_at_any_moment_no_object_is_half(backend: Backend) -> None:
    context = multiprocessing.get_context("fork")
    for stop_after in (1, 3, 7):
        reader, writer = os.pipe()
        process = context.Process(target=_endless, args=(backend, writer))
        process.start()
        for _ in range(stop_after):
            os.read(reader, 1)
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        os.close(reader)
        os.close(writer)
    listed = list(backend.list("packs/"))
    assert len(listed) >= 7
    assert all(backend.get(entry.name) == b"whole" * 20_000 for entry in listed)


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
