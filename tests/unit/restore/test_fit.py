"""Where volumes come on disks of another size, and what is refused."""

from dataclasses import replace

import pytest
from memory_image import disk

from imager.errors import TargetError, TargetTooSmall
from imager.layout.btrfs import BtrfsDevice, BtrfsPool
from imager.layout.disk import Disk, Volume, VolumeRole
from imager.layout.filesystem import Filesystem
from imager.layout.layers import Layers
from imager.layout.mdraid import MdArray, MdMember, MdState, MdVersion
from imager.layout.partition_table import Partition, PartitionTable, TableKind
from imager.units import GIB, MIB
from restore.fit import Fitted, grow, last_of, shrink

LINUX = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
BIOS_BOOT = "21686148-6449-6E6F-744E-656564454649"
NONE = Layers()


def saved(
    *parts: tuple[str | None, int],
    free: int = 0,
    first: int = MIB,
    kind: TableKind = TableKind.GPT,
    types: tuple[str, ...] = (),
) -> Disk:
    """A disk of partitions (filesystem, length), free space behind each, and 1 MiB at its end."""
    position = first
    partitions, volumes = [], [Volume("disk0/boot-area", VolumeRole.BOOT_AREA, 0, first)]
    for number, (filesystem, length) in enumerate(parts, 1):
        type_ = types[number - 1] if types else LINUX
        partitions.append(Partition(number, position, length, type_, f"U{number}", f"n{number}"))
        held = Filesystem(filesystem) if filesystem else None
        role = VolumeRole.PARTITION
        volumes.append(Volume(f"disk0/p{number}", role, position, length, number, held))
        position += length
        if free:
            volumes.append(Volume(f"disk0/gap{number}", VolumeRole.GAP, position, free))
            position += free
    volumes.append(Volume("disk0/gap9", VolumeRole.GAP, position, MIB))
    table = PartitionTable(kind, "ID", tuple(partitions))
    return replace(disk(size=position + MIB, volumes=volumes), table=table)


def least(**lengths: int) -> "dict[str, int]":
    return {f"disk0/{name}": length for name, length in lengths.items()}


def shrunk(given: Disk, size: int, layers: Layers = NONE, **lengths: int) -> Fitted:
    known = least(**lengths)
    return shrink(given, size, layers, lambda volume: known[volume.id])


