"""A power cut while targets are written, by the weakest promise that disks make.

What was written since the last flush of a target is there or not, sector by sector, in whatever
order: of a sector that was written twice, any of the three contents may be left.
"""

import os
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

SECTOR = 512


class PowerCut(BaseException):
    """Not an Exception: nothing may go on after it."""


class Power:
    """Watches what is written and flushed, and cuts it off before a given operation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = -1
        self.count = 0
        self.written = 0
        self._versions: dict[tuple[Path, int], list[bytes]] = {}
        self._pwritev = os.pwritev
        monkeypatch.setattr(os, "pwritev", self._write)
        monkeypatch.setattr(os, "fdatasync", self._flush)

    def cut_after(self, operations: int) -> None:
        self.left = operations

    def never_cut(self) -> None:
        self.left = -1

    def lose(self, chance: random.Random) -> None:
        """Leave of everything that was not flushed what a disk may leave."""
        self._leave(lambda _, versions: chance.choice(versions))

    def lose_only(self, start: int, end: int) -> None:
        """Lose what was not flushed of a range of bytes; all else was stored in time."""

        def choose(sector: int, versions: Sequence[bytes]) -> bytes:
            return versions[0 if start <= sector * SECTOR < end else -1]

        self._leave(choose)

    def _leave(self, choose: Callable[[int, Sequence[bytes]], bytes]) -> None:
        with ExitStack() as stack:
            files = {
                path: stack.enter_context(path.open("r+b"))
                for path in {path for path, _ in self._versions}
            }
            for (path, sector), versions in self._versions.items():
                files[path].seek(sector * SECTOR)
                files[path].write(choose(sector, versions))
        self._versions.clear()

    def _tick(self) -> None:
        if self.left == 0:
            raise PowerCut
        self.left -= 1
        self.count += 1

    def _write(self, descriptor: int, parts: Sequence[memoryview], offset: int) -> int:
        self._tick()
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        size = sum(map(len, parts))
        before = self._sectors(path, offset, size)
        count = self._pwritev(descriptor, parts, offset)
        self.written += count
        after = self._sectors(path, offset, size)
        for sector, content in after.items():
            if content != before[sector]:
                versions = self._versions.setdefault((path, sector), [before[sector]])
                versions.append(content)
        return count

    def _flush(self, descriptor: int) -> None:  # nothing that is tested here waits for a disk
        self._tick()
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        self._versions = {
            place: versions for place, versions in self._versions.items() if place[0] != path
        }

    @staticmethod
    def _sectors(path: Path, offset: int, size: int) -> dict[int, bytes]:
        first = offset // SECTOR
        with path.open("rb") as file:
            data = os.pread(file.fileno(), offset + size - first * SECTOR, first * SECTOR)
        return {
            first + place // SECTOR: data[place : place + SECTOR]
            for place in range(0, len(data), SECTOR)
        }
