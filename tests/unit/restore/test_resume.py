"""Restores that are cut off at any moment go on, with windows of a few runs, and end up right."""

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from memory_image import MemoryImage, cut_after, disk, image_of, machine
from power import Power, PowerCut
from restoring import SUBJECT, expected, plan_for, two_parts

from imager import process
from imager.errors import LinkError, VerificationFailed
from imager.layout.disk import Volume, VolumeRole
from restore import execute as execution
from restore import journal, planner, runs, transfer, windows
from restore.circumstances import Wishes
from restore.execute import execute
from restore.journal import END, SLOT, START
from restore.plan import Plan
from restore.steps import BeginJournal, Resume

KIB, MIB = 1 << 10, 1 << 20
WINDOW = 4


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW", WINDOW)
    monkeypatch.setattr(runs, "_PART", 3)
    # So that the middle of a small disk is neither wiped before nor cleared.
    for module in (planner, runs):
        monkeypatch.setattr(module, "EDGE", 96 * KIB)
    monkeypatch.setattr(windows, "HEAD", 64 * KIB)


def image_with_two_disks() -> MemoryImage:
    """One with a table, one without; chunks that both have; zeros and free space all over."""
    shared = [os.urandom(8 * KIB) for _ in range(4)]
    first: list[bytes | tuple[str, int]] = []
    for number in range(14):
        first += [os.urandom(4 * KIB), ("zero", 8 * KIB), shared[number % 4], ("free", 4 * KIB)]
    left = 640 * KIB - 14 * 24 * KIB - 128 * KIB
    first += [("zero", left)]
    second: list[bytes | tuple[str, int]] = [b"HEAD" * KIB, ("zero", 60 * KIB)]
    second += [shared[0], ("zero", 60 * KIB), os.urandom(4 * KIB)]
    for number in range(9):
        second += [os.urandom(4 * KIB), ("zero", 4 * KIB), shared[number % 4]]
    used = sum(len(part) if isinstance(part, bytes) else part[1] for part in second)
    second += [("zero", 384 * KIB - used)]
    return image_of(
        machine(two_parts("disk0", 640 * KIB), disk("disk1", 384 * KIB)),
        {
            "disk0/boot-area": [b"B" * 512, ("zero", 63 * KIB), b"b" * 512],
            "disk0/p1": first,
            "disk0/gap1": [("zero", 63 * KIB), b"G" * KIB],
            "disk1/whole": second,
        },
    )


def image_with_a_table() -> MemoryImage:
    """What a single disk has: here everything but tables is content."""
    image = image_with_two_disks()
    return replace(image, machine=replace(image.machine, disks=image.machine.disks[:1]))


def go(
    image: MemoryImage,
    targets: Sequence[Path],
    wishes: Wishes | None = None,
    *,
    as_devices: bool = True,
) -> Plan:
    plan = plan_for(image, *targets, wishes=wishes or Wishes(), as_devices=as_devices)
    moved: list[int] = []
    execute(
        plan,
        image,
        advance=moved.append,
        record=lambda _: None,
        measure=lambda _name, _stages: None,
        log=str,
    )
    assert sum(moved) == plan.compared + plan.written + plan.verified
    return plan


def old_disks(image: MemoryImage, folder: Path) -> list[Path]:
    """Targets full of noise."""
    paths = []
    for saved in image.machine.disks:
        paths.append(folder / f"{saved.id}.raw")
        paths[-1].write_bytes(b"\xa5" * saved.identity.size)
    return paths


def assert_restored(image: MemoryImage, targets: Sequence[Path]) -> None:
    for saved, path in zip(image.machine.disks, targets, strict=True):
        one, other = expected(image, saved), expected(image, saved, free=b"\xff")
        found = path.read_bytes()
        for place in range(0, len(one), 512):
            if one[place : place + 512] == other[place : place + 512]:
                there = found[place : place + 512]
                assert there == one[place : place + 512], f"{path.name} at {place}"
        assert journal.find(path, journal.head_of(saved)) is None, "no journal is left"


def assert_looks_unfinished(image: MemoryImage, targets: Sequence[Path]) -> None:
    """Where a journal counts, there is nothing else that a machine could start from."""
    for saved, path in zip(image.machine.disks, targets, strict=True):
        found = journal.find(path, journal.head_of(saved))
        if found is not None and found.is_alone:
            head = path.read_bytes()[: journal.head_of(saved)]
            assert not any(head[:START] + head[END:])


