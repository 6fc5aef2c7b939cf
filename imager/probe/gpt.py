"""GPT read straight from its bytes: the second opinion beside sfdisk.

It says where the table's own structures lie (the backup may be anywhere on a disk that was
enlarged), notices a disk that was cut off, and reads disk files with sectors of 4096 bytes, for
which sfdisk can't be told the sector size. Offsets are those of the UEFI specification 2.10, 5.3.
"""

import struct
import uuid
import zlib
from dataclasses import dataclass
from typing import Final

from imager import blockdev
from imager.errors import TruncatedSource
from imager.layout.partition_table import Partition
from imager.units import format_size, round_up

_SIGNATURE: Final = b"EFI PART"
# signature, revision, header size, header CRC, reserved, own LBA, other LBA, first and last usable
# LBA, disk GUID, LBA of the entries, number and size of entries, CRC of the entries
_HEADER: Final = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY: Final = struct.Struct("<16s16sQQQ72s")
_PROTECTIVE: Final = 0xEE
_MAX_ENTRIES: Final = 1 << 16
_MAX_LENGTH: Final = 16 << 20  # bytes of the array of entries
_ATTRIBUTES: Final = ("RequiredPartition", "NoBlockIOProtocol", "LegacyBIOSBootable")
_FIRST_TYPE_BIT: Final = 48  # bits from here on belong to the partition's type


@dataclass(frozen=True, slots=True)
class GptBytes:
    """A GPT as its bytes say.

    Attributes:
        id: disk GUID in upper case.
        partitions: in the order of their numbers.
        structures: (offset, length) of both headers and both arrays of entries, as far as they
            are valid.
    """

    id: str
    partitions: tuple[Partition, ...]
    structures: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class _Header:
    lba: int
    other_lba: int
    id: str
    entries: bytes
    entry_size: int
    structures: tuple[tuple[int, int], ...]


def read_gpt(fd: int, size: int, sector: int) -> GptBytes | None:
    """Return the GPT of an open disk, from its primary or else its backup header.

    None when there is no protective MBR (then the kernel sees no GPT either) or when neither
    header is intact.

    Raises:
        TruncatedSource: the disk ends before the table says it does.
        UnreadableSource: a read error.
    """
    if size < 3 * sector or not _has_protective_mbr(fd):
        return None
    primary = _read_header(fd, 1, size, sector)
    if primary is not None and primary.other_lba >= size // sector:
        raise TruncatedSource(
            f"{blockdev.name_of(fd)} is cut off: its partition table was made for at least "
            f"{format_size((primary.other_lba + 1) * sector)}, but it has only {format_size(size)}"
        )
    backup_lba = size // sector - 1 if primary is None else primary.other_lba
    backup = _read_header(fd, backup_lba, size, sector)
    header = primary or backup
    if header is None:
        return None
    structures = [part for one in (primary, backup) if one for part in one.structures]
    return GptBytes(header.id, _partitions(header, sector), tuple(sorted(structures)))


def _has_protective_mbr(fd: int) -> bool:
    mbr = blockdev.read_at(fd, 0, 512)
    types = [mbr[450 + 16 * index] for index in range(4)]
    return mbr[510:] == b"\x55\xaa" and _PROTECTIVE in types


def _read_header(fd: int, lba: int, size: int, sector: int) -> _Header | None:
    if not 0 < lba < size // sector:
        return None
    data = blockdev.read_at(fd, lba * sector, sector)
    (
        signature, _revision, header_size, crc, _reserved, own_lba, other_lba, _first, _last,
        disk_id, entries_lba, count, entry_size, entries_crc,
    ) = _HEADER.unpack_from(data)  # fmt: skip
    if signature != _SIGNATURE or own_lba != lba or not _HEADER.size <= header_size <= sector:
        return None
    blanked = data[:16] + bytes(4) + data[20:header_size]
    length = count * entry_size
    if (
        zlib.crc32(blanked) != crc
        or entry_size < _ENTRY.size
        or count > _MAX_ENTRIES
        or length > _MAX_LENGTH
        or entries_lba * sector + length > size
    ):
        return None
    entries = blockdev.read_at(fd, entries_lba * sector, length)
    if zlib.crc32(entries) != entries_crc:
        return None
    return _Header(
        lba=lba,
        other_lba=other_lba,
        id=_guid(disk_id),
        entries=entries,
        entry_size=entry_size,
        structures=(
            (lba * sector, sector),
            (entries_lba * sector, round_up(length, sector)),
        ),
    )


def _partitions(header: _Header, sector: int) -> tuple[Partition, ...]:
    found = []
    for index in range(len(header.entries) // header.entry_size):
        type_id, unique, first, last, attributes, name = _ENTRY.unpack_from(
            header.entries, index * header.entry_size
        )
        if not any(type_id):
            continue
        found.append(
            Partition(
                number=index + 1,
                offset=first * sector,
                length=(last - first + 1) * sector,
                type=_guid(type_id),
                uuid=_guid(unique),
                name=name.decode("utf-16-le", errors="replace").split("\0")[0],
                attributes=_attributes(attributes),
            )
        )
    return tuple(found)


def _guid(data: bytes) -> str:
    return str(uuid.UUID(bytes_le=data)).upper()


def _attributes(bits: int) -> str:
    """Write the attribute bits as sfdisk does, which leaves out the reserved ones."""
    words = [name for bit, name in enumerate(_ATTRIBUTES) if bits >> bit & 1]
    own = [str(bit) for bit in range(_FIRST_TYPE_BIT, 64) if bits >> bit & 1]
    return " ".join([*words, *(["GUID:" + ",".join(own)] if own else [])])
