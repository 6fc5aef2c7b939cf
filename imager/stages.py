"""Where the time of a pipeline goes: each stage counts its bytes and its seconds.

A pipeline has lanes, such as one thread that reads and several that compress; a stage belongs to
one of them. The lane that is busiest is the bound: only what makes it faster makes the whole
faster.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

_BUSY: Final = 0.8  # share of its time from which on a lane keeps the others waiting


@dataclass(frozen=True, slots=True)
class Lane:
    """Threads that do the same stages.

    Attributes:
        name: for people.
        threads: how many there are.
        stages: names of what they do, in the order of the data.
    """

    name: str
    threads: int
    stages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StageTime:
    """What a stage took.

    Attributes:
        name: of the stage.
        lane: that it belongs to.
        size: bytes that it was given.
        seconds: that threads were in it, all of them together.
        cpu: seconds of CPU of these.
    """

    name: str
    lane: str
    size: int
    seconds: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Bound:
    """What kept a pipeline from being faster.

    Attributes:
        lane: the busiest.
        stage: what took most of its time.
        share: of the time that its threads had, how much it was busy; 0 to 1.
    """

    lane: str
    stage: str
    share: float

    @property
    def is_clear(self) -> bool:
        """Whether that lane really kept the others waiting."""
        return self.share >= _BUSY


class Stages:
    """Counts bytes and seconds; safe from any thread.

    Args:
        lanes: all of a pipeline, in the order of the data.
    """

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._lanes = tuple(lanes)
        self._lane_of = {stage: lane for lane in lanes for stage in lane.stages}
        self._totals = {stage: [0, 0.0, 0.0] for stage in self._lane_of}
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._ended: float | None = None

    def end(self) -> None:
        """Stop the clock of the whole: what follows is no part of this pipeline."""
        self._ended = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it began, until its end."""
        return (time.monotonic() if self._ended is None else self._ended) - self._began

    @contextmanager
    def within(self, stage: str, size: int = 0) -> Iterator[None]:
        """Count what happens inside as time of a stage; for whole batches, it costs microseconds.

        Args:
            stage: its name.
            size: bytes that it is given.
        """
        began, cpu = time.monotonic(), time.thread_time()
        try:
            yield
        finally:
            seconds, cpu = time.monotonic() - began, time.thread_time() - cpu
            total = self._totals[stage]
            with self._lock:
                total[0] += size
                total[1] += seconds
                total[2] += cpu

    def times(self) -> tuple[StageTime, ...]:
        """Return what each stage took until now, in the order of the data."""
        with self._lock:
            return tuple(
                StageTime(stage, lane.name, int(size), seconds, cpu)
                for stage, lane in self._lane_of.items()
                for size, seconds, cpu in [self._totals[stage]]
            )

    def bound(self) -> Bound:
        """Return the lane that was the busiest since the pipeline began, and its longest stage."""
        wall = max(self.seconds, 1e-9)
        times = self.times()
        shares = {
            lane: sum(each.seconds for each in times if each.lane == lane.name)
            / (lane.threads * wall)
            for lane in self._lanes
        }
        lane = max(self._lanes, key=lambda each: shares[each])
        longest = max(
            (each for each in times if each.lane == lane.name), key=lambda each: each.seconds
        )
        return Bound(lane.name, longest.name, min(shares[lane], 1.0))

    def document(self) -> dict[str, Any]:
        """Return all of it for scripts."""
        bound = self.bound()
        return {
            "seconds": round(self.seconds, 3),
            "stages": [
                {
                    "stage": each.name,
                    "lane": each.lane,
                    "bytes": each.size,
                    "seconds": round(each.seconds, 3),
                    "cpu_seconds": round(each.cpu, 3),
                }
                for each in self.times()
            ],
            "bound": {"lane": bound.lane, "stage": bound.stage, "share": round(bound.share, 3)},
        }
