import pytest

from imager.units import GIB
from restore.drill.evidence import Difference
from restore.drill.scenario import BlankDisk
from restore.drill.variation import Variation, expectation, vary
from restore.drill.vm_spec import Bus

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


def test_smaller_disks_must_be_refused() -> None:
    assert expectation(Variation.SMALLER).refusal is not None
    assert expectation(Variation.LARGER).refusal is None