@pytest.mark.parametrize("as_devices", [True, False], ids=["devices", "files"])
@pytest.mark.parametrize("make", [image_with_two_disks, image_with_a_table])
def test_a_power_cut_at_any_moment_comes_back(
    tmp_path: Path,
    make: Callable[[], MemoryImage],
    as_devices: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = make()
    power = Power(monkeypatch)
    targets = old_disks(image, tmp_path)
    go(image, targets, as_devices=as_devices)
    assert_restored(image, targets)
    moments, whole = power.count, power.written
    chance = random.Random(moments)
    resumed, tried = 0, 0
    for moment in range(chance.randrange(2), moments, 2 * len(targets)):
        targets = old_disks(image, tmp_path)
        power.cut_after(moment)
        with pytest.raises(PowerCut):
            go(image, targets, as_devices=as_devices)
        power.never_cut()
        power.lose(chance)
        assert_looks_unfinished(image, targets)
        power.written = 0
        plan = go(image, targets, as_devices=as_devices)
        assert_restored(image, targets)
        tried += 1
        if plan.resume is not None:
            resumed += 1
            if plan.resume.done:
                assert power.written < whole
    assert resumed > tried // 2


@pytest.mark.parametrize("seed", range(20))
def test_power_cuts_one_after_the_other_come_back(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also ones that begin anew, and with disks that have noted different counts."""
    chance = random.Random(seed)
    image = image_with_two_disks()
    power = Power(monkeypatch)
    targets = old_disks(image, tmp_path)
    for _ in range(6):
        power.cut_after(chance.randrange(80))
        wishes = Wishes(anew=chance.random() < 0.3, delta=chance.random() < 0.2)
        try:
            go(image, targets, wishes)
        except PowerCut:
            power.lose(chance)
        assert_looks_unfinished(image, targets)
    power.never_cut()
    go(image, targets)
    assert_restored(image, targets)


def test_a_resume_fetches_and_writes_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = image_with_a_table()
    power = Power(monkeypatch)
    targets = old_disks(image, tmp_path)
    go(image, targets)
    whole, asked = power.written, sum(image.asked)
    targets = old_disks(image, tmp_path)
    with pytest.raises(LinkError) as caught:
        go(cut_after(image, 22), targets)
    assert "goes on from there" in (caught.value.hint or "")
    image.asked.clear()
    power.written = 0
    plan = go(image, targets)
    assert plan.resume is not None
    assert (plan.resume.done, plan.resume.windows) == (5, 7)
    # Of the window that was underway, two of its four chunks were there.
    assert image.asked == [2, 4, 1, 2]
    assert sum(image.asked) < asked
    assert power.written < whole - plan.resume.there // 2
    assert_restored(image, targets)


def test_a_window_that_is_whole_but_not_noted_costs_no_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = image_with_a_table()
    targets = old_disks(image, tmp_path)
    note = journal.Journal.note

    def flush_and_die(self: journal.Journal, done: int) -> None:
        if done == 3:
            for each in self._opened:
                each.flush()
            raise PowerCut
        note(self, done)

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "note", flush_and_die)
        with pytest.raises(PowerCut):
            go(image, targets)
    image.asked.clear()
    plan = go(image, targets)
    assert plan.resume is not None
    assert plan.resume.done == 2
    assert image.asked[0] == 4, "the third is there, the fourth is the first that is fetched"
    assert len(image.asked) == 4 + 2
    assert_restored(image, targets)


def test_a_cut_between_a_note_and_the_next_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = image_with_two_disks()
    targets = old_disks(image, tmp_path)
    note = journal.Journal.note

    def note_and_die(self: journal.Journal, done: int) -> None:
        note(self, done)
        if done == 3:
            raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "note", note_and_die)
        with pytest.raises(PowerCut):
            go(image, targets)
    plan = go(image, targets)
    assert plan.resume is not None
    assert plan.resume.done == 3
    assert_restored(image, targets)


def test_when_all_content_is_there_only_tables_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = image_with_a_table()
    power = Power(monkeypatch)
    targets = old_disks(image, tmp_path)
    write = transfer.write_volumes
    passes: list[str] = []

    def die(steps: Sequence[object], *rest: object) -> list[int]:
        if passes:
            raise PowerCut
        passes.append("content")
        return write(steps, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(execution, "write_volumes", die)
        with pytest.raises(PowerCut):
            go(image, targets)
    image.asked.clear()
    power.written = 0
    plan = go(image, targets, Wishes(verify_written=True))
    assert plan.resume is not None
    assert plan.resume.done == plan.resume.windows
    assert "compare the part" not in plan.resume.describe()
    assert image.asked == [1, 2]
    assert power.written < 2 * 64 * KIB + KIB
    assert_restored(image, targets)


def interrupted(image: MemoryImage, folder: Path, chunks: int = 22) -> list[Path]:
    targets = old_disks(image, folder)
    with pytest.raises(LinkError):
        go(cut_after(image, chunks), targets)
    return targets


def plan_again(image: MemoryImage, targets: Sequence[Path], wishes: Wishes | None = None) -> Plan:
    return plan_for(image, *targets, wishes=wishes or Wishes(), as_devices=True)


def two_equal() -> MemoryImage:
    image = image_with_two_disks()
    first = image.machine.disks[0]
    second = replace(
        first,
        id="disk1",
        volumes=tuple(replace(v, id=v.id.replace("disk0", "disk1")) for v in first.volumes),
    )
    found = {key.replace("disk0", "disk1"): value for key, value in image.runs.items()}
    return replace(image, machine=machine(first, second), runs=dict(image.runs) | found)


def test_notes_go_to_the_slots_in_turn(tmp_path: Path) -> None:
    (target,) = interrupted(image_with_a_table(), tmp_path)
    data = target.read_bytes()
    notes = [journal.decode(data[place : place + SLOT]) for place in (START, START + SLOT)]
    assert [(note[0], note[1].done) for note in notes if note] == [(6, 5), (5, 4)]


@pytest.mark.parametrize("wishes", [Wishes(anew=True), Wishes(delta=True)])
def test_a_note_never_outlives_what_it_speaks_of(
    tmp_path: Path, wishes: Wishes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power goes while the old content is wiped, and the wiping of the journal alone is lost."""
    image = image_with_a_table()
    power = Power(monkeypatch)
    for moment in range(8):
        targets = interrupted(image, tmp_path)
        power.lose_only(0, 0)
        power.cut_after(moment)
        with pytest.raises(PowerCut):
            go(image, targets, wishes)
        power.never_cut()
        power.lose_only(START, END)
        go(image, targets)
        assert_restored(image, targets)


def test_swapped_targets_do_not_resume(tmp_path: Path) -> None:
    image = two_equal()
    one, two = interrupted(image, tmp_path)
    assert plan_again(image, [one, two]).resume is not None
    plan = plan_again(image, [two, one])
    assert plan.resume is None
    assert len([note for note in plan.notes if "that began" in note]) == 2
    assert "not all of its disks are here, in their places" in " ".join(plan.notes)
    go(image, [two, one])
    assert_restored(image, [two, one])


def test_with_another_disk_beside_it_does_not_resume(tmp_path: Path) -> None:
    image = two_equal()
    one, two = interrupted(image, tmp_path)
    two.write_bytes(bytes(two.stat().st_size))
    assert plan_again(image, [one, two]).resume is None
    go(image, [one, two])
    assert_restored(image, [one, two])


def test_disks_of_two_restores_do_not_resume(tmp_path: Path) -> None:
    image = two_equal()
    one, two = interrupted(image, tmp_path)
    kept = one.read_bytes()
    interrupted(image, tmp_path)
    one.write_bytes(kept)
    assert plan_again(image, [one, two]).resume is None


@pytest.mark.parametrize("change", ["image", "repository", "size", "used", "wwn"])
def test_what_does_not_fit_begins_anew(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = image_with_a_table()
    targets = interrupted(image, tmp_path)
    if change in {"image", "repository"}:
        other = replace(SUBJECT, **{change: "0123"})
        monkeypatch.setattr("restoring.SUBJECT", other)
    elif change == "size":
        os.truncate(targets[0], 704 * KIB)
    elif change == "used":
        process.run("sfdisk", "--quiet", targets[0], stdin=b"label: gpt\n")
    elif change == "wwn":
        make = planner._target
        monkeypatch.setattr(planner, "_target", lambda *given: replace(make(*given), wwn="0x5000"))
    plan = plan_again(image, targets)
    assert plan.resume is None
    assert any(isinstance(step, BeginJournal) for step in plan.steps)
    (note,) = plan.notes
    assert "holds a restore of web1, image 4f2a, that began" in note
    assert ("Something else was written over its beginning" in note) == (change == "used")
    if change != "size":
        go(image, targets)
        assert_restored(image, targets)


def test_anew_and_delta_do_not_resume(tmp_path: Path) -> None:
    image = image_with_a_table()
    targets = interrupted(image, tmp_path)
    anew = plan_again(image, targets, Wishes(anew=True))
    assert anew.resume is None
    assert anew.steps[0].name == "wipe-signatures"
    assert "as was asked for (--anew)" in anew.notes[0]
    delta = plan_again(image, targets, Wishes(delta=True))
    assert not any(isinstance(step, Resume | BeginJournal) for step in delta.steps)
    assert "All of it is compared (--delta)" in delta.notes[0]
    go(image, targets, Wishes(delta=True))
    assert_restored(image, targets)


def test_an_interrupted_delta_is_repeated_and_leaves_nothing_to_resume(tmp_path: Path) -> None:
    image = image_with_a_table()
    targets = interrupted(image, tmp_path)
    with pytest.raises(LinkError):
        go(cut_after(image, 2), targets, Wishes(delta=True))
    assert plan_again(image, targets).resume is None, "the journal went with the table"
    go(image, targets, Wishes(delta=True))
    assert_restored(image, targets)


def test_the_plan_says_where_it_goes_on(tmp_path: Path) -> None:
    image = image_with_a_table()
    targets = interrupted(image, tmp_path)
    plan = plan_again(image, targets)
    assert [step.name for step in plan.steps] == [
        "resume",
        *["write"] * 3,
        "reread-table",
    ]
    text = " ".join(" ".join(plan.lines()).split())
    assert "1. resume the restore that began 20" in text
    assert "5 of 7 parts, " in text
    assert "are there already, each chunk checked when it was written" in text
    assert "compare the part that was underway, and write what is missing" in text
    assert "but what is there already (" in text
    assert "begin from the start: --anew" in text
    document = plan.document()
    assert document["resumes"] is True
    assert document["there_bytes"] == plan.resume.there  # type: ignore[union-attr]
    assert document["steps"][0]["done"] == 5
    assert document["steps"][0]["targets"] == [str(targets[0])]


def test_a_verification_that_fails_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = image_with_a_table()
    targets = old_disks(image, tmp_path)
    verify = execution.verify_volume

    def lose_a_bit(*rest: object) -> None:
        with targets[0].open("r+b") as file:
            file.seek(100 * KIB)
            file.write(b"\1\2\3")
        verify(*rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(execution, "verify_volume", lose_a_bit)
        with pytest.raises(VerificationFailed) as caught:
            go(image, targets, Wishes(verify_written=True))
    assert "goes on" not in (caught.value.hint or "")
    assert plan_again(image, targets).resume is None
    go(image, targets, Wishes(verify_written=True))
    assert_restored(image, targets)


def test_a_new_file_that_holds_enough_stays(tmp_path: Path) -> None:
    image = image_with_a_table()
    target = tmp_path / "new.raw"
    with pytest.raises(LinkError):
        go(cut_after(image, 2), [target], as_devices=False)
    assert not target.exists(), "nothing was noted"
    with pytest.raises(LinkError):
        go(cut_after(image, 22), [target], as_devices=False)
    plan = go(image, [target], as_devices=False)
    assert plan.resume is not None
    assert_restored(image, [target])
    assert target.read_bytes() == expected(image, image.machine.disks[0])


def test_without_room_there_is_no_journal(tmp_path: Path) -> None:
    short = END - 512
    volumes = (
        Volume("disk0/boot-area", VolumeRole.BOOT_AREA, 0, short),
        Volume("disk0/p1", VolumeRole.PARTITION, short, MIB - short, 1),
    )
    image = image_of(machine(disk(size=MIB, volumes=volumes)), {})
    targets = old_disks(image, tmp_path)
    plan = go(image, targets)
    assert not any(isinstance(step, BeginJournal) for step in plan.steps)
    assert_restored(image, targets)
