"""Which network cards an image tells of, and whether it knows what they are called."""

from dataclasses import replace
from pathlib import Path

from imager.layout.network import NetworkCard
from imager.probe.network import read_cards

CARD = NetworkCard("enp1s0", ("enp1s0",), "52:54:00:aa:00:01", "igb", "0000:01:00.0")
SDA, SDB = Path("/dev/sda"), Path("/dev/sdb")


def fail() -> tuple[NetworkCard, ...]:
    raise FileNotFoundError


def test_the_captured_system_knows_what_it_calls_its_cards() -> None:
    assert read_cards([SDA, SDB], [SDA], lambda: (CARD,)) == (CARD,)


def test_the_names_of_a_rescue_system_are_not_those_of_the_captured_one() -> None:
    for system in ([], [Path("/dev/sdc")]):
        assert read_cards([SDA, SDB], system, lambda: (CARD,)) == (replace(CARD, name=None),)


def test_a_capture_never_fails_for_them() -> None:
    assert read_cards([SDA], [SDA], fail) == ()
