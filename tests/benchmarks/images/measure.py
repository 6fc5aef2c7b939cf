"""One program, or several joined by pipes, from start to end: time, cpu, memory, bytes written."""

import os
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from imager.units import KIB

_INTERVAL: Final = 0.02
_LONGEST: Final = 3 * 3600


class WentWrongError(Exception):
    """A program of the benchmark failed, or gave back other bytes than it was given."""


@dataclass(frozen=True, slots=True)
class Command:
    """Programs to run as one.

    Attributes:
        pipeline: argument lists; each writes into the next.
        stdout: file that takes what the last one writes.
        env: variables on top of those of this process.
        cwd: working directory.
    """

    pipeline: tuple[tuple[str, ...], ...]
    stdout: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """What a command took.

    Attributes:
        seconds: from the start of the first program to the end of the last.
        cpu: user and system seconds of all of them and of what they started and waited for.
        peak: most bytes of memory (resident set) that they had together.
        written: bytes that they handed to write calls.
        output: what the last one printed, if it went to no file.
    """

    seconds: float
    cpu: float
    peak: int
    written: int
    output: str = ""


def measure(command: Command, log: Path, cpus: Iterable[int] | None = None) -> Measured:
    """Run a command to its end.

    Args:
        command: what to run.
        log: file that takes the errors it prints.
        cpus: the only processors it may use.

    Raises:
        WentWrongError: a program failed; the error has the end of what it printed.
    """
    allowed = os.sched_getaffinity(0)
    with ExitStack() as stack:
        errors = stack.enter_context(log.open("wb"))
        last_output = log.with_suffix(".out") if command.stdout is None else command.stdout
        sink = stack.enter_context(last_output.open("wb"))
        if cpus is not None:
            os.sched_setaffinity(0, cpus)
        began = time.monotonic()
        try:
            started = _start(command, sink.fileno(), errors.fileno())
        finally:
            os.sched_setaffinity(0, allowed)
        watch = _Watch([process.pid for process in started])
        limit = threading.Timer(_LONGEST, lambda: [process.kill() for process in started])
        limit.start()
        cpu, failed = 0.0, []
        for words, process in zip(command.pipeline, started, strict=True):
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            watch.note_end(process.pid)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            cpu += usage.ru_utime + usage.ru_stime
            if process.returncode:
                failed.append(f"{words[0]} ended with {process.returncode}")
        seconds = time.monotonic() - began
        limit.cancel()
        watch.stop()
    if failed:
        said = log.read_text(errors="replace")[-2000:]
        raise WentWrongError(f"{'; '.join(failed)}: {said}")
    output = last_output.read_text(errors="replace") if command.stdout is None else ""
    return Measured(seconds, cpu, watch.peak, watch.written, output)


def said(*words: str | Path, env: Mapping[str, str] | None = None) -> str:
    """Run a program that is not measured, and return what it says.

    Raises:
        WentWrongError: it failed.
    """
    done = subprocess.run(
        words,
        env={**os.environ, **(env or {})},
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    if done.returncode:
        raise WentWrongError(f"{words[0]} ended with {done.returncode}: {done.stdout}")
    return done.stdout


def _start(command: Command, sink: int, errors: int) -> list[subprocess.Popen[bytes]]:
    started: list[subprocess.Popen[bytes]] = []
    source: int = subprocess.DEVNULL
    for number, words in enumerate(command.pipeline):
        is_last = number == len(command.pipeline) - 1
        process = subprocess.Popen(
            words,
            stdin=source,
            stdout=sink if is_last else subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **command.env},
            cwd=command.cwd,
        )
        if started and started[-1].stdout:
            started[-1].stdout.close()
        started.append(process)
        if process.stdout:
            source = process.stdout.fileno()
    return started


class _Watch:
    """Looks at a family of processes every 20 ms.

    ru_maxrss won't do: a process inherits it from the one that started it, which is this one.

    Args:
        pids: of the processes at the head of the family.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._marks: dict[int, int] = {}
        self._writes: dict[int, int] = {}
        self._together = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    @property
    def peak(self) -> int:
        """Most bytes seen together, and at least the most that one process had by itself."""
        return max(self._together, *self._marks.values()) if self._marks else self._together

    @property
    def written(self) -> int:
        """Bytes given to write calls by all that was seen."""
        return sum(self._writes.values())

    def note_end(self, pid: int) -> None:
        """Look once more at a process that has ended and was not waited for."""
        with self._lock:
            self._look_at(pid)

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(_INTERVAL):
            with self._lock:
                together = sum(map(self._look_at, list(_family(self._pids))))
                self._together = max(self._together, together)

    def _look_at(self, pid: int) -> int:
        """Return the resident bytes of a process."""
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            written = _field(Path(f"/proc/{pid}/io").read_text(), "wchar")
        except OSError:
            return 0
        self._writes[pid] = max(written, self._writes.get(pid, 0))
        mark = _field(status, "VmHWM") * KIB
        self._marks[pid] = max(mark, self._marks.get(pid, 0))
        return _field(status, "VmRSS") * KIB


def _field(text: str, name: str) -> int:
    """Return a number out of a file of /proc; 0 if it is not there, as in a process that ended."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    return 0


def _family(pids: Iterable[int]) -> Iterable[int]:
    for pid in pids:
        yield pid
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                children = path.read_text().split()
            except OSError:
                continue
            yield from _family(map(int, children))
