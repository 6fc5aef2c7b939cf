"""`python -m tests.torture`: run the points and print what was lost and what lied."""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.torture.campaign import prepare, spread
from tests.torture.operations import OPERATIONS
from tests.torture.points import Outcome, Point

_WORST = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 when nothing is wrong, 1 when something is, 2 when no point ran."""
    options = _parse(arguments)
    console = Console(stderr=options.json)
    memory = Path("/dev/shm")  # noqa: S108 - a filesystem in memory, below it a fresh directory
    parent = memory if memory.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="remetal-torture-", dir=parent) as folder:
        campaign = prepare(Path(folder), frozenset(options.only))
        points = [Point.parse(text) for text in options.point] or list(campaign.points)
        if not options.point:
            points = spread(points, options.seed)
        budget = options.seconds or float("inf")
        console.print(f"{len(points)} points, seed {options.seed}, {options.workers} workers")
        outcomes = []
        began = told = time.monotonic()
        for outcome in campaign.run(points, options.workers, began + budget):
            outcomes.append(outcome)
            if not outcome.verdict.is_clean:
                _tell(console, outcome)
            if time.monotonic() - told > 10:
                told = time.monotonic()
                rate = len(outcomes) / (told - began)
                left = min((len(points) - len(outcomes)) / rate, budget - (told - began))
                console.print(f"{len(outcomes)} points, {rate:.1f}/s, {left:.0f} s left")
        seconds = time.monotonic() - began
    document = summary(outcomes, options.seed, seconds)
    if options.json:
        print(json.dumps(document, indent=2))  # noqa: T201
    _print(console, outcomes, document)
    if not document["points"]:
        return 2
    return int(any(not outcome.verdict.is_clean for outcome in outcomes))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [operation.name for operation in OPERATIONS]
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print a JSON document")
    parser.add_argument("--seconds", type=float, help="stop after this time; default: all points")
    parser.add_argument("--only", action="append", default=[], choices=names)
    parser.add_argument("--point", action="append", default=[], help="as printed with a failure")
    parser.add_argument("--seed", type=int, default=1, help="of the order of points")
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args(arguments)


def summary(outcomes: Sequence[Outcome], seed: int, seconds: float) -> dict[str, object]:
    """Return the totals; a point that the operation ended before does not count."""
    fired = [outcome for outcome in outcomes if outcome.fired]
    rows = Counter((outcome.point.operation, outcome.point.kind) for outcome in fired)
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "points": len(fired),
        "not_reached": len(outcomes) - len(fired),
        "images_lost": sum(len(outcome.verdict.lost) for outcome in outcomes),
        "lies": sum(len(outcome.verdict.lies) for outcome in outcomes),
        "sent_again": sum(len(outcome.verdict.again) for outcome in outcomes),
        "errors": sum(len(outcome.verdict.errors) for outcome in outcomes),
        "rows": [
            {"operation": operation, "kind": kind, "points": count}
            for (operation, kind), count in sorted(rows.items())
        ],
        "failed": [str(outcome.point) for outcome in outcomes if not outcome.verdict.is_clean],
    }


def _tell(console: Console, outcome: Outcome) -> None:
    verdict = outcome.verdict
    console.print(f"\n--point '{outcome.point}'", style="bold", markup=False)
    for name in ("lost", "lies", "again", "errors"):
        for text in getattr(verdict, name):
            console.print(f"  {name}: {text}", markup=False)
    for line in outcome.trace:
        console.print(f"    {line}", markup=False, highlight=False)


def _print(console: Console, outcomes: Sequence[Outcome], document: dict[str, object]) -> None:
    table = Table("operation", "fault", "points", "images lost", "lies", "sent again", "errors")
    rows: dict[tuple[str, str], Counter[str]] = {}
    for outcome in outcomes:
        row = rows.setdefault((outcome.point.operation, outcome.point.kind), Counter())
        row["points"] += outcome.fired
        for name in ("lost", "lies", "again", "errors"):
            row[name] += len(getattr(outcome.verdict, name))
    for (operation, kind), row in sorted(rows.items()):
        counts = [str(row[name]) for name in ("points", "lost", "lies", "again", "errors")]
        table.add_row(operation, kind, *counts)
    console.print(table)
    console.print(
        f"{document['points']} points in {document['seconds']} s, "
        f"images lost {document['images_lost']}, lies {document['lies']}, "
        f"sent again {document['sent_again']}, errors {document['errors']}"
    )


if __name__ == "__main__":
    sys.exit(main())
