"""Headers of LUKS1 and LUKS2 (cryptsetup's docs/on-disk-format*.pdf)."""

import hashlib
import struct
from typing import Any, Final

import msgspec

from imager.layout.luks import LuksContainer
from imager.probe.place import Place
from imager.probe.structure import StructureError, read_bytes
from imager.units import KIB, MIB

TYPE: Final = "crypto_LUKS"
_MAGIC: Final = b"LUKS\xba\xbe"
_SECOND_MAGIC: Final = b"SKUL\xba\xbe"
_SECTOR: Final = 512
# LUKS1: magic, version, cipher, mode, hash, first sector of data, bytes of the key, digest, salt,
# iterations, UUID; eight key slots follow
_HEADER_1: Final = struct.Struct(">6sH32s32s32sII20s32sI40s")
_SLOT: Final = struct.Struct(">II32sII")
_SLOTS: Final = 8
_SLOT_ACTIVE: Final = 0x00AC71F3
# LUKS2: magic, version, size, sequence, label, kind of checksum, salt, UUID, subsystem, own place,
# and a checksum of it all and of the JSON that follows
_HEADER_2: Final = struct.Struct(">6sHQQ48s32s64s40s48sQ184s64s")
_SUM_AT: Final = 448
_SUM_SIZE: Final = 64
_BINARY_SIZE: Final = 4096
# The first header has one of these sizes, and the second one follows it.
_SIZES: Final = tuple(16 * KIB << power for power in range(9))
_MOST_HEADER: Final = 4 * MIB
_HASHES: Final = frozenset({"sha1", "sha256", "sha384", "sha512", "blake2b-512", "blake2s-256"})


class _Segment(msgspec.Struct):
    offset: str
    encryption: str = ""


class _Metadata(msgspec.Struct):
    keyslots: dict[str, Any]
    segments: dict[str, _Segment]


def read(place: Place) -> LuksContainer | None:
    """Return the LUKS container in a place; None if there is none that can be understood.

    Where the first header of LUKS2 is damaged, the second one counts.
    """
    try:
        start = read_bytes(place.fd, place.offset, min(place.length, _BINARY_SIZE))
        if len(start) < _BINARY_SIZE:
            return None
        if start.startswith(_MAGIC) and start[6:8] == b"\0\1":
            return _first_version(place, start)
        return _second_version(place, start)
    except (StructureError, msgspec.MsgspecError, RecursionError, ValueError):
        return None


def _first_version(place: Place, start: bytes) -> LuksContainer:
    _, _, cipher, mode, _, first, _, _, _, _, identity = _HEADER_1.unpack_from(start)
    slots = [_SLOT.unpack_from(start, _HEADER_1.size + _SLOT.size * n) for n in range(_SLOTS)]
    return LuksContainer(
        place=place.id,
        version=1,
        uuid=_text(identity),
        label=None,
        cipher=f"{_text(cipher)}-{_text(mode)}",
        key_slots=sum(slot[0] == _SLOT_ACTIVE for slot in slots),
        header=first * _SECTOR,
    )


def _second_version(place: Place, start: bytes) -> LuksContainer | None:
    problem: StructureError | None = None
    if start.startswith(_MAGIC):
        try:
            return _container(place, _header(place, 0, _MAGIC), damaged_header=False)
        except StructureError as error:
            problem = error
    elif place.filesystem is not None and place.filesystem.type != TYPE:
        return None  # a second header may outlive what was made over the first
    for size in _SIZES:
        if size + _BINARY_SIZE > place.length:
            break
        if read_bytes(place.fd, place.offset + size, 6) == _SECOND_MAGIC:
            return _container(place, _header(place, size, _SECOND_MAGIC), damaged_header=True)
    if problem is not None:
        raise problem
    return None


def _header(place: Place, offset: int, magic: bytes) -> bytes:
    """Return a header of LUKS2, binary and JSON, whose checksum is right."""
    start = read_bytes(place.fd, place.offset + offset, _BINARY_SIZE)
    found, version, size, _, _, kind, _, _, _, own_place, _, checksum = _HEADER_2.unpack_from(start)
    if (found, version, own_place) != (magic, 2, offset):
        raise StructureError("no header of LUKS2")
    if not _BINARY_SIZE < size <= _MOST_HEADER or offset + size > place.length:
        raise StructureError("the header of LUKS2 makes no sense")
    data = bytearray(read_bytes(place.fd, place.offset + offset, size))
    data[_SUM_AT : _SUM_AT + _SUM_SIZE] = bytes(_SUM_SIZE)
    name = _text(kind)
    if name not in _HASHES:
        raise StructureError("the header of LUKS2 has a checksum that is not known here")
    digest = hashlib.new(name.partition("-")[0], data).digest()
    if checksum[: len(digest)] != digest:
        raise StructureError("the header of LUKS2 has a wrong checksum")
    return bytes(data)


def _container(place: Place, header: bytes, *, damaged_header: bool) -> LuksContainer:
    fields = _HEADER_2.unpack_from(header)
    label, identity = fields[4], fields[7]
    text = header[_BINARY_SIZE:].split(b"\0")[0]
    described = msgspec.json.decode(text, type=_Metadata)
    ciphers = [one.encryption for _, one in sorted(described.segments.items()) if one.encryption]
    starts = [int(one.offset) for one in described.segments.values()]
    if not ciphers or not 0 <= min(starts) <= place.length:
        raise StructureError("the header of LUKS2 names no data")
    return LuksContainer(
        place=place.id,
        version=2,
        uuid=_text(identity),
        label=_text(label) or None,
        cipher=ciphers[0],
        key_slots=len(described.keyslots),
        header=min(starts),
        damaged_header=damaged_header,
    )


def _text(data: bytes) -> str:
    return data.split(b"\0")[0].decode(errors="replace")
