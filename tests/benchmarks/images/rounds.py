"""Every tool does every operation, in turns: round by round, operation by operation, tool by tool."""

import errno
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from imager.units import MIB
from tests.benchmarks.images import parts
from tests.benchmarks.images.corpus import Corpus, device_of, mounted
from tests.benchmarks.images.measure import Command, Measured, WentWrongError, measure
from tests.benchmarks.images.tools import (
    LEVEL,
    PARTCLONE_PLAIN,
    REMETAL,
    TOOLS,
    Tool,
    empty,
    restored_file,
    stored_bytes,
)
from tests.benchmarks.images.trees import SETTLED, Tree, differences, tree_of

LIMIT: Final = "limit"  # of the parts, beside the names of tools
DAMAGE: Final = 0.02
_DAMAGE_RUN: Final = MIB


class Operation(StrEnum):
    """What is measured."""

    FULL = "full"
    UNCHANGED = "unchanged"
    CHANGED = "changed"
    SECOND = "second"
    RESTORE = "restore"
    DELTA = "delta"


SOURCES: Final[Mapping[Operation, str]] = {
    Operation.FULL: "base",
    Operation.UNCHANGED: "base",
    Operation.CHANGED: "changed",
    Operation.SECOND: "second",
}
_LIMITS: Final[Mapping[Operation, str]] = {
    Operation.FULL: "capture",
    Operation.UNCHANGED: "read",
    Operation.RESTORE: "restore",
}
_APPENDS: Final = ("restic", "borg", "borg-fixed", "casync", REMETAL.name)


@dataclass(frozen=True, slots=True)
class Run:
    """One operation of one tool, once.

    Attributes:
        tool: its name, or `limit`.
        operation: what it did.
        round: in which round, from 0.
        seconds: from start to end of the process.
        cpu: seconds, user and system.
        peak: bytes of memory; 0 for the limit.
        stored: bytes that came to what the tool keeps.
        written: bytes that it gave to write calls.
        new: bytes before compression that were not there yet, where the tool says it.
    """

    tool: str
    operation: Operation
    round: int
    seconds: float
    cpu: float
    peak: int = 0
    stored: int = 0
    written: int = 0
    new: int = 0


Tell = Callable[[str], None]


def does(tool: str, operation: Operation) -> bool:
    """Whether a tool has an operation."""
    if tool == LIMIT:
        return operation in _LIMITS
    if tool == PARTCLONE_PLAIN.name:
        return operation in {Operation.FULL, Operation.RESTORE}
    return operation is not Operation.DELTA or tool == REMETAL.name


