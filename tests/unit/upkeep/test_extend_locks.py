"""The locks of what is kept are extended, and of nothing else, so that all else can go one day."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from imager.repository import pack
from imager.repository.backend.directory import DirectoryBackend
from imager.repository.backend.mirror import Mirror
from imager.repository.backend.mirror_notes import Notes
from imager.repository.repository import Repository
from imager.repository.retrieval import Unlocked
from imager.repository.statement import Signatory
from imager.units import DAY
from imager.upkeep import extend_locks, parity
from imager.upkeep.extend_locks import Extension
from imager.upkeep.prune import Plan, plan
from imager.upkeep.prune_execute import execute
from tests.conftest import Tiny
from tests.unit.upkeep.test_prune import data
from tests.unit.upkeep.test_prune_locks import KeepingBackend, Locked, names

NONE: frozenset[str] = frozenset()
SPAN = 30 * DAY


class SpanBackend(KeepingBackend):
    """One that locks what is put for a span, as object stores do."""

    def __init__(self, root: Path, locks: Locked) -> None:
        super().__init__(root, locks)
        self.asked: list[str] = []

    @property
    def lock_span(self) -> float:
        return SPAN

    def locked_until(self, name: str, *, shortest: bool = False) -> float | None:
        self.asked.append(name)
        return super().locked_until(name, shortest=shortest)

    def retain(self, name: str, until: float) -> None:
        assert until > self._locks.get(name, 0.0)
        self._locks[name] = until


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "TARGET_SIZE", 1 << 18)


def grow_old(tiny: Tiny, days: float) -> Locked:
    """Put everything back in time; return the locks that it has then."""
    now = tiny.open().backend.now()
    for path in tiny.path.rglob("*"):
        if path.is_file():
            os.utime(path, (now - days * DAY, now - days * DAY))
    return dict.fromkeys(names(tiny, ""), now - days * DAY + SPAN)


def opened(tiny: Tiny, locks: Locked) -> tuple[Repository, SpanBackend]:
    backend = SpanBackend(tiny.path, locks)
    return replace(tiny.open(), backend=backend), backend


def planned(
    tiny: Tiny, locks: Locked, unwanted: frozenset[str] = NONE
) -> tuple[Plan, Extension, SpanBackend]:
    repository, backend = opened(tiny, locks)
    keys = repository.credential_keys(tiny.credential)
    made = plan(repository, keys, unwanted)
    backend.asked.clear()
    images, _ = repository.images(keys)
    extension = extend_locks.plan(repository, keys, made, {image.id for image in images} - unwanted)
    assert extension is not None
    return made, extension, backend


def cover(tiny: Tiny) -> None:
    repository = tiny.open()
    made = parity.plan(repository.backend, repository.id)
    parity.execute(repository.backend, repository.id, made, lambda _: None)


def test_everything_kept_is_extended_when_half_of_the_span_is_over(
    tiny: Tiny, tmp_path: Path
) -> None:
    tiny.add({"a": data()}, tmp_path)
    cover(tiny)
    locks = grow_old(tiny, 16)
    _, extension, backend = planned(tiny, locks)
    assert set(extension.objects) == names(tiny, "")
    extend_locks.execute(backend, extension)
    assert set(locks.values()) == {extension.until}
    assert extension.until >= backend.now() + SPAN - 60
    assert planned(tiny, locks)[1].objects == ()


def test_what_is_young_is_not_even_asked_for(tiny: Tiny, tmp_path: Path) -> None:
    tiny.add({"a": data()}, tmp_path)
    _, extension, backend = planned(tiny, grow_old(tiny, 14))
    assert extension.objects == ()
    assert backend.asked == ["config"]


def test_an_object_without_any_lock_gets_one(tiny: Tiny, tmp_path: Path) -> None:
    tiny.add({"a": data()}, tmp_path)
    grow_old(tiny, 40)
    assert set(planned(tiny, {})[1].objects) == names(tiny, "")


def test_what_goes_and_what_names_it_is_left_to_its_locks_end(tiny: Tiny, tmp_path: Path) -> None:
    old = tiny.add({"a": data()}, tmp_path)
    of_old = names(tiny, "packs/", "images/", "indexes/")
    tiny.add({"a": data()}, tmp_path)
    cover(tiny)
    locks = grow_old(tiny, 20)
    made, extension, backend = planned(tiny, locks, frozenset({old}))
    # Its lock ends after the quarantine would, so it is not condemned yet, and its packs still count.
    assert made.locked.keys() == {f"images/{old}"}
    assert f"images/{old}" not in extension.objects
    extend_locks.execute(backend, extension)

    locks = {name: backend.now() + 3 * DAY for name in locks}
    made, extension, backend = planned(tiny, locks, frozenset({old}))
    assert {name for name, _ in made.condemn_packs} == of_old & names(tiny, "packs/")
    assert of_old.isdisjoint(extension.objects)
    assert not names(tiny, "parity/") & set(extension.objects)
    repository, _ = opened(tiny, locks)
    keys = repository.credential_keys(tiny.credential)
    signatory = Signatory(Unlocked(repository, tiny.key).secrets.signer)
    execute(made, repository, keys, signatory, lambda _: None)
    _, extension, _ = planned(tiny, locks, frozenset({old}))
    assert of_old.isdisjoint(extension.objects)
    assert not names(tiny, "parity/") & set(extension.objects)


def test_a_store_without_locks_is_left_alone(tiny: Tiny, tmp_path: Path) -> None:
    tiny.add({"a": data()}, tmp_path)
    grow_old(tiny, 400)
    repository = tiny.open()
    keys = repository.credential_keys(tiny.credential)
    made = plan(repository, keys, NONE)
    assert extend_locks.plan(repository, keys, made, ()) is None


def test_of_two_sites_the_shorter_lock_counts(tiny: Tiny, tmp_path: Path) -> None:
    """A lock that one site extended must not hide that it ends at the other."""
    tiny.add({"a": data()}, tmp_path)
    old = grow_old(tiny, 16)
    other = tmp_path / "other"
    shutil.copytree(tiny.path, other)
    now = tiny.open().backend.now()
    sites = {
        "a": SpanBackend(tiny.path, dict.fromkeys(old, now + SPAN)),
        "b": SpanBackend(other, old),
        "without": DirectoryBackend(tmp_path / "third"),
    }
    shutil.copytree(tiny.path, tmp_path / "third")
    mirror = Mirror(
        "mirror:x", sites, 1, "config", "indexes/", Notes(tmp_path / "x", tmp_path / "notes")
    )
    repository = replace(tiny.open(), backend=mirror)
    keys = repository.credential_keys(tiny.credential)
    made = plan(repository, keys, NONE)
    images, _ = repository.images(keys)
    extension = extend_locks.plan(repository, keys, made, {image.id for image in images})
    assert extension is not None
    assert set(extension.objects) == names(tiny, "")
