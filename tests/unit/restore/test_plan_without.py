"""Plans without some of the saved disks."""

from dataclasses import replace
from pathlib import Path

from memory_image import MemoryImage, image_of, machine
from test_planner import ENTRY, ESP_UUID, MIB, UEFI, saved_disk

from imager.blockdev import BlockDisk
from imager.layout.disk import Disk, DiskIdentity, VolumeRole
from imager.layout.filesystem import Filesystem
from imager.layout.firmware import BootEntry, Firmware, FirmwareKind
from imager.layout.layers import Layers
from imager.layout.mdraid import MEMBER_TYPE, MdArray, MdMember, MdState, MdVersion
from restore import journal
from restore.boot_steps import SetBootEntries
from restore.circumstances import Surroundings, Wishes
from restore.fit_planner import Fitter
from restore.journal import Found, Note
from restore.match import Basis, Match
from restore.plan import Plan
from restore.planner import make_plan
from restore.steps import (
    CheckTable,
    KeepMembers,
    RelocateMdSuperblock,
    RereadTable,
    Resume,
    Subject,
    VerifyVolume,
)
from restore.without import AHEAD, NOTHING, Without, judge

WISHES = Wishes(verify_written=True, boot_entries=True)
SUBJECT = Subject("5e11", "4f2a", "web1", "2026-01-02T03:04:05Z")
TWIN_UUID = "AAAAAAAA-0000-4000-8000-000000000003"


def mirror(name: str, part: str, version: MdVersion, inside: str) -> MdArray:
    members = tuple(
        MdMember(f"disk{n}/{part}" if part else f"disk{n}", n, n, MdState.ACTIVE, 7, True, 0)
        for n in range(2)
    )
    return MdArray(
        name, f"uuid-{name}", f"h:{name}", "raid1", version, 2, 0, False, False, members, Filesystem(inside)
    )  # fmt: skip


def twin(disk: Disk) -> Disk:
    assert disk.table is not None
    esp, root = disk.table.partitions
    table = replace(disk.table, id="CC", partitions=(replace(esp, uuid=TWIN_UUID), root))
    volumes = tuple(replace(each, id=each.id.replace("disk0", "disk1")) for each in disk.volumes)
    return replace(disk, id="disk1", table=table, volumes=volumes)


LAYERS = Layers(
    md=(mirror("esp", "p1", MdVersion.V1_0, "vfat"), mirror("root", "p2", MdVersion.V1_2, "ext4"))
)


def mirrored(firmware: Firmware = UEFI, layers: Layers = LAYERS) -> MemoryImage:
    first = saved_disk()
    if layers is LAYERS:
        volumes = tuple(
            replace(each, filesystem=Filesystem(MEMBER_TYPE))
            if each.role is VolumeRole.PARTITION
            else each
            for each in first.volumes
        )
        first = replace(first, volumes=volumes)
    made = machine(first, twin(first), firmware=firmware)
    return image_of(replace(made, layers=layers), {})


def plan_without(
    made: MemoryImage,
    without: Without,
    *,
    size: int = 64 * MIB,
    surroundings: Surroundings | None = None,
) -> Plan:
    matches = []
    for number, disk in enumerate(made.machine.disks):
        if disk not in without.disks:
            identity = DiskIdentity(size, 512, serial=f"S{number}")
            there = BlockDisk(
                Path(f"/dev/vd{'ab'[number]}"), identity, (), read_only=False, removable=False,
                is_device=True,
            )  # fmt: skip
            matches.append(Match(disk, there, Basis.SIZE))
    return make_plan(
        made,
        matches,
        subject=SUBJECT,
        wishes=WISHES,
        fitter=Fitter(made, WISHES),
        surroundings=surroundings or Surroundings(uefi=True),
        without=without,
    )


def words(plan: Plan) -> str:
    return " ".join(" ".join(plan.lines()).split())


def test_superblocks_change_after_all_is_verified_and_before_the_table_is_read() -> None:
    made = mirrored()
    plan = plan_without(made, judge(made.machine, {"disk1"}, ()))
    kinds = [type(step) for step in plan.steps]
    places = [number for number, kind in enumerate(kinds) if kind is KeepMembers]
    last_read = max(number for number, kind in enumerate(kinds) if kind is VerifyVolume)
    assert last_read < places[0] < places[1] < kinds.index(RereadTable) < kinds.index(CheckTable)
    first, second = (step for step in plan.steps if isinstance(step, KeepMembers))
    assert (first.place, first.offset, first.length) == ("disk0/p1", MIB, 16 * MIB)
    assert (second.place, second.kept, second.events) == ("disk0/p2", (0,), 7 + AHEAD)
    at = 17 * MIB + 4096
    assert (
        f"/dev/vda: note in the superblock of disk0/p2, bytes {at} to {at + 4095}, and in its "
        "bitmap if it has one, that RAID1 md 'root' (metadata 1.2) goes on with 1 of its 2 disks "
        f"(events {7 + AHEAD})" in words(plan)
    )
    (document,) = (each for each in plan.document()["steps"] if each.get("place") == "disk0/p2")
    assert document["step"] == "keep-members"


