"""Each cell of the locking table: one process is held in the middle while another does all it does."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from imager.repository.repository import Repository
from tests.conftest import Tiny
from tests.racing import deeds
from tests.racing.actors import Actor, Moment, held

_PIECE = 1 << 20
_CHANCE = random.Random(3)
_PIECES = [_CHANCE.randbytes(_PIECE) for _ in range(6)]
CONTENT = {
    "kept": _PIECES[0] + _PIECES[1],
    "removed": _PIECES[1] + _PIECES[2],
    "condemned": _PIECES[0] + _PIECES[3],
    "new": _PIECES[1] + _PIECES[4],
    "newer": _PIECES[3] + _PIECES[5],
}
_UNWANTED = ("removed", "condemned")


@dataclass(frozen=True)
class Deed:
    """A row or column of the table, and where it is held."""

    work: Callable[[Tiny, Path, str], object]
    moments: tuple[Moment, ...]
    adds: bool = False


def _prune(tiny: Tiny, _scratch: Path, _name: str) -> object:
    there = deeds.images(tiny)
    return deeds.prune(tiny, frozenset(there[name] for name in _UNWANTED if name in there))


def _capture(tiny: Tiny, scratch: Path, name: str) -> object:
    return tiny.add({"disk": CONTENT[name]}, deeds.source(scratch, name), name)


DEEDS = {
    "capture": Deed(
        _capture,
        (
            Moment("put_new", "packs/", 1),
            Moment("put_new", "indexes/"),
            Moment("put_new", "images/"),
        ),
        adds=True,
    ),
    "images": Deed(lambda tiny, *_: deeds.images(tiny), (Moment("get", "images/"),)),
    "check": Deed(lambda tiny, *_: deeds.check(tiny), (Moment("get", "packs/", 2),)),
    # An image whose quarantine is over may go while it is restored, so another is.
    "restore": Deed(
        lambda tiny, *_: deeds.restore(tiny, "kept"), (Moment("get_range", "packs/", 1),)
    ),
    "prune": Deed(
        _prune,
        (
            Moment("put_new", "removals/"),  # phase two is about to begin
            Moment("delete", "packs/", 1),  # it is under way
            Moment("put_new", "packs/"),  # repacking
            Moment("put_new", "removals/", 1),  # phase one is about to end
        ),
    ),
    "repair": Deed(lambda tiny, *_: deeds.repair(tiny), (Moment("put_new", "indexes/"),)),
    "parity": Deed(lambda tiny, *_: deeds.parity(tiny), (Moment("put_new", "parity/", 1),)),
}
_CELLS = [
    pytest.param(
        first,
        moment,
        second,
        id=f"{first}-{moment.method}-{moment.prefix[:-1]}{moment.call}-{second}",
    )
    for first, deed in DEEDS.items()
    for moment in deed.moments
    for second in DEEDS
]


@pytest.fixture
def busy(tiny: Tiny, tmp_path: Path) -> Tiny:
    """A repository in which every deed has something to do."""
    for name in ("removed", "condemned", "kept"):  # so that packs hold some that stays, some not
        _capture(tiny, tmp_path, name)
    deeds.prune(tiny, frozenset({deeds.images(tiny)["removed"]}))
    deeds.end_quarantine(tiny)
    return tiny


@pytest.mark.parametrize(("first", "moment", "second"), _CELLS)
def test_both_complete(busy: Tiny, tmp_path: Path, first: str, moment: Moment, second: str) -> None:
    if first == "repair":
        for path in (busy.path / "indexes").iterdir():
            path.unlink()
    expected = {"kept"}
    with held(busy, moment, lambda tiny: DEEDS[first].work(tiny, tmp_path, "new")) as one:
        with Actor(lambda _: DEEDS[second].work(busy, tmp_path, "newer")) as other:
            ended = [other.wait()]
        one.go_on()
        ended.append(one.wait())
    for (word, what), name in zip(ended, (second, first), strict=True):
        assert word == "done", (name, what)
        if name == "check" and "repair" not in {first, second}:
            assert what == []  # what is added or removed meanwhile is no damage
        if name == "restore":
            assert what == {"kept": CONTENT["kept"]}
    expected |= {n for n, d in (("new", first), ("newer", second)) if DEEDS[d].adds}
    content = deeds.restore(busy)
    assert all(CONTENT[machine] == data for machine, data in content.items())
    assert expected <= set(content)
    _prune(busy, tmp_path, "")
    deeds.end_quarantine(busy)
    _prune(busy, tmp_path, "")
    content = deeds.restore(busy)
    assert {name: CONTENT[name] for name in expected} == content


def test_of_two_inits_one_wins(tmp_path: Path, recipient_key: object) -> None:
    place = tmp_path / "new"

    def init(pipe: object) -> object:
        def keep(repository: Repository, _secrets: object) -> None:
            pipe.send(("waits", repository.id))  # type: ignore[attr-defined]
            pipe.recv()  # type: ignore[attr-defined]

        made = Repository.create(str(place), [("r", recipient_key.recipient)], keep)  # type: ignore[attr-defined]
        return made.id

    with Actor(init) as one, Actor(init) as two:
        assert [one.wait()[0], two.wait()[0]] == ["waits", "waits"]
        one.go_on()
        two.go_on()
        ended = [one.wait(), two.wait()]
    assert sorted(word for word, _ in ended) == ["done", "failed"]
    (winner,) = [what for word, what in ended if word == "done"]
    (loser,) = [what for word, what in ended if word == "failed"]
    assert loser.startswith("RepositoryExists")
    assert Repository.open(str(place)).id == winner
