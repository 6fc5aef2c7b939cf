"""Sync copies what is missing and intact, in the order of needs, and brings nothing back."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from imager import console
from imager.commands.sync import _seconds_until
from imager.errors import OutputError, UsageError
from imager.repository.backend.directory import DirectoryBackend
from imager.repository.backend.limited import Limited, Line
from imager.upkeep import sync
from tests.conftest import Tiny
from tests.unit.upkeep.covered_repository import content, flip, objects
from tests.unit.upkeep.test_prune import age, data, prune
from tests.unit.upkeep.test_prune import content as content_of_image


def run(source: Path, target: Path) -> sync.Synced:
    one, other = DirectoryBackend(source), DirectoryBackend(target)
    return sync.execute(sync.plan(one, other), one, other, lambda _: None)


def files(root: Path) -> dict[str, tuple[bytes, int]]:
    return {
        path.relative_to(root).as_posix(): (path.read_bytes(), int(path.stat().st_mtime))
        for path in root.rglob("*")
        if path.is_file()
    }


def test_a_copy_is_the_same_with_its_times_and_a_second_run_copies_nothing(
    covered: Tiny, tmp_path: Path
) -> None:
    old = time.time() - 40 * 24 * 3600
    for path in objects(covered, ""):
        os.utime(path, (old, old))
    assert run(covered.path, tmp_path / "copy").problems == ()
    assert files(tmp_path / "copy") == files(covered.path)
    assert run(covered.path, tmp_path / "copy").copied == 0


def test_stopped_at_any_object_the_copy_tells_no_lie(covered: Tiny, tmp_path: Path) -> None:
    """Whatever it has, it has with all that it needs."""
    order = [
        e.name
        for e in sync.plan(DirectoryBackend(covered.path), DirectoryBackend(tmp_path / "x")).missing
    ]
    assert order[0] == "config"
    kinds = [name.partition("/")[0] for name in order]
    assert kinds.index("images") > max(kinds.index(kind) for kind in ("packs", "indexes", "parity"))
    assert kinds[-1] == "images"
    assert kinds == sorted(kinds, key=kinds.index)


def test_killed_it_goes_on(covered: Tiny, tmp_path: Path) -> None:
    """Cut off by a signal in the middle; the rest comes with the next run."""
    words = [str(Path(sys.executable).with_name("remetal")), "sync", str(covered.path)]
    process = subprocess.Popen(
        [*words, str(tmp_path / "copy"), "--limit-download", "500K"], stderr=subprocess.DEVNULL
    )
    while not list((tmp_path / "copy").glob("packs/*/*")):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = content(covered)
    half = {
        path.relative_to(tmp_path / "copy").as_posix(): path.read_bytes()
        for path in (tmp_path / "copy").rglob("*")
        if path.is_file() and "incoming" not in path.parts
    }
    assert 0 < len(half) < len(there)
    assert half.items() <= there.items()
    assert not any(name.startswith("images/") for name in half)
    assert run(covered.path, tmp_path / "copy").copied == len(there) - len(half)


def test_what_is_damaged_is_named_and_not_copied(covered: Tiny, tmp_path: Path) -> None:
    rotten = objects(covered, "packs")[0]
    flip(rotten, 100)
    found = run(covered.path, tmp_path / "copy")
    name = rotten.relative_to(covered.path).as_posix()
    assert [problem.name for problem in found.problems] == [name]
    assert not (tmp_path / "copy" / name).exists()


def test_what_is_there_is_never_touched(covered: Tiny, tmp_path: Path) -> None:
    run(covered.path, tmp_path / "copy")
    cut = next(path for path in (tmp_path / "copy/packs").rglob("*") if path.is_file())
    cut.write_bytes(b"cut")
    one, other = DirectoryBackend(covered.path), DirectoryBackend(tmp_path / "copy")
    made = sync.plan(one, other)
    assert made.differing == (cut.relative_to(tmp_path / "copy").as_posix(),)
    assert made.missing == ()
    assert cut.read_bytes() == b"cut"


def test_another_repository_is_refused(covered: Tiny, tmp_path: Path) -> None:
    run(covered.path, tmp_path / "copy")
    (tmp_path / "copy/config").write_bytes(b"{}")
    with pytest.raises(UsageError, match="another repository"):
        run(covered.path, tmp_path / "copy")
    (tmp_path / "copy/config").unlink()
    with pytest.raises(UsageError, match="has lost its `config`"):
        run(covered.path, tmp_path / "copy")


def test_what_was_removed_does_not_come_back(tiny: Tiny, tmp_path: Path) -> None:
    """Also from a site that was down when it went."""
    old = tiny.add({"a": data()}, tmp_path)
    tiny.add({"a": data()}, tmp_path)
    shutil.copytree(tiny.path, tmp_path / "was-down")
    prune(tiny, frozenset({old}))
    age(tiny)
    prune(tiny, frozenset({old}))
    after = content(tiny)
    assert f"images/{old}" not in after
    one, other = DirectoryBackend(tmp_path / "was-down"), DirectoryBackend(tiny.path)
    made = sync.plan(one, other)
    assert f"images/{old}" in made.removed
    assert len(made.removed) > 1
    sync.execute(made, one, other, lambda _: None)
    assert not {name for name in content(tiny) if name.startswith(("images/", "packs/"))} - set(
        after
    )


def test_a_new_image_brings_back_what_the_copy_had_removed(tiny: Tiny, tmp_path: Path) -> None:
    """The copy keeps images for a shorter time, and the next image shares content with what went."""
    shared = data()
    old = tiny.add({"a": shared}, tmp_path)
    tiny.add({"a": data()}, tmp_path)
    copy = replace(tiny, path=tmp_path / "copy")
    run(tiny.path, copy.path)
    prune(copy, frozenset({old}))
    age(copy)
    prune(copy, frozenset({old}))
    new = tiny.add({"a": shared, "b": data()}, tmp_path)
    run(tiny.path, copy.path)
    assert content_of_image(copy.open(), copy, new)["a"] == shared
    prune(copy, frozenset({old}))


def test_no_image_comes_when_packs_went_on_the_way(covered: Tiny, tmp_path: Path) -> None:
    one, other = DirectoryBackend(covered.path), DirectoryBackend(tmp_path / "copy")
    made = sync.plan(one, other)
    packs = [entry for entry in made.missing if entry.name.startswith("packs/")]
    sync.execute(replace(made, missing=(made.missing[0], *packs)), one, other, lambda _: None)
    other.delete(packs[0].name)
    rest = tuple(entry for entry in made.missing if not entry.name.startswith("packs/"))
    with pytest.raises(OutputError, match="1 packs were removed meanwhile"):
        sync.execute(replace(made, missing=rest), one, other, lambda _: None)
    assert not list(other.list("images/"))


def test_an_unknown_file_stays_where_it_is(covered: Tiny, tmp_path: Path) -> None:
    (covered.path / "notes.txt").write_text("mine")
    run(covered.path, tmp_path / "copy")
    assert not (tmp_path / "copy/notes.txt").exists()


def test_the_command_tells_what_it_did(
    covered: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sync", str(covered.path), str(tmp_path / "copy"), "--json"]
    for more, copied in ((["--dry-run"], 0), ([], len(content(covered)))):
        assert console.run([*words, *more]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["ways"][0]["copied"] == copied


@pytest.mark.parametrize(
    ("hours", "at", "wait"),
    [
        ("22:00-06:00", "23:30", 0),
        ("22:00-06:00", "05:59", 0),
        ("22:00-06:00", "06:00", 16 * 3600),
        ("09:00-17:00", "08:00", 3600),
        ("09:00-17:00", "18:00", 15 * 3600),
    ],
)
def test_hours_of_the_day(hours: str, at: str, wait: int) -> None:
    begin, end = (datetime.fromisoformat(f"2026-01-02T{text}").time() for text in hours.split("-"))
    now = datetime.fromisoformat(f"2026-01-02T{at}:00+00:00")
    assert _seconds_until((begin, end), now) == wait


def test_a_limit_is_kept_over_all_threads(tmp_path: Path) -> None:
    backend = Limited(DirectoryBackend(tmp_path), Line(4 << 20), Line(8 << 20))
    begin = time.monotonic()
    for number in range(5):
        backend.put_new(f"packs/{number}", [bytes(1 << 20)])
    assert time.monotonic() - begin >= 4 / 4 * 0.99
    begin = time.monotonic()
    for number in range(5):
        backend.get(f"packs/{number}")
    assert time.monotonic() - begin >= 4 / 8 * 0.99
