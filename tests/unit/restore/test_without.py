"""Which disks a machine can do without, and what is said about it."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from memory_image import disk, machine

from imager.errors import DiskNeeded
from imager.layout.bcache import BcacheDevice, BcacheRole
from imager.layout.btrfs import BtrfsDevice, BtrfsPool
from imager.layout.disk import Disk, Volume, VolumeRole
from imager.layout.filesystem import Filesystem
from imager.layout.firmware import Firmware, FirmwareKind
from imager.layout.layers import Layers
from imager.layout.luks import LuksContainer
from imager.layout.lvm import LogicalVolume, PhysicalVolume, VolumeGroup
from imager.layout.machine import Machine
from imager.layout.mdraid import MEMBER_TYPE, MdArray, MdMember, MdState, MdVersion
from imager.layout.partition_table import Partition, PartitionTable, TableKind
from imager.units import MIB
from restore.without import AHEAD, NOTHING, Without, advise, judge, members_on

ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
RAID = "A19D880F-05FC-4D3B-A006-743F0F84911E"
UEFI = Firmware(FirmwareKind.UEFI)
EVENTS = 20


def saved(name: str, *kinds: str | None, esp: int | None = None) -> Disk:
    """A disk with a GPT; one partition for each type of filesystem."""
    parts = [
        Partition(n, n * MIB, MIB, ESP if n == esp else RAID, f"{name}-{n}".upper())
        for n in range(1, len(kinds) + 1)
    ]
    volumes = [
        Volume(
            f"{name}/p{part.number}", VolumeRole.PARTITION, part.offset, MIB, part.number,
            Filesystem(kind, f"u-{name}-{part.number}") if kind else None,
        )
        for part, kind in zip(parts, kinds, strict=True)
    ]  # fmt: skip
    boot = Volume(f"{name}/boot-area", VolumeRole.BOOT_AREA, 0, MIB)
    table = PartitionTable(TableKind.GPT, f"TABLE-{name}", tuple(parts))
    return replace(disk(name, volumes=[boot, *volumes]), table=table)


def member(
    place: str,
    number: int,
    *,
    role: int | None = -1,
    state: MdState = MdState.ACTIVE,
    events: int = EVENTS,
    clean: bool = True,
) -> MdMember:
    return MdMember(place, number, number if role == -1 else role, state, events, clean, 0)


def array(
    level: str, disks: int, *members: MdMember, inside: str | None = "ext4", name: str = "md0"
) -> MdArray:
    filesystem = Filesystem(inside) if inside else None
    return MdArray(
        name,
        "uuid",
        f"h:{name}",
        level,
        MdVersion.V1_2,
        disks,
        0,
        False,
        False,
        members,
        filesystem,
    )


def of(layers: Layers, *disks: Disk, firmware: Firmware | None = None) -> Machine:
    return replace(machine(*disks, firmware=firmware), layers=layers)


def members(number: int, **last: object) -> tuple[MdMember, ...]:
    every = [member(f"disk{n}/p1", n) for n in range(number)]
    every[-1] = replace(every[-1], **last)
    return tuple(every)


def on_md(level: str, every: Sequence[MdMember], disks: int | None = None) -> Machine:
    places = dict.fromkeys(one.place.partition("/")[0] for one in every)
    saved_disks = [saved(name, MEMBER_TYPE) for name in places]
    layers = Layers(md=(array(level, disks or len(every), *every),))
    return of(layers, *saved_disks)


def refusal(found: Machine, *left_out: str, boot_code: Sequence[str] = ()) -> str:
    assert not advise(found, left_out, boot_code)
    with pytest.raises(DiskNeeded) as caught:
        judge(found, left_out, boot_code)
    assert "nothing was written" in caught.value.hint
    return caught.value.message


def test_nobody_leaves_anything_out() -> None:
    assert judge(on_md("raid0", members(2)), (), ()) == NOTHING == Without()


def test_a_mirror_goes_on_with_one_disk() -> None:
    found = judge(on_md("raid1", members(2)), {"disk1"}, ())
    (reduced,) = found.arrays
    assert [one.number for one in reduced.members] == [0]
    assert (reduced.active, reduced.events) == (1, EVENTS + AHEAD)
    assert not AHEAD % 2, "the kernel tells clean arrays by an even count"
    (change,) = found.changes
    assert change.startswith(
        "RAID1 md 'md0' (metadata 1.2) goes on with 1 of its 2 disks, without disk1/p1;"
    )


@pytest.mark.parametrize(
    ("level", "disks", "left_out", "comes_up"),
    [
        ("raid1", 3, 2, True),
        ("raid4", 3, 1, True),
        ("raid5", 3, 1, True),
        ("raid5", 3, 2, False),
        ("raid6", 4, 2, True),
        ("raid6", 4, 3, False),
        ("raid10", 4, 1, False),
        ("raid0", 2, 1, False),
        ("linear", 2, 1, False),
        ("level 77", 2, 1, False),
    ],
)
def test_levels(level: str, disks: int, left_out: int, comes_up: bool) -> None:
    found = on_md(level, members(disks))
    names = [f"disk{number}" for number in range(disks - left_out, disks)]
    if comes_up:
        assert judge(found, names, ()).arrays[0].active == disks - left_out
    else:
        said = refusal(found, *names)
        assert f"{level.upper()} md 'md0' (metadata 1.2) does not start without" in said
        assert ("Which disks of a RAID10 hold the same" in said) is (level == "raid10")


@pytest.mark.parametrize(
    "last",
    [
        {"state": MdState.SPARE, "role": None},
        {"state": MdState.FAULTY, "role": None},
        {"state": MdState.REBUILDING},
        {"events": EVENTS - 1},
    ],
    ids=["spare", "faulty", "rebuilding", "stale"],
)
def test_a_member_without_all_data_is_none(last: dict[str, object]) -> None:
    found = on_md("raid1", members(2, **last))
    assert "of those that are left 0 are active and up to date" in refusal(found, "disk0")
    (reduced,) = judge(on_md("raid1", members(3, **last), disks=3), {"disk1"}, ()).arrays
    assert reduced.active == 1


def test_a_stale_member_is_never_called_current() -> None:
    (reduced,) = judge(on_md("raid1", members(3, events=EVENTS - 2)), {"disk1"}, ()).arrays
    assert [one.number for one in reduced.members] == [0]


def test_a_spare_takes_the_place_of_what_is_gone() -> None:
    every = (*members(2), member("disk2/p1", 2, role=None, state=MdState.SPARE, events=0))
    found = judge(on_md("raid1", every, disks=2), {"disk1"}, ())
    assert [one.number for one in found.arrays[0].members] == [0, 2]
    assert "rebuilds onto its spare disk2/p1" in found.changes[0]


def test_a_spare_may_go() -> None:
    every = (*members(2), member("disk2/p1", 2, role=None, state=MdState.SPARE))
    found = judge(on_md("raid0", every, disks=2), {"disk2"}, ())
    assert found.arrays == ()
    assert found.changes == ("RAID0 md 'md0' (metadata 1.2) loses its spare disk2/p1.",)


@pytest.mark.parametrize(("level", "comes_up"), [("raid1", True), ("raid5", False)])
def test_parity_of_an_array_that_was_not_stopped_is_not_trusted(level: str, comes_up: bool) -> None:
    every = tuple(replace(one, clean=False) for one in members(3))
    if comes_up:
        assert judge(on_md(level, every), {"disk1"}, ()).arrays
    else:
        assert "not stopped cleanly" in refusal(on_md(level, every), "disk1")


def test_a_journal_is_needed() -> None:
    every = (*members(3), member("disk3/p1", 3, role=None, state=MdState.JOURNAL))
    assert "its journal is there" in refusal(on_md("raid5", every, disks=3), "disk3")


GROUP = VolumeGroup(
    "data", "vg", MIB, (PhysicalVolume("pv-0", "disk1/p1", MIB),),
    (LogicalVolume("root", "lv", MIB, ("linear",), visible=True),),
)  # fmt: skip
ROOT = saved("disk0", "ext4")


@pytest.mark.parametrize(
    ("layers", "kind", "reason"),
    [
        (
            Layers(volume_groups=(GROUP,)),
            "LVM2_member",
            "a physical volume of VG 'data' with LVs root",
        ),
        (
            Layers(btrfs=(BtrfsPool("u", "pool", 2, (BtrfsDevice("disk1/p1", "d", 1),)),)),
            "btrfs",
            "a device of btrfs 'pool' on 2 devices, which mounts only with -o degraded",
        ),
        (
            Layers(bcache=(BcacheDevice("disk1/p1", BcacheRole.CACHE, "c", "s"),)),
            "bcache",
            "a bcache cache device",
        ),
        (
            Layers(luks=(LuksContainer("disk1/p1", 2, "u", "vault", "aes", 1, MIB),)),
            "crypto_LUKS",
            "a LUKS2 container 'vault': nothing is known of what it holds",
        ),
        (Layers(), "LVM2_member", "a part of something (LVM2_member)"),
        (Layers(), MEMBER_TYPE, "a part of something (linux_raid_member)"),
        (Layers(), "isw_raid_member", "a part of something (isw_raid_member)"),
        (Layers(), "zfs_member", "a part of something (zfs_member)"),
        (Layers(), "jbd", "a part of something (jbd)"),
    ],
)
def test_what_needs_every_device(layers: Layers, kind: str, reason: str) -> None:
    said = refusal(of(layers, ROOT, saved("disk1", kind)), "disk1")
    assert f"disk1/p1 is {reason}" in said


def test_a_group_in_a_mirror_goes_on_with_it() -> None:
    inside = replace(GROUP, physical=(PhysicalVolume("pv-0", "md0", MIB),))
    layers = Layers(
        md=(array("raid1", 2, *members(2), inside="LVM2_member"),), volume_groups=(inside,)
    )
    found = of(layers, saved("disk0", MEMBER_TYPE), saved("disk1", MEMBER_TYPE))
    assert len(judge(found, {"disk1"}, ()).arrays) == 1


def test_what_lies_in_a_mirror_of_whole_disks_is_on_either() -> None:
    """The layout names its volumes on the first disk only."""
    layers = Layers(
        md=(array("raid1", 2, member("disk0", 0), member("disk1", 1), inside=None),),
        volume_groups=(replace(GROUP, physical=(PhysicalVolume("pv-0", "disk0/p1", MIB),)),),
    )
    found = of(layers, saved("disk0", "LVM2_member"), saved("disk1", "LVM2_member"))
    for gone in ("disk0", "disk1"):
        without = judge(found, {gone}, ())
        assert len(without.changes) == 1


def test_plain_volumes_are_lost_by_name() -> None:
    found = of(Layers(), ROOT, saved("disk1", "ext4", "swap", None))
    (change,) = judge(found, {"disk1"}, ()).changes
    assert (
        "Lost, since nothing else holds it: disk1/p1 (ext4), disk1/p2 (swap), disk1/p3 (no"
        in change
    )
    assert "nofail" in change


def test_the_last_system_partition_is_needed() -> None:
    first, second = saved("disk0", "vfat", "ext4", esp=1), saved("disk1", "vfat", "ext4", esp=1)
    assert judge(of(Layers(), first, second, firmware=UEFI), {"disk1"}, ())
    alone = of(Layers(), first, saved("disk1", "ext4"), firmware=UEFI)
    assert judge(alone, {"disk1"}, ())
    assert "disk0 holds the only EFI system partition" in refusal(alone, "disk0")


def test_a_bios_needs_boot_code() -> None:
    found = of(Layers(), ROOT, saved("disk1", "ext4"))
    assert "is the only one with boot code" in refusal(found, "disk1", boot_code=["disk1"])
    assert judge(found, {"disk1"}, ["disk0"])
    both = judge(found, {"disk0"}, ["disk0", "disk1"]).changes
    assert both[-1] == "The BIOS has to start from disk1; disk0 had boot code, too."


def test_something_must_be_left_that_can_hold_the_system() -> None:
    found = of(
        Layers(), saved("disk0", "vfat", "swap", None, esp=1), saved("disk1", "ext4"), firmware=UEFI
    )
    assert "nothing but disk1 can hold the system" in refusal(found, "disk1")


def test_not_all_disks_can_be_left_out() -> None:
    assert "nothing would be restored" in refusal(of(Layers(), ROOT), "disk0")


def test_advice_names_the_option_and_what_it_costs() -> None:
    said = advise(on_md("raid6", members(4)), {"disk3", "disk2"}, ())
    assert "--leave-out disk2 --leave-out disk3" in said
    assert "`leave` on the rescue medium" in said
    assert "goes on with 2 of its 4 disks" in said


def test_places_of_members_on_a_target() -> None:
    whole = Disk("disk0", "x", ROOT.identity, None, (
        Volume("disk0/whole", VolumeRole.WHOLE_DISK, 0, 8 * MIB, None, Filesystem(MEMBER_TYPE)),
    ))  # fmt: skip
    layers = Layers(md=(array("raid1", 2, member("disk0/whole", 0), member("disk1/p1", 1)),))
    without = judge(of(layers, whole, saved("disk1", MEMBER_TYPE)), {"disk1"}, ())
    ((_, one, offset, length),) = members_on(whole, 9 * MIB, without)
    assert (one.place, offset, length) == ("disk0/whole", 0, 9 * MIB)
    without = judge(of(layers, whole, saved("disk1", MEMBER_TYPE)), {"disk0"}, ())
    ((_, _, offset, length),) = members_on(saved("disk1", MEMBER_TYPE), 9 * MIB, without)
    assert (offset, length) == (MIB, MIB)
