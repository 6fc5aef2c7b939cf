"""btrfs: superblocks, and the filesystems on several devices that they tell of."""

import hashlib
import struct
import uuid
from collections.abc import Callable, Sequence
from typing import Final

import google_crc32c
import xxhash

from imager.layout.btrfs import BtrfsDevice, BtrfsPool
from imager.probe.place import Place
from imager.probe.structure import StructureError, read_bytes
from imager.units import GIB, KIB, MIB

SUPERBLOCK_PLACES: Final = (64 * KIB, 64 * MIB, 256 * GIB)
SIZE: Final = 4096
_MAGIC: Final = b"_BHRfS_M"
SUM_SIZE: Final = 32

# From byte 32: UUID, place, flags, magic, generation, root tree, chunk tree, log tree, unused,
# bytes in all, bytes used, root directory, devices, sector, node, leaf and stripe size, bytes of
# the chunk array, generation of the chunk tree, three sets of features, kind of checksum, levels
# of the root, chunk and log tree
HEAD: Final = struct.Struct("<16sQQ8sQQQQQQQQQIIIIIQQQQHBBB")
# Of a device: id, bytes, bytes in chunks, alignments, type, generation, start, group, speeds, UUID
DEVICE: Final = struct.Struct("<QQQIIIQQQIBB16s16s")
DEVICE_AT: Final = 201
METADATA_UUID_AT: Final = 571
CHUNKS_AT: Final = 811
CHUNKS_SIZE: Final = 2048
_LABEL_AT: Final = 299
_LABEL_SIZE: Final = 256

_SUMS: Final[dict[int, Callable[[bytes], bytes]]] = {
    0: lambda data: int(google_crc32c.value(data)).to_bytes(4, "little"),
    1: lambda data: xxhash.xxh64_intdigest(data).to_bytes(8, "little"),
    2: lambda data: hashlib.sha256(data).digest(),
    3: lambda data: hashlib.blake2b(data, digest_size=32).digest(),
}


def is_sound(data: bytes, kind: int) -> bool:
    """Return whether a superblock or tree block agrees with the checksum it begins with."""
    expected = _SUMS[kind](data[SUM_SIZE:])
    return data[:SUM_SIZE] == expected.ljust(SUM_SIZE, b"\0")


def read_copy(fd: int, offset: int, length: int, place: int) -> bytes:
    """Return the superblock at a place of the device in `length` bytes at `offset`.

    Raises:
        StructureError: it is damaged, or none.
    """
    if place + SIZE > length:
        raise StructureError("the volume is too small for a btrfs filesystem")
    data = read_bytes(fd, offset + place, SIZE)
    fields = HEAD.unpack_from(data, SUM_SIZE)
    if (fields[3], fields[1]) != (_MAGIC, place):
        raise StructureError("a superblock is damaged")
    if (kind := fields[22]) not in _SUMS:
        raise StructureError("it has a kind of checksum that is not known here")
    if not is_sound(data, kind):
        raise StructureError("a superblock has a wrong checksum")
    return data


def read_pools(places: Sequence[Place]) -> tuple[BtrfsPool, ...]:
    """Return the filesystems on several devices that have one in these places.

    Superblocks that are damaged do not count.
    """
    found: dict[bytes, list[tuple[BtrfsDevice, bytes]]] = {}
    for place in places:
        try:
            data = read_copy(place.fd, place.offset, place.length, SUPERBLOCK_PLACES[0])
        except StructureError:
            continue
        number, *_, own, _ = DEVICE.unpack_from(data, DEVICE_AT)
        device = BtrfsDevice(place.id, str(uuid.UUID(bytes=own)), number)
        found.setdefault(data[SUM_SIZE:][:16], []).append((device, data))
    pools = []
    for identity, devices in found.items():
        # The superblock that saw the last change knows how many devices there are.
        newest = max(
            (data for _, data in devices), key=lambda data: HEAD.unpack_from(data, SUM_SIZE)[4]
        )
        count = HEAD.unpack_from(newest, SUM_SIZE)[12]
        label = newest[_LABEL_AT : _LABEL_AT + _LABEL_SIZE].split(b"\0")[0].decode(errors="replace")
        if count > 1:
            members = sorted(
                (device for device, _ in devices), key=lambda one: (one.number, one.place)
            )
            pools.append(
                BtrfsPool(str(uuid.UUID(bytes=identity)), label or None, count, tuple(members))
            )
    return tuple(pools)
