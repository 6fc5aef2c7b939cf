"""Check finds what is wrong in each depth, says whom it touches, and lets a prune work beside it."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from imager import console
from imager.commands.check import check as check_command
from imager.errors import NotARepository, RemetalError
from imager.repository.chunk import Identifier
from imager.repository.header import PackKind
from imager.repository.repository import Repository
from imager.repository.retrieval import MapReader, Unlocked
from imager.repository.volume_map import chunk_ids
from imager.upkeep.check import check
from imager.upkeep.check_ciphertext import Judge
from imager.upkeep.check_maps import MapWalk, Watched
from imager.upkeep.check_report import Depth, Fault, Report
from imager.upkeep.check_round import Budget, memory_path

if TYPE_CHECKING:
    from imager.repository.backend.protocol import Buffer
    from tests.conftest import Tiny

NOISE = random.Random(11)


def run(tiny: Tiny, depth: Depth = Depth.STRUCTURE, *, keys: bool = True) -> Report:
    repository = tiny.open()
    unlocked = Unlocked(repository, tiny.key)
    return check(
        repository,
        unlocked.keys if keys else None,
        lambda _: None,
        depth=depth,
        unlocked=unlocked if depth is Depth.FULL else None,
    )


def packs(tiny: Tiny, kind: PackKind = PackKind.DATA) -> list[Path]:
    found = [path for path in (tiny.path / "packs").rglob("*") if path.is_file()]
    return sorted(path for path in found if path.read_bytes()[10] == kind)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << position % 8
    path.write_bytes(data)


def test_ciphertext_finds_each_flipped_byte_without_keys(tiny: Tiny, tmp_path: Path) -> None:
    tiny.add({"disk0/p1": b"words " * 100}, tmp_path)
    assert run(tiny, Depth.CIPHERTEXT, keys=False).findings == ()
    repository = tiny.open()
    judge = Judge(repository, sorted(repository.backend.list(""), key=lambda e: e.name))
    for path in sorted(path for path in tiny.path.rglob("*") if path.is_file()):
        original = path.read_bytes()
        name = path.relative_to(tiny.path).as_posix()
        assert judge.look(name, original) is None
        for position in range(len(original)):
            changed = bytearray(original)
            changed[position] ^= 1 << position % 8
            assert judge.look(name, bytes(changed)) is not None, f"{name} byte {position}"
            if position % 64 != 16:
                continue
            path.write_bytes(changed)
            try:
                found = [f.name for f in run_keyless(tiny).findings]
            except RemetalError as error:
                assert name == "config", f"{name} {position}: {error.message}"
            else:
                assert found == [name], f"{name} byte {position}"
        path.write_bytes(original)


def run_keyless(tiny: Tiny) -> Report:
    return check(tiny.open(), None, lambda _: None, depth=Depth.CIPHERTEXT)


def test_damage_names_images_and_machines(tiny: Tiny, tmp_path: Path) -> None:
    first = tiny.add({"disk0/p1": NOISE.randbytes(50_000)}, tmp_path, "north")
    broken = packs(tiny)[0]
    tiny.add({"disk0/p1": NOISE.randbytes(50_000)}, tmp_path, "south")
    flip(broken, 3000)
    finding = run(tiny, Depth.CIPHERTEXT).findings[0]
    assert (finding.images, finding.machines) == ((first,), ("north",))
    assert not finding.repairable
    broken.unlink()
    finding = run(tiny).findings[0]
    assert (finding.images, finding.fault) == ((first,), Fault.MISSING)


def test_a_lie_is_told_from_rot_and_its_writer_is_named(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A capture that claims false content: a pack that verifies and holds another content."""
    right = Identifier.identify

    def lie(self: Identifier, data: Buffer) -> bytes:
        said = bytes(data)
        return right(self, said if said.startswith(b"RMAP") else said + b"!")

    with monkeypatch.context() as patched:
        patched.setattr(Identifier, "identify", lie)
        image = tiny.add({"disk0/p1": NOISE.randbytes(9000)}, tmp_path, "liar")
    assert run(tiny, Depth.CIPHERTEXT, keys=False).findings == ()
    lies = [f for f in run(tiny, Depth.FULL).findings if f.fault is Fault.LIE]
    data = packs(tiny)[0].name
    finding = next(f for f in lies if f.name.endswith(data))
    assert finding.images == (image,)
    assert finding.writer == "test machine (machine liar)"
    flip(packs(tiny)[0], 2000)
    faults = {f.name: f.fault for f in run(tiny, Depth.FULL).findings}
    assert faults[finding.name] is Fault.DAMAGED


def test_full_opens_every_chunk_once(tiny: Tiny, tmp_path: Path) -> None:
    tiny.add({"disk0/p1": NOISE.randbytes(400_000)}, tmp_path)
    tiny.add({"disk0/p1": NOISE.randbytes(400_000)}, tmp_path)
    report = run(tiny, Depth.FULL)
    assert report.findings == ()
    repository = tiny.open()
    keys = Unlocked(repository, tiny.key).keys
    assert report.opened_chunks == len(repository.load_index(keys)[0])


