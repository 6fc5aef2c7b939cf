"""Many drills: which shapes of machine, and in what the new one differs each time.

[[drill]]
machine = "uefi-ext4"
variations = ["same", "larger"]
firmware = "secureboot"       # where it is not the machine's own
medium = "usb"                # where it is not a CD
"""

import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec

from bootmedia.config import MediumConfig
from bootmedia.medium import build_medium
from imager.errors import ConfigError
from imager.units import format_duration
from restore.drill import run
from restore.drill.bring_back import Settings
from restore.drill.lanes import in_lanes
from restore.drill.report import Outcome, Result
from restore.drill.scenario import Medium, roomy
from restore.drill.variation import Variation
from restore.drill.vm_spec import Firmware

_MANY: Final = 2
_BY_REQUEST: Final = Firmware.SECUREBOOT


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    machine: str
    variations: tuple[Variation, ...] = (Variation.SAME,)
    firmware: Firmware | None = None
    medium: Medium | None = None


class _Matrix(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    drill: tuple[_Row, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """One drill of many.

    Attributes:
        machine: name of the fixture.
        variation: in what the new machine differs.
        firmware: None for what is chosen for all.
        medium: None for what is chosen for all.
    """

    machine: str
    variation: Variation
    firmware: Firmware | None = None
    medium: Medium | None = None

    def __str__(self) -> str:
        """Return its name."""
        given = (each.value for each in (self.variation, self.firmware, self.medium) if each)
        return " ".join((self.machine, *given))

    def is_of(self, result: Result, choices: run.Choices) -> bool:
        """Return whether a result is that of this drill."""
        firmware = self.firmware or choices.firmware
        return (
            result.name == self.machine
            and result.variation == self.variation
            and result.medium == (self.medium or choices.medium)
            # Which firmware a machine has by itself is known when it is built; it is never this one.
            and (result.firmware == firmware if firmware else result.firmware != _BY_REQUEST)
        )

    def drill(self, choices: run.Choices, settings: Settings) -> Result:
        """Run it; see `run.drill_fixture`."""
        mine = replace(
            choices,
            variation=self.variation,
            firmware=self.firmware or choices.firmware,
            medium=self.medium or choices.medium,
        )
        return run.drill_fixture(self.machine, mine, settings)


NOTHING_KNOWN: Final[Mapping[Cell, Result]] = MappingProxyType({})


def cross(machines: Sequence[str], variations: Sequence[str]) -> tuple[Cell, ...]:
    """Return each machine with each variation."""
    return tuple(
        Cell(machine, Variation(variation)) for machine in machines for variation in variations
    )


def read_matrix(path: Path) -> tuple[Cell, ...]:
    """Return the drills that a file names, in its order.

    Raises:
        ConfigError: it is no such file; the message says where.
    """
    try:
        rows = msgspec.convert(tomllib.loads(path.read_text()), _Matrix).drill
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path} names no drills: {error}") from error
    return tuple(
        Cell(row.machine, variation, row.firmware, row.medium)
        for row in rows
        for variation in row.variations
    )


def went_well(
    cells: Sequence[Cell], choices: run.Choices, results: Sequence[Result]
) -> dict[Cell, Result]:
    """Return the drills that need not be repeated, with what an earlier run found.

    Args:
        cells: what is to be drilled.
        choices: for what a cell leaves open.
        results: of the earlier run.
    """
    good = [result for result in results if result.outcome is not Outcome.FAILED]
    found = ((cell, result) for cell in cells for result in good if cell.is_of(result, choices))
    return dict(found)


def drill_all(
    cells: Sequence[Cell],
    choices: run.Choices,
    settings: Settings,
    done: Callable[[Sequence[Result]], None],
    lanes: int = 1,
    known: Mapping[Cell, Result] = NOTHING_KNOWN,
) -> list[Result]:
    """Run drills from one medium; one that fails does not end the others.

    Args:
        cells: what to drill.
        choices: for what a cell leaves open.
        settings: how.
        done: called after each drill with all results so far, so that hours of work are not lost.
        lanes: how many drills run at the same time; their times, the RTO above all, are longer then.
        known: results of drills that are not repeated.

    Returns:
        The results in the order of the cells.
    """
    results = dict(known)
    missing = _each_machine_first([cell for cell in cells if cell not in known])
    start = time.monotonic()

    def all_so_far() -> list[Result]:
        return [results[cell] for cell in cells if cell in results]

    with _one_medium(missing, choices, settings) as ready:

        def work(numbered: tuple[int, Cell]) -> Result:
            number, cell = numbered
            if len(missing) > 1:
                passed = format_duration(time.monotonic() - start)
                settings.say(f"drill {number} of {len(missing)}, after {passed}: {cell}")
            return cell.drill(ready, settings)

        for position, result in in_lanes(work, list(enumerate(missing, 1)), lanes):
            results[missing[position]] = result
            done(all_so_far())
    return all_so_far()


def _each_machine_first(cells: Sequence[Cell]) -> list[Cell]:
    """Return drills in an order that takes every machine once before it takes one again.

    A run that is stopped has seen most shapes then, and lanes do not wait for the same machine to be
    built.
    """
    turns = Counter[str]()
    turn = {}
    for cell in cells:
        turn[cell] = turns[cell.machine]
        turns[cell.machine] += 1
    return sorted(cells, key=lambda cell: turn[cell])


@contextmanager
def _one_medium(
    cells: Sequence[Cell], choices: run.Choices, settings: Settings
) -> Iterator[run.Choices]:
    """Build the medium of several drills once; a single one builds and times its own."""
    if choices.iso is not None or len(cells) < _MANY:
        yield choices
        return
    with tempfile.TemporaryDirectory(prefix="remetal-medium-", dir=roomy()) as folder:
        iso = Path(folder) / "rescue.iso"
        settings.say("build the medium of all drills ...")
        build_medium(iso, MediumConfig(), choices.cache, settings.say)
        yield replace(choices, iso=iso)
