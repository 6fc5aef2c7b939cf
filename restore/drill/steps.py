"""The steps of a drill, timed, and told to who watches."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from imager.units import format_duration, format_size

_TELL: Final = 20.0  # seconds between signs of life of one step

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Step:
    """One finished step.

    Attributes:
        name: what was done.
        start: seconds from the start of the drill.
        seconds: how long it took.
        size: bytes it moved, or None.
        part_of_rto: whether it lies between power-on of the rescue and the proof.
    """

    name: str
    start: float
    seconds: float
    size: int | None = None
    part_of_rto: bool = False


@dataclass(slots=True)
class Remark:
    """What a running step wants to say when it is done.

    Attributes:
        size: bytes it moved.
        text: a few words for people.
    """

    size: int | None = None
    text: str = ""


class Steps:
    """Records steps one after the other.

    Args:
        title: in front of every line: which machine.
        say: receives one line of text at a time; also from another thread.
    """

    def __init__(self, title: str, say: Say) -> None:
        self._title = title
        self._say = say
        self._start = time.monotonic()
        self._done: list[Step] = []
        self._hint = ""

    @property
    def done(self) -> tuple[Step, ...]:
        """The steps that were finished or failed, in order."""
        return tuple(self._done)

    def now(self) -> float:
        """Return seconds since the start of the drill."""
        return time.monotonic() - self._start

    def say(self, text: str) -> None:
        """Tell who watches one line."""
        self._say(f"{self._title}: {text}")

    def at(self, moment: float) -> float:
        """Return a time of the host's clock (seconds since the epoch) as `now` would say it."""
        return self.now() - (time.time() - moment)

    def hint(self, text: str) -> None:
        """Note what the running step is doing, for its next sign of life."""
        self._hint = text

    def add(self, step: Step) -> None:
        """Record a step that was timed elsewhere."""
        self._done.append(step)
        self.say(_line(step, ""))

    @contextmanager
    def step(self, name: str, *, part_of_rto: bool = False, keep: bool = True) -> Iterator[Remark]:
        """Time the body as one step; a failing one is recorded as well.

        Args:
            name: what is done.
            part_of_rto: see `Step`.
            keep: record it when it succeeds; not for one that is recorded in parts afterwards.

        Yields:
            What the step may add to its line.
        """
        remark = Remark()
        start = self.now()
        self._hint = ""
        self.say(f"{name} …")
        over = threading.Event()
        teller = threading.Thread(target=self._tell, args=(name, start, over), daemon=True)
        teller.start()
        ended = "failed after "
        try:
            yield remark
            ended = ""
        finally:
            over.set()
            teller.join()
            step = Step(name, start, self.now() - start, remark.size, part_of_rto)
            if keep or ended:
                self._done.append(step)
                self.say(_line(step, remark.text, ended))

    def _tell(self, name: str, start: float, over: threading.Event) -> None:
        while not over.wait(_TELL):
            hint = f": {self._hint}" if self._hint else ""
            self.say(f"{name} … {format_duration(self.now() - start)} so far{hint}")


def _line(step: Step, text: str, ended: str = "") -> str:
    size = f", {format_size(step.size)}" if step.size is not None else ""
    return f"{step.name}: {ended}{format_duration(step.seconds)}{size}{', ' if text else ''}{text}"
