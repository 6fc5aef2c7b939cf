"""Which targets are foreign, and what has to be typed for one."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from memory_image import disk
from test_planner import image, plan_for
from test_twins import UUID, disk_with, machine_of, seen

from imager import process
from imager.blockdev import BlockDisk
from imager.errors import ForeignTarget, NotConfirmed, UsageError
from imager.layout.disk import DiskIdentity
from imager.layout.layers import Layers
from imager.layout.partition_table import PartitionTable, TableKind
from imager.units import MIB
from restore import foreign, marks
from restore.circumstances import Surroundings
from restore.foreign import UNKNOWN
from restore.journal import Found, Note
from restore.marks import Carried, Mark, MarkKind
from restore.match import Basis, Match
from restore.target import Target, TargetKind

HERE = "5e11"
TABLE = Mark(MarkKind.TABLE, "8D2F", "GPT 8D2F")
VOLUME = Mark(MarkKind.FILESYSTEM, "0b4f", "ext4 0b4f")
GROUP = Mark(MarkKind.GROUP, "vg-1", "VG 'data'")
NAME = Mark(MarkKind.GROUP_NAME, "data", "VG 'data'")
WORDS = ("GPT 8D2F", "ext4 'data'")


def journal(repository: str, *, is_alone: bool) -> Found:
    note = Note("r", repository, "4f2a", "web1", "then", "disk0", "t", 3, "b", "n")
    return Found(note, 1, is_alone)


@pytest.mark.parametrize(
    ("carried", "own", "found", "is_foreign"),
    [
        (Carried((), ()), {TABLE}, None, False),
        (Carried(WORDS, (TABLE, VOLUME)), set(), None, True),
        (Carried(WORDS, (TABLE, VOLUME)), {VOLUME}, None, False),
        (Carried(WORDS, (TABLE, VOLUME)), {replace(TABLE, words="GPT")}, None, False),
        (Carried(WORDS, (TABLE,)), {replace(TABLE, kind=MarkKind.FILESYSTEM)}, None, True),
        (Carried(WORDS, (GROUP, NAME)), {replace(GROUP, value="vg-2"), NAME}, None, True),
        (Carried(WORDS, (GROUP, NAME)), {GROUP}, None, False),
        (Carried((UNKNOWN,), ()), {TABLE}, None, True),
        (Carried((UNKNOWN,), ()), {TABLE}, journal(HERE, is_alone=True), False),
        (Carried((UNKNOWN,), ()), {TABLE}, journal("other", is_alone=True), True),
        # The table was being written when it was cut off; or somebody made another one since.
        (Carried((UNKNOWN,), ()), {TABLE}, journal(HERE, is_alone=False), False),
        (Carried(WORDS, (TABLE,)), {VOLUME}, journal(HERE, is_alone=False), True),
    ],
)
def test_the_decision(
    carried: Carried, own: set[Mark], found: Found | None, *, is_foreign: bool
) -> None:
    content = foreign.foreign_content(carried, own, found, HERE)
    assert content == (carried.words if is_foreign else ())


@pytest.mark.parametrize("basis", Basis)
def test_who_was_recognised_is_not_foreign(basis: Basis) -> None:
    target = BlockDisk(
        Path("/dev/vda"), DiskIdentity(MIB, 512), (), read_only=False, removable=False,
        is_device=True,
    )  # fmt: skip
    match = Match(disk(), target, basis)
    is_proven = basis in {Basis.WWN, Basis.SERIAL, Basis.SERIAL_ONLY}
    assert foreign.can_be(match) is not is_proven
    assert not foreign.can_be(replace(match, target=replace(target, is_device=False)))


def test_what_a_disk_holds(tmp_path: Path) -> None:
    filesystem = tmp_path / "filesystem"
    with filesystem.open("wb") as file:
        file.truncate(8 * MIB)
    process.run("mke2fs", "-q", "-t", "ext4", "-L", "data", "-U", UUID, filesystem)
    used = disk_with(tmp_path / "used", filesystem.read_bytes())
    carried = foreign.look(seen(used))
    (table, *rest) = carried.words
    assert table.startswith("GPT ")
    assert rest == ["ext4 'data'"]
    assert {mark.kind for mark in carried.marks} == {MarkKind.TABLE, MarkKind.FILESYSTEM}
    assert foreign.look(seen(filesystem)).words == ("ext4 'data'",)
    layered = foreign.look(seen(disk_with(tmp_path / "layered", "md-1.1-lvm")))
    assert "physical volume of VG 'data' with LVs root, var" in layered.words


def test_the_old_disk_is_known_by_any_of_its_marks(tmp_path: Path) -> None:
    for name in ("luks2", "md-1.1-lvm", "btrfs"):
        machine = machine_of(disk_with(tmp_path / "saved", name))
        own = frozenset(marks.marks_of(machine.disks, machine.layers))
        carried = foreign.look(seen(disk_with(tmp_path / "moved", name)))  # with another table
        assert carried.words
        assert foreign.foreign_content(carried, own, None, HERE) == ()
        another = foreign.look(seen(disk_with(tmp_path / "other", bytes(MIB))))
        assert foreign.foreign_content(another, own, None, HERE) == another.words


def test_the_signature_of_an_mbr_is_a_mark_unless_it_is_zero() -> None:
    for signature, count in (("1234abcd", 1), ("00000000", 0)):
        saved = replace(disk(), table=PartitionTable(TableKind.MBR, signature, ()))
        assert len(list(marks.marks_of([saved], Layers()))) == count


@pytest.mark.parametrize(
    ("place", "words"),
    [(None, ()), (0, (UNKNOWN,)), (6 * MIB - 1, (UNKNOWN,)), (3 * MIB, ())],
)
def test_what_nobody_understands_is_not_blank(
    tmp_path: Path, place: int | None, words: tuple[str, ...]
) -> None:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(6 * MIB)
        if place is not None:
            os.pwrite(file.fileno(), b"\x01", place)
    assert foreign.look(seen(path)).words == words


def test_what_can_not_be_read_is_not_blank(tmp_path: Path) -> None:
    cut = disk_with(tmp_path / "cut", bytes(8 * MIB))
    os.truncate(cut, 3 * MIB)
    gone = seen(disk_with(tmp_path / "gone", bytes(8 * MIB)))
    gone.path.unlink()
    assert foreign.look(seen(cut)).words == foreign.look(gone).words == (UNKNOWN,)


def target(serial: str | None, *words: str, size: int = 4096, name: str = "vda") -> Target:
    return Target(
        name, Path("/dev") / name, TargetKind.DEVICE, size, size, 512, None, serial, "", "",
        foreign=words,
    )  # fmt: skip


def test_all_foreign_targets_have_to_be_named() -> None:
    first, second = target("S1", "ext4"), target(None, "ntfs", name="vdb", size=8192)
    blank = target("S3", name="vdc")
    every = (first, second, blank)
    foreign.require(every, ["S1", "8192"])
    foreign.require(every, ["S3", "8192", "S1"])  # as in the order that is carried out again
    foreign.require([blank], [])
    for names, left in (([], "S1 --overwrite-serial 8192"), (["S1"], "8192"), (["8192"], "S1")):
        with pytest.raises(ForeignTarget) as caught:
            foreign.require(every, names)
        assert f"--overwrite-serial {left} (in an order: overwrite_serials)" in caught.value.hint
    assert "holds ntfs; none of it is of this machine" in str(caught.value) or left == "S1"
    for typo in ("s1", "S", "", "4096", "8192 "):
        with pytest.raises(UsageError, match="no disk that this restore overwrites"):
            foreign.require(every, ["S1", "8192", typo])


def test_a_file_is_not_named() -> None:
    file = replace(target(None), kind=TargetKind.FILE)
    with pytest.raises(UsageError):
        foreign.require([file], [str(file.size)])


@pytest.mark.parametrize(
    ("serial", "right", "wrong"),
    [("S1", " S1 ", ("", "s1", "S12", "4096", "overwrite")), (None, "4096", ("", "None", "S1"))],
)
def test_answers(serial: str | None, right: str, wrong: tuple[str, ...]) -> None:
    asked = target(serial, "ext4")
    foreign.check_answer(asked, right)
    for answer in wrong:
        with pytest.raises(NotConfirmed, match="what was typed is not the"):
            foreign.check_answer(asked, answer)


def test_the_plan_says_what_is_on_a_foreign_target() -> None:
    carried = Carried(("GPT 8D2F0A11", "ext4 'data'", "ntfs 'Windows'"), ())
    plan = plan_for(image(), surroundings=Surroundings(carried={"disk0": carried}))
    assert list(plan.lines())[4:8] == [
        "  /dev/vda: QEMU DISK, serial S1, 64.0 MiB (67108864 bytes)",
        "    holds GPT 8D2F0A11, ext4 'data', ntfs 'Windows'; none of it is of this",
        "      machine",
        "    takes disk0, saved from /dev/sda: 64.0 MiB (67108864 bytes)",
    ]
    (row,) = plan.document()["targets"]
    assert row["foreign"] == list(carried.words)
    unknown = plan_for(
        image(), surroundings=Surroundings(carried={"disk0": Carried((UNKNOWN,), ())})
    )
    assert f"holds {UNKNOWN}; nothing says that" in "\n".join(unknown.lines())


def test_the_plan_compares_with_the_image() -> None:
    made = image()
    table = made.machine.disks[0].table
    assert table is not None
    own = Carried(WORDS, (Mark(MarkKind.TABLE, table.id, "GPT"),))
    unfinished = Surroundings(
        carried={"disk0": Carried((UNKNOWN,), ())},
        journals={"disk0": journal(HERE, is_alone=True)},
    )
    for surroundings in (Surroundings(carried={"disk0": own}), unfinished):
        plan = plan_for(made, surroundings=surroundings)
        assert plan.targets[0].foreign == ()
        assert plan.document()["targets"][0]["foreign"] == []
