import pytest

from imager.layout.disk import Disk, DiskIdentity
from imager.layout.mdraid import MdArray, MdMember, MdState, MdVersion
from imager.layout.partition_table import Partition, PartitionTable, TableKind
from imager.units import GIB
from restore.drill.evidence import MISSING, Difference
from restore.drill.scenario import BlankDisk
from restore.drill.variation import Variation, expectation, vary
from restore.drill.vm_spec import Bus
from restore.without import ReducedArray, Without

DISKS = (BlankDisk(2 * GIB, Bus.VIRTIO, "A"), BlankDisk(GIB, Bus.SCSI, "B", "0x5000c50012345678"))


@pytest.mark.parametrize("variation", [Variation.SAME, Variation.REVERSED, Variation.STALE_DISK])
def test_some_variations_leave_the_disks_as_they_were(variation: Variation) -> None:
    assert vary(DISKS, variation) == DISKS


def test_on_another_bus_disks_keep_their_serials() -> None:
    varied = vary(DISKS, Variation.OTHER_BUS)
    assert [disk.serial for disk in varied] == ["A", "B"]
    assert not {disk.bus for disk in varied} & {Bus.SCSI}
    assert all(now.bus is not then.bus for now, then in zip(varied, DISKS, strict=True))


def test_larger_and_smaller_disks_are_whole_mebibytes() -> None:
    larger, smaller = vary(DISKS, Variation.LARGER), vary(DISKS, Variation.SMALLER)
    for then, more, less in zip(DISKS, larger, smaller, strict=True):
        assert more.size > then.size > less.size
        assert not more.size % (1 << 20)
        assert not less.size % (1 << 20)


def test_only_what_a_larger_disk_explains_may_differ_there() -> None:
    end = Difference("partition_tables / 4F99 / lastlba", "1", "2")
    other = Difference("partition_tables / 4F99 / partitions / 0 / size", "1", "2")
    assert expectation(Variation.LARGER).unexpected([end, other]) == (other,)
    assert expectation(Variation.SAME).unexpected([end]) == (end,)


def test_on_shrunk_disks_places_and_sizes_may_differ_and_nothing_else() -> None:
    allowed = [
        "partition_tables / 4F99 / lastlba",
        "partition_tables / 4F99 / partitions / 0 / size",
        "partition_tables / 4F99 / partitions / 2 / start",
        "block_devices / 4f99/3 / PART_ENTRY_SIZE",
        "block_devices / 4f99/3 / PART_ENTRY_OFFSET",
        "swaps / a1d0 / size",
    ]
    others = [
        "partition_tables / 4F99 / firstlba",
        "partition_tables / 4F99 / partitions / 0 / uuid",
        "block_devices / 4f99/3 / UUID",
        "block_devices / 4f99/3 / PART_ENTRY_UUID",
        "files / / / hash",
        "file / / / /etc/hostname",
    ]
    found = [Difference(fact, "1", "2") for fact in allowed + others]
    left = expectation(Variation.SHRUNK).unexpected(found)
    assert [each.fact for each in left] == others
    folder = Difference("file / / / /etc/default", "93cc904b", "6df6c715")
    hashes = Difference("files / / / hashes / usr/lib", "5931b46e0a67a9d1", "769971d4a4a81e47")
    assert not expectation(Variation.SHRUNK).unexpected([folder, hashes])
    content = Difference("file / / / /etc/hostname", "073a087a e0a6c092", "073a087a 596e974d")
    time = Difference("file / / / /etc/hostname", "073a087a e0a6c092", "6df6c715 e0a6c092")
    gone = Difference("file / / / /etc/default", "93cc904b", "(nothing)")
    changed = (content, time, gone)
    assert expectation(Variation.SHRUNK).unexpected(changed) == changed
    row = "lvm / lvs / ward home 4nv2QY {} linear public   2026-11-01"
    resized = (
        Difference(row.format("805306368B"), "there", MISSING),
        Difference(row.format("692060160B"), MISSING, "there"),
    )
    assert not expectation(Variation.SHRUNK).unexpected(resized)
    assert vary(DISKS, Variation.SHRUNK) == vary(DISKS, Variation.SMALLER)


