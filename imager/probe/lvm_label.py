"""The label of an LVM physical volume, and the texts in its metadata areas."""

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from imager.probe.structure import StructureError, read_bytes
from imager.units import MIB

SECTOR: Final = 512
LABEL_SECTORS: Final = 4  # the label is in one of these
_LABEL: Final = struct.Struct("<8sQII8s")  # magic, sector, checksum, place of the header, type
_LABEL_MAGIC: Final = b"LABELONE"
_LABEL_TYPE: Final = b"LVM2 001"
_SUM_AT: Final = 16
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
class Label:
    """The label of a physical volume.

    Attributes:
        identifier: of the physical volume, 32 characters.
        size: bytes of its device.
        metadata: offset and bytes of each metadata area, relative to the volume.
    """

    identifier: str
    size: int
    metadata: tuple[tuple[int, int], ...]


def _checksum(data: bytes | bytearray) -> int:
    """Return LVM's own checksum: a CRC-32 that begins elsewhere and is not turned at the end."""
    return zlib.crc32(data, _SEED ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def read_label(fd: int, offset: int, length: int) -> Label:
    """Return the label of the physical volume in `length` bytes at `offset`.

    Raises:
        StructureError: there is none, several, or it is damaged.
    """
    if length < LABEL_SECTORS * SECTOR:
        raise StructureError("the volume is too small for a physical volume of LVM")
    start = read_bytes(fd, offset, LABEL_SECTORS * SECTOR)
    place, header = _header_in(start)
    return _label(start[place : place + SECTOR], header)


def with_text(head: bytes, size: int, text: str) -> bytes:
    """Return the beginning of a physical volume for a device of another size, with another text.

    Of what its metadata area held nothing is left.

    Args:
        head: the beginning, with the label and the one metadata area.
        size: bytes of the device.
        text: of the volume group.

    Raises:
        StructureError: `head` is damaged, has not exactly one area, or one too small for the text.
    """
    place, header = _header_in(head)
    areas = _label(head[place : place + SECTOR], header).metadata
    if len(areas) != 1 or sum(areas[0]) > len(head):
        raise StructureError("its metadata is not in one area before the first extent")
    data = text.encode() + b"\0"
    area, room = areas[0]
    # LVM keeps the old text until the new one is there.
    if 2 * len(data) > room - SECTOR:
        raise StructureError("its metadata area has no room for the new layout")
    made = bytearray(head)
    struct.pack_into("<Q", made, place + header + _HEADER.size - 8, size)
    summed = _checksum(made[place + _SUMMED_FROM : place + SECTOR])
    struct.pack_into("<I", made, place + _SUM_AT, summed)
    own = _MDA.pack(0, _MDA_MAGIC, _MDA_VERSION, area, room)
    own += _TEXT.pack(SECTOR, len(data), _checksum(data), 0)
    own = own.ljust(SECTOR, b"\0")
    own = struct.pack("<I", _checksum(own[4:])) + own[4:]
    made[area : area + room] = (own + data).ljust(room, b"\0")
    return bytes(made)


def _header_in(start: bytes) -> tuple[int, int]:
    """Return where the label is in the beginning of a physical volume, and its header in that."""
    labels = [
        (number, start[number * SECTOR : (number + 1) * SECTOR])
        for number in range(LABEL_SECTORS)
        if start.startswith(_LABEL_MAGIC, number * SECTOR)
    ]
    if len(labels) != 1:
        raise StructureError("it has no label of LVM, or several")
    number, sector = labels[0]
    _, own, checksum, header, kind = _LABEL.unpack_from(sector)
    if own != number or kind != _LABEL_TYPE or checksum != _checksum(sector[_SUMMED_FROM:]):
        raise StructureError("the label of LVM is damaged")
    return number * SECTOR, header


def _label(sector: bytes, position: int) -> Label:
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
        raise StructureError("the label of LVM makes no sense") from error
    return Label(identifier.decode("ascii", "replace"), size, tuple(areas[1]))


def read_text(fd: int, offset: int, length: int, area: tuple[int, int]) -> str:
    """Return the text of a metadata area, empty when the area is not in use.

    Raises:
        StructureError: it is damaged, or a change of it is not committed.
    """
    place, size = area
    if place + size > length or size < 2 * SECTOR:
        raise StructureError("a metadata area of LVM lies outside of the volume")
    header = read_bytes(fd, offset + place, SECTOR)
    checksum, magic, version, own_place, own_size = _MDA.unpack_from(header)
    if (
        checksum != _checksum(header[4:])
        or magic != _MDA_MAGIC
        or version != _MDA_VERSION
        or (own_place, own_size) != (place, size)
    ):
        raise StructureError("the header of a metadata area of LVM is damaged")
    where, count, checksum, flags = _TEXT.unpack_from(header, _MDA.size)
    if where == 0 or flags & _IGNORED:
        return ""
    if any(header[_MDA.size + _TEXT.size :]):
        raise StructureError("a change of the volume group is not committed")
    if flags or not SECTOR <= where < size or not 0 < count <= min(size - SECTOR, _LARGEST_TEXT):
        raise StructureError("the header of a metadata area of LVM makes no sense")
    # The area is a ring; its header is not part of it.
    first = min(count, size - where)
    data = read_bytes(fd, offset + place + where, first)
    data += read_bytes(fd, offset + place + SECTOR, count - first)
    if checksum != _checksum(data):
        raise StructureError("the metadata of LVM has a wrong checksum")
    try:
        return data.rstrip(b"\0").decode()
    except UnicodeDecodeError as error:
        raise StructureError("the metadata of LVM is no text") from error
