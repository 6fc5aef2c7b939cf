"""Two questions beside the rounds: does a huge empty disk cost time, and do more processors help?"""

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imager.units import GIB, MIB
from tests.benchmarks.images import parts
from tests.benchmarks.images.corpus import Corpus, mkfs, mounted
from tests.benchmarks.images.measure import measure
from tests.benchmarks.images.rounds import Tell, warm
from tests.benchmarks.images.shows import MEMORY, Show, Side
from tests.benchmarks.images.tools import LEVEL, REMETAL, empty

SMALL: Final = 40 * GIB
LARGE: Final = 4096 * GIB
_SHARE: Final = 0.01
# What the size alone may add to the time that 1 % of used bytes take.
_MOST_ADDED: Final = 0.1


@dataclass(frozen=True, slots=True)
class Point:
    """A capture or restore under one condition, once.

    Attributes:
        what: was done.
        x: bytes of the disk, or processors.
        seconds: from start to end.
        cpu: seconds.
        peak: bytes of memory.
        size: bytes that it read or wrote: used ones.
    """

    what: str
    x: int
    seconds: float
    cpu: float
    peak: int
    size: int


def sparse(work: Path, count: int, tell: Tell, amount: int = SMALL // 100) -> list[Point]:
    """Capture disks of 40 GiB and 4 TiB with the same files.

    Each capture is the first one of its repository.

    Args:
        work: folder for all of it.
        count: how often.
        tell: is told of each.
        amount: bytes of the files, by default 1 % of the smaller disk.
    """
    empty(work)
    images = {}
    for size in (SMALL, LARGE):
        images[size] = work / f"{size // GIB}.img"
        mkfs(images[size], size)
        with mounted(images[size]) as place:
            for number in range(16):
                (place / f"file{number}").write_bytes(_content(number, amount // 16))
    found = []
    for number in range(count):
        for size in (SMALL, LARGE) if number % 2 == 0 else (LARGE, SMALL):
            folder = empty(work / "remetal")
            REMETAL.prepare(folder)
            warm([images[size]])
            os.sync()
            done = measure(REMETAL.capture(folder, images[size], "sparse"), work / "errors.log")
            point = Point("sparse", size, done.seconds, done.cpu, done.peak, amount)
            tell(
                f"sparse disk of {size // GIB} GiB, {amount / MIB:.0f} MiB of files, {number + 1} of {count}: "
                f"{point.seconds:.1f} s, {point.cpu:.1f} cpu s, {point.peak / MIB:.0f} MiB of memory"
            )
            found.append(point)
    empty(work)
    return found


def _content(seed: int, size: int) -> bytes:
    """Return bytes half of which compress away."""
    made = bytearray()
    while len(made) < size:
        made += os.urandom(2048) + bytes([seed]) * 2048
    return bytes(made[:size])


def sparse_shows(points: Sequence[Point]) -> list[Show]:
    """Return whether the size of a disk alone costs, beside what 1 % of it in use would cost.

    That is taken from the smaller disk: as many times its cpu seconds as 1 % are times its files.
    """
    if not points:
        return []
    cpu = {
        size: statistics.median(point.cpu for point in points if point.x == size)
        for size in (SMALL, LARGE)
    }
    filled = cpu[SMALL] * LARGE * _SHARE / points[0].size
    added = (cpu[LARGE] - cpu[SMALL]) / filled
    peak = max(point.peak for point in points) / MIB
    return [
        Show(
            5,
            "4 TiB sparse: what its size adds to the cpu that 1 % used would take",
            added,
            Side.AT_MOST,
            _MOST_ADDED,
        ),
        Show(5, "4 TiB sparse: most memory, MiB", peak, Side.AT_MOST, MEMORY / MIB),
    ]


def scaling(corpus: Corpus, work: Path, count: int, tell: Tell) -> list[Point]:
    """Capture and restore on 1, 2, 4, ... processors; and the same by the parts alone."""
    available = sorted(os.sched_getaffinity(0))
    numbers = [2**power for power in range(len(available).bit_length())]
    image, found = corpus.image("base"), []
    parts.prepare(image, empty(work) / "parts", LEVEL)
    for turn in range(count):
        for number in numbers if turn % 2 == 0 else numbers[::-1]:
            cpus = available[:number]
            folder, log = empty(work / "remetal"), work / "errors.log"
            REMETAL.prepare(folder)
            target = empty(work / "restored") / "disk.img"
            limit = parts.command("capture", work / "parts", image, LEVEL, number)
            for what, command in (
                ("capture", REMETAL.capture(folder, image, "scaling")),
                ("restore", REMETAL.restore(folder, "scaling", target)),
                ("limit of capture", limit),
            ):
                warm([image])
                os.sync()
                done = measure(command, log, cpus)
                seconds, cpu = done.seconds, done.cpu
                if command is limit:
                    seconds, cpu = parts.took(done)
                tell(
                    f"{what} on {number} of {len(available)} processors: {seconds:.1f} s, {cpu:.1f} cpu s"
                )
                used = corpus.used["base"]
                found.append(Point(what, number, seconds, cpu, done.peak, used))
    empty(work)
    return found
