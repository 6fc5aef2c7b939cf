"""Packs that are stored behind whoever makes them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imager.errors import NoRoom
from imager.repository.backend.directory import DirectoryBackend
from imager.repository.chunk import Codec
from imager.repository.header import Header, Magic, PackKind
from imager.repository.pack import FinishedPack, PackBuilder
from imager.repository.pack_store import LANE, PackStore
from imager.stages import Stages


def builder(number: int) -> PackBuilder:
    made = PackBuilder(
        Header(Magic.PACK, PackKind.DATA, 0, b"s" * 16, b"g" * 16, b"r" * 16), b"", b"k" * 32
    )
    made.add(bytes([number]) * 32, bytearray(number.to_bytes(1000, "big")), 1000, Codec.STORED)
    return made


class Gate(DirectoryBackend):
    """A store whose puts wait until they are let through."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.open = threading.Event()
        self.begun = threading.Semaphore(0)
        self.underway = self.most = 0
        self.fails = False
        self._lock = threading.Lock()

    def put_new(self, *arguments: object, **_: object) -> bool:
        with self._lock:
            self.underway += 1
            self.most = max(self.most, self.underway)
        self.begun.release()
        assert self.open.wait(60)
        with self._lock:
            self.underway -= 1
        if self.fails:
            raise NoRoom("full")
        return super().put_new(*arguments)  # type: ignore[arg-type]


@contextmanager
def store(backend: DirectoryBackend, told: list[FinishedPack]) -> Iterator[PackStore]:
    made = PackStore(backend, Stages((LANE,)), told.append)
    try:
        yield made
    finally:
        made.close()


def test_all_are_stored_and_told_in_order(tmp_path: Path) -> None:
    told: list[FinishedPack] = []
    with store(DirectoryBackend(tmp_path), told) as packs:
        for number in range(20):
            packs.add(builder(number))
        packs.drain()
    assert [row.entries["id"].tobytes()[0] for row in told] == list(range(20))
    assert {entry.name for entry in DirectoryBackend(tmp_path).list("packs/")} == {
        pack.name for pack in told
    }
    # Else a thousand packs would be in memory when the first is slow.
    assert not any(pack.parts for pack in told)


def test_several_are_underway_and_no_more_than_fit(tmp_path: Path) -> None:
    backend, told = Gate(tmp_path), []
    with store(backend, told) as packs:
        behind = [packs.add(builder(number)) for number in range(5)]
        for _ in range(LANE.threads):
            assert backend.begun.acquire(timeout=60)
        assert behind == [False] * 5
        assert backend.most == LANE.threads
        waiting = threading.Thread(target=lambda: behind.append(packs.add(builder(6))))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        assert not told
        backend.open.set()
        waiting.join(60)
        assert behind[-1] is True
        packs.drain()
    assert len(told) == 6


def test_after_a_failure_nothing_more_is_tried(tmp_path: Path) -> None:
    """Else a store that is gone is waited for once for each pack that waits."""
    backend = Gate(tmp_path)
    backend.fails = True
    with store(backend, []) as packs:
        for number in range(5):
            packs.add(builder(number))
        for _ in range(LANE.threads):
            assert backend.begun.acquire(timeout=60)
        backend.open.set()
        with pytest.raises(NoRoom):
            packs.drain()
        while packs._underway:
            with pytest.raises(NoRoom):
                packs._take()
        assert not backend.begun.acquire(timeout=0.5)


def test_closing_waits_for_nothing(tmp_path: Path) -> None:
    backend = Gate(tmp_path)
    with store(backend, []) as packs:
        packs.add(builder(1))
        assert backend.begun.acquire(timeout=60)
    assert backend.underway == 1
    backend.open.set()


def test_what_fails_behind_is_raised(tmp_path: Path) -> None:
    backend = Gate(tmp_path)
    backend.fails = True
    backend.open.set()
    with store(backend, []) as packs:
        packs.add(builder(1))
        with pytest.raises(NoRoom):
            packs.drain()
