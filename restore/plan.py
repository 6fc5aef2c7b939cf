"""The plan of a restore: frozen, printable, and the only thing `restore.execute` acts on.

A plan is made whole before the first write (`restore.planner`), and `--dry-run` prints exactly
what would run. Text is plain ASCII in 80 columns where possible, for serial consoles.

The order of a plan is part of its promise: the old table goes first, then content is written and
verified, and boot areas and tables come last, so that an interrupted restore never looks finished.
Where only differences are written, all is compared before; if there are none, the table stays.
A plan that goes on where an interrupted restore stood erases nothing; it is the same otherwise.
Where a disk is fitted, filesystems shrink when all content is there, and grow when the table is.
"""

import dataclasses
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imager.units import format_size
from restore import foreign
from restore.cards import CardMatch
from restore.fit_steps import WriteTable
from restore.steps import CompareVolume, Phase, Resume, Step, VerifyVolume, WriteVolume
from restore.target import Target

_WIDTH = 80


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a restore will do, decided.

    Attributes:
        machine: name of the machine.
        machine_id: its stable id.
        image: the image's reference.
        taken: when the image was taken, as the repository says.
        targets: the disks that are rewritten, in the machine's order.
        steps: in the order they run. Consecutive `WriteVolume` steps of one phase run together, in
            the order in which the repository stores what they share; so do their verifications.
        notes: what a person must know that is no step.
        left_out: ids of saved disks that are not restored.
        cards: network cards of the machine, and what takes their places; empty where none are known,
            or where files are restored to.
    """

    machine: str
    machine_id: str
    image: str
    taken: str
    targets: tuple[Target, ...]
    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    cards: tuple[CardMatch, ...] = ()

    @property
    def data(self) -> int:
        """Bytes that are read from the repository and written, repetitions counted each time."""
        return sum(step.data for step in self.steps if isinstance(step, WriteVolume))

    @property
    def written(self) -> int:
        """Bytes of volumes that are written: data and zeros. Where only differences are, at most."""
        return sum(step.written for step in self.steps if isinstance(step, WriteVolume))

    @property
    def compared(self) -> int:
        """Bytes that are read and compared before anything is written."""
        return sum(step.compared for step in self.steps if isinstance(step, CompareVolume))

    @property
    def verified(self) -> int:
        """Bytes that are read back and compared."""
        return sum(step.written for step in self.steps if isinstance(step, VerifyVolume))

    @property
    def resume(self) -> Resume | None:
        """The step that goes on where an interrupted restore stood, if this does."""
        return next((step for step in self.steps if isinstance(step, Resume)), None)

    @property
    def is_fitted(self) -> bool:
        """Whether a disk comes back with other places, lengths or sectors than it was saved with."""
        return any(
            target.places or target.size < target.saved_size for target in self.targets
        ) or any(isinstance(step, WriteTable) for step in self.steps)

    def lines(self) -> tuple[str, ...]:
        """Return the plan for people: what `--dry-run`, the log and the rescue console show."""
        return tuple(self._lines())

    def document(self) -> dict[str, Any]:
        """Return the plan for scripts."""
        return {
            "machine": {"id": self.machine_id, "name": self.machine},
            "image": self.image,
            "taken": self.taken,
            "targets": [_plain(target) for target in self.targets],
            "left_out": list(self.left_out),
            "cards": [
                {"text": match.describe(), "differs": match.differs, **_step_fields(match)}
                for match in self.cards
            ],
            "steps": [
                {"step": step.name, "text": step.describe(), **_step_fields(step)}
                for step in self.steps
            ],
            "notes": list(self.notes),
            "fitted": self.is_fitted,
            "resumes": self.resume is not None,
            "there_bytes": self.resume.there if self.resume else 0,
            "data_bytes": self.data,
            "compared_bytes": self.compared,
            "written_bytes": self.written,
            "verified_bytes": self.verified,
        }

    def _lines(self) -> Iterator[str]:
        yield f"Restore {self.machine} ({self.machine_id})"
        yield f"from image {self.image}, taken {self.taken}"
        yield ""
        yield "ALL DATA on these disks will be replaced:"
        for target in self.targets:
            yield from _wrap(target.describe(), "  ", "    ")
            if target.foreign:
                yield from _wrap(foreign.describe(target), "    ", "      ")
            yield from _wrap(f"takes {target.saved}", "    ", "      ")
            for layer in target.layers:
                yield from _wrap(f"with {layer}", "    ", "      ")
            for place in target.places:
                yield from _wrap(place.describe(), "    ", "      ")
            yield from _wrap(f"chosen because: {target.basis}", "    ", "      ")
        yield from self._card_lines()
        yield ""
        yield "Steps:"
        for number, step in enumerate(self.steps, 1):
            yield from _wrap(step.describe(), f"{number:3}. ", "     ")
        for note in self.notes:
            yield ""
            yield from _wrap(note, "Note: ", "      ")
        yield ""
        amount = (
            f"Writes {format_size(self.written)}, of it {format_size(self.data)} from the image"
        )
        verified = format_size(self.verified)
        if self.compared:
            yield f"Compares {format_size(self.compared)}, and writes what differs. At most:"
        if self.resume:
            amount += f", but what is there already ({format_size(self.resume.there)})"
        yield (
            f"{amount}; reads {verified} back."
            if self.verified
            else f"{amount}; reads nothing back."
        )

    def _card_lines(self) -> Iterator[str]:
        if self.cards:
            yield ""
            yield "Network cards:"
        for match in self.cards:
            yield from _wrap(match.describe(), "  ", "    ")


def _wrap(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _step_fields(step: Step | CardMatch) -> dict[str, Any]:
    """Return a step's own fields; its target shrinks to the path, since targets are listed."""
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(step):
        fields[field.name] = _plain(getattr(step, field.name), nested=True)
    return fields


def _plain(value: Any, *, nested: bool = False) -> Any:
    if isinstance(value, Target) and nested:
        return str(value.path)
    if isinstance(value, Phase):
        return value.name.lower()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item, nested=True) for item in value]
    if dataclasses.is_dataclass(value):
        return {
            field.name: _plain(getattr(value, field.name), nested=True)
            for field in dataclasses.fields(value)
        }
    return value
