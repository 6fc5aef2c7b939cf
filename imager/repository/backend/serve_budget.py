"""How much, and how fast, one key may send to `remetal serve`, over all its connections."""

import fcntl
import os
import struct
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imager.errors import OutputError
from imager.units import DAY

PERIOD: Final = 30 * DAY
LEAST: Final = 4096  # bytes that an object counts: what a filesystem takes for it, even if empty
_LARGEST_STEP: Final = 1 << 20
_LEAST_STEP: Final = 1 << 12
_SHARED_BY: Final = 8  # connections of one client
# Bytes that count against the quota, and when they were counted by the clock of the world; when the
# line is free again by the clock that runs since the machine started, and which start that was.
_STATE: Final = struct.Struct("<ddd16s")
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


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

    @property
    def step(self) -> int:
        """How many bytes to pass at once, so that none of a key's connections is silent for long."""
        step = _LARGEST_STEP if self.rate is None else max(_LEAST_STEP, self.rate // _SHARED_BY)
        return min(step, _LARGEST_STEP)

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
            now = time.monotonic()
            begin = max(now, state.free)
            state.free = begin + size / self.rate
        if begin > now:
            time.sleep(begin - now)

    @contextmanager
    def _state(self) -> Iterator["_State"]:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                held = os.pread(descriptor, _STATE.size, 0)
                state, boot = _State(), uuid.UUID(_BOOT.read_text().strip()).bytes
                if len(held) == _STATE.size:
                    used, counted, free, at = _STATE.unpack(held)
                    state = _State(used, counted, free if at == boot else 0.0)
                yield state
                words = _STATE.pack(state.used, state.counted, state.free, boot)
                os.pwrite(descriptor, words, 0)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise OutputError(
                f"the server can't count what this key sends: {error.strerror}",
                hint=f"Check {self.path.parent} there.",
            ) from error


def _counted(size: int) -> int:
    return max(size, LEAST)


@dataclass(slots=True)
class _State:
    used: float = 0.0
    counted: float = 0.0
    free: float = 0.0
