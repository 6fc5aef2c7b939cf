"""Superblocks of md, as `include/uapi/linux/raid/md_p.h` of the kernel describes them.

Metadata 0.90 is read as little-endian machines write it. Checksums are those of mdadm: the sum of
all 32-bit words with the checksum taken as 0, and what overflows added once.
"""

import struct
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import numpy as np

from imager.layout.mdraid import MdState, MdVersion
from imager.probe.structure import StructureError, read_bytes
from imager.units import KIB

_SECTOR: Final = 512
SUPERBLOCK_SIZE: Final = 4096
_MAGIC: Final = 0xA92B4EFC
_MOST_DISKS: Final = 4096

# 0.90, in words of 32 bits
_RESERVED: Final = 64 * KIB
_SUM_WORD: Final = 38
_EVENTS_WORD: Final = 39  # low half, high half, and the same two of the last checkpoint
_DISKS_WORD: Final = 128
_DISK_WORDS: Final = 32
_MOST_DISKS_0: Final = 27
_THIS_DISK_WORD: Final = 992
_CLEAN: Final = 1 << 0
_BITMAP: Final = 1 << 8
_DISK_FAULTY, _DISK_ACTIVE, _DISK_IN_SYNC, _DISK_REMOVED = 1 << 0, 1 << 1, 1 << 2, 1 << 3

# 1.x: magic, version, features, padding, UUID, name, time of creation, level, layout, size, chunk,
# disks, place of the bitmap; and what follows of a reshape
_SET: Final = struct.Struct("<IIII16s32sQiIQIIi")
# From 128: data offset and size, place of the superblock, recovered up to, number of the device,
# corrected reads, UUID of the device, flags, and the bad block log: shift, sectors, place
_DEVICE: Final = struct.Struct("<QQQQII16sBBHi")
_DEVICE_AT: Final = 128
# From 192: time of the update, events, in sync up to, checksum, roles
_STATE: Final = struct.Struct("<QQQII")
_STATE_AT: Final = 192
_BITMAP_AT: Final = 96
_OWN_PLACE_AT: Final = 144
_EVENTS_AT: Final = 200
_SUM_AT: Final = 216
_COUNT_AT: Final = 220
_ROLES_AT: Final = 256
_IN_SYNC: Final = (1 << 64) - 1
_FAULTY_ROLE: Final = 0xFFFE
_LEAST_OTHER_ROLE: Final = 0xFFFD  # smaller ones are disks of the array
_ROLE_STATES: Final = {
    0xFFFF: MdState.SPARE,
    _FAULTY_ROLE: MdState.FAULTY,
    _LEAST_OTHER_ROLE: MdState.JOURNAL,
}
_TIME_MASK: Final = (1 << 40) - 1

_HAS_BITMAP: Final = 1
_RECOVERING: Final = 2

# The head of a bitmap: magic, version, UUID of the array, events, events when bits were last cleared
_BITMAP_HEAD: Final = struct.Struct("<4sI16sQQ")
_BITMAP_MAGIC: Final = b"bitm"
_BITMAP_VERSIONS: Final = frozenset({3, 4, 5})
BITMAP_HEAD_SIZE: Final = _BITMAP_HEAD.size

_LEVELS: Final = {-4: "multipath", -1: "linear"}
_PLAIN_LEVELS: Final = frozenset({0, 1, 4, 5, 6, 10})


@dataclass(frozen=True, slots=True)
class MdSuperblock:
    """A superblock; bytes count from the start of the member.

    Attributes:
        version: of the metadata.
        place: first byte of the superblock.
        uuid: of the array.
        name: of the array.
        created: when, seconds since the epoch.
        level: in words, see `layout.mdraid.MdArray`.
        disks: of the array.
        chunk: bytes, 0 for none.
        bitmap: there is one.
        degraded: a disk of the array was not active.
        size: bytes that the array uses of each member.
        data_offset: first byte of data.
        number: of the device.
        role: its disk in the array, or None.
        state: of the device.
        events: seen.
        clean: no write was on its way.
        settled: nothing is reshaped, recovered, replaced or known to be bad.
        metadata: first bytes of the bitmap and of the bad block log, where it has them.
    """

    version: MdVersion
    place: int
    uuid: str
    name: str
    created: int
    level: str
    disks: int
    chunk: int
    bitmap: bool
    degraded: bool
    size: int
    data_offset: int
    number: int
    role: int | None
    state: MdState
    events: int
    clean: bool
    settled: bool
    metadata: tuple[int, ...]

    @property
    def is_mirror(self) -> bool:
        """Whether each member holds all of the array, from `data_offset` on."""
        return self.level == "raid1"


