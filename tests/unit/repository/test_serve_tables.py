"""The tables of SERVE.md against the constants of the code."""

import io
import re
from enum import IntEnum
from pathlib import Path

import pytest

from imager.errors import MalformedAnswer
from imager.repository.backend import frames
from imager.repository.backend.frames import Fault, Greeting, Kind, Put, Role
from imager.repository.backend.protocol import Entry
from imager.repository.backend.serve import IDLE_SECONDS

TEXT = Path(frames.__file__).with_name("SERVE.md").read_text("utf-8")
NAME = "packs/ab"


def section(number: int) -> str:
    found = re.search(rf"^## {number}\. .*?(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found
    return found[0]


def offsets(number: int) -> list[tuple[int, int]]:
    """Return where the fields of a section lie, and how long the last one is in all."""
    rows = re.findall(r"^\| (\d+) \| (\d+|\.\.\.) \|", section(number), re.MULTILINE)
    return [(int(place), 0 if size == "..." else int(size)) for place, size in rows]


@pytest.mark.parametrize(("number", "codes"), [(3, Kind), (5, Role), (9, Fault)])
def test_numbers(number: int, codes: type[IntEnum]) -> None:
    rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", section(number), re.MULTILINE)
    assert [(int(code), name) for code, name in rows] == [(code.value, code.name) for code in codes]


@pytest.mark.parametrize(
    ("number", "encoded", "rest"),
    [
        (2, b"".join(frames.frame(Kind.GET, NAME.encode())), len(NAME)),
        (4, Greeting(1, Role.READ_ONLY, 0).encode(), 0),
        (6, Put(NAME, 0, 0.0).encode(), len(NAME)),
        (7, frames.range_of(NAME, 0, 0), len(NAME)),
        (8, frames.entry(Entry(NAME, 0, 0.0)), len(NAME)),
    ],
)
def test_offsets(number: int, encoded: bytes, rest: int) -> None:
    rows = offsets(number)
    place = 0
    for offset, size in rows:
        assert offset == place
        place += size
    assert len(encoded) == place + rest


def test_every_field_is_where_the_tables_say() -> None:
    greeting = Greeting(1, Role.MAY_DELETE, 0x0102).encode()
    assert greeting[:15] == b"remetal serve\x01\x02"
    assert greeting[15:] == (0x0102).to_bytes(8)
    assert Put(NAME, 7, 1.0).encode() == (7).to_bytes(8) + b"\x3f\xf0" + bytes(6) + NAME.encode()
    assert frames.range_of(NAME, 7, 9) == (7).to_bytes(8) + (9).to_bytes(8) + NAME.encode()
    entry = frames.entry(Entry(NAME, 7, 1.0))
    assert entry == (7).to_bytes(8) + b"\x3f\xf0" + bytes(6) + (8).to_bytes(2) + NAME.encode()
    assert frames.error(Fault.LOCKED, "why") == b"\x06why"


def test_limits() -> None:
    assert f"at most {frames.MOST_PAYLOAD:,}" in section(2)
    assert f"at most {frames.MOST_TEXT:,} bytes" in section(2)
    assert f"at most {frames.MOST_TEXT:,} bytes" in section(9)
    assert f"{frames.DIGEST} bytes" in section(3)
    assert f"version {frames.VERSION}\n" in TEXT
    assert f"{IDLE_SECONDS // 60} minutes" in section(10)


def test_kinds_without_a_payload_have_none() -> None:
    rows = re.findall(r"^\| \d+ \| ([A-Z_]+) \| \w+ \| empty \|", section(3), re.MULTILINE)
    assert len(rows) == 7
    for name in rows:
        data = io.BytesIO(b"".join(frames.frame(Kind[name], b"x")))
        with pytest.raises(MalformedAnswer):
            frames.read_frame(data.read)
