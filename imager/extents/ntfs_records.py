"""Records of NTFS' master file table: fixups, attributes, and the runs of clusters they own.

The many records of a volume are read in batches, by numpy; the few that describe the volume
itself one by one. Names of fields and numbers follow the Linux and ntfs-3g headers.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager.extents.extents import UncertainMapError

ATTRIBUTE_LIST: Final = 0x20
FILE_NAME: Final = 0x30
VOLUME_INFORMATION: Final = 0x70
DATA: Final = 0x80
BITMAP: Final = 0xB0
_END: Final = 0xFFFFFFFF

ROOT: Final = 5  # number of the root directory's record
STRIDE: Final = 512  # bytes that one fixup protects, whatever the size of a sector
_MAGIC: Final = int.from_bytes(b"FILE", "little")
_IN_USE: Final = 0x1
_REFERENCE: Final = (1 << 48) - 1  # of a reference, the record's number; above is its sequence
_SPARSE_OR_COMPRESSED: Final = 0x80FF
_HEADER: Final = 48
_RESIDENT_HEADER: Final = 24
_STREAM_HEADER: Final = 64
_NAME_OFFSET: Final = 66  # of the name in a FILE_NAME
_DIFFERENT: Final = "a record of the MFT makes no sense"

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of clusters in the order of a stream.

    Attributes:
        starts: first cluster of each run on the volume; -1 for a hole.
        lengths: in clusters.
    """

    starts: Integers
    lengths: Integers


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of a record.

    Attributes:
        kind: its type.
        name: or an empty string.
        value: of a resident one; None when it lies in clusters.
        lowest: the first cluster of the stream that this piece of it holds.
        allocated: bytes of the whole stream in clusters; like the next two in the first piece only.
        size: bytes of the whole stream.
        initialized: bytes of it that were ever written.
        runs: where the clusters lie.
    """

    kind: int
    name: str
    value: bytes | None
    lowest: int = 0
    allocated: int = 0
    size: int = 0
    initialized: int = 0
    runs: Runs | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """What the records of a batch own.

    Attributes:
        in_use: which of them are.
        owners: for each run the number of the file's base record.
        starts: first cluster of each run; holes are left out.
        ends: the cluster after its last one.
        incomplete: shape (n, 2), for streams in several records: what stream it is, and by how many
            clusters this piece is longer (first piece: shorter, so negative) than the whole. They
            add up to 0 for every stream when no piece is missing.
        named: base records of files that lie in the root directory under the name asked for.
    """

    in_use: NDArray[np.bool_]
    owners: Integers
    starts: Integers
    ends: Integers
    incomplete: Integers
    named: tuple[int, ...]


def without_fixups(raw: Bytes, size: int) -> Bytes:
    """Return records with their protected bytes put back; those not in use stay as they are.

    Args:
        raw: whole records.
        size: of a record, bytes.

    Raises:
        UncertainMapError: a record in use was not written as a whole.
    """
    records = raw.reshape(-1, size).copy()
    chosen = np.flatnonzero(_in_use(records))
    if not chosen.size:
        return records
    used = records[chosen]
    place, count = used[:, 4:8].copy().view("<u2").astype(np.int64).T
    strides = size // STRIDE
    if np.any(count != strides + 1) or np.any((place < 40) | (place + 2 * count > STRIDE - 2)):
        raise UncertainMapError(_DIFFERENT)
    rows = np.arange(chosen.size)[:, None]
    array = used[rows, place[:, None] + np.arange(2 * (strides + 1))]
    ends = (np.arange(1, strides + 1) * STRIDE)[:, None] + np.array([-2, -1])
    found = used[:, ends]  # shape (records, strides, 2)
    if np.any(found != array[:, None, :2]):
        raise UncertainMapError("a record of the MFT was written in part only")
    used[:, ends] = array[:, 2:].reshape(-1, strides, 2)
    records[chosen] = used
    return records


def _in_use(records: Bytes) -> NDArray[np.bool_]:
    magic = records[:, 0:4].copy().view("<u4")[:, 0]
    flags = records[:, 22:24].copy().view("<u2")[:, 0]
    found: NDArray[np.bool_] = (magic == _MAGIC) & (flags & _IN_USE != 0)
    return found


def parse_record(raw: bytes, number: int) -> tuple[int, list[Attribute]]:
    """Return the number of a record's base record (or its own) and all its attributes.

    Raises:
        UncertainMapError: the record is not in use, or makes no sense.
    """
    record = without_fixups(np.frombuffer(raw, dtype=np.uint8), len(raw))
    if not _in_use(record)[0]:
        raise UncertainMapError(f"record {number} of the MFT is not in use")
    data = record.tobytes()
    (base,) = struct.unpack_from("<Q", data, 32)
    return int(base & _REFERENCE) if base else number, list(_attributes(data))


def _attributes(data: bytes) -> Iterator[Attribute]:
    position, used = *struct.unpack_from("<H", data, 20), *struct.unpack_from("<I", data, 24)
    flat = np.frombuffer(data + bytes(16), dtype=np.uint8)
    while position + 4 <= min(used, len(data)):
        kind, length = struct.unpack_from("<II", data, position)
        if kind == _END:
            return
        if length < _RESIDENT_HEADER or length % 8 or position + length > used:
            break
        is_stream, name_length, name_place = struct.unpack_from("<BBH", data, position + 8)
        name_start = position + name_place
        name = data[name_start : name_start + 2 * name_length].decode("utf-16-le", "replace")
        if not is_stream:
            size, place = struct.unpack_from("<IH", data, position + 16)
            if place + size > length:
                break
            yield Attribute(kind, name, data[position + place : position + place + size])
        else:
            if length <= _STREAM_HEADER:
                break
            lowest, highest, pairs = struct.unpack_from("<qqH", data, position + 16)
            allocated, size, initialized = struct.unpack_from("<qqq", data, position + 40)
            if not _STREAM_HEADER <= pairs < length:
                break
            places = np.array([position + pairs]), np.array([position + length])
            _, starts, lengths = _decode(flat, *places)
            if int(lengths.sum()) != highest - lowest + 1:
                break
            runs = Runs(starts, lengths)
            yield Attribute(kind, name, None, lowest, allocated, size, initialized, runs)
        position += length
    raise UncertainMapError(_DIFFERENT)


def parse_batch(raw: Bytes, size: int, first: int, cluster: int, wanted: str) -> Batch:
    """Return what a batch of records owns.

    Args:
        raw: whole records, as on disk.
        size: of a record, bytes.
        first: number of the first one.
        cluster: bytes.
        wanted: name of a file in the root directory to look for, in small letters.

    Raises:
        UncertainMapError: a record in use makes no sense.
    """
    records = without_fixups(raw, size)
    in_use = _in_use(records)
    flat = np.concatenate([records.reshape(-1), np.zeros(16, dtype=np.uint8)])
    start = np.flatnonzero(in_use) * size
    numbers = first + start // size
    _check_numbers(flat, start, numbers)
    # The MFT itself is record 0, but a reference to it is not 0: its sequence is 1.
    base = _read(flat, start + 32, "<i8")
    owner = np.where(base == 0, numbers, base & _REFERENCE)
    position = start + _read(flat, start + 20, "<u2")
    end = start + _read(flat, start + 24, "<u4")
    if np.any(end > start + size) or np.any(position < start + _HEADER - 6):
        raise UncertainMapError(_DIFFERENT)
    streams: list[tuple[Integers, Integers]] = []
    named: list[int] = []
    while position.size:
        if np.any(position + 4 > end):
            raise UncertainMapError(_DIFFERENT)
        kind = _read(flat, position, "<u4")
        going = kind != _END
        position, end, owner, kind = position[going], end[going], owner[going], kind[going]
        length = _read(flat, position + 4, "<u4")
        if np.any((length < _RESIDENT_HEADER) | (length % 8 != 0) | (position + length > end)):
            raise UncertainMapError(_DIFFERENT)
        form = flat[position + 8]
        if np.any(form > 1):
            raise UncertainMapError(_DIFFERENT)
        is_stream = form == 1
        streams.append((position[is_stream], owner[is_stream]))
        is_name = (kind == FILE_NAME) & ~is_stream
        named += _named(flat, position[is_name], owner[is_name], wanted)
        position = position + length
    places, owners = (
        np.concatenate([np.zeros(0, dtype=np.int64), *(pair[side] for pair in streams)])
        for side in (0, 1)
    )
    return _streams(flat, places, owners, in_use, tuple(named), cluster)


def _check_numbers(flat: Bytes, start: Integers, numbers: Integers) -> None:
    """Records of NTFS 3.1 know their own number, unless they were made by an older one."""
    knows = _read(flat, start + 4, "<u2") >= _HEADER
    if np.any(_read(flat, start[knows] + 44, "<u4") != numbers[knows] & 0xFFFFFFFF):
        raise UncertainMapError("a record of the MFT is not where it should be")


def _named(flat: Bytes, position: Integers, owner: Integers, wanted: str) -> list[int]:
    value = position + _read(flat, position + 20, "<u2")
    parent = _read(flat, np.minimum(value, flat.size - 16), "<i8") & _REFERENCE
    near = (parent == ROOT) & (_read(flat, position + 4, "<u4") >= _NAME_OFFSET + 2 * len(wanted))
    found = []
    for place, number in zip(value[near].tolist(), owner[near].tolist(), strict=True):
        if flat[place + 64] == len(wanted):
            name = flat[place + _NAME_OFFSET : place + _NAME_OFFSET + 2 * len(wanted)].tobytes()
            if name.decode("utf-16-le", "replace").lower() == wanted:
                found.append(number)
    return found


def _streams(
    flat: Bytes,
    position: Integers,
    owner: Integers,
    in_use: NDArray[np.bool_],
    named: tuple[int, ...],
    cluster: int,
) -> Batch:
    length = _read(flat, position + 4, "<u4")
    pairs = _read(flat, position + 32, "<u2")
    if np.any((length <= _STREAM_HEADER) | (pairs < _STREAM_HEADER) | (pairs >= length)):
        raise UncertainMapError(_DIFFERENT)
    lowest, highest = _read(flat, position + 16, "<i8"), _read(flat, position + 24, "<i8")
    which, starts, lengths = _decode(flat, position + pairs, position + length)
    span = np.zeros(position.size, dtype=np.int64)
    np.add.at(span, which, lengths)
    if np.any(span != highest - lowest + 1) or np.any(lowest < 0):
        raise UncertainMapError("a file has other clusters than its record says")
    kind, flags = _read(flat, position, "<u4"), _read(flat, position + 12, "<u2")
    allocated = _read(flat, position + 40, "<i8")
    missing = span - np.where(lowest == 0, allocated // cluster, 0)
    # What allocated means where there are holes differs between writers.
    odd = (missing != 0) & (flags & _SPARSE_OR_COMPRESSED == 0)
    stream = owner[odd] << 12 | (kind[odd] & 0xFFF)
    real = starts >= 0
    return Batch(
        in_use=in_use,
        owners=owner[which[real]],
        starts=starts[real],
        ends=starts[real] + lengths[real],
        incomplete=np.column_stack([stream, missing[odd]]),
        named=named,
    )


def _decode(
    flat: Bytes, position: Integers, limit: Integers
) -> tuple[Integers, Integers, Integers]:
    """Decode mapping pairs: (which list, first cluster or -1, clusters) of every run.

    Args:
        flat: bytes, with at least 16 more behind the last limit.
        position: where each list begins.
        limit: where it must have ended.
    """
    which = np.arange(position.size)
    cluster = np.zeros(position.size, dtype=np.int64)
    found: list[tuple[Integers, Integers, Integers]] = []
    while position.size:
        if np.any(position >= limit):
            raise UncertainMapError(_DIFFERENT)
        head = flat[position].astype(np.int64)
        going = head != 0
        position, limit, which, cluster, head = (
            array[going] for array in (position, limit, which, cluster, head)
        )
        wide, far = head & 15, head >> 4
        if np.any((wide < 1) | (wide > 8) | (far > 8) | (position + 1 + wide + far > limit)):
            raise UncertainMapError(_DIFFERENT)
        length = _signed(flat, position + 1, wide)
        cluster = cluster + _signed(flat, position + 1 + wide, far)
        if np.any((length < 1) | (length > 1 << 48) | (cluster < 0) | (cluster > 1 << 48)):
            raise UncertainMapError(_DIFFERENT)
        found.append((which, np.where(far == 0, -1, cluster), length))
        position = position + 1 + wide + far
    empty = np.zeros(0, dtype=np.int64)
    which, starts, lengths = (
        np.concatenate([empty, *(row[column] for row in found)]) for column in (0, 1, 2)
    )
    order = np.argsort(which, kind="stable")
    return which[order], starts[order], lengths[order]


def _signed(flat: Bytes, position: Integers, width: Integers) -> Integers:
    """Return the signed little-endian number of `width` bytes (0 to 8) at each position."""
    value = _read(flat, position, "<i8")
    shift = 64 - 8 * np.maximum(width, 1)
    return np.where(width == 0, 0, (value << shift) >> shift)


def _read(flat: Bytes, position: Integers, form: str) -> Integers:
    """Return the number of a numpy type at each position."""
    width = np.dtype(form).itemsize
    gathered = flat[position[:, None] + np.arange(width)]
    numbers: Integers = gathered.view(form)[:, 0].astype(np.int64)
    return numbers
