"""What a drill found: a table for people, a document for scripts, and a picture of the time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import jinja2
import msgspec

from imager.errors import ConfigError
from imager.units import format_duration, format_size
from restore.drill.evidence import Difference
from restore.drill.steps import Step

_TEMPLATES: Final = jinja2.Environment(
    loader=jinja2.PackageLoader("restore.drill"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_REPORT: Final = "report.json"
_PICTURE: Final = "timeline.svg"
_ROW: Final = 22  # height of a line in the picture
_CHART: Final = 640  # width of the time axis
_TICKS: Final = 6
_SIDE_BY_SIDE: Final = 3  # drills whose steps fit on a screen
_MOST_NAMED: Final = 40  # differences; more help nobody


class Outcome(StrEnum):
    """How a drill ended."""

    PROVEN = "came back"
    WEAK = "seems back"  # only a picture speaks for it
    REFUSED = "refused"  # rightly, and before the first write
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Result:
    """One drill.

    Attributes:
        name: of the machine.
        firmware: it was restored and started with.
        medium: what the rescue medium was attached as.
        accelerator: how the guests ran.
        outcome: how it ended.
        proof: what showed it, or why it failed.
        variation: in what the new machine differs from the saved one.
        steps: in order.
        rto: seconds from power-on of the rescue to the proof; None when there was no proof.
        used_bytes: of the captured machine, or None.
        stored_bytes: that the capture added to the repository, or None.
        medium_bytes: size of the rescue medium, or None.
        facts: how many were compared.
        differences: facts that are not what they were.
        plan: of the restore, line by line.
        kept: folder with consoles, pictures and logs, or None.
    """

    name: str
    firmware: str
    medium: str
    accelerator: str
    outcome: Outcome
    proof: str
    variation: str = "same"
    steps: tuple[Step, ...] = ()
    rto: float | None = None
    used_bytes: int | None = None
    stored_bytes: int | None = None
    medium_bytes: int | None = None
    facts: int = 0
    differences: tuple[Difference, ...] = ()
    plan: tuple[str, ...] = ()
    kept: Path | None = None

    @property
    def title(self) -> str:
        """Which drill this is."""
        varied = f", {self.variation}" if self.variation != "same" else ""
        return f"{self.name} ({self.firmware}, {self.medium}{varied})"


class _Report(msgspec.Struct, frozen=True):
    drills: list[Result]


def document(results: Sequence[Result]) -> dict[str, Any]:
    """Return the results for `--json`; times are seconds, sizes bytes."""
    drills = msgspec.to_builtins(list(results), enc_hook=str)
    return {"drills": drills}


Table = tuple[list[str], list[list[str]]]


def tables(results: Sequence[Result]) -> tuple[Table, ...]:
    """Return columns and rows of what is shown: of a few drills the steps, of many the outcomes."""
    if len(results) == 1:
        return (_of_steps(results),)
    if len(results) <= _SIDE_BY_SIDE:
        return _of_steps(results), _of_outcomes(results)
    return (_of_outcomes(results),)


def _of_steps(results: Sequence[Result]) -> Table:
    """Return a table with one column per drill."""
    names: list[str] = []
    for result in results:
        names += [step.name for step in result.steps if step.name not in names]
    columns = ["", *(f">{result.title}" for result in results)]
    rows = [[name, *(_step(result, name) for result in results)] for name in names]
    rows.append([""] * len(columns))
    rows += [
        ["used on the machine", *(_size(result.used_bytes) for result in results)],
        ["stored by the capture", *(_size(result.stored_bytes) for result in results)],
        ["rescue medium", *(_size(result.medium_bytes) for result in results)],
        ["facts compared", *(str(result.facts) if result.facts else "-" for result in results)],
        ["differences", *(_differences(result) for result in results)],
        ["RTO", *(format_duration(r.rto) if r.rto is not None else "-" for r in results)],
        ["the machine", *(result.outcome.value for result in results)],
    ]
    return columns, rows


def _of_outcomes(results: Sequence[Result]) -> Table:
    """Return a table with one row per drill."""
    columns = [
        "shape",
        "firmware",
        "medium",
        "variation",
        "outcome",
        ">differences",
        ">RTO",
        ">time",
    ]
    rows = [
        [
            *(result.name, result.firmware, result.medium, result.variation),
            *(result.outcome.value, _differences(result)),
            format_duration(result.rto) if result.rto is not None else "-",
            format_duration(_end(result)),
        ]
        for result in results
    ]
    return columns, rows


def _step(result: Result, name: str) -> str:
    steps = [step for step in result.steps if step.name == name]
    if not steps:
        return "-"
    return format_duration(sum(step.seconds for step in steps))


def _size(size: int | None) -> str:
    return "-" if size is None else format_size(size)


def _differences(result: Result) -> str:
    return str(len(result.differences)) if result.facts else "-"


def lines(result: Result) -> Iterator[str]:
    """Yield in words how a drill ended, with the differences."""
    yield f"{result.title}: {result.outcome.value}: {result.proof}"
    for difference in result.differences[:_MOST_NAMED]:
        yield f"  {difference.fact}"
        yield f"    before: {difference.before}"
        yield f"    after:  {difference.after}"
    if len(result.differences) > _MOST_NAMED:
        yield f"  and {len(result.differences) - _MOST_NAMED} more; report.json has them all"
    if result.kept is not None:
        yield f"  everything is kept in {result.kept}"


def write(results: Sequence[Result], folder: Path) -> None:
    """Write `report.json` and the picture `timeline.svg` into a folder, which is made.

    What was there stays whole until the new is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(document(results)), indent=2) + b"\n"
    for name, content in ((_REPORT, text), (_PICTURE, picture(results).encode())):
        partial = folder / f".{name}.partial"
        partial.write_bytes(content)
        partial.replace(folder / name)


def read(folder: Path) -> list[Result]:
    """Return the results that `write` left in a folder; none where it left none.

    Raises:
        ConfigError: what is there is no such report.
    """
    place = folder / _REPORT
    try:
        return msgspec.json.decode(place.read_bytes(), type=_Report, dec_hook=_path).drills
    except FileNotFoundError:
        return []
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"{place} is no report of drills: {error}", hint="Name another folder with --report."
        ) from error


def _path(kind: type[Path], text: str) -> Path:
    return kind(text)


def picture(results: Sequence[Result]) -> str:
    """Return an SVG: a line per step, its place and length on a time axis, per drill."""
    longest = max((_end(result) for result in results), default=0.0) or 1.0
    tick = _tick(longest)
    return _TEMPLATES.get_template("timeline.svg.j2").render(
        results=results,
        longest=longest,
        ticks=[tick * n for n in range(int(longest / tick) + 1)],
        row=_ROW,
        chart=_CHART,
        duration=format_duration,
        size=format_size,
    )


def _end(result: Result) -> float:
    return max((step.start + step.seconds for step in result.steps), default=0.0)


def _tick(longest: float) -> float:
    """Return a round number of seconds that cuts the axis into a few parts."""
    for tick in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600):
        if longest / tick <= _TICKS:
            return float(tick)
    return 7200.0
