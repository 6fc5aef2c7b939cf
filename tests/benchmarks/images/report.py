"""What was measured, as a table, as pictures, and raw."""

import os
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from imager.units import MIB
from tests.benchmarks.images.large import LARGE, SMALL, Point
from tests.benchmarks.images.rounds import LIMIT, Operation, Run
from tests.benchmarks.images.shows import Show
from tests.benchmarks.images.tools import LEVEL, REMETAL, TOOLS

_TITLES: Final[Mapping[Operation, str]] = {
    Operation.FULL: "full capture",
    Operation.UNCHANGED: "the same disk again",
    Operation.CHANGED: "2 % changed",
    Operation.SECOND: "second machine",
    Operation.RESTORE: "restore",
    Operation.DELTA: "restore --delta",
}
_OURS: Final = "#1a7f64"
_THEIRS: Final = "#5d7b93"
_LIMITS: Final = "#c9a227"


@dataclass(frozen=True, slots=True)
class Report:
    """All of one run of the benchmark.

    Attributes:
        scale: share of the full size.
        rounds: how often each was done.
        taken: what the disks are made of.
        used: bytes that the filesystem of each disk uses.
        versions: of each tool.
        runs: of the rounds.
        points: of the sparse disks and of scaling.
        shows: what they show.
    """

    scale: float
    rounds: int
    taken: str
    used: Mapping[str, int]
    versions: Mapping[str, str]
    runs: Sequence[Run]
    points: Sequence[Point]
    shows: Sequence[Show]


