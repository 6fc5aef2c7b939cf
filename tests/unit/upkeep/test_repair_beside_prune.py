"""Repair and what prune removes: never damage, never brought back, and nothing needed is lost."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from imager.repository.backend.directory import DirectoryBackend
from imager.repository.header import StatementKind
from imager.repository.repository import now
from imager.repository.retrieval import Unlocked
from imager.repository.statement import RemovalBody, Signatory
from imager.upkeep import repair
from imager.upkeep.parity_shares import read_groups
from tests.conftest import Tiny
from tests.racing import deeds
from tests.unit.upkeep.covered_repository import (
    ONE,
    content,
    cover,
    keys_of,
    no_keys,
    objects,
    packs_of,
    restored,
    run,
)

DAY = 24 * 3600


def names(tiny: Tiny, folder: str) -> set[str]:
    return {path.relative_to(tiny.path).as_posix() for path in objects(tiny, folder)}


def pruned_with_stale_parity(tiny: Tiny, scratch: Path) -> set[str]:
    """Remove an image, and put parity back that names it; return what went, indexes excepted."""
    image = tiny.add({"disk0": random.Random(7).randbytes(150_000)}, scratch, "old")
    cover(tiny)
    before = names(tiny, "packs") | names(tiny, "images")
    stale = scratch / "stale"
    shutil.copytree(tiny.path / "parity", stale)
    deeds.prune(tiny, frozenset({image}))
    deeds.end_quarantine(tiny)
    assert deeds.prune(tiny, frozenset({image}))[0]
    shutil.copytree(stale, tiny.path / "parity", dirs_exist_ok=True)
    return before - names(tiny, "packs") - names(tiny, "images")


@pytest.mark.parametrize("with_keys", [True, False])
def test_what_was_removed_is_not_lost(covered: Tiny, tmp_path: Path, with_keys: bool) -> None:
    removed = pruned_with_stale_parity(covered, tmp_path)
    assert any(name.startswith("images/") for name in removed)
    indexes = names(covered, "indexes")
    before = content(covered)
    broken, _ = run(covered, keys=None if with_keys else no_keys)
    assert broken == []
    after = content(covered)
    assert not removed & after.keys()
    assert {n: d for n, d in after.items() if n in before and not n.startswith("parity/")} == {
        n: d for n, d in before.items() if not n.startswith("parity/")
    }
    assert deeds.structure(covered) == []
    repository = covered.open()
    groups = read_groups(repository.backend, repository.id)[0].values()
    named = {member.name for group in groups for member in group.table.members}
    assert not named & removed, "parity goes on counting on what is gone"
    assert names(covered, "packs") | names(covered, "images") <= named
    if with_keys:
        assert names(covered, "indexes") == indexes
        assert not named - after.keys()
    assert run(covered) == ([], ())


def test_an_index_that_prune_replaced_is_harmless_when_it_comes_back(
    covered: Tiny, tmp_path: Path
) -> None:
    """Without keys it comes back, and it names packs of which no statement tells any more."""
    pruned_with_stale_parity(covered, tmp_path)
    indexes = names(covered, "indexes")
    run(covered, keys=no_keys)
    assert names(covered, "indexes") > indexes
    shutil.rmtree(covered.path / "removals")
    assert run(covered) == ([], ())
    assert deeds.check(covered) == []


def test_a_stash_of_what_was_removed_goes(covered: Tiny, tmp_path: Path) -> None:
    removed = pruned_with_stale_parity(covered, tmp_path)
    name = next(iter(sorted(removed)))
    backend = DirectoryBackend(covered.path)
    plan = repair.plan(backend, [], no_keys, lambda _: None)
    solver_of = plan.sources
    solver_of.want([name], repair.State.MISSING)
    solver_of.find_all()
    backend.put_new("repaired/" + name, [solver_of.planned(name)])
    assert run(covered) == ([], ())
    assert not names(covered, "repaired")
    assert not (covered.path / name).exists()


def test_what_images_need_comes_back_whatever_was_said(covered: Tiny) -> None:
    """A prune said that a pack goes, was stopped, and then the store lost it."""
    repository = covered.open()
    unlocked = Unlocked(repository, covered.key)
    pack = packs_of(covered, "one")[0]
    repository.state(
        StatementKind.REMOVED,
        RemovalBody((), (pack.name,), 0, now()),
        Signatory(unlocked.secrets.signer),
        unlocked.keys.group,
    )
    pack.unlink()
    assert run(covered) == ([], ())
    assert pack.exists()
    assert restored(covered, "one") == ONE["disk0"]


def test_a_removal_that_nobody_vouches_for_hides_nothing(covered: Tiny) -> None:
    repository = covered.open()
    image = objects(covered, "images")[0]
    thief = covered.credential
    repository.state(
        StatementKind.REMOVED,
        RemovalBody((image.name,), (), 0, now(), thief.certificate),
        Signatory(thief.signer, thief.certificate),
        repository.credential_keys(thief).group,
    )
    image.unlink()
    run(covered, keys=no_keys)
    assert image.exists()


class Pruned(DirectoryBackend):
    """A directory in which something happens when an object is first read."""

    def __init__(self, root: Path, name: str, happens: Callable[[], object]) -> None:
        super().__init__(root)
        self._name = name
        self._happens = happens

    def get(self, name: str) -> bytes:
        if name == self._name:
            self._name = ""
            self._happens()
        return super().get(name)


def test_what_vanishes_while_it_is_looked_at_is_no_damage(tiny: Tiny, tmp_path: Path) -> None:
    """No parity and no index name it: a pack of an interrupted capture that a prune removes."""
    tiny.add(ONE, tmp_path, "one")
    for index in objects(tiny, "indexes"):
        index.unlink()
    image = tiny.add({"disk0": random.Random(7).randbytes(150_000)}, tmp_path, "old")
    (pack,) = packs_of(tiny, "old")
    (tiny.path / "images" / image).unlink()
    for index in objects(tiny, "indexes"):
        index.unlink()
    name = pack.relative_to(tiny.path).as_posix()
    backend = Pruned(tiny.path, name, pack.unlink)
    plan = repair.plan(backend, [], keys_of(tiny), lambda _: None)
    assert plan.broken == ()
    assert plan.touched == ()
    assert name not in plan.found.entries


def test_what_comes_while_it_is_looked_at_is_not_lost(covered: Tiny, tmp_path: Path) -> None:
    """A capture and new parity end meanwhile: the listing is older than the parity group."""

    def add() -> None:
        covered.add({"disk0": random.Random(8).randbytes(150_000)}, tmp_path, "new")
        cover(covered)

    backend = Pruned(
        covered.path, packs_of(covered, "one")[0].relative_to(covered.path).as_posix(), add
    )
    plan = repair.plan(backend, [], keys_of(covered), lambda _: None)
    assert plan.steps == ()
    assert plan.broken == ()
