"""One point: an operation stopped at one place in one way, and what was found after it."""

import contextlib
import errno
import json
import os
import shutil
import signal
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from imager.errors import RemetalError
from tests.torture.examine import Verdict, examine
from tests.torture.operations import Operation
from tests.torture.powerloss import cut_power
from tests.torture.shim import UNWRAPPED, Kind, Shim, Step, Trap
from tests.torture.world import World

_LONGEST: Final = 120  # seconds until an operation counts as hanging
_READ_FAULTS: Final = {Kind.IO, Kind.STAYS_IO, Kind.TIMEOUT, Kind.STAYS_TIMEOUT}
_SPOILED: Final = {errno.EIO, errno.ETIMEDOUT}
_OK: Final = "ok"
_REFUSED: Final = "error"


@dataclass(frozen=True, slots=True)
class Point:
    """Where and how.

    Attributes:
        operation: name.
        kind: of fault.
        number: of the file-system operation, from 1.
        seed: of the power loss.
    """

    operation: str
    kind: Kind
    number: int
    seed: int

    def __str__(self) -> str:
        return f"{self.operation}:{self.kind}:{self.number}:{self.seed}"

    @classmethod
    def parse(cls, text: str) -> "Point":
        """Return the point that `str` wrote."""
        operation, kind, number, seed = text.split(":")
        return cls(operation, Kind(kind), int(number), int(seed))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened at a point.

    Attributes:
        point: which.
        fired: whether the operation came so far.
        verdict: what is wrong.
        trace: the last file-system operations, for people.
    """

    point: Point
    fired: bool
    verdict: Verdict
    trace: tuple[str, ...]


def in_child(work: Callable[[], dict[str, object]], result: Path) -> tuple[int, dict[str, object]]:
    """Run in a forked process; return its wait status and what it wrote."""
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(_LONGEST)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            document = work()
            descriptor = os.open(result, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.write(descriptor, json.dumps(document).encode())
        except BaseException:  # noqa: BLE001 - the process ends here, whatever happened
            with contextlib.suppress(OSError):
                result.with_suffix(".crash").write_text(traceback.format_exc(), "utf-8")
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    found: dict[str, object] = {}
    with contextlib.suppress(FileNotFoundError):
        found = json.loads(result.read_text("utf-8"))
    crash = result.with_suffix(".crash")
    with contextlib.suppress(FileNotFoundError):
        found = {"crash": crash.read_text("utf-8")}
    return status, found


def run_operation(
    world: World, operation: Operation, folder: Path, trap: Trap | None
) -> tuple[int, dict[str, object], list[dict[str, object]]]:
    """Run an operation in a process of its own on a fresh copy of its template.

    Returns:
        The wait status, what it said, and the log of its file-system operations.
    """
    root, scratch, attic = folder / "repository", folder / "scratch", folder / "attic"
    shutil.copytree(world.template, root)
    for path in (scratch, attic):
        path.mkdir()
    log = folder / "log"

    def work() -> dict[str, object]:
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        Shim(root, log, attic, trap).install()
        try:
            return {"said": _OK, "claim": operation.run(world, root, scratch)}
        except RemetalError as error:
            return {"said": _REFUSED, "message": f"{type(error).__name__}: {error.message}"}

    status, found = in_child(work, folder / "said")
    entries = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    return status, found, entries


def run_point(world: World, operation: Operation, folder: Path, point: Point) -> Outcome:
    """Run one point in an empty folder, which it leaves empty."""
    folder.mkdir(parents=True)
    try:
        return _run_point(world, operation, folder, point)
    finally:
        shutil.rmtree(folder)


def _run_point(world: World, operation: Operation, folder: Path, point: Point) -> Outcome:
    trap = Trap(point.kind, point.number)
    status, said, log = run_operation(world, operation, folder, trap)
    fired = any("fired" in entry for entry in log)
    lies: list[str] = []
    problems = [f"the shim does not know {e['unwrapped']}" for e in log if "unwrapped" in e]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
        problems.append(f"it ended by signal {os.WTERMSIG(status)}")
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == UNWRAPPED:
        problems.append("it left the shim")
    if "crash" in said:
        problems.append(f"an error that is not explained: {said['crash']}")
    claim = said.get("claim")
    if not isinstance(claim, dict):
        claim = None
    missed = point.kind in _READ_FAULTS and operation.must_see_faults and not _could_read_all(log)
    if missed and claim is not None and not claim["findings"]:
        lies.append("check says that all is well, and could not read everything")
    if point.kind is Kind.POWER:
        cut_power(folder / "log", folder / "repository", folder / "attic", str(point))

    def look() -> dict[str, object]:
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        root = folder / "repository"
        return asdict(examine(world, operation, root, folder / "scratch", claim))

    _, found = in_child(look, folder / "found")
    if "crash" in found or not found:
        verdict = Verdict(errors=[f"what is left can't be looked at: {found.get('crash')}"])
    else:
        verdict = Verdict(**found)  # type: ignore[arg-type]
    verdict.errors += problems
    verdict.lies += lies
    return Outcome(point, fired or point.kind is Kind.POWER, verdict, _trace(log, folder, said))


def _could_read_all(log: list[dict[str, object]]) -> bool:
    """Whether everything that a spoiled operation was about was read some other time."""
    failed = {(e["step"], e["path"]) for e in log if e.get("error") in _SPOILED}
    failed = {place for place in failed if place[0] != Step.LOOK}
    return failed <= {(e["step"], e["path"]) for e in log if "note" in e}


def _trace(log: list[dict[str, object]], folder: Path, said: dict[str, object]) -> tuple[str, ...]:
    lines = []
    fired = next((n for n, entry in enumerate(log) if "fired" in entry), len(log))
    for entry in log[max(0, fired - 6) : fired + 8]:
        path = str(entry.get("path", "")).replace(str(folder / "repository"), "")
        mark = "HERE" if "fired" in entry else entry.get("n", "")
        lines.append(f"{mark} {entry.get('step')} {path} {entry.get('error', '')}".rstrip())
    return (*lines, f"said: {said.get('said', 'nothing')} {said.get('message', '')}")