def test_smaller_disks_must_be_refused() -> None:
    assert expectation(Variation.SMALLER).refusal is not None
    assert expectation(Variation.LARGER).refusal is None


def member(number: int) -> MdMember:
    return MdMember(f"disk{number}/p1", number, number, MdState.ACTIVE, 2, True, 0)


MIRROR = MdArray(
    "md0", "956752cf-a795-4e58-9186-c313a70bc6a2", "any:pv", "raid1", MdVersion.V1_2, 2, 0, True,
    False, (member(0), member(1)),
)  # fmt: skip
GONE = Disk(
    "disk1", "/dev/sdb", DiskIdentity(GIB, 512), PartitionTable(
        TableKind.GPT, "60F2C497-6BBF", (Partition(1, 1 << 20, 1 << 20, "RAID", "633F20C9"),)
    ), (),
)  # fmt: skip
LESS = Without((GONE,), (ReducedArray(MIRROR, (member(0),), 1, 9),), ())


@pytest.mark.parametrize(
    ("fact", "before", "after", "is_expected"),
    [
        ("partition_tables / 60F2C497-6BBF / lastlba", "9", MISSING, True),
        ("partition_tables / 60F2C497-6BBF / lastlba", "9", "8", False),
        ("partition_tables / 4F9952EE / lastlba", "9", MISSING, False),
        ("block_devices / 60f2c497-6bbf / PTTYPE", "gpt", MISSING, True),
        ("block_devices / 60f2c497-6bbf/1 / UUID", "x", MISSING, True),
        ("block_devices / 4f9952ee/1 / UUID", "x", MISSING, False),
        ("boot_entries / 1 / label", "debian", MISSING, True),
        ("boot_entries / 0 / label", "debian", "other", False),
        ("arrays / 956752cf:a7954e58:9186c313:a70bc6a2 / roles / 1", "1 in_sync", MISSING, True),
        ("arrays / 956752cf:a7954e58:9186c313:a70bc6a2 / roles / 0", "0 in_sync", "0 spare", False),
        ("arrays / 956752cf:a7954e58:9186c313:a70bc6a2 / degraded", "0", "1", True),
        ("arrays / 956752cf:a7954e58:9186c313:a70bc6a2 / degraded", "0", "2", False),
        ("arrays / 1dc0fc88:97aa4abb:9c245857:f1bcff68 / degraded", "0", "1", False),
        ("arrays / 956752cf:a7954e58:9186c313:a70bc6a2 / raid_disks", "2", "1", False),
        ("files / / / hash", "1", MISSING, False),
    ],
)
def test_on_one_disk_only_what_was_on_the_others_is_missing(
    fact: str, before: str, after: str, is_expected: bool
) -> None:
    difference = Difference(fact, before, after)
    expected = expectation(Variation.ONE_DISK, LESS)
    assert (expected.unexpected([difference]) == ()) is is_expected
    assert expected.same_tables
    assert expectation(Variation.SAME).unexpected([difference]) == (difference,)


def test_the_first_disk_is_the_one() -> None:
    assert vary(DISKS, Variation.ONE_DISK) == DISKS[:1]


def test_a_rebuilt_initramfs_changes_itself_and_the_file_that_names_its_drivers() -> None:
    expects = expectation(Variation.NEW_DRIVERS)
    paths = ["/boot/initrd.img-6.1.0", "/boot/initrd.img-6.1.0.before-remetal"]
    rightly = [
        Difference("bytes / disk0/p2", "as captured", "differs from byte 7"),
        Difference("files / / / hashes / boot", "1", "2"),
        *(Difference(f"file / / / {path}", "1", "2") for path in paths),
    ]
    wrongly = [
        Difference("bytes / disk0/boot-area", "as captured", "differs from byte 7"),
        Difference("files / / / hashes / home", "1", "2"),
        Difference("file / / / /boot/vmlinuz-6.1.0", "1", "2"),
        Difference("file / / / /etc/machine-id", "1", "2"),
    ]
    assert expects.unexpected([*rightly, *wrongly]) == tuple(wrongly)
    assert vary(DISKS, Variation.NEW_DRIVERS) == vary(DISKS, Variation.OTHER_BUS)
