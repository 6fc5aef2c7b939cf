"""How much repair reads and keeps in memory."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from imager.repository.backend.directory import DirectoryBackend
from imager.upkeep import repair, repair_scan, repair_sources
from imager.upkeep.parity_shares import GroupSolver
from tests.conftest import Tiny
from tests.unit.upkeep.covered_repository import content, flip, keys_of, no_keys, packs_of


class Counting(DirectoryBackend):
    """Counts reads of whole objects."""

    reads = 0

    def get(self, name: str) -> bytes:
        self.reads += 1
        return super().get(name)


def test_a_group_is_looked_at_once(covered: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two damaged packs of one group, planned and brought back."""
    before = content(covered)
    for path in packs_of(covered, "one")[:2]:
        flip(path, 5000)
    made: list[bytes] = []

    class Counted(GroupSolver):
        def __init__(self, *args: object) -> None:
            made.append(args[1].table.id)  # type: ignore[attr-defined]
            super().__init__(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(repair_sources, "GroupSolver", Counted)
    backend = DirectoryBackend(covered.path)
    plan = repair.plan(backend, [], no_keys, lambda _: None)
    assert len(plan.steps) == 2
    repair.execute(backend, no_keys, plan)
    assert content(covered) == before
    assert len(made) == len(set(made))


def test_execute_does_not_read_everything_again(covered: Tiny) -> None:
    flip(packs_of(covered, "one")[0], 5000)
    backend = Counting(covered.path)
    plan = repair.plan(backend, [], keys_of(covered), lambda _: None)
    everything = len(plan.found.entries)
    assert backend.reads >= everything
    backend.reads = 0
    repair.execute(backend, keys_of(covered), plan)
    assert backend.reads < everything / 2


def test_a_scan_submits_a_bounded_number_of_reads(
    covered: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_now, most = 0, 0
    lock = threading.Lock()

    class Pool(ThreadPoolExecutor):
        def submit(self, *args: object, **more: object) -> Future:  # type: ignore[override,type-arg]
            nonlocal open_now, most
            with lock:
                open_now += 1
                most = max(most, open_now)
            future = super().submit(*args, **more)  # type: ignore[arg-type]
            future.add_done_callback(done)
            return future

    def done(_: object) -> None:
        nonlocal open_now
        with lock:
            open_now -= 1

    def slowly(_: int) -> None:
        time.sleep(0.002)

    monkeypatch.setattr(repair_scan, "ThreadPoolExecutor", Pool)
    repair_scan.scan(DirectoryBackend(covered.path), slowly)
    assert 1 <= most <= 2 * repair_scan._READERS
