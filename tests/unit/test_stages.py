"""Counting bytes and seconds of stages."""

import threading
import time

import pytest

from imager.stages import Lane, Stages

LANES = (Lane("reader", 1, ("read", "cut")), Lane("workers", 2, ("compress",)))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_busiest_lane_is_the_bound(clock: list[float]) -> None:
    stages = Stages(LANES)
    with stages.within("read", 100):
        clock[0] += 4
    with stages.within("cut", 100):
        clock[0] += 5
    for _ in range(2):
        with stages.within("compress", 50):
            clock[0] += 0.5
    assert [(each.name, each.size, each.seconds) for each in stages.times()] == [
        ("read", 100, 4.0),
        ("cut", 100, 5.0),
        ("compress", 100, 1.0),
    ]
    bound = stages.bound()
    assert (bound.lane, bound.stage, bound.share, bound.is_clear) == ("reader", "cut", 0.9, True)
    clock[0] += 10
    assert not stages.bound().is_clear


def test_what_follows_its_end_is_no_part_of_it(clock: list[float]) -> None:
    stages = Stages(LANES)
    with stages.within("read"):
        clock[0] += 9
    stages.end()
    clock[0] += 90
    assert stages.seconds == 9
    assert stages.bound().share == 1
    assert stages.document()["seconds"] == 9


def test_a_lane_with_more_threads_has_more_time(clock: list[float]) -> None:
    stages = Stages(LANES)
    with stages.within("read"):
        clock[0] += 6
    with stages.within("compress"):
        clock[0] += 10
    assert stages.bound().lane == "reader"


def test_what_fails_counts_too() -> None:
    stages = Stages(LANES)
    with pytest.raises(OSError, match="gone"), stages.within("read", 7):
        raise OSError("gone")
    assert stages.times()[0].size == 7


def test_threads_add_up() -> None:
    stages = Stages(LANES)

    def work() -> None:
        for _ in range(1000):
            with stages.within("compress", 1):
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stages.times()[2].size == 4000
    assert stages.document()["stages"][2]["bytes"] == 4000
