"""How much, and how fast, one key may send to `remetal serve`, over all its connections."""

import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imager.units import DAY

PERIOD: Final = 30 * DAY
LEAST: Final = 4096  # bytes that an object counts: what a filesystem takes for it, even if empty
# Bytes that count against the quota, when they were counted, and when the line is free again.
_STATE: Final = struct.Struct("<ddd")


@dataclass(frozen=True, slots=True)
class Budget:
    """What is left of a key's quota and rate, kept in a file that its connections share.

    The quota is a bucket that leaks: a key may add it at once, and it comes back evenly within
    thirty days. What was begun when a connection was killed stays counted.

    Attributes:
        path: of the file; it is made when it is missing.
        quota: bytes in thirty days; None for no bound.
        rate: bytes per second, both ways together; None for no bound.
    """

    path: Path
    quota: int | None
    rate: int | None

    def reserve(self, size: int) -> bool:
        """Count an object that is about to come; whether there is room for it in the quota."""
        if self.quota is None:
            return True
        with self._state() as state:
            now = time.time()
            leaked = max(0.0, now - state.counted) * self.quota / PERIOD
            used = max(0.0, state.used - leaked)
            fits = used + _counted(size) <= self.quota
            state.used, state.counted = used + (_counted(size) if fits else 0), now
        return fits

    def give_back(self, size: int) -> None:
        """Count an object no longer: it did not come, or was there."""
        if self.quota is not None:
            with self._state() as state:
                state.used = max(0.0, state.used - _counted(size))

    def spend(self, size: int) -> None:
        """Wait until so many bytes may pass."""
        if self.rate is None:
            return
        with self._state() as state:
            now = time.time()
            # A clock that was set back does not stop the line for longer than a second.
            free = min(state.free, now + 1.0 + size / self.rate)
            begin = max(now, free)
            state.free = begin + size / self.rate
        if begin > now:
            time.sleep(begin - now)

    @contextmanager
    def _state(self) -> Iterator["_State"]:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            held = os.pread(descriptor, _STATE.size, 0)
            state = _State(*(_STATE.unpack(held) if len(held) == _STATE.size else (0.0, 0.0, 0.0)))
            yield state
            os.pwrite(descriptor, _STATE.pack(state.used, state.counted, state.free), 0)
        finally:
            os.close(descriptor)


def _counted(size: int) -> int:
    return max(size, LEAST)


@dataclass(slots=True)
class _State:
    used: float
    counted: float
    free: float
