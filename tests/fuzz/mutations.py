"""Changes to valid inputs: bytes that are changed, cut and repeated, and JSON that stays JSON."""

from __future__ import annotations

import json
from random import Random
from typing import Any

_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF)
_EDGES = (0, 1, 255, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
_HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 1.5, 1e308, float("inf"), "",
    "zz", "é" * 9, "\0", "\ud800", "ab" * 16, "ab" * 32, "AB" * 32, " ab" * 32, "A" * 100_000, [], {},
    "AAAA", "2099-01-01T00:00:00Z", "../../etc/passwd", "9999-99-99T99:99:99Z",
)  # fmt: skip


def mutate(data: bytes, random: Random) -> bytes:
    """Return a changed input, decided by `random` alone."""
    start = data.find(b"{", 0, 2)
    if start >= 0 and random.random() < 0.7:
        try:
            document = json.loads(data[start:])
        except (ValueError, RecursionError):
            pass
        else:
            return data[:start] + _json(document, random)
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        _edit(changed, random)
    return bytes(changed)


def _edit(data: bytearray, random: Random) -> None:
    place = random.randrange(len(data) + 1)
    match random.randrange(6):
        case 0:
            data[place : place + 1] = bytes([random.choice(_NUMBERS)])
        case 1:
            del data[place:]
        case 2:
            del data[place : place + random.randrange(1, 9)]
        case 3:
            data[place:place] = random.randbytes(random.randrange(1, 9))
        case 4:
            size = random.choice((2, 4, 8))
            number = random.choice(_EDGES) % (1 << 8 * size)
            data[place : place + size] = number.to_bytes(size, "little")
        case _:
            piece = data[place : place + random.choice((1, 4, 32, 40, 48))]
            other = random.randrange(len(data) + 1)
            data[other:other] = piece


def _json(document: Any, random: Random) -> bytes:
    holders = list(_holders(document))
    holder, key = random.choice(holders) if holders else ([document], 0)
    match random.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder["more"] = random.choice(_HOSTILE)
        case 2:
            holder[key] = [holder[key]] * random.choice((1, 2, 300))
        case 3:
            text = json.dumps(document)
            deep = random.choice((100, 2000, 100_000))
            return text.replace(":", ":" + "[" * deep + "]" * deep + ',"x":', 1).encode()
        case _:
            holder[key] = random.choice(_HOSTILE)
    return json.dumps(document).encode()


def _holders(value: Any) -> Any:
    keys = value.keys() if isinstance(value, dict) else range(len(value) * isinstance(value, list))
    for key in list(keys):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _holders(value[key])
