"""LVM physical volumes: extents that no logical volume has are not read.

The metadata of the volume group on the volume itself counts only if

- the label, the header of each metadata area and the text carry right checksums, and the areas,
  where there are several, say the same;
- no change is half-way (a text that is not committed, pvmove, a missing or exported part), no
  other machine shares the group, and all in it is known here;
- the extents of the segments lie within the physical volume and do not overlap, and the label and
  the text agree about the device.

What lies in logical volumes is read whole, whatever they are.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import Final

import numpy as np

from imager import blockdev
from imager.extents.extents import Extents, UncertainMapError, merged
from imager.extents.lvm_metadata import PhysicalVolume, physical_volume
from imager.units import MIB

_SECTOR: Final = 512
_LABEL_SECTORS: Final = 4  # the label is in one of these
_LABEL: Final = struct.Struct("<8sQII8s")  # magic, sector, checksum, place of the header, type
_LABEL_MAGIC: Final = b"LABELONE"
_LABEL_TYPE: Final = b"LVM2 001"
_SUMMED_FROM: Final = 20
_HEADER: Final = struct.Struct("<32sQ")  # id, bytes of the device
_AREA: Final = struct.Struct("<QQ")  # offset, bytes
_MDA: Final = struct.Struct("<I16sIQQ")  # checksum, magic, version, offset, bytes
_MDA_MAGIC: Final = b" LVM2 x[5A%r0N*>"
_MDA_VERSION: Final = 1
_TEXT: Final = struct.Struct("<QQII")  # offset in the area, bytes, checksum, flags
_IGNORED: Final = 1
_SEED: Final = 0xF597A6CF
_LARGEST_TEXT: Final = 64 * MIB


@dataclass(frozen=True, slots=True)
class _Label:
    identifier: str
    size: int
    metadata: tuple[tuple[int, int], ...]


def read(fd: int, offset: int, length: int) -> Extents:
    """Return label and metadata areas, allocated extents, and what lies behind the last extent.

    Raises:
        UncertainMapError: the map can't be relied on.
    """
    label = _label(fd, offset, length)
    texts = {_text(fd, offset, length, area) for area in label.metadata}
    texts.discard("")
    if not texts:
        raise UncertainMapError("the physical volume does not hold the metadata of its group")
    if len(texts) != 1:
        raise UncertainMapError("the metadata areas of the physical volume differ")
    found = physical_volume(texts.pop(), label.identifier)
    _check(found, label, length)
    rows = np.array(found.used, dtype=np.int64).reshape(-1, 2)
    start, extent = found.start * _SECTOR, found.extent * _SECTOR
    behind = start + found.extents * extent
    starts = start + rows[:, 0] * extent
    ranges = merged(
        np.concatenate([[0], starts, [behind]]),
        np.concatenate([[start], starts + rows[:, 1] * extent, [length]]),
    )
    return Extents(ranges, "LVM extents", None, extent)


def _checksum(data: bytes) -> int:
    """Return LVM's own checksum: a CRC-32 that begins elsewhere and is not turned at the end."""
    return zlib.crc32(data, _SEED ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def _label(fd: int, offset: int, length: int) -> _Label:
    if length < _LABEL_SECTORS * _SECTOR:
        raise UncertainMapError("the volume is too small for a physical volume of LVM")
    start = blockdev.read_at(fd, offset, _LABEL_SECTORS * _SECTOR)
    labels = [
        (number, start[number * _SECTOR : (number + 1) * _SECTOR])
        for number in range(_LABEL_SECTORS)
        if start.startswith(_LABEL_MAGIC, number * _SECTOR)
    ]
    if len(labels) != 1:
        raise UncertainMapError("it has no label of LVM, or several")
    number, sector = labels[0]
    _, own, checksum, header, kind = _LABEL.unpack_from(sector)
    if own != number or kind != _LABEL_TYPE or checksum != _checksum(sector[_SUMMED_FROM:]):
        raise UncertainMapError("the label of LVM is damaged")
    position = header
    areas: list[list[tuple[int, int]]] = []
    try:
        identifier, size = _HEADER.unpack_from(sector, position)
        position += _HEADER.size
        for _ in ("data", "metadata"):
            areas.append([])
            while (area := _AREA.unpack_from(sector, position))[0]:
                areas[-1].append(area)
                position += _AREA.size
            position += _AREA.size
    except struct.error as error:
        raise UncertainMapError("the label of LVM makes no sense") from error
    return _Label(identifier.decode("ascii", "replace"), size, tuple(areas[1]))


def _text(fd: int, offset: int, length: int, area: tuple[int, int]) -> str:
    """Return the text of a metadata area, empty when the area is not in use."""
    place, size = area
    if place + size > length or size < 2 * _SECTOR:
        raise UncertainMapError("a metadata area of LVM lies outside of the volume")
    header = blockdev.read_at(fd, offset + place, _SECTOR)
    checksum, magic, version, own_place, own_size = _MDA.unpack_from(header)
    if (
        checksum != _checksum(header[4:])
        or magic != _MDA_MAGIC
        or version != _MDA_VERSION
        or (own_place, own_size) != (place, size)
    ):
        raise UncertainMapError("the header of a metadata area of LVM is damaged")
    where, count, checksum, flags = _TEXT.unpack_from(header, _MDA.size)
    if where == 0 or flags & _IGNORED:
        return ""
    if any(header[_MDA.size + _TEXT.size :]):
        raise UncertainMapError("a change of the volume group is not committed")
    if flags or not _SECTOR <= where < size or not 0 < count <= min(size - _SECTOR, _LARGEST_TEXT):
        raise UncertainMapError("the header of a metadata area of LVM makes no sense")
    # The area is a ring; its header is not part of it.
    first = min(count, size - where)
    data = blockdev.read_at(fd, offset + place + where, first)
    data += blockdev.read_at(fd, offset + place + _SECTOR, count - first)
    if checksum != _checksum(data):
        raise UncertainMapError("the metadata of LVM has a wrong checksum")
    try:
        return data.rstrip(b"\0").decode()
    except UnicodeDecodeError as error:
        raise UncertainMapError("the metadata of LVM is no text") from error


def _check(found: PhysicalVolume, label: _Label, length: int) -> None:
    if found.size * _SECTOR != label.size or label.size > length:
        raise UncertainMapError("label and metadata of LVM disagree about the size of the device")
    end = (found.start + found.extents * found.extent) * _SECTOR
    if found.extent < 1 or found.start * _SECTOR < _SECTOR * _LABEL_SECTORS or end > length:
        raise UncertainMapError("the extents of LVM lie outside of the volume")
    next_free = 0
    for first, count in found.used:
        if first < next_free:
            raise UncertainMapError("two logical volumes have the same extents")
        next_free = first + count
    if next_free > found.extents:
        raise UncertainMapError("a logical volume lies beyond the last extent")
    first_extent = found.start * _SECTOR
    for place, size in label.metadata:
        if place < end and place + size > first_extent:
            raise UncertainMapError("a metadata area of LVM lies within the extents")
