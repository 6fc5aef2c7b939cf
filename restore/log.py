"""The log of a restore: the plan, what became of each step, and how it ended.

It is written anew after each step and flushed to storage, so that it also tells the story of a
restore that was cut off.
"""

import importlib.metadata
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from imager.errors import Interrupted, OutputError, RemetalError
from imager.stages import Stages
from restore import clock
from restore.execute import Outcome
from restore.plan import Plan
from restore.templates import render

DEFAULT_PATH: Final = Path("/run/remetal/restore.log")


class RestoreLog:
    """Collects what happens and keeps a file up to date.

    Args:
        path: the file, written over; its folder is made when missing. None keeps no file.

    Raises:
        OutputError: the file can't be written; better known before the first write to a disk.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._started = clock.now()
        self._clock = time.monotonic()
        self._finished: str | None = None
        self._seconds = 0.0
        self._plan: Plan | None = None
        self._error: RemetalError | None = None
        self._outcomes: list[Outcome] = []
        self._passes: list[tuple[str, Stages]] = []
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._save()
            except OSError as error:
                raise OutputError(
                    f"the log {path} can't be written: {error.strerror}",
                    hint="Name another one with --log FILE; nothing was restored.",
                ) from error

    @property
    def path(self) -> Path | None:
        """Where the log is."""
        return self._path

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """What was done, in order."""
        return tuple(self._outcomes)

    @property
    def passes(self) -> tuple[tuple[str, Stages], ...]:
        """What each pass over the content was, and what its stages took."""
        return tuple(self._passes)

    def planned(self, plan: Plan) -> None:
        """Note what is going to be done."""
        self._plan = plan
        self._try_save()

    def record(self, outcome: Outcome) -> None:
        """Note what became of a step."""
        self._outcomes.append(outcome)
        self._try_save()

    def measure(self, name: str, stages: Stages) -> None:
        """Note what the stages of a pass over the content took."""
        self._passes.append((name, stages))

    def finish(self) -> None:
        """Note that all is done."""
        self._finished = clock.now()
        self._seconds = time.monotonic() - self._clock
        self._try_save()

    def fail(self, error: RemetalError) -> None:
        """Note why it ended early."""
        self._error = error
        self._try_save()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Note the error that ends what is done inside, if one does."""
        try:
            yield
        except RemetalError as error:
            self.fail(error)
            raise
        except KeyboardInterrupt:
            self.fail(Interrupted("stopped on request"))
            raise

    def text(self) -> str:
        """Return the log so far."""
        return render(
            "restore.log.j2",
            version=importlib.metadata.version("remetal"),
            started=self._started,
            plan=self._plan.lines() if self._plan else (),
            outcomes=self._outcomes,
            error=self._error,
            finished=self._finished,
            seconds=self._seconds,
        )

    def report(self) -> dict[str, Any]:
        """Return the result for scripts, as `report.json` and `--json` give it."""
        return {
            "outcome": "restored" if self._finished else "failed",
            "error": error_document(self._error),
            "steps": [
                {
                    "name": outcome.step,
                    "subject": outcome.subject,
                    "seconds": round(outcome.seconds, 3),
                    "bytes": outcome.bytes,
                    "notes": list(outcome.notes),
                }
                for outcome in self._outcomes
            ],
            "passes": [{"pass": name, **stages.document()} for name, stages in self._passes],
            "plan": list(self._plan.lines()) if self._plan else [],
        }

    def _try_save(self) -> None:
        """Save; a log that can't be written any more is no reason to leave a disk half-restored."""
        try:
            self._save()
        except OSError:
            self._path = None

    def _save(self) -> None:
        if self._path is not None:
            write_durably(self._path, self.text().encode())


def write_durably(path: Path, data: bytes) -> None:
    """Write a file so that it is on storage when this returns.

    Raises:
        OSError: it can't be written.
    """
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def error_document(error: RemetalError | None) -> dict[str, Any] | None:
    """Return an error as `--json` gives it."""
    if error is None:
        return None
    return {
        "id": error.id,
        "message": error.message,
        "hint": error.hint,
        "exit_code": error.exit_code,
    }
