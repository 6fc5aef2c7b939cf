"""Readers of disks: whoever wrote to the captured machine's disk chooses the bytes."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from imager.extents import ext, fat, swap
from imager.extents.extents import Extents
from imager.probe.gpt import read_gpt
from imager.probe.mbr import read_mbr

SECTOR = 512
DISK = 256 << 10


def on_disk(data: bytes, size: int, use: Callable[[int], None]) -> None:
    descriptor = os.memfd_create("fuzz")
    try:
        os.pwrite(descriptor, data[:size], 0)
        os.truncate(descriptor, size)
        use(descriptor)
    finally:
        os.close(descriptor)


def _check(found: Extents, length: int) -> None:
    ends = found.ranges.sum(axis=1)
    assert (ends <= length).all()
    assert (found.ranges[:, 1] > 0).all()
    assert (found.ranges[1:, 0] > ends[:-1]).all()


def fat_volume(data: bytes) -> None:
    on_disk(data, DISK, lambda fd: _check(fat.read(fd, 0, DISK), DISK))


def large_fat_volume(data: bytes) -> None:
    """The same on a volume of 64 GiB: what the boot sector claims must not be believed at once."""
    size = 64 << 30
    on_disk(data, size, lambda fd: _check(fat.read(fd, 0, size), size))


def swap_area(data: bytes) -> None:
    on_disk(data, DISK, lambda fd: _check(swap.read(fd, 0, DISK), DISK))


def ext_superblock(data: bytes) -> None:
    def use(fd: int) -> None:
        assert ext._superblock(fd, 0, DISK).groups > 0

    on_disk(bytes(1024) + data, DISK, use)


def ext_report(data: bytes) -> None:
    """What dumpe2fs prints, which the filesystem has its share in."""
    superblock = ext._Superblock(16384, 13, 0, 1024, 8192)
    starts, ends = ext._read_report(io.BytesIO(data), superblock).confirmed(superblock)
    assert int(np.sum(ends - starts)) == 13


def gpt(data: bytes) -> None:
    """Sectors from the first on; checksums of both headers are made to fit."""
    disk = bytearray(data[:DISK].ljust(DISK, b"\0"))
    _sum_up(disk, SECTOR)
    _sum_up(disk, DISK - SECTOR)
    on_disk(bytes(disk), DISK, lambda fd: _use_gpt(fd, DISK))


def large_gpt(data: bytes) -> None:
    size = 64 << 30
    disk = bytearray(data[:DISK].ljust(DISK, b"\0"))
    _sum_up(disk, SECTOR)
    on_disk(bytes(disk), size, lambda fd: _use_gpt(fd, size))


def _use_gpt(fd: int, size: int) -> None:
    read_gpt(fd, size, SECTOR)


def _sum_up(disk: bytearray, start: int) -> None:
    size, entries, count, entry_size = struct.unpack_from("<12xI56xQII", disk, start)
    length = count * entry_size
    if length <= DISK and entries * SECTOR + length <= DISK:
        part = disk[entries * SECTOR : entries * SECTOR + length]
        struct.pack_into("<I", disk, start + 88, zlib.crc32(part))
    disk[start + 16 : start + 20] = bytes(4)
    if size <= SECTOR:
        struct.pack_into("<I", disk, start + 16, zlib.crc32(disk[start : start + size]))


def mbr(data: bytes) -> None:
    def use(fd: int) -> None:
        read_mbr(fd, DISK, SECTOR)

    on_disk(data, DISK, use)


def _mbr() -> bytes:
    entry = struct.Struct("<B3sB3sII")
    first = bytearray(512)
    entry.pack_into(first, 446, 0x80, bytes(3), 0x83, bytes(3), 8, 8)
    entry.pack_into(first, 462, 0, bytes(3), 0x05, bytes(3), 16, 64)
    logical = bytearray(512)
    entry.pack_into(logical, 446, 0, bytes(3), 0x83, bytes(3), 1, 4)
    first[510:] = logical[510:] = b"\x55\xaa"
    return bytes(first) + bytes(15 * SECTOR) + bytes(logical)


def _gpt() -> bytes:
    disk = bytearray(DISK)
    struct.pack_into("<B3sB3sII", disk, 446, 0, bytes(3), 0xEE, bytes(3), 1, DISK // SECTOR - 1)
    disk[510:512] = b"\x55\xaa"
    last = DISK // SECTOR - 1
    for lba, other in ((1, last), (last, 1)):
        struct.pack_into(
            "<8sIIIIQQQQ16sQIII", disk, lba * SECTOR, b"EFI PART", 0x10000, 92, 0, 0, lba, other,
            6, last - 1, b"\x0d" * 16, 2, 4, 128, 0,
        )  # fmt: skip
    entry = struct.pack(
        "<16s16sQQQ72s", b"\x0e" * 16, b"\x0f" * 16, 8, 15, 5, "root".encode("utf-16-le")
    )
    disk[2 * SECTOR : 2 * SECTOR + len(entry)] = entry
    return bytes(disk[: 4 * SECTOR])


def _fat() -> bytes:
    disk = bytearray(40 * SECTOR)
    disk[0] = 0xEB
    struct.pack_into("<HBHBHHBHHHII", disk, 11, 512, 1, 1, 2, 16, 400, 0xF8, 2, 1, 1, 0, 0)
    for copy in (1, 3):
        disk[copy * SECTOR : copy * SECTOR + 6] = bytes([0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF])
    root = 5 * SECTOR
    disk[root : root + 11] = b"FOLDER     "
    disk[root + 11] = 0x10
    disk[root + 26] = 2
    first = 6 * SECTOR
    disk[first : first + 11] = b".          "
    disk[first + 11] = 0x10
    disk[first + 26] = 2
    return bytes(disk[: 7 * SECTOR])


def _superblock() -> bytes:
    data = bytearray(1024)
    struct.pack_into("<9I", data, 0, 64, 200, 0, 100, 50, 1, 0, 0, 8192)
    struct.pack_into("<HH", data, 56, 0xEF53, 1)
    return bytes(data)


_REPORT = b"""
Group 0: (Blocks 0-8191) csum 0x1234 [ITABLE_ZEROED]
  Primary superblock at 0, Group descriptors at 1-1
  Block bitmap at 5 (+5), csum 0x00000000
  10 free blocks, 3 free inodes, 2 directories
  Free blocks: 100-104, 110-114
  Free inodes: 12-14
Group 1: (Blocks 8192-16383) csum 0x1234
  Inode table at 8200-8300 (+8)
  3 free blocks, 0 free inodes, 0 directories
  Free blocks: 9000-9002
"""


def targets() -> dict[str, tuple[Callable[[bytes], None], Sequence[bytes]]]:
    swap_header = bytearray(4096)
    struct.pack_into("<II", swap_header, 1024, 1, DISK // 4096 - 1)
    swap_header[-10:] = b"SWAPSPACE2"
    return {
        "fat": (fat_volume, [_fat()]),
        "large-fat": (large_fat_volume, [_fat()]),
        "swap": (swap_area, [bytes(swap_header)]),
        "ext-superblock": (ext_superblock, [_superblock()]),
        "ext-report": (ext_report, [_REPORT]),
        "gpt": (gpt, [_gpt()]),
        "large-gpt": (large_gpt, [_gpt()]),
        "mbr": (mbr, [_mbr()]),
    }
