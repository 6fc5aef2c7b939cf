"""Bytes that can be written, over bytes that can't: what is written stays in memory, up to a bound."""

import re
import threading
from pathlib import Path
from typing import Final, Protocol

from imager.errors import NoRoom
from imager.units import KIB, MIB, format_size

_BLOCK: Final = 4 * KIB
_ZEROS: Final = bytes(_BLOCK)
_LEAST_KEPT: Final = 64 * MIB
_SHARE_KEPT: Final = 4  # of the memory that is free: this part
_AVAILABLE: Final = re.compile(r"^MemAvailable:\s*(\d+) kB", re.MULTILINE)


def most_kept() -> int:
    """Return bytes that an overlay may keep in the memory of this machine.

    They are for what programs write beside their work: the replay of a journal, what they move twice.
    """
    found = _AVAILABLE.search(Path("/proc/meminfo").read_text())
    return max(int(found[1]) * KIB // _SHARE_KEPT if found else 0, _LEAST_KEPT)


class Readable(Protocol):
    """Bytes at any place, for any thread."""

    @property
    def size(self) -> int:
        """Bytes."""

    def read(self, offset: int, length: int) -> bytearray:
        """Return bytes, in memory that is the caller's."""


class Overlay:
    """What was written, else what lies below. Safe from any thread.

    Args:
        below: never written to.
        most: bytes that may be written to different places; blocks of zeros don't count.
    """

    def __init__(self, below: Readable, most: int) -> None:
        self.size: int = below.size
        self._below = below
        self._most = most
        self._blocks: dict[int, bytes] = {}
        self._held = 0
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytearray:
        """Return bytes as they were written last, or as they lie below.

        Raises:
            RemetalError: whatever reading below raises.
        """
        numbers = range(offset // _BLOCK, -(-(offset + length) // _BLOCK))
        with self._lock:
            is_whole = all(number in self._blocks for number in numbers)
        found = bytearray(length) if is_whole else self._below.read(offset, length)
        with self._lock:
            for number in numbers:
                block = self._blocks.get(number)
                if block is not None:
                    start = max(offset, number * _BLOCK)
                    stop = min(offset + length, number * _BLOCK + len(block))
                    place = number * _BLOCK
                    found[start - offset : stop - offset] = block[start - place : stop - place]
        return found

    def write(self, offset: int, data: memoryview) -> None:
        """Keep bytes; two writes to one block at once are for one thread.

        Raises:
            NoRoom: more is written than may be kept.
            RemetalError: whatever reading below raises, for a part of a block.
        """
        end = offset + len(data)
        for number in range(offset // _BLOCK, -(-end // _BLOCK)):
            place = number * _BLOCK
            start, stop = max(offset, place), min(end, place + _BLOCK, self.size)
            piece = data[start - offset : stop - offset]
            size = min(_BLOCK, self.size - place)
            if len(piece) < size:
                whole = self.read(place, size)
                whole[start - place : stop - place] = piece
                self._keep(number, bytes(whole))
            else:
                self._keep(number, bytes(piece))

    def _keep(self, number: int, block: bytes) -> None:
        kept = _ZEROS if block == _ZEROS else block
        with self._lock:
            old = self._blocks.get(number, _ZEROS)
            held = self._held + (kept is not _ZEROS) - (old is not _ZEROS)
            if held * _BLOCK > self._most:
                raise NoRoom(
                    f"more than {format_size(self._most)} would have to be kept in memory",
                    hint="Do this on a machine with more memory.",
                )
            self._held = held
            self._blocks[number] = kept
