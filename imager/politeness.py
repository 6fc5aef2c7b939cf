"""Staying out of the way of what a machine is for."""

import contextlib
import os
from collections.abc import Iterator
from typing import Final

from imager import process
from imager.errors import ProgramError

_NICE: Final = 10
_IDLE_IO: Final = "3"
_NORMAL_IO: Final = "0"


@contextlib.contextmanager
def polite() -> Iterator[None]:
    """Let every other process go first, for the processor and for the disks, until the context ends.

    Threads that are started meanwhile do so as well. What the system does not allow is left out: a
    container may have no I/O classes, and only root becomes as important again as it was.
    """
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, max(before, _NICE))
    _set_io_class(_IDLE_IO)
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, before)
        _set_io_class(_NORMAL_IO)


def _set_io_class(number: str) -> None:
    with contextlib.suppress(ProgramError):
        process.run("ionice", "-c", number, "-p", str(os.getpid()))
