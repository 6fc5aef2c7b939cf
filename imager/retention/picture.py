"""Decisions for people: the rows of a table, and a timeline for each machine."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from imager.retention.retention import Decision
from imager.units import format_size

COLUMNS: Final = ("image", "machine", "stored", ">size", "decision", "reasons")
LEGEND: Final = (
    "# kept   - removed   + some kept, some removed   ! kept, with a time that can't be true"
)
_WIDTH: Final = 60
_KEPT: Final = "#"
_REMOVED: Final = "-"
_BOTH: Final = "+"
_DOUBTFUL: Final = "!"


def rows(decisions: Sequence[Decision]) -> list[tuple[str, ...]]:
    """Return the rows of a table with `COLUMNS`, in the order of the decisions."""
    return [
        (
            decision.image.id[:12],
            decision.image.machine_name,
            _moment(decision.image.stored, "%Y-%m-%d %H:%M:%S"),
            format_size(decision.image.size),
            "keep" if decision.keep else "remove",
            ", ".join(decision.reasons),
        )
        for decision in decisions
    ]


def timelines(decisions: Sequence[Decision], now: float, width: int = _WIDTH) -> list[str]:
    """Return a picture: a line for the time axis, then one for each machine.

    Time runs from the oldest image on the left to `now` on the right; a column holds all images of
    its stretch of time. `LEGEND` says what the marks mean. No lines when there are no images.

    Args:
        decisions: of any machines.
        now: by the store's clock, seconds since the epoch.
        width: columns of the time axis, at least 24.
    """
    if not decisions:
        return []
    machines: dict[str, list[Decision]] = defaultdict(list)
    names: dict[str, str] = {}
    for decision in decisions:
        machines[decision.image.machine_id].append(decision)
        names[decision.image.machine_id] = decision.image.machine_name
    start = min(decision.image.stored for decision in decisions)
    label = max(len(name) for name in names.values())
    day = "%Y-%m-%d"
    axis = f"{_moment(start, day)}{_moment(now, day):>{width - 10}}"
    lines = [f"{'':{label}}  {axis}  kept removed"]
    for machine, found in sorted(machines.items(), key=lambda item: (names[item[0]], item[0])):
        marks = [" "] * width
        for decision in found:
            share = (decision.image.stored - start) / max(now - start, 1)
            column = min(max(int(share * width), 0), width - 1)
            marks[column] = _merge(marks[column], _mark(decision))
        kept = sum(decision.keep for decision in found)
        bar = "".join(marks)
        lines.append(f"{names[machine]:{label}}  {bar}  {kept:>4} {len(found) - kept:>7}")
    return lines


def _mark(decision: Decision) -> str:
    if decision.doubt is not None:
        return _DOUBTFUL
    return _KEPT if decision.keep else _REMOVED


def _merge(before: str, new: str) -> str:
    if before in {" ", new}:
        return new
    return _DOUBTFUL if _DOUBTFUL in {before, new} else _BOTH


def _moment(seconds: float, form: str) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime(form)
    except (ValueError, OverflowError, OSError):
        return "no such day"[:10]
