"""A repaired image is no new one: it keeps its place among the others."""

import os
import shutil
from pathlib import Path

import pytest

from imager.repository import image as image_format
from imager.repository.backend.directory import DirectoryBackend
from imager.upkeep import repair
from tests.conftest import Tiny
from tests.unit.upkeep.covered_repository import ONE, cover, flip, keys_of, no_keys, objects, run

HOUR = 3600.0


def order(tiny: Tiny) -> list[str]:
    repository = tiny.open()
    images, _ = repository.images(repository.credential_keys(tiny.credential))
    return [image.id for image in images]


def made_earlier(tiny: Tiny, seconds: float) -> None:
    """Let all that is there have been written earlier, and all that machines say too."""
    for path in tiny.path.rglob("*"):
        if path.is_file():
            when = path.stat().st_mtime - seconds
            os.utime(path, (when, when))


@pytest.fixture
def days(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Tiny, list[str]]:
    """Three images of three days, and parity a day after the last."""
    ids = []
    for day in range(3):
        made_earlier(tiny, 24 * HOUR)
        stamp = f"2026-01-0{day + 1}T12:00:00Z"
        monkeypatch.setattr("tests.conftest.now", lambda stamp=stamp: stamp)
        ids.append(tiny.add({"disk0": ONE["disk0"] + bytes([day]) * 4096}, tmp_path, "one"))
    made_earlier(tiny, 24 * HOUR)
    cover(tiny)
    assert order(tiny) == ids
    return tiny, ids


def image(tiny: Tiny, name: str) -> Path:
    return tiny.path / "images" / name


def time_of(tiny: Tiny, name: str) -> float:
    return image(tiny, name).stat().st_mtime


@pytest.mark.parametrize("with_keys", [True, False])
def test_what_was_damaged_keeps_its_time(days: tuple[Tiny, list[str]], with_keys: bool) -> None:
    tiny, ids = days
    before = time_of(tiny, ids[0])
    data = bytearray(image(tiny, ids[0]).read_bytes())
    data[700] ^= 1
    image(tiny, ids[0]).write_bytes(data)
    os.utime(image(tiny, ids[0]), (before, before))
    assert run(tiny, keys=None if with_keys else no_keys) == ([], ())
    assert time_of(tiny, ids[0]) == pytest.approx(before, abs=1)
    assert order(tiny) == ids


def test_an_interrupted_repair_keeps_it_too(days: tuple[Tiny, list[str]]) -> None:
    """Stopped when only the stash is left."""
    tiny, ids = days
    before = time_of(tiny, ids[0])
    flip(image(tiny, ids[0]), 700)
    os.utime(image(tiny, ids[0]), (before, before))

    class Stopping(DirectoryBackend):
        def delete(self, name: str) -> None:
            super().delete(name)
            raise KeyboardInterrupt

    backend = Stopping(tiny.path)
    plan = repair.plan(backend, [], no_keys, lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        repair.execute(backend, no_keys, plan)
    assert not image(tiny, ids[0]).exists()
    assert run(tiny, keys=no_keys) == ([], ())
    assert time_of(tiny, ids[0]) == pytest.approx(before, abs=1)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_what_was_lost_does_not_become_the_newest(days: tuple[Tiny, list[str]], lost: int) -> None:
    """The machine's clock was months behind: the indexes of the capture say better."""
    tiny, ids = days
    before = time_of(tiny, ids[lost])
    image(tiny, ids[lost]).unlink()
    assert run(tiny) == ([], ())
    assert time_of(tiny, ids[lost]) == pytest.approx(before, abs=HOUR)
    assert order(tiny) == ids


def test_a_machine_s_clock_counts_only_within_what_the_store_knows(
    days: tuple[Tiny, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that says it is of the year 2100 is not newer than the parity that covers it."""
    tiny, ids = days
    monkeypatch.setattr("tests.conftest.now", lambda: "2100-01-01T00:00:00Z")
    forged = tiny.add({"disk0": b"forged" * 9000}, tmp_path, "one")
    cover(tiny)
    made_earlier(tiny, HOUR)
    newest = tiny.add({"disk0": b"newest" * 9000}, tmp_path, "one")
    image(tiny, forged).unlink()
    assert run(tiny) == ([], ())
    assert order(tiny) == [*ids, forged, newest]


def test_a_copy_gives_the_time_as_well(days: tuple[Tiny, list[str]], tmp_path: Path) -> None:
    tiny, ids = days
    copy = tmp_path / "copy"
    shutil.copytree(tiny.path, copy)
    before = time_of(tiny, ids[1])
    image(tiny, ids[1]).unlink()
    for path in objects(tiny, "parity"):
        flip(path, -1)
    shutil.rmtree(copy / "parity")
    run(tiny, copy, keys=keys_of(tiny))
    assert time_of(tiny, ids[1]) == pytest.approx(before, abs=1)
    assert order(tiny) == ids


def test_a_copy_s_clock_puts_nothing_into_the_future(
    days: tuple[Tiny, list[str]], tmp_path: Path
) -> None:
    tiny, ids = days
    copy = tmp_path / "copy"
    shutil.copytree(tiny.path, copy)
    shutil.rmtree(copy / "parity")
    os.utime(copy / "images" / ids[1], (9e9, 9e9))
    image(tiny, ids[1]).unlink()
    for path in objects(tiny, "parity"):
        flip(path, -1)
    run(tiny, copy)
    assert time_of(tiny, ids[1]) <= tiny.open().backend.now()
    assert image_format.PREFIX + ids[1] in {e.name for e in tiny.open().backend.list("images/")}
