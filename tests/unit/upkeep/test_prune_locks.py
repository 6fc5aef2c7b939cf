"""Prune on a store that keeps objects for a time: nothing goes early, and it is said when it will.

The locks with a time are a stand-in for those of object stores; those of real files, which somebody
has to lift, are in `tests/storage/test_prune_command.py`.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from imager.errors import ObjectLocked
from imager.repository import pack
from imager.repository.backend.directory import DirectoryBackend
from imager.repository.repository import Repository
from imager.repository.retrieval import Unlocked
from imager.repository.statement import Signatory
from imager.units import DAY
from imager.upkeep import parity
from imager.upkeep.prune import Plan, plan
from imager.upkeep.prune_execute import execute
from tests.conftest import Tiny
from tests.unit.upkeep.test_prune import age, content, data, packs

NONE: frozenset[str] = frozenset()
Locked = dict[str, float]


class KeepingBackend(DirectoryBackend):
    """The directory backend with a time for each lock."""

    def __init__(self, root: Path, locks: Locked) -> None:
        super().__init__(root)
        self._locks = locks

    def locked_until(self, name: str, *, shortest: bool = False) -> float | None:
        del shortest
        until = self._locks.get(name, -math.inf)
        return until if until > self.now() else None

    def delete(self, name: str) -> None:
        if self.locked_until(name) is not None:
            raise ObjectLocked(f"{name} is locked")
        super().delete(name)


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "TARGET_SIZE", 1 << 18)


def opened(tiny: Tiny, locks: Locked) -> Repository:
    return replace(tiny.open(), backend=KeepingBackend(tiny.path, locks))


def prune(
    tiny: Tiny,
    locks: Locked,
    unwanted: frozenset[str],
    meanwhile: Callable[[], None] = lambda: None,
) -> Plan:
    repository = opened(tiny, locks)
    keys = repository.credential_keys(tiny.credential)
    made = plan(repository, keys, unwanted)
    meanwhile()
    signatory = Signatory(Unlocked(repository, tiny.key).secrets.signer)
    execute(made, repository, keys, signatory, lambda _: None)
    return made


def names(tiny: Tiny, *prefixes: str) -> set[str]:
    return {e.name for p in prefixes for e in tiny.open().backend.list(p)}


@pytest.fixture
def two(tiny: Tiny, tmp_path: Path) -> tuple[str, set[str], str, bytes]:
    """The id of an image, what it is made of, and the id and content of another."""
    old = tiny.add({"a": data()}, tmp_path)
    made_of = names(tiny, "packs/", "images/", "indexes/")
    text = data()
    return old, made_of, tiny.add({"a": text}, tmp_path), text


def test_what_is_locked_for_long_is_told_and_condemned_in_time(
    tiny: Tiny, two: tuple[str, set[str], str, bytes]
) -> None:
    old, made_of, new, text = two
    now = tiny.open().backend.now()
    locks = dict.fromkeys(made_of, now + 30 * DAY)
    before = names(tiny, "")
    made = prune(tiny, locks, frozenset({old}))
    assert made.locked == {f"images/{old}": now + 30 * DAY}
    assert (made.condemn_images, made.condemn_packs) == ((), ())
    assert names(tiny, "") == before
    locks.update(dict.fromkeys(made_of, now + 3 * DAY))
    made = prune(tiny, locks, frozenset({old}))
    assert made.condemn_images == (old,)
    assert not made.locked
    age(tiny)
    locks.clear()
    made = prune(tiny, locks, frozenset({old}))
    assert made.remove_images == (old,)
    assert not (made_of & names(tiny, "packs/", "images/"))
    assert content(tiny.open(), tiny, new) == {"a": text}


def test_a_lock_that_grew_in_the_quarantine_holds(
    tiny: Tiny, two: tuple[str, set[str], str, bytes]
) -> None:
    old, made_of, _, _ = two
    prune(tiny, {}, frozenset({old}))
    age(tiny)
    now = tiny.open().backend.now()
    locks = dict.fromkeys(made_of, now + 30 * DAY)
    made = prune(tiny, locks, frozenset({old}))
    assert not made.remove_images
    assert not made.remove_packs
    assert made.locked[f"images/{old}"] == now + 30 * DAY
    assert made_of <= names(tiny, "")
    assert not names(tiny, "removals/"), "what is not about to go can be counted on again"
    assert content(tiny.open(), tiny, old)
    assert prune(tiny, {}, frozenset({old})).condemn_images == (old,)


def test_an_image_whose_packs_are_locked_goes_and_they_stay(
    tiny: Tiny, two: tuple[str, set[str], str, bytes]
) -> None:
    old, made_of, _, _ = two
    now = tiny.open().backend.now()
    locks = {name: now + 30 * DAY for name in made_of if name.startswith("packs/")}
    made = prune(tiny, locks, frozenset({old}))
    assert made.condemn_images == (old,)
    assert not made.condemn_packs
    assert made.locked == locks
    age(tiny)
    prune(tiny, locks, frozenset({old}))
    assert f"images/{old}" not in names(tiny, "images/")
    assert locks.keys() <= packs(tiny)
    assert {name for name, _ in prune(tiny, {}, NONE).condemn_packs} == locks.keys()


@pytest.mark.parametrize("what", ["indexes/", "parity/"])
def test_what_a_locked_object_names_stays_with_it(
    tiny: Tiny, two: tuple[str, set[str], str, bytes], what: str
) -> None:
    old, made_of, new, text = two
    repository = tiny.open()
    backend = repository.backend
    parity.execute(backend, repository.id, parity.plan(backend, repository.id), lambda _: None)
    now = backend.now()
    locks = dict.fromkeys(names(tiny, what), now + 30 * DAY)
    prune(tiny, {}, frozenset({old}))
    age(tiny)
    made = prune(tiny, locks, frozenset({old}))
    assert not made.remove_packs
    if what == "indexes/":
        assert made.locked.keys() == {name for name in made_of if name.startswith("packs/")}
    else:
        assert made.locked.keys() == {f"images/{old}"}
    assert {name for name in made_of if name.startswith("packs/")} <= packs(tiny)
    repository = tiny.open()
    index, problems = repository.load_index(repository.credential_keys(tiny.credential))
    assert not problems
    assert not repository.lost_packs(index)
    assert content(repository, tiny, new) == {"a": text}


def test_a_lock_that_comes_after_the_plan_loses_nothing(
    tiny: Tiny, two: tuple[str, set[str], str, bytes]
) -> None:
    old, made_of, new, text = two
    prune(tiny, {}, frozenset({old}))
    age(tiny)
    locks: Locked = {}

    def lock() -> None:
        locks.update(dict.fromkeys(made_of, math.inf))

    with pytest.raises(ObjectLocked):
        prune(tiny, locks, frozenset({old}), lock)
    assert content(tiny.open(), tiny, new) == {"a": text}
    assert content(tiny.open(), tiny, old)
    made = prune(tiny, {}, frozenset({old}))
    assert made.remove_images == (old,)
