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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from bootmedia.config import MediumConfig
from bootmedia.medium import build_medium
from imager.errors import ConfigError
from imager.units import format_duration
from restore.drill import run
from restore.drill.bring_back import Settings
from restore.drill.report import Result
from restore.drill.scenario import Medium, roomy
from restore.drill.variation import Variation
from restore.drill.vm_spec import Firmware


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

    def drill(self, choices: run.Choices, settings: Settings) -> Result:
        """Run it; see `run.drill_fixture`."""
        mine = replace(
            choices,
            variation=self.variation,
            firmware=self.firmware or choices.firmware,
            medium=self.medium or choices.medium,
        )
        return run.drill_fixture(self.machine, mine, settings)


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


def drill_all(
    cells: Sequence[Cell],
    choices: run.Choices,
    settings: Settings,
    done: Callable[[Sequence[Result]], None],
) -> list[Result]:
    """Run drills one after the other, from one medium; one that fails does not end the others.

    Args:
        cells: what to drill.
        choices: for what a cell leaves open.
        settings: how.
        done: called after each drill with all results so far, so that hours of work are not lost.
    """
    results: list[Result] = []
    start = time.monotonic()
    with _one_medium(cells, choices, settings) as ready:
        for number, cell in enumerate(cells, 1):
            if len(cells) > 1:
                passed = format_duration(time.monotonic() - start)
                settings.say(f"drill {number} of {len(cells)}, after {passed}: {cell}")
            results.append(cell.drill(ready, settings))
            done(results)
    return results


@contextmanager
def _one_medium(
    cells: Sequence[Cell], choices: run.Choices, settings: Settings
) -> Iterator[run.Choices]:
    """Build the medium of several drills once; a single one builds and times its own."""
    if choices.iso is not None or len(cells) == 1:
        yield choices
        return
    with tempfile.TemporaryDirectory(prefix="remetal-medium-", dir=roomy()) as folder:
        iso = Path(folder) / "rescue.iso"
        settings.say("build the medium of all drills ...")
        build_medium(iso, MediumConfig(), choices.cache, settings.say)
        yield replace(choices, iso=iso)
