"""Which network card here takes the place of which saved one."""

import json
from pathlib import Path

import pytest

from imager.errors import UsageError
from imager.layout.network import NetworkCard
from restore.cards import CardBasis, CardMatch, crossed_names, free_cards, match_cards, parse_nics
from restore.unattended import read_order


def card(name: str | None, mac: int | None, place: str, driver: str = "igb") -> NetworkCard:
    address = None if mac is None else f"52:54:00:00:00:{mac:02x}"
    return NetworkCard(name, (f"en{place[5:7]}",), address, driver, place)


A = card("eth0", 1, "0000:01:00.0")
B = card("eth1", 2, "0000:02:00.0")


def places(matches: tuple[CardMatch, ...]) -> list[tuple[str | None, CardBasis | None]]:
    return [(match.here.place if match.here else None, match.basis) for match in matches]


@pytest.mark.parametrize(
    ("saved", "here", "expected"),
    [
        pytest.param(
            (A, B), (B, A), [(A.place, CardBasis.MAC), (B.place, CardBasis.MAC)], id="all the same"
        ),
        pytest.param(
            (A, B),
            (card("x", 2, "0000:01:00.0"), card("y", 9, "0000:02:00.0")),
            [("0000:02:00.0", CardBasis.ONLY_ONE), ("0000:01:00.0", CardBasis.MAC)],
            id="an address goes before a place",
        ),
        pytest.param(
            (A, B),
            (card("x", 8, "0000:07:00.0"), card("y", 9, "0000:01:00.0")),
            [("0000:01:00.0", CardBasis.PLACE), ("0000:07:00.0", CardBasis.ONLY_ONE)],
            id="same place and driver, and what is left",
        ),
        pytest.param(
            (A,),
            (card("x", 8, "0000:01:00.0", "e1000e"), card("y", 9, "0000:07:00.0")),
            [(None, None)],
            id="the same place with another driver is no sign",
        ),
        pytest.param(
            (B, A),
            (card("x", 8, "0000:0a:00.0"), card("y", 9, "0000:07:00.0")),
            [("0000:0a:00.0", CardBasis.ORDER), ("0000:07:00.0", CardBasis.ORDER)],
            id="in the order of places",
        ),
        pytest.param((A, B), (card("x", 8, "0000:07:00.0"),), [(None, None)] * 2, id="too few"),
        pytest.param((A,), (), [(None, None)], id="none here"),
        pytest.param(
            (card("a", None, "0000:01:00.0"),),
            (card("b", 1, "0000:01:00.0"), card("c", None, "0000:02:00.0")),
            [("0000:01:00.0", CardBasis.PLACE)],
            id="no address at all is not the same address",
        ),
        pytest.param(
            (A, card("twin", 1, "0000:03:00.0")),
            (card("x", 1, "0000:03:00.0"), card("y", 1, "0000:01:00.0")),
            [("0000:01:00.0", CardBasis.PLACE), ("0000:03:00.0", CardBasis.PLACE)],
            id="cards that share an address",
        ),
        pytest.param(
            (A, card("twin", 1, "0000:03:00.0")),
            (card("x", 1, "0000:03:00.0"),),
            [(None, None), ("0000:03:00.0", CardBasis.PLACE)],
            id="saved cards that share an address",
        ),
    ],
)
def test_what_takes_the_place_of_a_card(
    saved: tuple[NetworkCard, ...],
    here: tuple[NetworkCard, ...],
    expected: list[tuple[str | None, CardBasis | None]],
) -> None:
    assert places(match_cards(saved, here)) == expected


HERE = (card("x", 8, "0000:07:00.0"), card("y", 9, "0000:0a:00.0"))


@pytest.mark.parametrize(
    "named",
    [
        {"eth0": "52:54:00:00:00:09"},
        {"52:54:00:00:00:01": "y"},
        {"52-54-00-00-00-01": "52-54-00-00-00-09"},
        {"en01": "0000:0a:00.0"},
    ],
)
def test_what_a_person_says_goes_before_everything(named: dict[str, str]) -> None:
    assert places(match_cards((A, B), HERE, named=named)) == [
        ("0000:0a:00.0", CardBasis.NAMED),
        ("0000:07:00.0", CardBasis.ONLY_ONE),
    ]


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ({"eth7": "x"}, "this image has no network card eth7"),
        ({"eth0": "52:54:00:00:00:77"}, "this machine has no network card 52:54"),
        ({"eth0": "x", "52:54:00:00:00:01": "y"}, "names eth0 twice"),
        ({"eth0": "x", "eth1": "x"}, "to two saved cards"),
    ],
)
def test_what_names_no_one_card_is_refused(named: dict[str, str], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        match_cards((A, B), HERE, named=named)


def test_the_option() -> None:
    assert parse_nics(["eth0=52:54:00:00:00:09", "eth1=y"]) == {
        "eth0": "52:54:00:00:00:09", "eth1": "y",
    }  # fmt: skip
    for wrong in (["eth0"], ["=x"], ["eth0="], ["eth0=x", "eth0=y"]):
        with pytest.raises(UsageError, match="--nic"):
            parse_nics(wrong)


def test_an_order_names_cards(tmp_path: Path) -> None:
    order = {"repository": "r", "image": "latest", "recovery_key": "k", "passphrase_file": "p"}
    (tmp_path / "job.json").write_text(json.dumps({**order, "nics": {"eth0": "enp5s0"}}))
    assert read_order(tmp_path).nics == {"eth0": "enp5s0"}
    (tmp_path / "job.json").write_text(json.dumps(order))
    assert read_order(tmp_path).nics == {}


def test_what_differs_and_what_is_free() -> None:
    moved = card("x", 1, "0000:07:00.0")
    first, second, third = match_cards((A, B, card("eth2", 3, "0000:03:00.0")), (moved, B))
    assert [match.differs for match in (first, second, third)] == [True, False, False]
    assert free_cards((first, second, third), (moved, B, HERE[1])) == (HERE[1],)


def test_in_words() -> None:
    matches = match_cards((A, B), (HERE[1], B), linked=["y"])
    first, second = (match.describe() for match in matches)
    assert first == (
        "eth0, 52:54:00:00:00:01 (igb at 0000:01:00.0): becomes 52:54:00:00:00:09 (igb at "
        "0000:0a:00.0), has a link; chosen because: the only one left"
    )
    assert second == "eth1, 52:54:00:00:00:02 (igb at 0000:02:00.0): is here"
    (lost,) = match_cards((card(None, None, "1-1:1.0"),), ())
    assert lost.describe() == (
        f"{lost.saved.predicted[0]}, no address of its own (igb at 1-1:1.0): no card here takes its "
        "place"
    )


def test_names_that_udev_would_give_to_other_cards() -> None:
    moved = (card("x", 8, "0000:02:00.0", "e1000e"), card("y", 9, "0000:03:00.0", "e1000e"))
    saved = (card(None, 1, "0000:01:00.0"), card(None, 2, "0000:02:00.0"))
    assert crossed_names(match_cards(saved, moved), moved) == ("en02",)
    far = (card("x", 8, "0000:07:00.0"), card("y", 9, "0000:0a:00.0"))
    assert crossed_names(match_cards(saved, far), far) == ()
    assert crossed_names(match_cards(saved, saved), saved) == ()
