"""Sizes and durations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imager.units import format_duration, format_size, parse_duration, parse_size, round_up


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("4096", 4096), ("64M", 64 << 20), ("64MiB", 64 << 20), ("1.5G", 3 << 29)],
)
def test_parse(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "G", "1.5", "ten", "1X", "inf", "nanM", "1e400"])
def test_no_size(text: str) -> None:
    with pytest.raises(ValueError):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(17, "17 B"), (1 << 12, "4.0 KiB"), (1_395_864_371, "1.3 GiB"), (1 << 50, "1.0 PiB")],
)
def test_format_size(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.21, "4.2 s"), (187, "3 min 07 s"), (7500, "2 h 05 min")]
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90d", 7_776_000), ("12h", 43_200), ("30m", 1800), ("2w", 1_209_600), ("45S", 45), ("0d", 0)],
)
def test_parse_duration(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "d", "90", "-1d", "1.5h", "1y", "d90", "²d", "9" * 5000 + "w"]
)
def test_no_duration(text: str) -> None:
    with pytest.raises(ValueError):
        parse_duration(text)


@given(st.integers(0, 1 << 60), st.integers(1, 1 << 30))
def test_round_up(value: int, step: int) -> None:
    rounded = round_up(value, step)
    assert rounded % step == 0
    assert value <= rounded < value + step
