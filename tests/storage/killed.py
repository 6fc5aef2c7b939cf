"""Restores in a process of their own that is killed before one of its writes, flushes or ioctls."""

import fcntl
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from restored_disks import Saved

from restore import targets, windows

WINDOW = 6


@dataclass(frozen=True)
class End:
    """How a process ended: its exit code, or -9; and what it has written to disks, in bytes."""

    code: int
    written: int
    operations: int


def restore(saved: Saved, *words: str, kill_at: int = -1, discards: bool = False) -> End:
    """Run `remetal restore` with small windows.

    Args:
        saved: the repository.
        words: of the command.
        kill_at: number of the operation before which it is killed; by default it is not.
        discards: let disks discard what they can.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        code = 99
        try:
            os.close(reader)
            with Path(os.devnull).open("w") as nothing:
                os.dup2(nothing.fileno(), 1)
                _watch(kill_at, writer)
                windows.WINDOW = WINDOW  # type: ignore[misc]
                if not discards:
                    targets._discards = lambda _: False
                code = saved.restore(*words)
        finally:
            sys.stdout.flush()
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        sizes = [int(line) for line in pipe.read().split()]
    _, status = os.waitpid(child, 0)
    return End(os.waitstatus_to_exitcode(status), sum(sizes), len(sizes))


def _watch(kill_at: int, pipe: int) -> None:
    """Count what is done to disks, and tell it; kill this process when it is time."""
    lock = threading.Lock()
    seen = 0

    def count(size: int) -> None:
        nonlocal seen
        with lock:
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1
            os.write(pipe, b"%d\n" % size)

    def watched(function: Callable[..., object], size: Callable[..., int]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            count(size(*arguments))
            return function(*arguments)

        return call

    def of_parts(_fd: int, parts: list[memoryview], _offset: int) -> int:
        return sum(map(len, parts))

    def nothing(*_: object) -> int:
        return 0

    os.pwritev = watched(os.pwritev, of_parts)  # type: ignore[assignment]
    os.fdatasync = watched(os.fdatasync, nothing)  # type: ignore[assignment]
    fcntl.ioctl = watched(fcntl.ioctl, nothing)  # type: ignore[assignment]