def test_what_is_left_out_is_said_and_not_touched() -> None:
    made = mirrored()
    plan = plan_without(made, judge(made.machine, {"disk1"}, ()))
    text = words(plan)
    assert "Note: Left out: disk1, saved from /dev/sda: 64.0 MiB (67108864 bytes). It is" in text
    assert (
        "Note: RAID1 md 'esp' (metadata 1.0) goes on with 1 of its 2 disks, without disk1/p1"
        in text
    )
    assert [target.disk for target in plan.targets] == ["disk0"]
    assert plan.document()["left_out"] == ["disk1"]
    assert "/dev/vdb" not in text


def test_with_all_disks_no_superblock_changes() -> None:
    plan = plan_without(mirrored(), NOTHING)
    assert not any(isinstance(step, KeepMembers) for step in plan.steps)


def test_a_superblock_moves_to_the_end_of_a_larger_disk_first() -> None:
    made = mirrored(layers=Layers(md=(mirror("whole", "", MdVersion.V1_0, "ext4"),)))
    plan = plan_without(made, judge(made.machine, {"disk1"}, ()), size=80 * MIB)
    kinds = [type(step) for step in plan.steps]
    assert kinds.index(RelocateMdSuperblock) + 1 == kinds.index(KeepMembers)
    (step,) = (step for step in plan.steps if isinstance(step, KeepMembers))
    assert (step.place, step.offset, step.length) == ("disk0", 0, 80 * MIB)


def entries_of(plan: Plan) -> tuple[BootEntry, ...]:
    (step,) = (step for step in plan.steps if isinstance(step, SetBootEntries))
    return step.entries


def test_an_entry_for_one_half_of_a_mirror_is_made_for_the_other() -> None:
    only_there = replace(ENTRY, partition_uuid=TWIN_UUID)
    windows = replace(ENTRY, label="windows", partition_uuid="EE")
    made = mirrored(replace(UEFI, boot_entries=(only_there, windows)))
    plan = plan_without(made, judge(made.machine, {"disk1"}, ()))
    assert entries_of(plan) == (ENTRY,)
    assert "disks that are not in the image and are not made again: windows." in words(plan)
    made = mirrored(replace(UEFI, boot_entries=(ENTRY, only_there)))
    assert entries_of(plan_without(made, judge(made.machine, {"disk1"}, ()))) == (ENTRY,)
    assert entries_of(plan_without(made, NOTHING)) == (ENTRY, only_there)


def test_entries_of_a_disk_that_is_left_out_are_named() -> None:
    other = BootEntry("second", TWIN_UUID.lower(), "\\EFI\\debian\\shimx64.efi")
    made = mirrored(replace(UEFI, boot_entries=(ENTRY, other)), Layers())
    plan = plan_without(made, judge(made.machine, {"disk1"}, ()))
    assert entries_of(plan) == (ENTRY,)
    assert "start from disks that are left out and are not made again: second." in words(plan)
    assert ESP_UUID in {entry.partition_uuid for entry in entries_of(plan)}


def test_a_restore_is_resumed_with_the_same_disks_only() -> None:
    made = mirrored(Firmware(FirmwareKind.BIOS), Layers())
    without = judge(made.machine, {"disk1"}, ())
    alone, both = plan_without(made, without), plan_without(made, NOTHING)

    def found(plan: Plan) -> Surroundings:
        mark = journal.fingerprint(plan.targets)
        notes = (
            Note("1", SUBJECT.repository, SUBJECT.image, "m", "t", target.disk, mark, 0, "b", "n")
            for target in plan.targets
        )
        return Surroundings(journals={note.disk: Found(note, 1, is_alone=True) for note in notes})

    def resumes(without: Without, before: Plan) -> bool:
        plan = plan_without(made, without, surroundings=found(before))
        return any(isinstance(step, Resume) for step in plan.steps)

    assert resumes(without, alone)
    assert resumes(NOTHING, both)
    assert not resumes(without, both)
    assert not resumes(NOTHING, alone)
