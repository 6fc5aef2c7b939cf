"""What plans say and do about md, LVM and the like."""

from dataclasses import replace

import pytest
from memory_image import MemoryImage, image_of
from test_planner import ENTRY, ESP_UUID, MIB, TABLE, UEFI, image, kinds, plan_for

from imager.errors import TargetError
from imager.layout.disk import Volume, VolumeRole
from imager.layout.filesystem import Filesystem
from imager.layout.layers import Layers
from imager.layout.lvm import LogicalVolume, PhysicalVolume, VolumeGroup
from imager.layout.mdraid import MdArray, MdMember, MdState, MdVersion
from restore.boot_steps import EnsureFallbackLoader, LogToEsp
from restore.circumstances import Surroundings, Wishes
from restore.steps import RelocateBackupGpt, RelocateMdSuperblock


def member(place: str, number: int) -> MdMember:
    return MdMember(place, number, number, MdState.ACTIVE, 7, True, 0)


def mirror(*members: MdMember, version: MdVersion = MdVersion.V1_0) -> MdArray:
    return MdArray("md0", "u", "h:esp", "raid1", version, 2, 0, False, False, members)


GROUP = VolumeGroup(
    "data", "vg", MIB, (PhysicalVolume("pv-0", "disk0/p2", MIB), PhysicalVolume("pv-1", None, MIB)),
    (LogicalVolume("root", "lv", MIB, ("linear",), visible=True),),
)  # fmt: skip


def layered(layers: Layers) -> MemoryImage:
    made = image()
    return replace(made, machine=replace(made.machine, layers=layers))


def words(text: str) -> str:
    return " ".join(text.split())


def test_targets_name_layers_and_notes_what_is_lacking() -> None:
    plan = plan_for(layered(Layers(md=(mirror(member("disk0/p1", 0)),), volume_groups=(GROUP,))))
    text = words("\n".join(plan.lines()))
    assert "with disk0/p1: member 1 of 2 of RAID1 md 'esp' (metadata 1.0)" in text
    assert "with disk0/p2: physical volume of VG 'data' with LVs root" in text
    assert "Note: RAID1 md 'esp' (metadata 1.0) has 2 disks, and only 1 of its members is" in text
    assert "needs the physical volume pv-1, which is on none of the captured disks" in text
    (target,) = plan.document()["targets"]
    assert target["layers"][0].startswith("disk0/p1: member 1 of 2")


def test_the_table_of_a_mirror_stays_where_it_is() -> None:
    whole = layered(Layers(md=(mirror(member("disk0", 0), member("disk1", 1)),)))
    plan = plan_for(whole, size=80 * MIB)
    assert RelocateBackupGpt.__name__ not in kinds(plan)
    assert RelocateMdSuperblock.__name__ in kinds(plan)
    assert "move the superblock of RAID1 md 'esp' (metadata 1.0) from the end" in words(
        "\n".join(plan.lines())
    )
    assert RelocateMdSuperblock.__name__ not in kinds(plan_for(whole))
    on_partition = layered(Layers(md=(mirror(member("disk0/p1", 0)),)))
    plan = plan_for(on_partition, size=80 * MIB)
    assert RelocateBackupGpt.__name__ in kinds(plan)
    assert RelocateMdSuperblock.__name__ not in kinds(plan)


@pytest.mark.parametrize("version", [MdVersion.V1_1, MdVersion.V1_2])
def test_a_superblock_at_the_start_stays_there(version: MdVersion) -> None:
    whole = layered(Layers(md=(mirror(member("disk0", 0), version=version),)))
    assert RelocateMdSuperblock.__name__ not in kinds(plan_for(whole, size=80 * MIB))


def test_a_raid_of_firmware_wants_a_disk_of_its_size() -> None:
    made = image()
    (disk,) = made.machine.disks
    whole = Volume(
        "disk0/whole",
        VolumeRole.WHOLE_DISK,
        0,
        disk.identity.size,
        filesystem=Filesystem("isw_raid_member"),
    )
    machine = replace(made.machine, disks=(replace(disk, table=None, volumes=(whole,)),))
    firmware = image_of(machine, {"disk0/whole": [("zero", disk.identity.size)]})
    plan_for(firmware)
    with pytest.raises(TargetError, match="isw_raid_member") as caught:
        plan_for(firmware, size=80 * MIB)
    assert f"exactly {disk.identity.size} bytes" in caught.value.hint


def test_a_log_would_make_a_mirror_differ() -> None:
    made = layered(Layers(md=(mirror(member("disk0/p1", 0), member("disk1/p1", 1)),)))
    plan = plan_for(made, wishes=Wishes(log_to_esp=True))
    assert LogToEsp.__name__ not in kinds(plan)
    assert "its members must stay alike" in words("\n".join(plan.notes))
    assert LogToEsp.__name__ in kinds(plan_for(image(), wishes=Wishes(log_to_esp=True)))


def test_all_members_of_a_mirrored_efi_system_partition_get_the_loader() -> None:
    """Although only one of them has a boot entry."""
    second = replace(
        TABLE.partitions[1], type=TABLE.partitions[0].type, uuid=ESP_UUID.replace("1", "2")
    )
    places = (member("disk0/p1", 0), member("disk0/p2", 1))
    for layers, count in ((Layers(), 1), (Layers(md=(mirror(*places),)), 2)):
        made = layered(layers)
        (disk,) = made.machine.disks
        table = replace(TABLE, partitions=(TABLE.partitions[0], second))
        machine = replace(made.machine, disks=(replace(disk, table=table),), firmware=UEFI)
        assert machine.firmware.boot_entries == (ENTRY,)
        plan = plan_for(replace(made, machine=machine))
        steps = [step for step in plan.steps if isinstance(step, EnsureFallbackLoader)]
        assert [step.preferred for step in steps] == ["debian"] * count


def test_twins_are_notes() -> None:
    plan = plan_for(image(), surroundings=Surroundings(twins=("/dev/vdb: serial S2 …",)))
    assert "/dev/vdb: serial S2 …" in plan.notes
