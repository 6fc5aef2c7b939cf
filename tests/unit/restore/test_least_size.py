"""How small the planner believes a filesystem can become."""

import struct

import pytest
from memory_image import MemoryImage, disk, image_of, machine

from imager.layout.disk import Volume, VolumeRole
from imager.layout.filesystem import Filesystem
from imager.units import GIB, KIB, MIB
from restore.least_size import LEAST_SWAP, least_size, least_within
from restore.saved_volume import SavedVolume

SIZE = 4 * GIB
BLOCKS = SIZE // (4 * KIB)


def superblock(
    *, inodes_used: int = 100, blocks_used: int = 1000, incompatible: int = 0, journal: int = 0
) -> bytes:
    """An ext superblock: 32 groups of 128 MiB with 8192 inodes each."""
    data = bytearray(1024)
    struct.pack_into(
        "<7I", data, 0, 32 * 8192, BLOCKS, 0, BLOCKS - blocks_used, 32 * 8192 - inodes_used, 0, 2
    )
    struct.pack_into("<3I", data, 32, 32768, 32768, 8192)
    struct.pack_into("<H", data, 56, 0xEF53)
    struct.pack_into("<I", data, 96, incompatible)
    struct.pack_into("<I", data, 228, journal)
    return bytes(data)


def saved(kind: str, used: int, head: bytes = b"", size: int = SIZE) -> tuple[MemoryImage, Volume]:
    """A volume of which so much is used; zeros of the image are used, too."""
    volume = Volume("disk0/p1", VolumeRole.PARTITION, 0, size, 1, Filesystem(kind))
    block = head.rjust(len(head) + 1024, b"\0").ljust(4096, b"\0")
    rest = used - len(block)
    content = [block, ("zero", rest), ("free", size - used)] if used < size else [("zero", size)]
    return image_of(machine(disk(size=size, volumes=(volume,))), {"disk0/p1": content}), volume


def least(kind: str, used: int, head: bytes = b"", size: int = SIZE) -> int:
    return least_size(*saved(kind, used, head, size))


@pytest.mark.parametrize("kind", ["ext2", "ext3", "ext4", "ntfs", "btrfs"])
def test_there_is_room_beyond_what_is_used_and_it_is_in_whole_mebibytes(kind: str) -> None:
    found = least(kind, GIB, superblock())
    assert GIB + GIB // 20 < found < 3 * GIB
    assert not found % MIB


def test_btrfs_keeps_room_for_whole_chunks() -> None:
    assert least("btrfs", GIB) - least("ntfs", GIB) >= 3 * SIZE // 10


def test_a_volume_that_is_used_whole_does_not_shrink() -> None:
    assert least("ntfs", SIZE) == SIZE
    assert least("ext4", SIZE - MIB, superblock()) == SIZE


def test_many_small_files_need_as_many_groups_as_their_inodes() -> None:
    assert least("ext4", GIB, superblock(inodes_used=15 * 8192)) == 16 * 128 * MIB
    assert least("ext4", GIB, superblock(inodes_used=31 * 8192)) == SIZE


@pytest.mark.parametrize(
    "head",
    [
        superblock(incompatible=0x10),
        superblock(journal=0x801),
        bytes(1024),
        superblock()[:32] + bytes(12) + superblock()[44:],
    ],
    ids=["meta_bg", "journal elsewhere", "no ext", "no groups"],
)
def test_an_ext_that_is_not_plain_does_not_shrink(head: bytes) -> None:
    assert least("ext4", GIB, head) == SIZE


def test_swap_keeps_a_least() -> None:
    assert least("swap", MIB) == LEAST_SWAP
    assert least("swap", MIB, size=100 * MIB) == 100 * MIB


def within(kind: str, head: bytes, used: int = SIZE) -> int:
    """What is said of a logical volume, of which the map has all."""
    image, volume = saved(kind, used, head)
    return least_within(kind, SavedVolume(image, volume.id))


def test_in_a_logical_volume_an_ext_says_itself_what_it_uses() -> None:
    used = GIB // (4 * KIB)
    found = within("ext4", superblock(blocks_used=used), SIZE - MIB)
    assert found == least("ext4", GIB, superblock(blocks_used=used))
    many = superblock(blocks_used=used, inodes_used=15 * 8192)
    assert within("ext4", many, SIZE - MIB) == 16 * 128 * MIB
    assert within("ext4", bytes(1024), SIZE - MIB) == SIZE


def test_in_a_logical_volume_a_btrfs_says_itself_what_it_uses() -> None:
    head = bytes(63 * KIB) + bytes(120) + GIB.to_bytes(8, "little")
    image, volume = saved("btrfs", SIZE - MIB)
    block = bytes(KIB) + head
    content = {"disk0/p1": [block, ("zero", SIZE - len(block))]}
    image = image_of(image.machine, content)
    found = least_within("btrfs", SavedVolume(image, volume.id))
    assert found >= least("btrfs", GIB + GIB // 8)
    assert found < SIZE


@pytest.mark.parametrize("kind", ["xfs", "ntfs", "vfat", "crypto_LUKS", ""])
def test_in_a_logical_volume_other_things_keep_their_size(kind: str) -> None:
    assert within(kind, bytes(1024)) == SIZE


def test_in_a_logical_volume_swap_keeps_a_least() -> None:
    assert within("swap", bytes(1024)) == LEAST_SWAP
