"""A console as lines of plain text, for a person who watches."""

import re
from collections.abc import Callable
from typing import Final

# Control sequences (colours, cursor), other escapes, and what is not printable.
_NOISE: Final = re.compile(r"\x1b\[[0-9;?=]*[A-Za-z]|\x1b.|[\x00-\x1f\x7f]")
_WIDTH: Final = 110


class ConsoleTail:
    """Receives the output of a serial port piece by piece and hands over whole lines.

    Args:
        line: called with every line that holds something, cut to a readable length.
    """

    def __init__(self, line: Callable[[str], None]) -> None:
        self._line = line
        self._rest = b""

    def __call__(self, data: bytes) -> None:
        """Take the next piece."""
        *whole, self._rest = re.split(rb"[\r\n]+", self._rest + data)
        for raw in whole:
            text = _NOISE.sub("", raw.decode(errors="replace")).strip()
            if text:
                self._line(text[:_WIDTH])
