"""All points of all operations, spread over worker processes."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, zip_longest
from pathlib import Path
from typing import Final

from tests.torture.operations import OPERATIONS, Operation, has_to_repack
from tests.torture.points import Outcome, Point, run_operation, run_point
from tests.torture.shim import Kind, Step, applies
from tests.torture.world import World, make, small_packs

POWER_SEEDS: Final = 16
_SEED: Final = 20261124


@dataclass(frozen=True, slots=True)
class Campaign:
    """Templates of all operations, and every point there is.

    Attributes:
        folder: for templates and copies; on a filesystem in memory.
        worlds: per operation, its template.
        points: all, in the order of operations, kinds and numbers.
    """

    folder: Path
    worlds: dict[str, World]
    points: tuple[Point, ...]

    def run(self, points: Sequence[Point], workers: int, deadline: float) -> Iterator[Outcome]:
        """Yield the outcomes, in any order, until all are there or the time is over.

        Args:
            points: which.
            workers: processes.
            deadline: by `time.monotonic`; points that have not begun by then are left out.
        """
        global _work  # noqa: PLW0603 - forked workers find it here; worlds hold keys, which don't pickle
        _work = (self, deadline)
        with multiprocessing.get_context("fork").Pool(workers, _ignore_interrupt) as pool:
            for outcome in pool.imap_unordered(_run, points, chunksize=1):
                if outcome is not None:
                    yield outcome


def prepare(folder: Path, only: frozenset[str]) -> Campaign:
    """Make the templates and count what each operation does.

    Args:
        folder: empty.
        only: names of operations; empty for all.
    """
    small_packs()
    for seed in count(_SEED):  # where chunks are cut is chance
        place = folder / f"first{seed}"
        place.mkdir()
        first = make(place, seed)
        if has_to_repack(first):
            break
    worlds: dict[str, World] = {}
    points: list[Point] = []
    for number, operation in enumerate(OPERATIONS):
        if only and operation.name not in only:
            continue
        place = folder / f"template{number}"
        place.mkdir()
        world = first.copied(place)
        operation.prepare(world)
        worlds[operation.name] = world
        dry = folder / f"dry{number}"
        dry.mkdir()
        status, said, log = run_operation(world, operation, dry, None)
        if status or said.get("said") != "ok":
            raise RuntimeError(f"{operation.name} fails without a fault: {said} {log[-1]}")
        steps = [Step(str(entry["step"])) for entry in log]
        points += [*_points_of(operation, steps)]
    return Campaign(folder, worlds, tuple(points))


def _points_of(operation: Operation, steps: Sequence[Step]) -> Iterator[Point]:
    for kind in Kind:
        seeds = POWER_SEEDS if kind is Kind.POWER else 1
        for number, step in enumerate(steps, 1):
            if applies(kind, step):
                for seed in range(seeds):
                    yield Point(operation.name, kind, number, seed)
        if kind is Kind.POWER:  # when it has just reported success
            for seed in range(seeds):
                yield Point(operation.name, kind, len(steps) + 1, seed)


def spread(points: Sequence[Point], seed: int) -> list[Point]:
    """Return the points so that any beginning has all operations and kinds about evenly."""
    chance = random.Random(seed)
    groups: dict[tuple[str, Kind], list[Point]] = {}
    for point in points:
        groups.setdefault((point.operation, point.kind), []).append(point)
    for group in groups.values():
        chance.shuffle(group)
    rows = zip_longest(*groups.values())
    return [point for row in rows for point in row if point is not None]


_work: tuple[Campaign, float]


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(point: Point) -> Outcome | None:
    campaign, deadline = _work
    if time.monotonic() > deadline:
        return None
    operation = next(one for one in OPERATIONS if one.name == point.operation)
    folder = campaign.folder / f"point{os.getpid()}"
    return run_point(campaign.worlds[point.operation], operation, folder, point)