class Ticks:
    """A clock that goes one second further each time it is asked."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        self.time += 1
        return self.time


def test_budget_goes_on_where_it_stopped(tiny: Tiny, tmp_path: Path) -> None:
    for _ in range(4):
        tiny.add({"disk0/p1": NOISE.randbytes(20_000)}, tmp_path)
    flip(packs(tiny)[0], 3000)
    bad = f"packs/{packs(tiny)[0].parent.name}/{packs(tiny)[0].name}"
    total = sum(1 for path in tiny.path.rglob("*") if path.is_file())
    memory = tmp_path / "state" / "check.json"
    seen, runs, percents = 0, 0, []
    found_in: list[bool] = []
    while not percents or percents[-1] < 100:
        budget = Budget(4, memory, Ticks())
        report = check(tiny.open(), None, lambda _: None, depth=Depth.CIPHERTEXT, budget=budget)
        assert report.progress is not None
        assert report.progress.number == 1
        percents.append(report.progress.percent)
        found_in.append(bad in {f.name for f in report.findings})
        seen += report.objects
        runs += 1
        assert runs < 50
    assert seen == total - 1
    assert runs > 2
    assert percents == sorted(percents)
    first = found_in.index(True)
    assert all(found_in[first:]), "damage that was found is said in every later run"
    flip(packs(tiny)[0], 3000)
    healed = check(
        tiny.open(),
        None,
        lambda _: None,
        depth=Depth.CIPHERTEXT,
        budget=Budget(1e9, memory, Ticks()),
    )
    assert healed.findings == ()
    assert healed.progress is not None
    assert healed.progress.number == 2
    memory.write_bytes(b"lost")
    again = check(
        tiny.open(), None, lambda _: None, depth=Depth.CIPHERTEXT, budget=Budget(4, memory, Ticks())
    )
    assert again.progress is not None
    assert again.progress.number == 1


class Vanishing:
    """A backend from which things vanish at the moment an index is read for the first time."""

    def __init__(self, tiny: Tiny, gone: list[Path]) -> None:
        self._inner = tiny.open().backend
        self._gone = gone

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def get(self, name: str) -> bytes:
        if name.startswith("indexes/"):
            while self._gone:
                self._gone.pop().unlink()
        return self._inner.get(name)


@pytest.mark.parametrize("depth", list(Depth))
def test_what_a_prune_removes_meanwhile_is_no_finding(
    tiny: Tiny, tmp_path: Path, depth: Depth
) -> None:
    gone = tiny.add({"disk0/p1": NOISE.randbytes(20_000)}, tmp_path, "gone")
    doomed = [tiny.path / "images" / gone, *packs(tiny), *(tiny.path / "indexes").iterdir()]
    kept = tiny.add({"disk0/p1": NOISE.randbytes(20_000)}, tmp_path, "kept")
    base = tiny.open()
    backend = Vanishing(tiny, doomed)
    repository = Repository(backend, base.id, base.configuration, base.trust)  # type: ignore[arg-type]
    unlocked = Unlocked(repository, tiny.key)
    report = check(repository, unlocked.keys, lambda _: None, depth=depth, unlocked=unlocked)
    assert not doomed
    assert [f.message for f in report.findings] == []
    assert report.images == 1
    assert kept != gone


def test_packs_of_a_running_capture_are_no_damage(tiny: Tiny, tmp_path: Path) -> None:
    image = tiny.add({"disk0/p1": NOISE.randbytes(20_000)}, tmp_path)
    (tiny.path / "images" / image).unlink()
    for path in (tiny.path / "indexes").iterdir():
        path.unlink()
    report = run(tiny)
    assert report.findings == ()
    assert report.orphan_packs == len(packs(tiny)) + len(packs(tiny, PackKind.MAPS))


def test_a_lost_index_is_said_once_and_costs_nothing(tiny: Tiny, tmp_path: Path) -> None:
    first = tiny.add({"disk0/p1": NOISE.randbytes(20_000)}, tmp_path)
    for path in (tiny.path / "indexes").iterdir():
        path.unlink()
    tiny.add({"disk0/p1": NOISE.randbytes(20_000)}, tmp_path)
    (finding,) = run(tiny).findings
    assert (finding.fault, finding.images) == (Fault.UNINDEXED, (first,))
    assert finding.repairable
    assert finding.message == "2 packs that images need are named in no index"


def test_batched_look_ups_agree_with_a_simple_reference(tiny: Tiny, tmp_path: Path) -> None:
    shared = NOISE.randbytes(3_000_000)
    for number in range(3):
        tiny.add({"disk0/p1": shared + NOISE.randbytes(200_000 * number + 5000)}, tmp_path)
    repository = tiny.open()
    keys = Unlocked(repository, tiny.key).keys
    index, _ = repository.load_index(keys)
    images, _ = repository.images(keys)
    reader = MapReader(repository, keys, index, lambda _: None)
    names = dict.fromkeys(index.names(index.of_kind[PackKind.DATA]))
    walk = MapWalk(reader.load, index, Watched(index, names))
    for image in images:
        volume = image.summary.volumes[0]
        simple = {
            index.pack_name(place)
            for row in chunk_ids(reader.read(image.summary, volume.id))
            for place in index.locations_in(row.tobytes(), PackKind.DATA)
        }
        below = walk.volume(volume)
        assert below.packs == below.alone == simple
        assert not below.missing


def test_a_budget_alone_means_every_byte(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.add({"a": b"content" * 10_000}, tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    done = CliRunner().invoke(check_command, [str(tiny.path), "--budget", "30m", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["depth"] == "ciphertext"


@pytest.mark.parametrize(
    "memory",
    [
        b"\xff\xfe",
        b'{"ciphertext": "\xff"}',
        b"[]",
        b'{"ciphertext": 7}',
        b'{"ciphertext": {"number": "1", "began": 2, "position": [], "damaged": {}}}',
        b'{"ciphertext": {"number": 1, "began": "", "position": "\xff", "damaged": []}}',
    ],
)
def test_what_was_remembered_wrong_begins_a_new_round(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: bytes
) -> None:
    tiny.add({"a": b"content" * 10_000}, tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = memory_path(tiny.open().id)
    path.parent.mkdir(parents=True)
    path.write_bytes(memory)
    words = [str(tiny.path), "--budget", "30m"]
    done = CliRunner().invoke(check_command, words)
    assert done.exit_code == 0, done.output
    assert "Round 1: 100 % done" in done.output
    assert f"{path}, which says how far" in done.output
    assert "which says how far" not in CliRunner().invoke(check_command, words).output


@pytest.mark.parametrize("junk", [b"\xff\xfe", b"README"])
@pytest.mark.parametrize("folder", ["", "packs", "packs/00", "parity"])
def test_junk_is_reported(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: str, junk: bytes
) -> None:
    tiny.add({"a": b"content" * 10_000}, tmp_path)
    tiny.credential.write(tmp_path / "credential")
    (tiny.path / folder).mkdir(exist_ok=True)
    Path(os.fsdecode(os.fsencode(tiny.path / folder) + b"/" + junk)).write_bytes(b"junk")
    words = ["check", str(tiny.path), "--credential", str(tmp_path / "credential")]
    for options in ([], ["--ciphertext"]):
        assert console.run([*words, *options]) == 0
        said = capsys.readouterr().out
        assert "not in any index" not in said
        assert "1 files are no objects of a repository" in said or not options


@pytest.mark.parametrize("folder", ["", "images", "indexes", "packs", "statements", "removals"])
def test_names_that_are_no_text_are_reported(
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: str,
) -> None:
    image = tiny.add({"a": b"content" * 10_000}, tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    tiny.credential.write(tmp_path / "credential")
    (tiny.path / folder).mkdir(exist_ok=True)
    Path(os.fsdecode(os.fsencode(tiny.path / folder) + b"/\xff\xfe")).write_bytes(b"junk")
    words = [str(tiny.path), "--credential", str(tmp_path / "credential")]
    assert console.run(["images", *words]) == 0
    assert image[:12] in capsys.readouterr().out
    for options in ([], ["--ciphertext"], ["--budget", "30m"]):
        assert console.run(["check", *words, *options]) == 0
        said = capsys.readouterr().out
        assert "1 files are no objects of a repository, such as" in said or not options
        assert "\\xff\\xfe" in said or not options


def test_paths_that_are_no_text_can_be_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    assert console.run(["check", place]) == NotARepository.exit_code
    assert "there is no repository at" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        console.run(["check", place, "--json"])
    assert json.loads(capsys.readouterr().out)["error"]["id"] == "not-a-repository"


def test_damaged_objects_do_not_keep_a_round_from_going_on(tiny: Tiny, tmp_path: Path) -> None:
    """As many objects are damaged as a budget can read; still each run gets further."""
    for _ in range(10):
        tiny.add({"disk0/p1": NOISE.randbytes(9000)}, tmp_path)
    damaged = sorted((tiny.path / "images").iterdir())  # these are read first
    for path in damaged:
        flip(path, 300)
    total = sum(1 for path in tiny.path.rglob("*") if path.is_file())
    memory = tmp_path / "state" / "check.json"

    def run_once() -> Report:
        budget = Budget(8, memory, Ticks())
        return check(tiny.open(), None, lambda _: None, depth=Depth.CIPHERTEXT, budget=budget)

    first = run_once()
    runs = 1
    while (report := run_once()).progress.runs_left:  # type: ignore[union-attr]
        runs += 1
        assert report.progress is not None
        assert report.progress.number == 1
        assert runs < total / 3
    assert first.progress is not None
    assert len(report.findings) == len(damaged)
    for path in damaged:
        flip(path, 300)
    for _ in range(2 * len(damaged)):
        report = run_once()
    assert not report.findings, "each of them had its turn"
