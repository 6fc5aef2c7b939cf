"""Plans as a person reads them, and what the planner refuses."""

from dataclasses import replace
from pathlib import Path

import pytest
from memory_image import MemoryImage, disk, ext4, image_of, machine

from imager.blockdev import BlockDisk
from imager.errors import ObjectDamaged, TargetError, UsageError
from imager.layout.disk import Disk, DiskIdentity, Volume, VolumeRole
from imager.layout.filesystem import Filesystem
from imager.layout.firmware import BootEntry, Firmware, FirmwareKind
from imager.layout.network import NetworkCard
from imager.layout.partition_table import Partition, PartitionTable, TableKind
from restore.boot_steps import (
    Driver,
    EnsureFallbackLoader,
    LogToEsp,
    RepairInitramfs,
    SetBootEntries,
)
from restore.circumstances import Surroundings, Wishes
from restore.fit_planner import Fitter
from restore.match import Basis, Match
from restore.plan import Plan
from restore.planner import make_plan
from restore.steps import EmptyFile, MakeFile, RelocateBackupGpt, Subject, VerifyVolume, WriteVolume

MIB = 1 << 20
ESP_UUID = "AAAAAAAA-0000-4000-8000-000000000001"
TABLE = PartitionTable(
    TableKind.GPT,
    "BBBBBBBB-0000-4000-8000-000000000002",
    (
        Partition(1, MIB, 16 * MIB, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", ESP_UUID),
        Partition(2, 17 * MIB, 46 * MIB, "0FC63DAF-8483-4772-8E79-3D69D8477DE4", "C"),
    ),
)
VOLUMES = (
    Volume("disk0/boot-area", VolumeRole.BOOT_AREA, 0, MIB),
    Volume("disk0/p1", VolumeRole.PARTITION, MIB, 16 * MIB, 1, Filesystem("vfat")),
    Volume("disk0/p2", VolumeRole.PARTITION, 17 * MIB, 46 * MIB, 2, ext4("root")),
    Volume("disk0/gap1", VolumeRole.GAP, 63 * MIB, MIB),
)
ENTRY = BootEntry("debian", ESP_UUID, "\\EFI\\debian\\shimx64.efi")
UEFI = Firmware(FirmwareKind.UEFI, boot_entries=(ENTRY,))


def saved_disk(**identity: object) -> Disk:
    return replace(disk(size=64 * MIB, volumes=VOLUMES, **identity), table=TABLE)


def image(firmware: Firmware = UEFI, **identity: object) -> MemoryImage:
    half = 8 * MIB
    return image_of(
        machine(saved_disk(**identity), firmware=firmware),
        {
            "disk0/boot-area": [b"\x55" * 4096, ("zero", MIB - 4096)],
            "disk0/p1": [b"e" * 4096, ("free", 16 * MIB - 4096)],
            "disk0/p2": [b"x" * MIB, ("free", 40 * MIB), ("zero", MIB), ("free", 4 * MIB)],
            "disk0/gap1": [("zero", half // 8 - 512), b"G" * 512],
        },
    )


def plan_for(
    made: MemoryImage,
    *,
    size: int = 64 * MIB,
    is_device: bool = True,
    is_new: bool = False,
    wishes: Wishes | None = None,
    surroundings: Surroundings | None = None,
    **identity: object,
) -> Plan:
    target = BlockDisk(
        path=Path("/dev/vda" if is_device else "/srv/a.raw"),
        identity=replace(
            DiskIdentity(size=size, logical_sector=512, model="QEMU DISK", serial="S1"), **identity
        ),
        usage=(),
        read_only=False,
        removable=False,
        is_device=is_device,
    )
    wanted = wishes or Wishes(verify_written=True, boot_entries=True)
    return make_plan(
        made,
        [Match(made.machine.disks[0], target, Basis.SIZE, is_new)],
        subject=Subject("5e11", "4f2a", "web1", "2026-01-02T03:04:05Z"),
        wishes=wanted,
        fitter=Fitter(made, wanted),
        surroundings=surroundings
        or Surroundings(uefi=True, discards=frozenset({Path("/dev/vda")})),
    )


def kinds(plan: Plan) -> list[str]:
    return [type(step).__name__ for step in plan.steps]


GOLDEN = """\
Restore web1 (6e0f)
from image 4f2a, taken 2026-01-02T03:04:05Z

ALL DATA on these disks will be replaced:
  /dev/vda: QEMU DISK, serial S1, 80.0 MiB (83886080 bytes)
    takes disk0, saved from /dev/sda: 64.0 MiB (67108864 bytes)
    chosen because: same size; its WWN and serial are not here

Steps:
  1. /dev/vda: erase the old table and signatures: zeros over bytes 0 to 8388607
     and 75497472 to 83886079
  2. /dev/vda: discard old content, bytes 8388608 to 75497471
  3. /dev/vda: note in bytes 20480 to 28671 what is written, until the table
     comes there, so that an interrupted restore can go on
  4. /dev/vda: write disk0/p1 (vfat, 16.0 MiB) to bytes 1048576 to 17825791:
     4096 data, 16773120 zeros, 0 free
  5. /dev/vda: write disk0/p2 (ext4 "root", 46.0 MiB) to bytes 17825792 to
     66060287: 1048576 data, 15728640 zeros, 31457280 free
  6. /dev/vda: read back disk0/p1 and compare 16777216 bytes
  7. /dev/vda: read back disk0/p2 and compare 16777216 bytes
  8. /dev/vda: write disk0/gap1 (between partitions, 1.0 MiB) to bytes 66060288
     to 67108863: 512 data, 1048064 zeros, 0 free
  9. /dev/vda: read back disk0/gap1 and compare 1048576 bytes
 10. /dev/vda: write disk0/boot-area (table and boot code, 1.0 MiB) to bytes 0
     to 1048575: 4096 data, 1044480 zeros, 0 free
 11. /dev/vda: read back disk0/boot-area and compare 1048576 bytes
 12. /dev/vda: move the backup GPT from the end of the saved size (67108864) to
     the end of the disk (83886080)
 13. /dev/vda: let the kernel read the new partition table
 14. /dev/vda: check that it has the saved GPT
     BBBBBBBB-0000-4000-8000-000000000002 with 2 partitions
 15. /dev/vda: only if partition 1 has no \\EFI\\BOOT\\BOOTX64.EFI: copy the loader
     there, from \\EFI\\debian
 16. firmware: boot entries first in order, made if missing, doubles removed:
     "debian" = \\EFI\\debian\\shimx64.efi on partition 1 of /dev/vda

Writes 34.0 MiB, of it 1.0 MiB from the image; reads 34.0 MiB back."""


def test_a_whole_plan_as_a_person_reads_it() -> None:
    plan = plan_for(image(), size=80 * MIB)
    assert "\n".join(plan.lines()) == GOLDEN
    assert all(line.isascii() and len(line) <= 80 for line in plan.lines())


def test_free_space_is_cleared_only_near_the_ends_of_a_volume() -> None:
    plan = plan_for(image())
    (root,) = (s for s in plan.steps if isinstance(s, WriteVolume) and s.volume == "disk0/p2")
    # 1 MiB data, then 40 MiB free of which 7 MiB are near the start and 3 MiB near the end
    # (the last 8 MiB: 3 of this run, 1 zero, 4 of the last run).
    assert (root.data, root.zeros, root.cleared) == (MIB, MIB, (7 + 3 + 4) * MIB)
    assert root.written == 16 * MIB


def test_boot_areas_and_tables_come_after_all_content_is_verified() -> None:
    plan = plan_for(image())
    order = [(s.name, s.volume) for s in plan.steps if isinstance(s, WriteVolume | VerifyVolume)]
    assert order == [
        ("write", "disk0/p1"),
        ("write", "disk0/p2"),
        ("verify", "disk0/p1"),
        ("verify", "disk0/p2"),
        ("write", "disk0/gap1"),
        ("verify", "disk0/gap1"),
        ("write", "disk0/boot-area"),
        ("verify", "disk0/boot-area"),
    ]


def test_without_verification_nothing_is_read_back() -> None:
    plan = plan_for(image(), wishes=Wishes())
    assert plan.verified == 0
    assert not any(isinstance(step, VerifyVolume) for step in plan.steps)
    assert plan.lines()[-1].endswith("reads nothing back.")


def test_the_same_size_needs_no_relocation() -> None:
    assert "RelocateBackupGpt" not in kinds(plan_for(image()))


@pytest.mark.parametrize(("is_new", "first"), [(True, MakeFile), (False, EmptyFile)])
def test_a_file_is_made_or_emptied_and_no_firmware_is_touched(
    is_new: bool, first: type[object]
) -> None:
    plan = plan_for(image(), is_device=False, is_new=is_new)
    assert type(plan.steps[0]) is first
    assert not {"WipeSignatures", "DiscardDisk", "RereadTable", "SetBootEntries"} & {*kinds(plan)}
    assert "EnsureFallbackLoader" in kinds(plan)
    assert "The target is a file" in plan.notes[0]


def test_a_disk_that_can_not_discard_is_not_asked_to() -> None:
    assert "DiscardDisk" not in kinds(plan_for(image(), surroundings=Surroundings(uefi=True)))


def test_bios_system_says_that_the_entry_can_not_be_set() -> None:
    plan = plan_for(image(), surroundings=Surroundings(uefi=False))
    assert "SetBootEntries" not in kinds(plan)
    assert "EnsureFallbackLoader" in kinds(plan)
    assert "BIOS mode" in plan.notes[0]


def test_a_bios_machine_needs_nothing_of_it() -> None:
    plan = plan_for(image(Firmware(FirmwareKind.BIOS)))
    assert not {"SetBootEntries", "EnsureFallbackLoader"} & {*kinds(plan)}
    assert plan.notes == ()


def test_without_saved_entries_they_are_found_on_the_restored_partition() -> None:
    plan = plan_for(image(Firmware(FirmwareKind.UEFI)))
    (entries,) = (step for step in plan.steps if isinstance(step, SetBootEntries))
    assert entries.entries == ()
    assert [(esp.number, esp.uuid, esp.offset) for esp in entries.esps] == [(1, ESP_UUID, MIB)]
    assert "for each loader found" in entries.describe()


def test_entries_of_disks_that_are_not_in_the_image_are_named() -> None:
    other = BootEntry("windows", "DDDDDDDD-0000-4000-8000-000000000009", "\\EFI\\x.efi")
    plan = plan_for(image(replace(UEFI, boot_entries=(other, ENTRY))))
    (entries,) = (step for step in plan.steps if isinstance(step, SetBootEntries))
    assert entries.entries == (ENTRY,)
    assert "windows" in plan.notes[0]


def test_the_log_is_left_on_the_machine_only_when_asked_for() -> None:
    assert not any(isinstance(step, LogToEsp) for step in plan_for(image()).steps)
    plan = plan_for(image(), wishes=Wishes(log_to_esp=True))
    assert isinstance(plan.steps[-1], LogToEsp)


def test_a_larger_file_can_not_take_a_disk_with_large_sectors() -> None:
    made = image(logical_sector=4096)
    with pytest.raises(TargetError, match="4096"):
        plan_for(made, size=80 * MIB, is_device=False)
    plan_for(made, is_device=False)  # the same size is exact and needs no tool
    larger = plan_for(made, size=80 * MIB, logical_sector=4096)
    assert any(isinstance(step, RelocateBackupGpt) for step in larger.steps)


@pytest.mark.parametrize(
    "volume",
    [
        Volume("disk0/p2", VolumeRole.PARTITION, 63 * MIB, 2 * MIB, 2),
        Volume("disk0/p2", VolumeRole.PARTITION, 4096, MIB, 2),
        Volume("disk0/p2", VolumeRole.PARTITION, 8 * MIB, 0, 2),
    ],
    ids=["behind the end", "over another", "empty"],
)
def test_a_layout_that_would_write_elsewhere_is_refused(volume: Volume) -> None:
    boot = Volume("disk0/boot-area", VolumeRole.BOOT_AREA, 0, MIB)
    made = image_of(machine(disk(volumes=(boot, volume))), {})
    with pytest.raises(ObjectDamaged, match="disk0/p2"):
        plan_for(made)


def test_a_map_that_does_not_cover_its_volume_is_refused() -> None:
    made = image_of(machine(disk()), {"disk0/whole": [("zero", 63 * MIB)]})
    with pytest.raises(ObjectDamaged, match="disk0/whole"):
        plan_for(made)


def test_the_document_says_the_same_as_the_lines() -> None:
    plan = plan_for(image())
    document = plan.document()
    assert [step["text"] for step in document["steps"]] == [s.describe() for s in plan.steps]
    assert document["steps"][0]["target"] == "/dev/vda"
    assert document["written_bytes"] == plan.written
    fallback = next(s for s in document["steps"] if s["step"] == EnsureFallbackLoader.name)
    assert fallback["esp"]["uuid"] == ESP_UUID


DRIVERS = {
    Path("/dev/vda"): (
        Driver("nvme", "pci:x", built_in=False),
        Driver("pcieport", "", built_in=True),
    )
}
REPAIR = Wishes(boot_repair=True)


def test_the_initramfs_is_looked_at_before_firmware_is_told_of_the_machine() -> None:
    plan = plan_for(image(), wishes=REPAIR, surroundings=Surroundings(uefi=True, drivers=DRIVERS))
    (step,) = (step for step in plan.steps if isinstance(step, RepairInitramfs))
    assert kinds(plan)[-2:] == ["RepairInitramfs", "EnsureFallbackLoader"]
    assert "(/dev/vda: nvme)" in step.describe()
    assert [disk.origin for disk in step.disks] == ["/dev/sda"]
    assert plan.document()["steps"][-2]["disks"][0]["drivers"][0]["name"] == "nvme"


def test_the_initramfs_of_a_bios_machine_is_looked_at_too() -> None:
    plan = plan_for(image(Firmware(FirmwareKind.BIOS)), wishes=REPAIR)
    assert kinds(plan)[-1] == "RepairInitramfs"


OLD_CARD = NetworkCard("eth0", ("enp1s0",), "52:54:00:00:00:01", "igb", "0000:01:00.0")
NEW_CARD = NetworkCard("enp5s0", ("enp5s0",), "52:54:00:00:00:09", "e1000e", "0000:05:00.0")


def with_cards(
    *cards: NetworkCard,
    here: tuple[NetworkCard, ...] = (NEW_CARD,),
    wishes: Wishes = REPAIR,
    is_device: bool = True,
) -> Plan:
    made = image(Firmware(FirmwareKind.BIOS))
    made.machine = replace(made.machine, cards=cards)
    surroundings = Surroundings(cards=here, linked=("enp5s0",))
    return plan_for(made, wishes=wishes, surroundings=surroundings, is_device=is_device)


CARDS = """\
Network cards:
  eth0, 52:54:00:00:00:01 (igb at 0000:01:00.0): becomes 52:54:00:00:00:09
    (e1000e at 0000:05:00.0), has a link; chosen because: the only one left

Steps:
"""
MAPPED = """\
 18. restored system: in udev's rules, .link and .network files, netplan,
     NetworkManager, ifcfg and interfaces files, where they choose a card by its
     address: 52:54:00:00:00:01 becomes 52:54:00:00:00:09; keep the names of its
     network cards (eth0), with a file in /etc/systemd/network for each card
     that nothing else names; all other bytes and machine-id stay
"""


def test_network_cards_are_mapped_before_the_initramfs_is_looked_at() -> None:
    plan = with_cards(OLD_CARD)
    assert kinds(plan)[-2:] == ["MapCards", "RepairInitramfs"]
    text = "\n".join(plan.lines())
    assert CARDS in text
    assert MAPPED.split(". ", 1)[1] in text
    assert plan.steps[-1].crossed == ()
    (card,) = plan.document()["cards"]
    assert card["differs"] is True
    assert card["saved"]["mac"] == OLD_CARD.mac
    assert card["here"]["mac"] == NEW_CARD.mac
    assert plan.document()["steps"][-2]["cards"][0]["saved"]["name"] == "eth0"


NAMES = (
    "where they call a disk by a name that has changed (/dev/sda is /dev/vda now): the UUID of what "
    "is on it instead; all other bytes stay"
)


def test_names_of_disks_are_mapped_where_they_changed() -> None:
    plan = with_cards(OLD_CARD)
    assert kinds(plan)[-3:] == ["MapDisks", "MapCards", "RepairInitramfs"]
    text = " ".join("\n".join(plan.lines()).split())
    assert NAMES in text
    assert "and finds them by names that hold" in text
    made = image(Firmware(FirmwareKind.BIOS), serial="S1")
    disks = tuple(replace(each, origin="/dev/vda") for each in made.machine.disks)
    made.machine = replace(made.machine, disks=disks)
    same = plan_for(made, wishes=REPAIR)
    assert "MapDisks" not in kinds(same)
    assert "names that hold" not in " ".join("\n".join(same.lines()).split())


@pytest.mark.parametrize("is_device", [True, False])
def test_names_of_disks_are_left_alone_unasked_and_in_files(is_device: bool) -> None:
    wishes = replace(REPAIR, boot_repair=not is_device)
    assert "MapDisks" not in kinds(with_cards(OLD_CARD, wishes=wishes, is_device=is_device))


def test_the_same_network_cards_need_nothing() -> None:
    plan = with_cards(OLD_CARD, here=(OLD_CARD,))
    assert kinds(plan)[-1] == "RepairInitramfs"
    assert "MapCards" not in kinds(plan)
    assert plan.steps[-1].crossed is None
    assert "eth0, 52:54:00:00:00:01 (igb at 0000:01:00.0): is here" in "\n".join(plan.lines())


def test_a_machine_without_known_cards_is_planned_as_before() -> None:
    plan = with_cards()
    assert "MapCards" not in kinds(plan)
    assert "Network cards" not in "\n".join(plan.lines())


def test_a_network_card_without_a_successor_is_named() -> None:
    second = replace(OLD_CARD, name="eth1", mac="52:54:00:00:00:02", place="0000:02:00.0")
    plan = with_cards(OLD_CARD, second)
    assert any("No card here takes the place of eth0, eth1" in note for note in plan.notes)
    assert "MapCards" not in kinds(plan)
    named = replace(REPAIR, nics={"eth1": "enp5s0"})
    plan = with_cards(OLD_CARD, second, wishes=named)
    assert any("No card here takes the place of eth0:" in note for note in plan.notes)
    assert plan.steps[-2].addresses == {second.mac: NEW_CARD.mac}


def test_a_card_that_is_named_and_not_here_is_refused() -> None:
    with pytest.raises(UsageError, match="this machine has no network card eth9"):
        with_cards(OLD_CARD, wishes=replace(REPAIR, nics={"eth0": "eth9"}))


@pytest.mark.parametrize("is_device", [True, False])
def test_nothing_about_network_cards_is_changed_unasked(is_device: bool) -> None:
    wishes = replace(REPAIR, boot_repair=not is_device, nics={"eth0": "enp5s0"})
    plan = with_cards(OLD_CARD, wishes=wishes, is_device=is_device)
    assert "MapCards" not in kinds(plan)
    assert any("--nic has no effect" in note for note in plan.notes)
    assert any("may come up without its network" in note for note in plan.notes) is is_device


@pytest.mark.parametrize(
    ("wishes", "is_device", "content"),
    [
        pytest.param(Wishes(), True, "ext4", id="not asked for"),
        pytest.param(REPAIR, False, "ext4", id="a file is for another machine"),
        pytest.param(REPAIR, True, "ntfs", id="no Linux"),
    ],
)
def test_no_initramfs_is_looked_at(wishes: Wishes, is_device: bool, content: str) -> None:
    made = image()
    (saved,) = made.machine.disks
    volumes = tuple(
        replace(volume, filesystem=Filesystem(content)) if volume.id == "disk0/p2" else volume
        for volume in saved.volumes
    )
    made.machine = replace(made.machine, disks=(replace(saved, volumes=volumes),))
    plan = plan_for(made, wishes=wishes, is_device=is_device)
    assert "RepairInitramfs" not in kinds(plan)
