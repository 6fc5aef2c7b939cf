"""Sizes, durations and how they are written for people."""

import math
from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
HOUR: Final = 3600
DAY: Final = 24 * HOUR

_SUFFIXES: Final = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1 << 40, "P": 1 << 50}
_SPANS: Final = {"s": 1, "m": 60, "h": HOUR, "d": DAY, "w": 7 * DAY}
_LONGEST: Final = 1000 * 366 * DAY


def parse_size(text: str) -> int:
    """Turn `4096`, `64M`, `64MiB` or `1.5G` into bytes; suffixes are powers of 1024.

    Raises:
        ValueError: the text is no size, is negative, or is not a whole number of bytes.
    """
    body = text.strip().upper().removesuffix("IB").removesuffix("B")
    suffix = body[-1:] if body[-1:] in _SUFFIXES else ""
    number = float(body.removesuffix(suffix))
    size = number * _SUFFIXES[suffix]
    if not math.isfinite(size) or size < 0 or size != int(size):
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(size)


def format_size(size: int) -> str:
    """Write bytes for a person: `17 B`, `4.0 KiB`, `1.3 GiB`."""
    if abs(size) < KIB:
        return f"{size} B"
    value = float(size)
    for suffix in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if abs(value) < 1024:
            return f"{value:.1f} {suffix}"
    return f"{value / 1024:.1f} PiB"


def parse_duration(text: str) -> int:
    """Turn `90d`, `12h`, `30m`, `45s` or `2w` into seconds; the unit must be given.

    Raises:
        ValueError: the text is no duration, or one beyond a thousand years.
    """
    body = text.strip().lower()
    number, unit = body[:-1], body[-1:]
    if unit not in _SPANS or not (number.isascii() and number.isdigit()):
        raise ValueError(f"{text!r} is not a duration such as 90d, 12h, 30m or 2w")
    seconds = int(number[:20]) * _SPANS[unit]
    if seconds > _LONGEST:
        raise ValueError(f"{text!r} is more than a thousand years")
    return seconds


def format_duration(seconds: float) -> str:
    """Write seconds for a person: `4.2 s`, `3 min 07 s`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def round_up(value: int, step: int) -> int:
    """Return the smallest multiple of `step` that is at least `value`."""
    return -(-value // step) * step
