"""A console as lines of plain text, for a person who watches."""

import re
from collections.abc import Callable
from typing import Final

# Control sequences (colours, cursor), other escapes, and what is not printable.
_NOISE: Final = re.compile(r"\x1b\[[0-9;?=]*[A-Za-z]|\x1b.|[\x00-\x1f\x7f]")
_WIDTH: Final = 110
_MOST_KEPT: Final = 4096  # bytes of a line without end


class ConsoleTail:
    """Receives the output of a serial port piece by piece and hands over readable text.

    Args:
        line: called with every finished line that holds something, cut to a readable length; of
            a line that is drawn again and again, as a progress bar is, with the last version.
        glimpse: called with every version of every line.
    """

    def __init__(self, line: Callable[[str], None], glimpse: Callable[[str], None]) -> None:
        self._line = line
        self._glimpse = glimpse
        self._rest = b""

    def __call__(self, data: bytes) -> None:
        """Take the next piece."""
        *whole, rest = (self._rest + data).split(b"\n")
        for raw in whole:
            versions = _versions(raw)
            if versions:
                self._glimpse(versions[-1])
                self._line(versions[-1])
        if b"\r" in rest:
            versions = _versions(rest.rpartition(b"\r")[0])
            if versions:
                self._glimpse(versions[-1])
        self._rest = rest[-_MOST_KEPT:]


def _versions(raw: bytes) -> list[str]:
    """Return the texts that a line showed one after the other, without empty ones."""
    texts = (
        _NOISE.sub("", text).strip()[:_WIDTH] for text in raw.decode(errors="replace").split("\r")
    )
    return [text for text in texts if text]
