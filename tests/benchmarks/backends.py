"""The backends beside the clients that belong to the same stores, on loopback.

Both move the same files in turns, and each pair gives a ratio; the table shows medians. Everything
lies in memory, so that links and clients are measured and not a disk. The exit code is 1 when one
that must be fast is too slow.

    .venv/bin/python -m tests.benchmarks.backends --pairs 3 ssh
"""

import argparse
import hashlib
import random
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table

from imager.units import MIB
from tests.benchmarks import backends_mirror, backends_s3, backends_ssh
from tests.benchmarks.pairs import Row

# Given a folder of its own, the files to move, each named by its SHA-256, and the number of pairs.
Side = Callable[[Path, Sequence[Path], int], Iterable[Row]]

SIDES: Final[Mapping[str, Side]] = {
    "ssh": backends_ssh.rows,
    "mirror": backends_mirror.rows,
    "s3": backends_s3.rows,
}
FILES: Final = 16
FILE_SIZE: Final = 16 * MIB  # of a pack
PAIRS: Final = 9
_MEMORY: Final = Path("/dev/shm")  # noqa: S108  it is asked for


def run(names: Iterable[str], folder: Path, files: int, size: int, pairs: int) -> list[Row]:
    """Return what the sides of these names do, and say each row as soon as it is there."""
    source = folder / "source"
    source.mkdir()
    for number in range(files):
        data = random.Random(number).randbytes(size)
        (source / hashlib.sha256(data).hexdigest()).write_bytes(data)
    found = []
    for name in names:
        place = folder / name
        place.mkdir()
        for row in SIDES[name](place, sorted(source.iterdir()), pairs):
            sys.stderr.write(f"{row.subject} {row.verb}: {row.ratio:.2f} of {row.against}\n")
            found.append(row)
    return found


def table(rows: Iterable[Row]) -> Table:
    """Return the rows as a table."""
    shown = Table("", "", "MiB/s", "CPU s/GiB, client + server", "ratio", box=box.MARKDOWN)
    for row in rows:
        for who, runs in ((row.subject, row.ours), (row.against, row.theirs)):
            here, there = row.cpu(runs)
            ratio = f"{row.ratio:.2f}" if runs is row.ours else ""
            shown.add_row(
                row.verb, who, f"{row.rate(runs):.0f}", f"{here:.1f} + {there:.1f}", ratio
            )
    for column in shown.columns[2:]:
        column.justify = "right"
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(prog="backends", description=__doc__)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--files", type=int, default=FILES, help=f"of {FILE_SIZE // MIB} MiB")
    parser.add_argument("--folder", type=Path, default=_MEMORY, help="where all of it lies")
    parser.add_argument("sides", nargs="*", help=", ".join(SIDES), metavar="SIDE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-backends-", dir=options.folder) as folder:
        names = options.sides or SIDES
        rows = run(names, Path(folder), options.files, FILE_SIZE, options.pairs)
    Console(width=100, highlight=False).print(table(rows))
    slow = [row for row in rows if not row.is_fast_enough]
    for row in slow:
        what = f"{row.subject} {row.verb} has {row.ratio:.2f} of the rate of {row.against}"
        sys.stdout.write(f"{what}, and must have {row.least}\n")
    return int(bool(slow))


if __name__ == "__main__":
    sys.exit(main())
