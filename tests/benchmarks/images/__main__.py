"""remetal beside its peers and beside the limit of its parts, in one run on the same disks.

As root, since filesystems are mounted. Needs about 50 GiB below --folder at full scale, and, at its end, writes
report.md, report.json, tools.svg and scaling.svg (and both as PNG) there. The exit code is 1 when a bound is not
met, 2 when a tool failed or restored other files than it was given.

    .venv/bin/python -m tests.benchmarks.images --scale 0.1 --pairs 1 --only full,restore --tools limit,remetal,restic
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from imager.units import GIB, format_size
from tests.benchmarks.images import large, report
from tests.benchmarks.images.corpus import build, machine_folders
from tests.benchmarks.images.measure import WentWrongError
from tests.benchmarks.images.rounds import LIMIT, Operation, Rounds, Tell
from tests.benchmarks.images.shows import shows
from tests.benchmarks.images.tools import TOOLS

PAIRS: Final = 2
FOLDER: Final = Path(".cache/bench")
ROOM: Final = 50 * GIB  # at full scale
NAMES: Final = (LIMIT, *TOOLS)


class Extra(StrEnum):
    """What is measured beside the rounds."""

    SPARSE = "sparse"
    SCALING = "scaling"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What to measure.

    Attributes:
        scale: share of 8 GiB, of which 5 GiB are used.
        pairs: rounds.
        only: operations and extras.
        tools: names, `limit` among them.
        folder: for disks, repositories and results.
        roots: folders whose files the disks are made of.
    """

    scale: float
    pairs: int
    only: Sequence[str]
    tools: Sequence[str]
    folder: Path
    roots: Sequence[Path]


def run(wishes: Wishes, tell: Tell) -> report.Report:
    """Measure, and write the report.

    Raises:
        WentWrongError: a tool failed, or restored other files.
    """
    versions = {name: TOOLS[name].version() for name in wishes.tools if name in TOOLS}
    corpus = build(wishes.folder, wishes.scale, tell, wishes.roots)
    work = wishes.folder.resolve() / "work"
    operations = [operation for operation in Operation if operation in wishes.only]
    points, runs = [], []
    if operations:
        runs = list(Rounds(corpus, work, tell).run(wishes.tools, operations, wishes.pairs))
    if Extra.SPARSE in wishes.only:
        points += large.sparse(work, wishes.pairs, tell)
    verdicts = shows(runs, corpus.used) + large.sparse_shows(points)
    if Extra.SCALING in wishes.only:
        points += large.scaling(corpus, work, wishes.pairs, tell)
    made = report.Report(
        wishes.scale, wishes.pairs, corpus.taken, corpus.used, versions, runs, points, verdicts
    )
    report.write(made, wishes.folder)
    return made


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = (*Operation, *Extra)
    parser.add_argument("--scale", type=float, default=1.0, help="share of 8 GiB")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="rounds; medians are shown")
    parser.add_argument("--only", type=_some(parts), default=parts, help=", ".join(parts))
    parser.add_argument("--tools", type=_some(NAMES), default=NAMES, help=", ".join(NAMES))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where all of it lies")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("filesystems are mounted: this needs root")
    options.folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(options.folder).free < options.scale * ROOM:
        parser.error(
            f"{options.folder} has not the {format_size(int(options.scale * ROOM))} needed"
        )
    os.environ["PATH"] = f"{(options.folder / 'peers' / 'bin').resolve()}:{os.environ['PATH']}"
    began = time.monotonic()

    def tell(what: str) -> None:
        sys.stderr.write(f"{(time.monotonic() - began) / 60:5.1f} min: {what}\n")

    wishes = Wishes(
        options.scale,
        options.pairs,
        options.only,
        options.tools,
        options.folder,
        machine_folders(),
    )
    try:
        made = run(wishes, tell)
    except WentWrongError as error:
        sys.stderr.write(f"bench: {error}\n")
        return 2
    sys.stdout.write("\n".join(report.lines(made)) + "\n")
    return int(any(show.is_met is False for show in made.shows))


def _some(names: Sequence[str]) -> Callable[[str], list[str]]:
    def chosen(text: str) -> list[str]:
        wanted = text.split(",")
        if unknown := set(wanted) - set(names):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there is {', '.join(names)}")
        return [name for name in names if name in wanted]

    return chosen


if __name__ == "__main__":
    sys.exit(main())