def places(fitted: Fitted) -> dict[str, tuple[int, int]]:
    return {place.volume: (place.offset // MIB, place.length // MIB) for place in fitted.places}


def test_what_is_missing_is_taken_and_what_lies_behind_moves_down() -> None:
    fitted = shrunk(saved(("ext4", 600 * MIB), ("exfat", 400 * MIB)), 802 * MIB, p1=200 * MIB)
    assert places(fitted) == {"disk0/p1": (1, 400), "disk0/p2": (401, 400)}
    assert fitted.dropped == ("disk0/gap9",)
    assert fitted.has_new_table


def test_an_xfs_that_gets_smaller_is_made_anew() -> None:
    given = saved(("xfs", 600 * MIB), ("exfat", 400 * MIB))
    fitted = shrunk(given, 802 * MIB, p1=300 * MIB)
    assert places(fitted) == {"disk0/p1": (1, 400), "disk0/p2": (401, 400)}
    assert fitted.remade == ("disk0/p1",)
    assert shrunk(saved(("xfs", 600 * MIB), free=50 * MIB), 700 * MIB).remade == ()
    both = saved(("xfs", 600 * MIB), ("ext4", 400 * MIB))
    assert shrunk(both, 802 * MIB, p1=100 * MIB, p2=100 * MIB).remade == (), "the last to give"


def test_the_table_has_the_new_places_and_all_else_as_it_was() -> None:
    given = saved(("ext4", 600 * MIB), ("exfat", 400 * MIB))
    fitted = shrunk(given, 802 * MIB, p1=200 * MIB)
    assert given.table is not None
    first, second = given.table.partitions
    assert fitted.disk.table == replace(
        given.table,
        partitions=(
            replace(first, length=400 * MIB),
            replace(second, offset=401 * MIB),
        ),
    )
    assert fitted.disk.identity.size == 802 * MIB


def test_swap_gives_before_any_filesystem() -> None:
    given = saved(("ext4", 600 * MIB), ("swap", 400 * MIB))
    fitted = shrunk(given, 902 * MIB, p1=100 * MIB, p2=256 * MIB)
    assert places(fitted) == {"disk0/p2": (601, 300)}


def test_swap_keeps_a_least_and_the_filesystem_gives_the_rest() -> None:
    given = saved(("ext4", 600 * MIB), ("swap", 400 * MIB))
    fitted = shrunk(given, 802 * MIB, p1=100 * MIB, p2=256 * MIB)
    assert places(fitted) == {"disk0/p1": (1, 544), "disk0/p2": (545, 256)}


def test_the_filesystem_with_the_most_room_gives_before_the_others() -> None:
    given = saved(("ext4", 600 * MIB), ("btrfs", 500 * MIB), ("ntfs", 300 * MIB))
    fitted = shrunk(given, 1002 * MIB, p1=400 * MIB, p2=100 * MIB, p3=100 * MIB)
    assert places(fitted) == {"disk0/p2": (601, 100), "disk0/p3": (701, 300)}


def test_several_give_when_one_has_too_little() -> None:
    given = saved(("ext4", 600 * MIB), ("btrfs", 500 * MIB))
    fitted = shrunk(given, 602 * MIB, p1=300 * MIB, p2=100 * MIB)
    assert places(fitted) == {"disk0/p1": (1, 500), "disk0/p2": (501, 100)}


def test_free_space_between_partitions_goes_first() -> None:
    given = saved(("ext4", 300 * MIB), ("xfs", 300 * MIB), free=50 * MIB)
    fitted = shrunk(given, 602 * MIB)
    assert places(fitted) == {"disk0/p2": (301, 300)}
    assert fitted.dropped == ("disk0/gap1", "disk0/gap2", "disk0/gap9")


def test_partitions_stay_when_only_free_space_at_the_end_is_missing() -> None:
    given = saved(("xfs", 300 * MIB), free=50 * MIB)
    fitted = shrunk(given, 322 * MIB)
    assert fitted.places == ()
    assert fitted.disk.table == given.table
    assert fitted.has_new_table  # the backup of a GPT lies elsewhere
    kept = [(volume.id, volume.end // MIB) for volume in fitted.disk.volumes]
    assert kept == [("disk0/boot-area", 1), ("disk0/p1", 301), ("disk0/gap1", 321)]


def test_an_mbr_whose_partitions_stay_is_kept() -> None:
    given = saved(("xfs", 300 * MIB), free=50 * MIB, kind=TableKind.MBR)
    fitted = shrunk(given, 322 * MIB)
    assert not fitted.has_new_table
    assert fitted.disk.volumes[-1].end == 322 * MIB


def test_no_byte_of_a_gpt_s_end_is_given_away() -> None:
    given = saved(("ext4", 600 * MIB))
    fitted = shrunk(given, 500 * MIB, p1=100 * MIB)
    assert fitted.disk.volumes[-1].end <= 499 * MIB


@pytest.mark.parametrize("sector", [1, 63, 2047])
def test_a_partition_at_an_odd_sector_stays_as_odd(sector: int) -> None:
    first = MIB + 512 * sector
    fitted = shrunk(saved(("ext4", 600 * MIB), ("exfat", 50 * MIB), first=first), 500 * MIB, p1=1)
    moved = fitted.places[1]
    assert moved.offset % 512 == 0
    assert moved.offset == fitted.disk.volumes[1].end
    assert fitted.disk.volumes[-1].end <= 499 * MIB


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("exfat", "exFAT can't be made smaller"),
        ("vfat", "FAT"),
        ("exfat", "exFAT"),
        ("LVM2_member", "physical volume of LVM"),
        ("crypto_LUKS", "encrypted"),
        (None, "no known filesystem"),
        ("zfs_member", "zfs_member"),
    ],
)
def test_what_can_not_shrink_is_named_with_the_reason(kind: str | None, reason: str) -> None:
    with pytest.raises(TargetTooSmall) as caught:
        shrunk(saved((kind, 600 * MIB), ("ext4", 100 * MIB)), 500 * MIB, p2=50 * MIB)
    assert reason in caught.value.message
    # 1 MiB before, 600 and 50 MiB, 1 MiB for the backup GPT; 500 MiB are there
    assert f"{152 * MIB} bytes are missing" in caught.value.message
    assert f"at least {652 * MIB} bytes" in caught.value.hint


def test_a_member_of_md_moves_and_does_not_shrink() -> None:
    member = MdMember("disk0/p2", 0, 0, MdState.ACTIVE, 1, clean=True, data_offset=0)
    array = MdArray("md0", "u", "h:boot", "raid1", MdVersion.V1_2, 2, 0, False, False, (member,))
    layers = Layers(md=(array,))
    given = saved(("ext4", 600 * MIB), ("ext4", 100 * MIB))
    fitted = shrunk(given, 500 * MIB, layers, p1=100 * MIB)
    assert places(fitted) == {"disk0/p1": (1, 398), "disk0/p2": (399, 100)}
    with pytest.raises(TargetTooSmall, match="member of RAID1 md 'boot'"):
        shrunk(given, 150 * MIB, layers, p1=100 * MIB)


def test_a_disk_that_is_a_member_as_a_whole_is_refused() -> None:
    member = MdMember("disk0", 0, 0, MdState.ACTIVE, 1, clean=True, data_offset=0)
    array = MdArray("md0", "u", "h:all", "raid1", MdVersion.V1_0, 2, 0, False, False, (member,))
    with pytest.raises(TargetError, match="as a whole a member of RAID1 md 'all'"):
        shrunk(saved(("ext4", 600 * MIB)), 500 * MIB, Layers(md=(array,)), p1=MIB)


def test_a_device_of_a_btrfs_on_several_is_not_shrunk() -> None:
    pool = BtrfsPool("u", "pool", 2, (BtrfsDevice("disk0/p1", "d", 1),))
    with pytest.raises(TargetTooSmall, match="device of btrfs 'pool' on 2 devices"):
        shrunk(saved(("btrfs", 600 * MIB)), 500 * MIB, Layers(btrfs=(pool,)), p1=MIB)


def test_a_bios_boot_partition_may_not_move() -> None:
    given = saved(("ext4", 600 * MIB), (None, MIB), types=(LINUX, BIOS_BOOT))
    with pytest.raises(TargetError, match=r"disk0/p2 is a BIOS boot partition"):
        shrunk(given, 500 * MIB, p1=MIB)
    first = saved((None, MIB), ("ext4", 600 * MIB), types=(BIOS_BOOT, LINUX))
    assert places(shrunk(first, 500 * MIB, p2=MIB)) == {"disk0/p2": (2, 497)}


def test_a_filesystem_without_a_table_shrinks_to_the_whole_disk() -> None:
    whole = Volume("disk0/whole", VolumeRole.WHOLE_DISK, 0, GIB, None, Filesystem("ext4"))
    given = disk(size=GIB, volumes=(whole,))
    fitted = shrunk(given, 700 * MIB + 512, whole=600 * MIB)
    assert places(fitted) == {"disk0/whole": (0, 700)}
    assert fitted.disk.volumes[0].length == 700 * MIB
    with pytest.raises(TargetTooSmall, match=f"{100 * MIB} bytes are missing"):
        shrunk(given, 500 * MIB, whole=600 * MIB)


def logical() -> Disk:
    """An MBR with a primary partition and two logical ones."""
    partitions = (
        Partition(1, MIB, 400 * MIB, "83", bootable=True),
        Partition(2, 402 * MIB, 599 * MIB, "05"),
        Partition(5, 403 * MIB, 200 * MIB, "82"),
        Partition(6, 604 * MIB, 397 * MIB, "83"),
    )
    kinds = {1: "ext4", 5: "swap", 6: "ext4"}
    volumes = [
        Volume(
            f"disk0/p{part.number}",
            VolumeRole.PARTITION,
            part.offset,
            part.length,
            part.number,
            Filesystem(kinds[part.number]),
        )
        for part in partitions
        if not part.is_extended
    ]
    gaps = [
        Volume("disk0/boot-area", VolumeRole.BOOT_AREA, 0, MIB),
        Volume("disk0/gap1", VolumeRole.GAP, 401 * MIB, 2 * MIB),
        Volume("disk0/gap2", VolumeRole.GAP, 603 * MIB, MIB),
        Volume("disk0/gap3", VolumeRole.GAP, 1001 * MIB, 23 * MIB),
    ]
    ordered = sorted((*volumes, *gaps), key=lambda volume: volume.offset)
    table = PartitionTable(TableKind.MBR, "4c41b1d5", partitions)
    return replace(disk(size=GIB, volumes=ordered), table=table)


def test_logical_partitions_keep_room_for_their_boot_records() -> None:
    fitted = shrunk(logical(), 800 * MIB, p1=300 * MIB, p5=200 * MIB, p6=100 * MIB)
    assert fitted.disk.table is not None
    assert [
        (part.number, part.offset // MIB, part.length // MIB)
        for part in fitted.disk.table.partitions
    ] == [(1, 1, 400), (2, 401, 399), (5, 402, 200), (6, 603, 197)]


def test_logical_partitions_out_of_order_are_refused() -> None:
    given = logical()
    assert given.table is not None
    one, two, five, six = given.table.partitions
    swapped = replace(
        given,
        table=replace(
            given.table, partitions=(one, two, replace(six, number=5), replace(five, number=6))
        ),
        volumes=tuple(
            replace(volume, partition={5: 6, 6: 5}.get(volume.partition or 0, volume.partition))
            for volume in given.volumes
        ),
    )
    with pytest.raises(TargetError, match="in another order than their numbers"):
        shrunk(swapped, 800 * MIB, p1=300 * MIB, p5=200 * MIB, p6=100 * MIB)


def test_nothing_is_counted_of_filesystems_when_swap_is_enough() -> None:
    given = saved(("ext4", 600 * MIB), ("swap", 400 * MIB))
    assert places(shrunk(given, 952 * MIB, p2=256 * MIB)) == {"disk0/p2": (601, 350)}


def test_the_last_partition_grows_over_the_rest_of_a_larger_disk() -> None:
    given = saved(("ext4", 300 * MIB), ("xfs", 300 * MIB))
    fitted = grow(given, 1000 * MIB, NONE, "disk0/p2")
    assert places(fitted) == {"disk0/p2": (301, 698)}
    assert last_of(given) == "disk0/p2"


def test_partitions_behind_the_one_that_grows_move_up() -> None:
    fitted = grow(saved(("ext4", 300 * MIB), ("swap", 300 * MIB)), 1000 * MIB, NONE, "disk0/p1")
    assert places(fitted) == {"disk0/p1": (1, 698), "disk0/p2": (699, 300)}


def test_a_partition_grows_over_free_space_on_a_disk_of_the_same_size() -> None:
    given = saved(("ext4", 300 * MIB), ("swap", 300 * MIB), free=50 * MIB)
    fitted = grow(given, given.identity.size, NONE, "disk0/p1")
    assert places(fitted) == {"disk0/p1": (1, 400), "disk0/p2": (401, 300)}


@pytest.mark.parametrize(
    ("kind", "reason"), [("vfat", "vfat"), ("LVM2_member", "a physical volume"), (None, "no known")]
)
def test_what_has_no_program_does_not_grow(kind: str | None, reason: str) -> None:
    with pytest.raises(TargetError, match=rf"disk0/p1 can't grow: .*{reason}"):
        grow(saved((kind, 300 * MIB)), GIB, NONE, "disk0/p1")


def test_growing_without_room_is_refused() -> None:
    given = saved(("ext4", 300 * MIB))
    with pytest.raises(TargetError, match="no free space"):
        grow(given, given.identity.size, NONE, "disk0/p1")


def test_a_filesystem_without_a_table_grows_to_the_whole_disk() -> None:
    whole = Volume("disk0/whole", VolumeRole.WHOLE_DISK, 0, GIB, None, Filesystem("xfs"))
    fitted = grow(disk(size=GIB, volumes=(whole,)), 2 * GIB + 512, NONE, "disk0/whole")
    assert places(fitted) == {"disk0/whole": (0, 2048)}
