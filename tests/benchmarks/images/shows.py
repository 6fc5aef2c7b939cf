"""What remetal has to reach, and whether it did: ratios of one run, the median over its rounds."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from imager.units import MIB
from tests.benchmarks.images.rounds import LIMIT, Operation, Run
from tests.benchmarks.images.tools import (
    BORG,
    BORG_FIXED,
    PARTCLONE,
    PARTCLONE_PLAIN,
    QEMU_IMG,
    REMETAL,
    RESTIC,
)

MEMORY: Final = 512 * MIB


class Side(StrEnum):
    """On which side of a bound a value must be."""

    AT_MOST = "at most"
    AT_LEAST = "at least"


@dataclass(frozen=True, slots=True)
class Show:
    """One thing to be shown.

    Attributes:
        number: of the show.
        what: it is about.
        value: what was measured; None where nothing was.
        side: of the bound.
        bound: that the value must keep.
    """

    number: int
    what: str
    value: float | None
    side: Side
    bound: float

    @property
    def is_met(self) -> bool | None:
        """Whether the bound is kept; None if nothing was measured."""
        if self.value is None:
            return None
        return self.value <= self.bound if self.side is Side.AT_MOST else self.value >= self.bound


def shows(runs: Sequence[Run], used: Mapping[str, int]) -> list[Show]:
    """Return all that the rounds can show.

    Args:
        runs: of the rounds.
        used: bytes that the filesystem of each disk uses.
    """
    full, again, restore = Operation.FULL, Operation.UNCHANGED, Operation.RESTORE

    def slower(operation: Operation, tool: str) -> float | None:
        return ratio(runs, (tool, operation), (REMETAL.name, operation), lambda run: run.seconds)

    def hungrier(operation: Operation, tool: str) -> float | None:
        return ratio(runs, (tool, operation), (REMETAL.name, operation), lambda run: run.cpu)

    def of_limit(operation: Operation) -> float | None:
        return ratio(runs, (REMETAL.name, operation), (LIMIT, operation), lambda run: run.cpu)

    delta = (REMETAL.name, Operation.DELTA)
    peaks = [run.peak for run in runs if run.tool == REMETAL.name]
    most, least = Side.AT_MOST, Side.AT_LEAST
    return [
        Show(1, "full capture, cpu of the limit of the parts", of_limit(full), most, 1.25),
        Show(1, "full capture, times faster than restic", slower(full, RESTIC.name), least, 6),
        Show(
            1,
            "full capture, times faster than partclone | zstd -1 | aes",
            slower(full, PARTCLONE.name),
            least,
            3,
        ),
        Show(1, "full capture, times faster than borg, zstd 1", slower(full, BORG.name), least, 5),
        Show(
            2,
            "unchanged, times less cpu than borg's fixed chunker",
            hungrier(again, BORG_FIXED.name),
            least,
            2.5,
        ),
        Show(2, "unchanged, cpu of read + hash alone", of_limit(again), most, 1.3),
        Show(
            2,
            "2 % changed, times less cpu than borg's fixed chunker",
            hungrier(Operation.CHANGED, BORG_FIXED.name),
            least,
            2,
        ),
        Show(3, "restore, times faster than restic", slower(restore, RESTIC.name), least, 3),
        Show(3, "restore, times faster than qemu-img", slower(restore, QEMU_IMG.name), least, 2),
        Show(
            3,
            "restore, times faster than zstd | partclone.restore",
            slower(restore, PARTCLONE_PLAIN.name),
            least,
            2,
        ),
        Show(3, "restore, cpu of the limit of the parts", of_limit(restore), most, 1.4),
        Show(
            3,
            "restore --delta with 2 % damage, share of the bytes written",
            _share(runs, delta, lambda run: run.written, used["base"]),
            most,
            0.04,
        ),
        Show(
            3,
            "restore --delta with 2 % damage, time of a full restore",
            ratio(runs, delta, (REMETAL.name, restore), lambda run: run.seconds),
            most,
            0.5,
        ),
        Show(
            4,
            "stored, of what partclone | zstd -1 stores",
            ratio(runs, (REMETAL.name, full), (PARTCLONE_PLAIN.name, full), lambda run: run.stored),
            most,
            1,
        ),
        Show(
            4,
            "second machine, new of its used bytes (before compression)",
            _share(runs, (REMETAL.name, Operation.SECOND), lambda run: run.new, used["second"]),
            most,
            0.3,
        ),
        Show(
            4,
            "second machine, stored for its used bytes",
            _share(runs, (REMETAL.name, Operation.SECOND), lambda run: run.stored, used["second"]),
            most,
            0.3,
        ),
        Show(
            5,
            "most memory of remetal in any run, MiB",
            max(peaks) / MIB if peaks else None,
            most,
            MEMORY / MIB,
        ),
    ]


def ratio(
    runs: Iterable[Run],
    over: tuple[str, Operation],
    under: tuple[str, Operation],
    value: Callable[[Run], float],
) -> float | None:
    """Return the median over the rounds of one tool's value for another's; None without runs."""
    runs = list(runs)
    tops = {run.round: value(run) for run in runs if (run.tool, run.operation) == over}
    bottoms = {run.round: value(run) for run in runs if (run.tool, run.operation) == under}
    ratios = [tops[number] / bottoms[number] for number in tops.keys() & bottoms.keys()]
    return statistics.median(ratios) if ratios else None


def _share(
    runs: Iterable[Run], which: tuple[str, Operation], value: Callable[[Run], int], whole: int
) -> float | None:
    values = [value(run) / whole for run in runs if (run.tool, run.operation) == which]
    return statistics.median(values) if values else None