def write(report: Report, folder: Path) -> None:
    """Write `report.md`, `report.json`, and the pictures as SVG and PNG into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text("\n".join(lines(report)) + "\n")
    document = {"machine": machine(), **msgspec.to_builtins(report, enc_hook=str)}
    (folder / "report.json").write_bytes(
        msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
    )
    pictures = {"tools": _tools(report)} if report.runs else {}
    if any(point.what == "capture" for point in report.points):
        pictures["scaling"] = _scaling(report.points)
    for name, figure in pictures.items():
        for kind in ("svg", "png"):
            figure.savefig(folder / f"{name}.{kind}", bbox_inches="tight", dpi=120)


def machine() -> str:
    """Return what this ran on, in words."""
    text = Path("/proc/cpuinfo").read_text()
    names = [line.partition(":")[2] for line in text.splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / MIB / 1024
    count = len(os.sched_getaffinity(0))
    name = names[0].strip() if names else platform.machine()
    return f"{count} processors ({name}), {memory:.0f} GiB of memory, Linux {platform.release()}"


def lines(report: Report) -> Iterator[str]:
    """Yield the report as Markdown."""
    used = ", ".join(f"{name} {size / MIB:.0f}" for name, size in report.used.items())
    yield f"# remetal beside others, scale {report.scale:g}, medians of {report.rounds} rounds"
    yield ""
    yield f"On {machine()}."
    yield ""
    yield f"The disks: ext4, made of {report.taken}. MiB in use: {used}."
    yield (
        "Each run is a whole process, after a sync; what it reads (the disk, or what the tool keeps) lies in the page "
        "cache, read there just before. "
        f"zstd at level {LEVEL} where there is a choice. Peers that know no filesystem read deleted files too. "
        "A restore ends when what it wrote is on the disk: what a tool leaves to the page cache is synced within its time. "
        "Restored disks are compared file by file. The limit is native code on all processors, by its own clock; a capture of it stores nothing."
    )
    for operation in Operation:
        runs = [run for run in report.runs if run.operation is operation]
        if runs:
            yield ""
            yield from _table(_TITLES[operation], _rows(runs))
    sparse = [point for point in report.points if point.what == "sparse"]
    if sparse:
        yield ""
        yield from _table("sparse disk", _sparse_rows(sparse))
    scaling = [point for point in report.points if point.what != "sparse"]
    if scaling:
        yield ""
        yield from _table("scaling", _scaling_rows(scaling))
    yield ""
    yield from (line(show) for show in report.shows)


def line(show: Show) -> str:
    """Return a show in words."""
    said = {True: "met", False: "NOT MET", None: "not measured"}[show.is_met]
    value = "-" if show.value is None else f"{show.value:.3g}"
    return f"- Show {show.number}: {show.what}: {value} ({show.side} {show.bound:g}): {said}"


_Row = tuple[str, ...]


def _table(title: str, rows: Sequence[_Row]) -> Iterator[str]:
    head, *body = rows
    yield "| " + " | ".join((title, *head[1:])) + " |"
    yield "|---" + "|---:" * (len(head) - 1) + "|"
    for row in body:
        yield "| " + " | ".join(row) + " |"


def _rows(runs: Sequence[Run]) -> list[_Row]:
    heads = ("", "wall s", "cpu s", "peak MiB", "stored MiB", "written MiB", "encryption")
    rows = [heads]
    for tool in dict.fromkeys(run.tool for run in runs):
        own = [run for run in runs if run.tool == tool]
        is_limit = tool == LIMIT
        rows.append(
            (
                "limit of the parts" if is_limit else tool,
                f"{_median(own, lambda run: run.seconds):.1f}",
                f"{_median(own, lambda run: run.cpu):.1f}",
                "-" if is_limit else f"{_median(own, lambda run: run.peak / MIB):.0f}",
                "-" if is_limit else f"{_median(own, lambda run: run.stored / MIB):.0f}",
                "-" if is_limit else f"{_median(own, lambda run: run.written / MIB):.0f}",
                REMETAL.encryption.partition(",")[0] if is_limit else TOOLS[tool].encryption,
            )
        )
    return rows


def _sparse_rows(points: Sequence[Point]) -> list[_Row]:
    rows: list[_Row] = [("", "files MiB", "wall s", "cpu s", "peak MiB")]
    for size in (SMALL, LARGE):
        own = [point for point in points if point.x == size]
        rows.append(
            (
                f"{size // 1024**3} GiB",
                f"{own[0].size / MIB:.0f}",
                f"{statistics.median(point.seconds for point in own):.1f}",
                f"{statistics.median(point.cpu for point in own):.1f}",
                f"{max(point.peak for point in own) / MIB:.0f}",
            )
        )
    return rows


def _scaling_rows(points: Sequence[Point]) -> list[_Row]:
    rows: list[_Row] = [("", "processors", "wall s", "cpu s", "MiB/s", "peak MiB")]
    for what, count in sorted({(point.what, point.x) for point in points}):
        own = [point for point in points if (point.what, point.x) == (what, count)]
        seconds = statistics.median(point.seconds for point in own)
        rows.append(
            (
                what,
                str(count),
                f"{seconds:.1f}",
                f"{statistics.median(point.cpu for point in own):.1f}",
                f"{own[0].size / MIB / seconds:.0f}",
                f"{max(point.peak for point in own) / MIB:.0f}",
            )
        )
    return rows


def _median(runs: Sequence[Run], value: Callable[[Run], float]) -> float:
    return statistics.median(value(run) for run in runs)


def _tools(report: Report) -> Figure:
    """Return bars of wall and cpu seconds for each operation."""
    operations = [
        operation
        for operation in Operation
        if any(run.operation is operation for run in report.runs)
    ]
    figure = Figure(figsize=(11, 2.6 * len(operations)))
    grid = figure.subplots(len(operations), 2, squeeze=False)
    for operation, (left, right) in zip(operations, grid, strict=True):
        runs = [run for run in report.runs if run.operation is operation]
        _bars(left, runs, lambda run: run.seconds, f"{_TITLES[operation]}: wall seconds")
        _bars(right, runs, lambda run: run.cpu, f"{_TITLES[operation]}: cpu seconds")
    figure.tight_layout()
    return figure


def _bars(axes: Axes, runs: Sequence[Run], value: Callable[[Run], float], title: str) -> None:
    colors = {LIMIT: _LIMITS, REMETAL.name: _OURS}
    tools = list(dict.fromkeys(run.tool for run in runs))
    values = [_median([run for run in runs if run.tool == tool], value) for tool in tools]
    bars = axes.barh(tools, values, color=[colors.get(tool, _THEIRS) for tool in tools])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _scaling(points: Sequence[Point]) -> Figure:
    """Return lines of throughput over the number of processors."""
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    colors = {"capture": _OURS, "restore": _THEIRS}
    for what in dict.fromkeys(point.what for point in points if point.what != "sparse"):
        own = [point for point in points if point.what == what]
        counts = sorted({point.x for point in own})
        rates = [
            statistics.median(point.size / MIB / point.seconds for point in own if point.x == count)
            for count in counts
        ]
        axes.plot(counts, rates, marker="o", label=what, color=colors.get(what, _LIMITS))
    axes.set_xticks(sorted({point.x for point in points if point.what != "sparse"}))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("processors")
    axes.set_ylabel("MiB of used bytes in a second")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
