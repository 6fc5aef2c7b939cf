"""Two ways to move the same files, in turns: on a machine that others use as well, only ratios hold."""

import os
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imager.units import GIB, MIB

_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Run:
    """One way, once.

    Attributes:
        seconds: from the first step to the last.
        cpu: seconds of the client.
        cpu_there: seconds of the server.
    """

    seconds: float
    cpu: float
    cpu_there: float


@dataclass(frozen=True, slots=True)
class Row:
    """What a backend does beside another client.

    Attributes:
        subject: the backend, such as `ssh://`.
        against: the other client.
        verb: `put` or `get`.
        size: bytes that each run moves.
        ours: the runs of the backend.
        theirs: the runs of the other client; each came right before or after the one of the same place.
        least: ratio of the rates below which this is too slow; None if it need not be fast.
    """

    subject: str
    against: str
    verb: str
    size: int
    ours: tuple[Run, ...]
    theirs: tuple[Run, ...]
    least: float | None = None

    @property
    def ratio(self) -> float:
        """How much faster the backend is: the median over the pairs."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return statistics.median(theirs.seconds / ours.seconds for ours, theirs in pairs)

    @property
    def is_fast_enough(self) -> bool:
        """Whether it is as fast as it must be."""
        return self.least is None or self.ratio >= self.least

    def rate(self, runs: tuple[Run, ...]) -> float:
        """Return the median of the rates in MiB/s."""
        return statistics.median(self.size / MIB / run.seconds for run in runs)

    def cpu(self, runs: tuple[Run, ...]) -> tuple[float, float]:
        """Return the median seconds of CPU for a GiB, of the client and of the server."""
        here = statistics.median(run.cpu for run in runs)
        there = statistics.median(run.cpu_there for run in runs)
        return here * GIB / self.size, there * GIB / self.size


def in_turns(
    count: int,
    ours: Callable[[], None],
    theirs: Callable[[], None],
    before: Callable[[], None],
    servers: Callable[[], float],
) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
    """Run both so many times, and each first every other time.

    Args:
        count: of pairs.
        ours: moves all files once.
        theirs: likewise.
        before: is called before each of them; its time does not count.
        servers: returns the seconds of CPU that the servers have used so far.
    """
    runs: dict[Callable[[], None], list[Run]] = {ours: [], theirs: []}
    for number in range(count):
        for deed in (ours, theirs) if number % 2 else (theirs, ours):
            before()
            there, here, began = servers(), _own_seconds(), time.monotonic()
            deed()
            seconds = time.monotonic() - began
            runs[deed].append(Run(seconds, _own_seconds() - here, servers() - there))
    return tuple(runs[ours]), tuple(runs[theirs])


def seconds_of(pid: int) -> float:
    """Return the seconds of CPU of a process and of all that it has started."""
    parents, seconds = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        number = int(path.parent.name)
        parents[number] = int(fields[1])
        seconds[number] = sum(map(int, fields[11:15])) / _TICKS
    family, count = {pid}, 0
    while count != len(family):
        count = len(family)
        family |= {child for child, parent in parents.items() if parent in family}
    return sum(seconds.get(number, 0.0) for number in family)


def _own_seconds() -> float:
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)
