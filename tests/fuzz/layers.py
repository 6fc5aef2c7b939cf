"""Readers of layers: what lies between partitions and filesystems. Checksums are made to fit."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from imager.layout import codec
from imager.layout.mdraid import MdVersion
from imager.probe import bcache, luks, lvm
from imager.probe.btrfs import read_pools
from imager.probe.mdraid import member_signature, read_arrays
from imager.probe.mdraid_superblock import read_superblock, superblock_places
from imager.probe.place import Place
from tests.fuzz.disks import on_disk
from tests.vectors import layer_files

MD_DISK = 1 << 20
LUKS_DISK = 64 << 10


def _place(fd: int, size: int, name: str = "disk0/p1") -> Place:
    return Place(name, Path(f"/proc/self/fd/{fd}"), fd, 0, size, None)


def _md(version: MdVersion, data: bytes, total: Callable[[bytearray], None]) -> None:
    place = dict(superblock_places(MD_DISK))[version]
    block = bytearray(data[:4096].ljust(4096, b"\0"))
    total(block)

    def use(fd: int) -> None:
        found = read_superblock(fd, 0, MD_DISK)
        if found is not None:
            member_signature(found)
            ((array, _),) = read_arrays([(_place(fd, MD_DISK), found)])
            codec.encode(array)
            assert array.title
            assert found.data_offset + found.size <= MD_DISK

    on_disk(bytes(place) + bytes(block), MD_DISK, use)


def md_1(data: bytes) -> None:
    def total(block: bytearray) -> None:
        (count,) = struct.unpack_from("<I", block, 220)
        if 256 + 2 * count > len(block):
            return
        struct.pack_into("<I", block, 216, 0)
        struct.pack_into("<Q", block, 144, 8)
        end = 256 + 2 * count
        words = struct.unpack_from(f"<{end // 4}I", block)
        value = sum(words) + (int.from_bytes(block[end - 2 : end], "little") if end % 4 else 0)
        struct.pack_into("<I", block, 216, ((value & 0xFFFFFFFF) + (value >> 32)) & 0xFFFFFFFF)

    _md(MdVersion.V1_2, data, total)


def md_0(data: bytes) -> None:
    def total(block: bytearray) -> None:
        struct.pack_into("<I", block, 152, 0)
        value = sum(struct.unpack("<1024I", block))
        struct.pack_into("<I", block, 152, ((value & 0xFFFFFFFF) + (value >> 32)) & 0xFFFFFFFF)

    _md(MdVersion.V0_90, data, total)


def luks_header(data: bytes) -> None:
    def use(fd: int) -> None:
        found = luks.read(_place(fd, LUKS_DISK))
        if found is not None:
            codec.encode(found)

    header = bytearray(data[:LUKS_DISK].ljust(LUKS_DISK, b"\0"))
    on_disk(bytes(header), LUKS_DISK, use)
    (size,) = struct.unpack_from(">Q", header, 8)
    if 4096 < size <= LUKS_DISK:
        header[448:512] = bytes(64)
        header[448:480] = hashlib.sha256(header[:size]).digest()
        on_disk(bytes(header), LUKS_DISK, use)


def lvm_groups(data: bytes) -> None:
    """The text of a group, whose checksum is taken for right."""
    for text in lvm._groups(data.decode(errors="replace")):
        codec.encode(lvm._volume_group(text, {}))


def lvm_disk(data: bytes) -> None:
    size = 4 << 20

    def use(fd: int) -> None:
        codec.encode(lvm.read_groups([_place(fd, size)]))

    on_disk(data, size, use)


def btrfs_superblock(data: bytes) -> None:
    size = 1 << 20
    on_disk(bytes(64 << 10) + data, size, lambda fd: codec.encode(read_pools([_place(fd, size)])))


def bcache_superblock(data: bytes) -> None:
    size = 1 << 16
    block = bytearray(data[:4096].ljust(4096, b"\0"))
    (keys,) = struct.unpack_from("<H", block, 206)
    if 208 + 8 * keys <= len(block):
        struct.pack_into("<Q", block, 0, bcache._crc(bytes(block[8 : 208 + 8 * keys])))
    on_disk(bytes(4096) + bytes(block), size, lambda fd: _bcache(fd, size))


def _bcache(fd: int, size: int) -> None:
    found = bcache.read(_place(fd, size))
    if found is not None:
        codec.encode(found)


def _block(name: str, version: MdVersion) -> bytes:
    data = layer_files.volume(name)
    place = dict(superblock_places(len(data)))[version]
    return data[place : place + 4096]


def targets() -> dict[str, tuple[Callable[[bytes], None], Sequence[bytes]]]:
    physical = layer_files.ends("md-1.1-lvm")[1][1 << 20 :]
    start = physical.index(b"data {") if b"data {" in physical else 0
    text = physical[start:].split(b"\0")[0]
    return {
        "md-1": (md_1, [_block("md-1.2-ext4", MdVersion.V1_2)]),
        "md-0.90": (md_0, [_block("md-0.90-ext4", MdVersion.V0_90)]),
        "luks": (luks_header, [layer_files.ends(name)[1] for name in ("luks1", "luks2")]),
        "lvm-text": (lvm_groups, [text]),
        "lvm-disk": (lvm_disk, [physical[:8192]]),
        "btrfs-superblock": (btrfs_superblock, [layer_files.ends("btrfs")[1][64 << 10 :]]),
        "bcache": (
            bcache_superblock,
            [layer_files.ends(name)[1][4096:] for name in ("bcache-backing", "bcache-cache")],
        ),
    }