def read_superblock(fd: int, offset: int, length: int) -> MdSuperblock | None:
    """Return the md superblock of the device in `length` bytes at `offset`; None if it has none.

    If there are several (old ones that nobody wiped), the array that was made last counts, as for
    mdadm. One that is damaged is none.
    """
    found = []
    for version, place in superblock_places(length):
        try:
            data = read_bytes(fd, offset + place, SUPERBLOCK_SIZE)
            found.append(_parse(data, version, place, length))
        except StructureError:
            continue
    return max(found, key=lambda superblock: superblock.created, default=None)


def with_place(data: bytes, version: MdVersion, place: int) -> bytes:
    """Return a superblock as it is when it lies at another place, with its checksum.

    Args:
        data: the superblock, `SUPERBLOCK_SIZE` bytes.
        version: of the metadata; 0.90 does not say where it lies.
        place: first byte on the member.
    """
    if version is MdVersion.V0_90:
        return data
    moved = bytearray(data)
    struct.pack_into("<Q", moved, _OWN_PLACE_AT, place // _SECTOR)
    (count,) = struct.unpack_from("<I", moved, _COUNT_AT)
    struct.pack_into("<I", moved, _SUM_AT, _sum_1(bytes(moved[: _ROLES_AT + 2 * count])))
    return bytes(moved)


def with_members(data: bytes, version: MdVersion, kept: Collection[int], events: int) -> bytes:
    """Return a superblock as it is when all members but some have failed and were taken out.

    It says of the others what the kernel writes when they fail while the array runs: with metadata
    1.x their role is "faulty", with 0.90 they are "faulty, removed" and no longer counted. Of an
    array that is whole without them nothing changes but the count of events.

    Args:
        data: the superblock, `SUPERBLOCK_SIZE` bytes.
        version: of the metadata.
        kept: numbers of the devices that stay; the one that this belongs to among them.
        events: how many changes of the array it has seen then.
    """
    changed = bytearray(data)
    if version is MdVersion.V0_90:
        _keep_0(changed, kept, events)
        return bytes(changed)
    (count,) = struct.unpack_from("<I", changed, _COUNT_AT)
    for number in range(count):
        place = _ROLES_AT + 2 * number
        (role,) = struct.unpack_from("<H", changed, place)
        if number not in kept and role < _LEAST_OTHER_ROLE:
            struct.pack_into("<H", changed, place, _FAULTY_ROLE)
    struct.pack_into("<Q", changed, _EVENTS_AT, events)
    struct.pack_into("<I", changed, _SUM_AT, _sum_1(bytes(changed[: _ROLES_AT + 2 * count])))
    return bytes(changed)


def _keep_0(changed: bytearray, kept: Collection[int], events: int) -> None:
    words = np.frombuffer(changed, dtype="<u4")
    # How many there are in all, active, working, failed, spare.
    totals = dict.fromkeys((9, 34, 35, 36, 37), 0)
    for number in range(_MOST_DISKS_0):
        disk = words[_DISKS_WORD + number * _DISK_WORDS :][:_DISK_WORDS]
        state = int(disk[4])
        is_there = bool(state & (_DISK_ACTIVE | _DISK_IN_SYNC)) or (
            number > 0 and disk[0] == number
        )
        if number in kept or not is_there or state & (_DISK_FAULTY | _DISK_REMOVED):
            continue
        is_active = bool(state & _DISK_IN_SYNC)
        for word, change in ((9, -1), (35, -1), (34 if is_active else 37, -1)):
            totals[word] += change
        disk[:] = 0
        if number < words[10]:
            totals[36] += 1
            disk[:5] = (number, 0, 0, number, _DISK_FAULTY | _DISK_REMOVED)
    for word, change in totals.items():
        words[word] = max(0, int(words[word]) + change)
    halves = (events & 0xFFFFFFFF, events >> 32)
    checkpoint = slice(_EVENTS_WORD + 2, _EVENTS_WORD + 4)
    at_checkpoint = (words[checkpoint] == words[_EVENTS_WORD : _EVENTS_WORD + 2]).all()
    words[_EVENTS_WORD : _EVENTS_WORD + 2] = halves
    if at_checkpoint:  # else a resync would begin at the start again
        words[checkpoint] = halves
    words[_SUM_WORD] = _folded(int(words.sum(dtype=np.uint64)) - int(words[_SUM_WORD]))


def bitmap_place(data: bytes, version: MdVersion, place: int) -> int | None:
    """Return the first byte of a member's bitmap; None where its superblock speaks of none.

    Args:
        data: the superblock, `SUPERBLOCK_SIZE` bytes.
        version: of the metadata.
        place: first byte of the superblock on the member.
    """
    if version is MdVersion.V0_90:
        (state,) = struct.unpack_from("<I", data, 4 * 33)
        return place + SUPERBLOCK_SIZE if state & _BITMAP else None
    (features,) = struct.unpack_from("<I", data, 8)
    (sectors,) = struct.unpack_from("<i", data, _BITMAP_AT)
    return place + sectors * _SECTOR if features & _HAS_BITMAP else None


def bitmap_with_events(head: bytes, uuid_of_array: str, events: int) -> bytes:
    """Return the head of a bitmap that is up to date at a count of events.

    A device that saw fewer is written anew as a whole, not only where bits are set. What is no
    head of this array's bitmap, in a version that is known, is returned as it is: the kernel calls
    it out of date, and does the same.

    Args:
        head: `BITMAP_HEAD_SIZE` bytes.
        uuid_of_array: as `MdSuperblock` says it.
        events: as its superblock counts them.
    """
    magic, version, identity, _, _ = _BITMAP_HEAD.unpack(head)
    is_known = magic == _BITMAP_MAGIC and version in _BITMAP_VERSIONS
    if not is_known or identity not in _identities(uuid_of_array):
        return head
    return _BITMAP_HEAD.pack(magic, version, identity, events, events)


def _identities(uuid_of_array: str) -> tuple[bytes, bytes]:
    """Return a UUID as it is in metadata 1.x, and as the kernel keeps one of 0.90 in memory."""
    plain = uuid.UUID(uuid_of_array).bytes
    return plain, struct.pack("<4I", *struct.unpack(">4I", plain))


def superblock_places(length: int) -> tuple[tuple[MdVersion, int], ...]:
    """Return where the superblock of each version lies on a device of `length` bytes."""
    sectors = length // _SECTOR
    last = (sectors - 16) // 8 * 8 * _SECTOR
    places = (
        (MdVersion.V0_90, length // _RESERVED * _RESERVED - _RESERVED),
        (MdVersion.V1_0, last),
        (MdVersion.V1_1, 0),
        (MdVersion.V1_2, 8 * _SECTOR),
    )
    return tuple(
        (version, place)
        for version, place in places
        if place >= 0 and place + SUPERBLOCK_SIZE <= length
    )


def _parse(data: bytes, version: MdVersion, place: int, length: int) -> MdSuperblock:
    is_old = version is MdVersion.V0_90
    found = _parse_0(data, place) if is_old else _parse_1(data, version, place)
    if not 0 < found.disks <= _MOST_DISKS or found.data_offset + found.size > length:
        raise StructureError("the md superblock makes no sense")
    if version in {MdVersion.V0_90, MdVersion.V1_0} and found.data_offset + found.size > place:
        raise StructureError("the md superblock lies within its own data")
    return found


def _parse_0(data: bytes, place: int) -> MdSuperblock:
    words = [int(word) for word in np.frombuffer(data, dtype="<u4")]
    if words[0] != _MAGIC or words[1] != 0 or words[2] < 90:
        raise StructureError("no md superblock 0.90")
    if _folded(sum(words) - words[_SUM_WORD]) != words[_SUM_WORD]:
        raise StructureError("the md superblock has a wrong checksum")
    state, active = words[33], words[34]
    number, _, _, role, disk_state = words[_THIS_DISK_WORD : _THIS_DISK_WORD + 5]
    disks = words[10]
    condition = MdState.SPARE
    if disk_state & _DISK_FAULTY:
        condition = MdState.FAULTY
    elif disk_state & _DISK_IN_SYNC:
        condition = MdState.ACTIVE
    elif disk_state & _DISK_ACTIVE:
        condition = MdState.REBUILDING
    identity = struct.pack(">4I", words[5], *words[13:16])
    in_use = condition in {MdState.ACTIVE, MdState.REBUILDING} and role < disks
    return MdSuperblock(
        version=MdVersion.V0_90,
        place=place,
        uuid=str(uuid.UUID(bytes=identity)),
        name="",
        created=words[6],
        level=_level(struct.unpack("<i", struct.pack("<I", words[7]))[0]),
        disks=disks,
        chunk=words[65] if words[7] != 1 else 0,
        bitmap=bool(state & _BITMAP),
        degraded=active < disks,
        size=words[8] * KIB,
        data_offset=0,
        number=number,
        role=role if in_use else None,
        state=condition,
        events=words[40] << 32 | words[39],
        clean=bool(state & _CLEAN),
        settled=words[2] == 90 and condition is MdState.ACTIVE,
        metadata=(),  # the bitmap follows the superblock
    )


def _parse_1(data: bytes, version: MdVersion, place: int) -> MdSuperblock:
    (
        magic, major, features, _, identity, name, created, level, _, size, chunk, disks, bitmap,
    ) = _SET.unpack_from(data)  # fmt: skip
    if magic != _MAGIC or major != 1:
        raise StructureError("no md superblock 1")
    (
        data_offset, _, own_place, _, number, _, _, _, _, log_size, log,
    ) = _DEVICE.unpack_from(data, _DEVICE_AT)  # fmt: skip
    _, events, in_sync, checksum, count = _STATE.unpack_from(data, _STATE_AT)
    end = _ROLES_AT + 2 * count
    if end > SUPERBLOCK_SIZE or checksum != _sum_1(data[:end]):
        raise StructureError("the md superblock has a wrong checksum")
    if own_place * _SECTOR != place:
        raise StructureError("the md superblock belongs to another device")
    roles = struct.unpack_from(f"<{count}H", data, _ROLES_AT)
    role = roles[number] if number < count else 0xFFFF
    state = _ROLE_STATES.get(role, MdState.ACTIVE)
    if state is MdState.ACTIVE and features & _RECOVERING:
        state = MdState.REBUILDING
    return MdSuperblock(
        version=version,
        place=place,
        uuid=str(uuid.UUID(bytes=identity)),
        name=name.split(b"\0")[0].decode(errors="replace"),
        created=created & _TIME_MASK,
        level=_level(level),
        disks=disks,
        chunk=chunk * _SECTOR if level != 1 else 0,
        bitmap=bool(features & _HAS_BITMAP),
        degraded=len({one for one in roles if one < disks}) < disks,
        size=size * _SECTOR,
        data_offset=data_offset * _SECTOR,
        number=number,
        role=role if role not in _ROLE_STATES else None,
        state=state,
        events=events,
        clean=in_sync == _IN_SYNC,
        settled=not features & ~_HAS_BITMAP and state is MdState.ACTIVE,
        metadata=tuple(
            place + at * _SECTOR
            for at, is_there in ((bitmap, features & _HAS_BITMAP), (log, log_size))
            if is_there
        ),
    )


def _level(number: int) -> str:
    if number in _PLAIN_LEVELS:
        return f"raid{number}"
    return _LEVELS.get(number, f"level {number}")


def _folded(total: int) -> int:
    return (total & 0xFFFFFFFF) + (total >> 32) & 0xFFFFFFFF


def _sum_1(data: bytes) -> int:
    even = len(data) // 4 * 4
    total = int(np.frombuffer(data[:even], dtype="<u4").sum(dtype=np.uint64))
    total -= int.from_bytes(data[_SUM_AT : _SUM_AT + 4], "little")
    if len(data) - even == 2:
        total += int.from_bytes(data[even:], "little")
    return _folded(total)
