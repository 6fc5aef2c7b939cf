"""Captures and prunes that meet on the same packs."""

import random
from pathlib import Path

import pytest

from imager.repository.backend.directory import DirectoryBackend
from tests.conftest import Tiny
from tests.racing import deeds
from tests.racing.actors import Actor, Moment, held

CHANCE = random.Random(4)
SHARED, OTHER, MORE = (CHANCE.randbytes(2 << 20) for _ in range(3))


def _removed(tiny: Tiny, scratch: Path) -> frozenset[str]:
    """Store an image and condemn it; return its id."""
    unwanted = frozenset({tiny.add({"disk": SHARED}, deeds.source(scratch, "old"), "old")})
    deeds.prune(tiny, unwanted)
    return unwanted


def test_what_a_capture_uses_again_is_rescued_from_quarantine(tiny: Tiny, tmp_path: Path) -> None:
    unwanted = _removed(tiny, tmp_path)
    before = deeds.packs(tiny)
    with Actor(
        lambda _: tiny.add({"disk": SHARED}, deeds.source(tmp_path, "new"), "new")
    ) as capture:
        assert capture.wait()[0] == "done"
    assert deeds.packs(tiny) == before, "the chunks were to be used again, not sent again"
    deeds.end_quarantine(tiny)
    with Actor(lambda _: deeds.prune(tiny, unwanted)) as prune:
        word, what = prune.wait()
    assert (word, what[0]) == ("done", 0)
    assert deeds.restore(tiny) == {"new": SHARED}


def test_a_capture_that_ends_during_the_removal_loses_nothing(tiny: Tiny, tmp_path: Path) -> None:
    """It began while all was there; its packs were removed before it wrote its image."""
    unwanted = frozenset({tiny.add({"disk": SHARED}, deeds.source(tmp_path, "old"), "old")})
    tiny.add({"disk": OTHER}, deeds.source(tmp_path, "other"), "other")
    place = deeds.source(tmp_path, "new")
    moment = Moment("put_new", "indexes/")
    with held(tiny, moment, lambda t: t.add({"disk": SHARED + MORE}, place, "new")) as capture:
        deeds.prune(tiny, unwanted)
        deeds.end_quarantine(tiny)
        assert deeds.prune(tiny, unwanted)[0] > 0
        capture.go_on()
        word, what = capture.wait()
    assert word == "failed"
    assert what.startswith("ContentRemoved")
    assert "no image was made" in what
    assert deeds.restore(tiny) == {"other": OTHER}
    again = deeds.source(tmp_path, "again")
    tiny.add({"disk": SHARED + MORE}, again, "new")
    assert deeds.restore(tiny) == {"other": OTHER, "new": SHARED + MORE}
    assert not deeds.check(tiny)


def test_an_image_written_before_the_removal_keeps_its_packs(tiny: Tiny, tmp_path: Path) -> None:
    """The prune was about to remove; a capture that ended before it looked is seen."""
    unwanted = frozenset({tiny.add({"disk": SHARED}, deeds.source(tmp_path, "old"), "old")})
    place = deeds.source(tmp_path, "new")
    with held(
        tiny, Moment("put_new", "images/"), lambda t: t.add({"disk": SHARED}, place, "new")
    ) as capture:
        deeds.prune(tiny, unwanted)
        capture.go_on()
        assert capture.wait()[0] == "done"
    deeds.end_quarantine(tiny)
    deeds.prune(tiny, unwanted)
    assert deeds.restore(tiny) == {"new": SHARED}


def test_two_prunes_at_once(tiny: Tiny, tmp_path: Path) -> None:
    unwanted = _removed(tiny, tmp_path)
    tiny.add({"disk": OTHER}, deeds.source(tmp_path, "other"), "other")
    deeds.end_quarantine(tiny)
    moment = Moment("put_new", "removals/")
    with (
        held(tiny, moment, lambda t: deeds.prune(t, unwanted)) as one,
        held(tiny, moment, lambda t: deeds.prune(t, unwanted)) as two,
    ):
        one.go_on()
        two.go_on()
        assert [one.wait()[0], two.wait()[0]] == ["done", "done"]
    assert deeds.restore(tiny) == {"other": OTHER}
    assert not deeds.check(tiny)


def test_what_two_machines_send_at_once_is_stored_once_in_the_end(
    tiny: Tiny, tmp_path: Path
) -> None:
    """Both have loaded the index and hold their first pack before either stores one."""
    first = Moment("put_new", "packs/")
    places = {name: deeds.source(tmp_path, name) for name in ("one", "two")}
    with (
        held(tiny, first, lambda t: t.add({"disk": SHARED}, places["one"], "one")) as one,
        held(tiny, first, lambda t: t.add({"disk": SHARED}, places["two"], "two")) as two,
    ):
        one.go_on()
        two.go_on()
        assert [one.wait()[0], two.wait()[0]] == ["done", "done"]
    twice = deeds.pack_bytes(tiny)
    assert twice > 2 * len(SHARED)
    for _ in range(2):
        deeds.prune(tiny)
        deeds.end_quarantine(tiny)
    deeds.prune(tiny)
    assert deeds.pack_bytes(tiny) < 0.55 * twice
    assert deeds.restore(tiny) == {"one": SHARED, "two": SHARED}
    assert not deeds.check(tiny)


def test_an_image_that_goes_after_it_was_listed_is_no_damage(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, stays = (tiny.add({"disk": text}, tmp_path) for text in (b"a" * 4096, b"b" * 4096))
    repository = tiny.open()
    listed = list(repository.backend.list("images/"))
    repository.backend.delete(f"images/{gone}")
    monkeypatch.setattr(DirectoryBackend, "list", lambda *_: iter(listed))
    images, problems = repository.images(repository.credential_keys(tiny.credential))
    assert [image.id for image in images] == [stays]
    assert not problems