class Rounds:
    """All that is measured on one corpus.

    Args:
        corpus: the disks.
        work: folder for repositories and restored disks; what is in it goes.
        tell: is told of each step.
    """

    def __init__(self, corpus: Corpus, work: Path, tell: Tell) -> None:
        self._corpus = corpus
        self._work = empty(work.resolve())
        self._tell = tell
        self._trees: dict[str, Tree] = {}

    def run(
        self, tools: Sequence[str], operations: Sequence[Operation], count: int
    ) -> Iterable[Run]:
        """Yield all runs. A round's order of tools is the last one's reversed.

        An operation that builds on others, as a restore does on a capture, has these done first.

        Raises:
            WentWrongError: a tool failed, or gave back other files.
        """
        if LIMIT in tools and any(does(LIMIT, operation) for operation in operations):
            self._tell("preparing the limit of the parts (not measured)")
            parts.prepare(self._corpus.image("base"), self._work / "parts", LEVEL)
        needed = _with_needs(operations)
        steps = [
            (number, operation, tool)
            for number in range(count)
            for operation in needed
            for tool in (tools if number % 2 == 0 else tools[::-1])
            if does(tool, operation)
        ]
        for place, (number, operation, tool) in enumerate(steps):
            if place == 0 or steps[place - 1][0] != number:
                self._begin(tools)
            run = self._one(tool, operation, number)
            self._tell(
                f"{place + 1} of {len(steps)}, round {number + 1} of {count}: {operation} {tool}: "
                f"{run.seconds:.1f} s, {run.cpu:.1f} cpu s, {run.peak / MIB:.0f} MiB of memory"
            )
            if operation in operations:
                yield run
        for tool in tools:
            shutil.rmtree(self._folder(tool), ignore_errors=True)

    def _begin(self, tools: Iterable[str]) -> None:
        for name in tools:
            if name != LIMIT:
                TOOLS[name].prepare(empty(self._folder(name)))

    def _folder(self, tool: str) -> Path:
        return self._work / "tools" / tool

    def _one(self, tool: str, operation: Operation, number: int) -> Run:
        if tool == LIMIT:
            return self._limit(operation, number)
        if operation is Operation.DELTA:
            return self._delta(number)
        if operation is Operation.RESTORE:
            return self._restore(TOOLS[tool], number)
        return self._capture(TOOLS[tool], operation, number)

    def _capture(self, tool: Tool, operation: Operation, number: int) -> Run:
        image = self._corpus.image(SOURCES[operation])
        folder = self._folder(tool.name)
        is_other = operation is not Operation.FULL and tool.name not in _APPENDS
        before = stored_bytes(folder)
        with ExitStack() as stack:
            source = stack.enter_context(device_of(image)) if tool.needs_device else image
            name = "other" if is_other else operation.value
            command = tool.capture(folder, source, name)
            warm([image])
            measured = self._measure(command)
        stored = stored_bytes(folder) - before
        if is_other:
            for path in folder.glob(f"{name}*"):
                path.unlink()
        return Run(
            tool.name,
            operation,
            number,
            measured.seconds,
            measured.cpu,
            measured.peak,
            stored,
            measured.written,
            _number(measured, "new_bytes") if tool is REMETAL else 0,
        )

    def _restore(self, tool: Tool, number: int) -> Run:
        folder, place = self._folder(tool.name), empty(self._work / "restored")
        target = place / "disk.img"
        with ExitStack() as stack:
            if tool.needs_device:
                with target.open("wb") as file:
                    file.truncate(self._corpus.image("base").stat().st_size)
                command = tool.restore(
                    folder, Operation.FULL, stack.enter_context(device_of(target))
                )
            else:
                command = tool.restore(folder, Operation.FULL, target)
            warm(path for path in folder.rglob("*") if path.is_file())
            measured = self._measure_to_the_disk(command, place)
        self._check(tool.name, restored_file(place))
        return self._outcome(tool.name, Operation.RESTORE, number, measured)

    def _delta(self, number: int) -> Run:
        place = empty(self._work / "restored")
        target = place / "disk.img"
        shutil.copyfile(self._corpus.image("base"), target)
        damage(target, int(self._corpus.used["base"] * DAMAGE))
        folder = self._folder(REMETAL.name)
        warm([target, *(path for path in folder.rglob("*") if path.is_file())])
        command = REMETAL.restore_with(folder, Operation.FULL, target, "--delta")
        measured = self._measure_to_the_disk(command, place)
        self._check(REMETAL.name, target)
        return self._outcome(REMETAL.name, Operation.DELTA, number, measured)

    def _limit(self, operation: Operation, number: int) -> Run:
        place = empty(self._work / "restored")
        is_restore = operation is Operation.RESTORE
        image = place / "disk.img" if is_restore else self._corpus.image("base")
        warm([self._work / "parts" / "store" if is_restore else image])
        threads = len(os.sched_getaffinity(0))
        folder = self._work / "parts"
        command = parts.command(_LIMITS[operation], folder, image, LEVEL, threads)
        measured = self._measure(command)
        if is_restore:
            self._check(LIMIT, image)
        return Run(LIMIT, operation, number, *parts.took(measured))

    def _outcome(self, tool: str, operation: Operation, number: int, measured: Measured) -> Run:
        return Run(
            tool,
            operation,
            number,
            measured.seconds,
            measured.cpu,
            measured.peak,
            written=measured.written,
        )

    def _measure(self, command: Command) -> Measured:
        os.sync()  # nobody pays for what the one before has left to write
        return measure(command, self._work / "errors.log")

    def _measure_to_the_disk(self, command: Command, folder: Path) -> Measured:
        """Measure a restore until what it wrote below a folder is on the disk, whoever syncs it."""
        measured = self._measure(command)
        began = time.monotonic()
        with restored_file(folder).open("rb") as file:
            os.fsync(file.fileno())
        return replace(measured, seconds=measured.seconds + time.monotonic() - began)

    def _check(self, tool: str, restored: Path) -> None:
        """Make sure that a restored disk holds the files of the first one."""
        if not self._trees:
            self._trees["base"] = self._corpus.tree("base")
        warm([restored])  # file by file, it would be read ten times slower
        with mounted(restored, *SETTLED) as place:
            wrong = differences(self._trees["base"], tree_of(place))
        if wrong:
            raise WentWrongError(
                f"{tool} restored {len(wrong)} files or folders wrongly: {', '.join(wrong[:5])}"
            )
        restored.unlink()


def warm(paths: Iterable[Path]) -> None:
    """Read files, but for their holes, so that they lie in the page cache."""
    buffer = bytearray(4 * MIB)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            for start, end in _data_of(file.fileno()):
                file.seek(start)
                while file.tell() < end and file.readinto(buffer):
                    pass


def damage(path: Path, amount: int) -> None:
    """Overwrite so many bytes of what is in use of a file, in runs of 1 MiB (one shorter run at most)."""
    chance = random.Random(amount)
    with path.open("r+b") as file:
        starts = [
            start
            for begin, end in _data_of(file.fileno())
            for start in range(begin, max(begin + 1, end - _DAMAGE_RUN), _DAMAGE_RUN)
        ]
        for start in chance.sample(starts, len(starts)):
            if amount <= 0:
                break
            size = min(_DAMAGE_RUN, amount)
            file.seek(start)
            file.write(chance.randbytes(size))
            amount -= size
        file.flush()
        os.fsync(file.fileno())


def _data_of(descriptor: int) -> Iterable[tuple[int, int]]:
    end, size = 0, os.lseek(descriptor, 0, os.SEEK_END)
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # only a hole is left
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end


def _with_needs(operations: Sequence[Operation]) -> list[Operation]:
    wanted = set(operations)
    if wanted - {Operation.FULL}:
        wanted.add(Operation.FULL)
    return [operation for operation in Operation if operation in wanted]


def _number(measured: Measured, name: str) -> int:
    return int(json.loads(measured.output)[name])
