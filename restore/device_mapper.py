"""Block devices put together from pieces of others, through the kernel's device-mapper."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imager import process
from imager.errors import ProgramError

_SECTOR: Final = 512  # device-mapper's unit, whatever the devices'
# Nobody else shall take such a device for one of the machine's, or hold up its end.
_ALONE: Final = ("--noudevrules", "--noudevsync")


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a block device; all bytes are multiples of its logical sector.

    Attributes:
        device: which.
        offset: first byte.
        length: bytes.
    """

    device: Path
    offset: int
    length: int


@contextmanager
def linear(purpose: str, segments: Sequence[Segment], *, read_only: bool = False) -> Iterator[Path]:
    """Let pieces, one behind the other, be one block device for a while.

    What was written to it is on the pieces' devices when it ends; their own caches don't know.

    Args:
        purpose: becomes a part of its name.
        segments: the pieces; device-mapper claims their devices.
        read_only: nobody can write to it.

    Raises:
        ProgramError: the kernel can't, or a device is in use.
    """
    name = f"remetal-{os.getpid()}-{re.sub('[^A-Za-z0-9]+', '-', purpose)}"
    lines, position = [], 0
    for segment in segments:
        sectors = segment.length // _SECTOR
        lines.append(f"{position} {sectors} linear {segment.device} {segment.offset // _SECTOR}\n")
        position += sectors
    process.run("modprobe", "dm-mod")
    mode = ("--readonly",) if read_only else ()
    try:
        process.run("dmsetup", "create", name, *mode, *_ALONE, stdin="".join(lines).encode())
    except BaseException:  # a stop request comes at any time
        with suppress(ProgramError):
            _remove(name)
        raise
    try:
        # The kernel itself makes a node of this name, whether udev runs or not.
        words = ("--columns", "--noheadings", "--options", "minor")
        yield Path(f"/dev/dm-{process.run('dmsetup', 'info', *words, name).strip()}")
    finally:
        _remove(name)


def _remove(name: str) -> None:
    # udev may be looking at it just now.
    process.run("dmsetup", "remove", "--retry", *_ALONE, name)
