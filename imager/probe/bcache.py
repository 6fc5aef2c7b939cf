"""Superblocks of bcache (`struct cache_sb` of the kernel's drivers/md/bcache)."""

import struct
import uuid
from functools import cache
from typing import Final

from imager.layout.bcache import BcacheDevice, BcacheRole, BcacheState
from imager.probe.place import Place
from imager.probe.structure import StructureError, read_bytes

_AT: Final = 4096
_SIZE: Final = 4096
_MAGIC: Final = bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")
# checksum, own sector, version, magic, UUID, UUID of the set, label, flags
_HEAD: Final = struct.Struct("<QQQ16s16s16s32sQ")
_KEYS_AT: Final = 206  # how many numbers of 64 bits follow from _BODY on
_BODY: Final = 208
_CACHES: Final = frozenset({0, 3, 5})
_BACKINGS: Final = frozenset({1, 4, 6})
_STATES: Final = tuple(BcacheState)
_STATE_SHIFT: Final = 61
_MODE_MASK: Final = 0xF
_WRITEBACK: Final = 1
_POLYNOMIAL: Final = 0x42F0E1EBA9EA3693
_ONES: Final = (1 << 64) - 1


def read(place: Place) -> BcacheDevice | None:
    """Return the bcache device in a place; None if there is none, or its superblock is damaged."""
    if place.length < _AT + _SIZE:
        return None
    try:
        data = read_bytes(place.fd, place.offset + _AT, _SIZE)
    except StructureError:
        return None
    checksum, sector, version, magic, own, of_set, _, flags = _HEAD.unpack_from(data)
    (keys,) = struct.unpack_from("<H", data, _KEYS_AT)
    end = _BODY + 8 * keys
    if magic != _MAGIC or sector * 512 != _AT or end > _SIZE or checksum != _crc(data[8:end]):
        return None
    role = BcacheRole.CACHE if version in _CACHES else BcacheRole.BACKING
    if role is BcacheRole.BACKING and version not in _BACKINGS:
        return None
    set_uuid = str(uuid.UUID(bytes=of_set)) if any(of_set) else None
    if role is BcacheRole.CACHE:
        return BcacheDevice(place.id, role, str(uuid.UUID(bytes=own)), set_uuid)
    state = _STATES[flags >> _STATE_SHIFT & 3]
    return BcacheDevice(
        place=place.id,
        role=role,
        uuid=str(uuid.UUID(bytes=own)),
        set_uuid=None if state is BcacheState.NONE else set_uuid,
        state=state,
        writeback=flags & _MODE_MASK == _WRITEBACK,
    )


def _crc(data: bytes) -> int:
    """Return the CRC-64 (ECMA-182) of data, turned at the start and at the end."""
    table = _table()
    value = _ONES
    for byte in data:
        value = (value << 8 & _ONES) ^ table[(value >> 56) ^ byte]
    return value ^ _ONES


@cache
def _table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte << 56
        for _ in range(8):
            value = (value << 1 & _ONES) ^ (_POLYNOMIAL if value >> 63 else 0)
        table.append(value)
    return tuple(table)
