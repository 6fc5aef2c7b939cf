"""What every backend promises (`imager.repository.backend.protocol`), against the real thing."""

import multiprocessing
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imager.errors import NoRoom, ObjectDamaged, ObjectMissing, OutputError
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
