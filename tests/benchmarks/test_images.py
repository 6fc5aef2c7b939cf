"""The benchmark runs; numbers of so few bytes say nothing."""

import json
from pathlib import Path

import pytest

from imager.units import MIB
from tests.benchmarks.images import __main__ as bench
from tests.benchmarks.images import rounds
from tests.benchmarks.images.corpus import Corpus, build, device_of, mounted
from tests.benchmarks.images.measure import Command, WentWrongError, measure
from tests.benchmarks.images.rounds import LIMIT, Operation, Run, damage
from tests.benchmarks.images.shows import Show, Side, ratio, shows
from tests.benchmarks.images.tools import BORG, PARTCLONE_PLAIN, QEMU_IMG, REMETAL
from tests.benchmarks.images.trees import differences, tree_of

SCALE = 0.004
ROOTS = (Path(__file__).parents[2] / "imager", Path(__file__).parents[1] / "unit")
TOOLS = (LIMIT, REMETAL.name, QEMU_IMG.name)
MEASURED = tuple(Operation)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture
def corpus(folder: Path) -> Corpus:
    return build(folder, SCALE, lambda _: None, ROOTS)


def test_a_small_run(folder: Path) -> None:
    only = (*MEASURED, bench.Extra.SCALING)
    wishes = bench.Wishes(SCALE, 1, only, TOOLS, folder, ROOTS)
    told: list[str] = []
    made = bench.run(wishes, told.append)
    done = {(run.tool, run.operation) for run in made.runs}
    assert {operation for tool, operation in done if tool == REMETAL.name} == set(MEASURED)
    assert {operation for tool, operation in done if tool == LIMIT} == {
        Operation.FULL,
        Operation.UNCHANGED,
        Operation.RESTORE,
    }
    assert all(run.seconds > 0 and run.cpu > 0 for run in made.runs)
    ours = {run.operation: run for run in made.runs if run.tool == REMETAL.name}
    assert ours[Operation.UNCHANGED].new == 0 < ours[Operation.CHANGED].new
    assert ours[Operation.FULL].peak > 20 * MIB
    assert ours[Operation.FULL].stored > MIB
    assert ours[Operation.RESTORE].written > 10 * MIB
    assert "with differences" in made.taken
    assert made.versions[QEMU_IMG.name].startswith("qemu-img version")
    assert f"1 of {len(made.runs)}, round 1 of 1: full limit" in " ".join(told)
    assert {point.what for point in made.points} == {"capture", "restore", "limit of capture"}
    document = json.loads((folder / "report.json").read_bytes())
    assert len(document["runs"]) == len(made.runs)
    table = (folder / "report.md").read_text()
    assert "| limit of the parts |" in table
    assert "Show 1: full capture, cpu of the limit of the parts: " in table
    assert (folder / "tools.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "scaling.svg").read_text().startswith("<?xml")


def test_a_wrong_restore_ends_the_run(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = rounds.measure

    def spoiling(command: Command, log: Path) -> rounds.Measured:
        done = measured(command, log)
        for image in (tmp_path / "work" / "restored").glob("*.img"):
            with mounted(image) as place:
                path = max(place.rglob("*.py"), key=lambda path: path.stat().st_size)
                path.write_bytes(path.read_bytes()[:-1] + b"!")
        return done

    monkeypatch.setattr(rounds, "measure", spoiling)
    runs = rounds.Rounds(corpus, tmp_path / "work", lambda _: None)
    with pytest.raises(WentWrongError, match=r"qemu-img restored 1 files or folders wrongly: .*py"):
        list(runs.run([QEMU_IMG.name], [Operation.RESTORE], 1))


def test_trees_differ(corpus: Corpus) -> None:
    base, changed, second = map(corpus.tree, ("base", "changed", "second"))
    # Folders that deleted files have left empty are on the first disk only.
    assert all(base[path].startswith("40755 ") for path in differences(base, second))
    changes = differences(base, changed)
    assert 2 <= len(changes) < len(base) / 4
    assert any(path.startswith("new/") for path in changes)
    with device_of(corpus.image("second")) as device:
        assert device.is_block_device()
    with mounted(corpus.image("second"), "ro") as place:
        assert not differences(tree_of(place), second)


def test_what_a_family_takes(tmp_path: Path) -> None:
    hungry = (
        "x = bytearray(50 << 20); x[::4096] = b'1' * len(x[::4096]); import time; time.sleep(.2)"
    )
    spin = "import time; t = time.process_time()\nwhile time.process_time() - t < .3: pass"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spin!r}])"
    write = "import sys; sys.stdout.buffer.write(bytes(3 << 20))"
    pipeline = tuple(("python3", "-c", code) for code in (hungry, child, write))
    done = measure(Command(pipeline, stdout=tmp_path / "out"), tmp_path / "log")
    assert (tmp_path / "out").stat().st_size == 3 * MIB
    assert 3 * MIB <= done.written < 4 * MIB
    assert 0.3 <= done.cpu < 2
    assert 50 * MIB <= done.peak < 150 * MIB


def test_a_failing_program_in_the_middle_is_told_of(tmp_path: Path) -> None:
    bad = ("sh", "-c", "echo no such luck >&2; exit 3")
    with pytest.raises(WentWrongError, match=r"sh ended with 3: no such luck"):
        measure(Command((("true",), bad, ("cat",))), tmp_path / "log")


def test_damage_is_as_much_as_was_asked_for(tmp_path: Path) -> None:
    path, other = tmp_path / "one", tmp_path / "other"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(32 * MIB)
        file.write(bytes(16 * MIB))
    other.write_bytes(path.read_bytes())
    damage(path, 3 * MIB // 2)
    spoiled = path.read_bytes()
    assert MIB < len(spoiled) - spoiled.count(0) <= 3 * MIB // 2
    assert not any(spoiled[: 32 * MIB])
    assert not any(spoiled[48 * MIB :])


def test_ratios_are_of_one_round() -> None:
    runs = [
        Run(tool, Operation.FULL, number, seconds, 1.0, stored=10)
        for tool, times in ((REMETAL.name, (1, 2, 3)), (BORG.name, (10, 10, 27)))
        for number, seconds in enumerate(times)
    ]
    found = ratio(
        runs, (BORG.name, Operation.FULL), (REMETAL.name, Operation.FULL), lambda run: run.seconds
    )
    assert found == 9
    by_name = {show.what: show for show in shows(runs, {"base": 1, "second": 1})}
    faster = by_name["full capture, times faster than borg, zstd 1"]
    assert (faster.value, faster.is_met) == (9, True)
    assert by_name["stored, of what partclone | zstd -1 stores"].is_met is None
    runs.append(Run(PARTCLONE_PLAIN.name, Operation.FULL, 0, 1, 1, stored=5))
    by_name = {show.what: show for show in shows(runs, {"base": 1, "second": 1})}
    assert by_name["stored, of what partclone | zstd -1 stores"].is_met is False
    assert Show(1, "", 1.0, Side.AT_MOST, 1).is_met
