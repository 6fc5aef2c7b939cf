"""What every backend promises (`imager.repository.backend.protocol`), against every real store."""

import multiprocessing
import os
import random
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from imager.errors import ObjectDamaged, ObjectMissing, OutputError
from imager.repository.backend.opening import open_backend
from imager.repository.backend.place import Place
from imager.repository.backend.protocol import Backend


def test_put_and_get(backend: Backend) -> None:
    assert backend.put_new("packs/ab/abcd", [b"one ", bytearray(b"two "), memoryview(b"three")])
    assert backend.get("packs/ab/abcd") == b"one two three"
    assert backend.get_range("packs/ab/abcd", 4, 3) == b"two"


def test_many_parts(backend: Backend) -> None:
    parts = [bytes([number % 256]) * 100 for number in range(3000)]
    backend.put_new("packs/many", parts)
    assert backend.get("packs/many") == b"".join(parts)


def test_large_and_empty_objects(backend: Backend) -> None:
    """Larger than any window or frame, and not a multiple of one."""
    large = random.Random(4).randbytes((9 << 20) + 4321)
    backend.put_new("packs/large", [large])
    backend.put_new("packs/empty", [])
    assert backend.get("packs/large") == large
    assert backend.get_range("packs/large", 5_000_000, 3_000_000) == large[5_000_000:8_000_000]
    assert backend.get("packs/empty") == b""
    assert [entry.size for entry in backend.list("packs/")] == [0, len(large)]


def test_threads_do_not_get_into_each_others_way(backend: Backend) -> None:
    contents = {f"packs/{n:02x}": random.Random(n).randbytes(200_000 + n) for n in range(40)}
    with ThreadPoolExecutor(16) as pool:
        created = list(pool.map(lambda name: backend.put_new(name, [contents[name]]), contents))
        found = dict(zip(contents, pool.map(backend.get, contents), strict=True))
    assert all(created)
    assert found == contents


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


def _put(place: Place, number: int) -> bool:
    return open_backend(place).put_new("images/contested", [bytes([number]) * 100_000])


def test_of_many_at_the_same_time_one_wins(place: Place) -> None:
    context = multiprocessing.get_context("fork")
    with context.Pool(8) as pool:
        won = pool.starmap(_put, [(place, number) for number in range(32)])
    assert sum(won) == 1
    assert open_backend(place).get("images/contested") == bytes([won.index(True)]) * 100_000


def _endless(place: Place, pipe: int) -> None:
    backend = open_backend(place)
    for number in range(10**6):
        backend.put_new(f"packs/{number}", [b"whole" * 20_000])
        os.write(pipe, b".")


def test_killed_at_any_moment_no_object_is_half(place: Place) -> None:
    context = multiprocessing.get_context("fork")
    for stop_after in (1, 3, 7):
        reader, writer = os.pipe()
        process = context.Process(target=_endless, args=(place, writer))
        process.start()
        for _ in range(stop_after):
            os.read(reader, 1)
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        os.close(reader)
        os.close(writer)
    backend = open_backend(place)
    listed = list(backend.list("packs/"))
    assert len(listed) >= 7
    assert all(backend.get(entry.name) == b"whole" * 20_000 for entry in listed)


def test_a_lock_is_never_shortened_and_never_missing_where_there_are_locks(
    backend: Backend,
) -> None:
    """A store without locks takes the order and does nothing."""
    backend.put_new("packs/ab/1", [b"one"])
    until = backend.now() + 40 * 24 * 3600
    backend.retain("packs/ab/1", until)
    locked = backend.locked_until("packs/ab/1")
    assert locked is None or locked >= until - 1
    backend.retain("packs/ab/1", until - 20 * 24 * 3600)
    assert backend.locked_until("packs/ab/1") == locked
    backend.retain("packs/never/there", until)


def test_nothing_newer_lies_above_what_was_written_once(backend: Backend) -> None:
    backend.put_new("images/a", [b"a"])
    backend.put_new("images/a", [b"b"])
    assert [entry.newer for entry in backend.list("")] == [0]
