"""NTFS: the cluster bitmap, confirmed by the runs of every record of the master file table.

The bitmap ($Bitmap) counts only if

- the boot sector makes sense, and the first records of the MFT equal their mirror;
- the volume is not marked dirty, of a version that is known, its $LogFile was closed or is empty,
  and no hibernated Windows (which fast startup leaves behind at every shutdown) will go on with it;
- every record that the MFT says is in use is one, and no other is;
- each cluster that a record in use owns is set in the bitmap, they are no more than the bits set,
  and no stream in several records lacks a piece.

Bad clusters ($BadClus) are left out: nothing can be read there.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager import blockdev
from imager.extents import ntfs_records
from imager.extents.extents import Extents, UncertainMapError, merged, set_ranges
from imager.extents.ntfs_records import (
    Attribute,
    Runs,
    parse_batch,
    parse_record,
    without_fixups,
)
from imager.units import MIB

# bytes per sector, sectors per cluster; fields that must be 0; media; more of them
_BOOT: Final = struct.Struct("<3s8sHB7sB2s")
# sectors, clusters of the MFT and of its mirror, clusters (or minus exponent) per record
_PLACES: Final = struct.Struct("<qqqb")
_PLACES_OFFSET: Final = 40
_BOOT_SIZE: Final = 512
_LARGEST_CLUSTER: Final = 2 * MIB
_MIRRORED: Final = 4  # records

_MFT, _MIRROR, _LOG, _VOLUME, _BITMAP, _BAD = 0, 1, 2, 3, 6, 8
_RESERVED: Final = 24  # records below this may be marked without being in use
_BAD_STREAM: Final = "$Bad"
_HIBERNATION: Final = "hiberfil.sys"
_AWAKE: Final = (bytes(4), b"wake", b"WAKE")
# Volume flags: chkdsk changed it once, Windows 10 and later have mounted it, NT 4 has.
_HARMLESS: Final = 0x8000 | 0x0080 | 0x0008

_PAGE: Final = 4096  # of the log's restart areas
_NO_CLIENT: Final = 0xFFFF
_LOG_CLEAN: Final = 0x2
_LAST_LOG_VERSION: Final = 1  # 2: metadata may wait in a cache until Windows starts again

# magic, fixups (place, count), chkdsk's sequence number, sizes of a system and a log page, place
# of the restart area, minor and major version
_RESTART_PAGE: Final = struct.Struct("<4sHHQIIHhh")
_RESTART_AREA: Final = struct.Struct(
    "<QHHHH"
)  # sequence number, clients (all, free, in use), flags
# of an attribute list: type, length, length and place of the name, first cluster, record
_ENTRY: Final = struct.Struct("<IHBBqQ")

_BATCH: Final = 8 * MIB
_BITMAP_PIECE: Final = MIB

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Boot:
    cluster: int
    clusters: int
    record: int
    mft: int
    mirror: int


@dataclass(frozen=True, slots=True)
class _Stream:
    """A stream in clusters, complete."""

    runs: Runs
    size: int
    initialized: int


def read(fd: int, offset: int, length: int) -> Extents:
    """Return the clusters in use, and what lies behind the last one (a copy of the boot sector).

    Raises:
        UncertainMapError: the map can't be relied on.
    """
    volume = _Ntfs(fd, offset, _boot(fd, offset, length))
    volume.check_mirror()
    volume.check_version()
    volume.check_log()
    used_starts, used_ends = volume.used()
    bad = volume.bad()
    volume.check_owners(used_starts, used_ends, bad)
    cluster = volume.boot.cluster
    # What is bad is used: cut it out of the ranges that hold it.
    edges = np.sort(np.concatenate([used_starts, used_ends, bad.starts, bad.starts + bad.lengths]))
    starts = np.concatenate([edges[0::2] * cluster, [volume.boot.clusters * cluster]])
    ends = np.concatenate([edges[1::2] * cluster, [length]])
    return Extents(merged(starts, ends), "NTFS cluster bitmap", None, cluster)


def _boot(fd: int, offset: int, length: int) -> _Boot:
    if length < _BOOT_SIZE:
        raise UncertainMapError("the volume is too small for NTFS")
    data = blockdev.read_at(fd, offset, _BOOT_SIZE)
    _, name, sector, coded, zeros, media, more_zeros = _BOOT.unpack_from(data)
    sectors, mft, mirror, coded_record = _PLACES.unpack_from(data, _PLACES_OFFSET)
    # Above 128: minus an exponent of 2.
    per_cluster = coded if coded <= 128 else 1 << min(256 - coded, 31)
    cluster = sector * per_cluster
    record = cluster * coded_record if coded_record > 0 else 1 << min(-coded_record, 31)
    if (
        name != b"NTFS    "
        or sector not in {512, 1024, 2048, 4096}
        or cluster not in {1 << shift for shift in range(9, _LARGEST_CLUSTER.bit_length())}
        or record not in {1024, 2048, 4096}
        or any(zeros)
        or any(more_zeros)
        or media < 0xF0
        or data[510:] != b"\x55\xaa"
    ):
        raise UncertainMapError("the NTFS boot sector makes no sense")
    clusters = sectors // per_cluster
    if clusters <= 0 or sectors * sector > length:
        raise UncertainMapError("the filesystem is larger than the volume it lies in")
    if not (0 < mft < clusters and 0 < mirror < clusters):
        raise UncertainMapError("the NTFS boot sector makes no sense")
    return _Boot(cluster, clusters, record, mft, mirror)


class _Ntfs:
    """One volume, and what is read of it."""

    def __init__(self, fd: int, offset: int, boot: _Boot) -> None:
        self._fd = fd
        self._offset = offset
        self.boot = boot
        # Enough to read its own first record.
        runs = Runs(np.array([boot.mft]), np.array([boot.clusters - boot.mft]))
        self._mft = _Stream(runs, boot.record, boot.record)
        self._mft = self._stream(_MFT, ntfs_records.DATA)
        if int(self._mft.runs.starts[0]) != boot.mft:
            raise UncertainMapError("the MFT does not lie where the boot sector says")
        self._records = self._mft.initialized // boot.record

    def check_mirror(self) -> None:
        """Compare the first records of the MFT with their mirror."""
        mirror = self._stream(_MIRROR, ntfs_records.DATA)
        if int(mirror.runs.starts[0]) != self.boot.mirror:
            raise UncertainMapError("the MFT's mirror does not lie where the boot sector says")
        length = _MIRRORED * self.boot.record
        first, second = (
            without_fixups(
                np.frombuffer(self._read(stream, 0, length), dtype=np.uint8), self.boot.record
            )
            for stream in (self._mft, mirror)
        )
        for ours, theirs in zip(first, second, strict=True):
            # The array of fixups tells of the writing, not of what was written.
            place, count = struct.unpack_from("<HH", ours.tobytes(), 4)
            ours[place : place + 2 * count] = theirs[place : place + 2 * count]
        if not np.array_equal(first, second):
            raise UncertainMapError("the MFT and its mirror differ")

    def check_version(self) -> None:
        """Refuse a volume that is marked dirty, or of another version."""
        found = [
            attribute.value
            for attribute in parse_record(self._record(_VOLUME), _VOLUME)[1]
            if attribute.kind == ntfs_records.VOLUME_INFORMATION
        ]
        if len(found) != 1 or found[0] is None or len(found[0]) < 12:
            raise UncertainMapError("the volume has no information about itself")
        major, minor, flags = struct.unpack_from("<BBH", found[0], 8)
        if major != 3 or minor > 1:
            raise UncertainMapError(f"it is NTFS {major}.{minor}, which is not known here")
        if flags & 1:
            raise UncertainMapError("it was not unmounted cleanly (it is marked dirty)")
        if flags & ~_HARMLESS:
            raise UncertainMapError(f"Windows has work to do on it (flags {flags:#x})")

    def check_log(self) -> None:
        """Refuse a log that waits to be replayed."""
        log = self._stream(_LOG, ntfs_records.DATA)
        if log.size < 2 * _PAGE:
            raise UncertainMapError("the log makes no sense")
        pages = [self._read(log, place, _PAGE) for place in (0, _PAGE)]
        if all(page == b"\xff" * _PAGE for page in pages):
            if not self._is_empty(log):
                raise UncertainMapError("the log holds something, but does not say what")
            return
        states = [_restart(page) for page in pages]
        major, client, flags = max(state for state in states)[1:]
        if major > _LAST_LOG_VERSION:
            raise UncertainMapError("Windows has not let go of it (fast startup, or a crash)")
        if client != _NO_CLIENT and not flags & _LOG_CLEAN:
            raise UncertainMapError("the log waits to be replayed (it was not unmounted cleanly)")

    def _is_empty(self, log: _Stream) -> bool:
        for position in range(0, log.size, MIB):
            piece = self._read(log, position, min(MIB, log.size - position))
            if piece.strip(b"\xff"):
                return False
        return True

    def used(self) -> tuple[Integers, Integers]:
        """Return the used ranges of clusters as starts and ends."""
        bitmap = self._stream(_BITMAP, ntfs_records.DATA)
        size = -(-self.boot.clusters // 8)
        if min(bitmap.size, bitmap.initialized) < size:
            raise UncertainMapError("the cluster bitmap is too short")
        starts, ends = [], []
        for position in range(0, size, _BITMAP_PIECE):
            piece = self._read(bitmap, position, min(_BITMAP_PIECE, size - position))
            bits = np.unpackbits(np.frombuffer(piece, dtype=np.uint8), bitorder="little")
            first, last = set_ranges(bits[: self.boot.clusters - position * 8])
            starts.append(position * 8 + first)
            ends.append(position * 8 + last)
        ranges = merged(np.concatenate(starts), np.concatenate(ends)).astype(np.int64)
        return ranges[:, 0], ranges[:, 0] + ranges[:, 1]

    def bad(self) -> Runs:
        """Return the clusters that are marked as bad."""
        runs = _joined(self._pieces(_BAD, ntfs_records.DATA, _BAD_STREAM))
        order = np.argsort(runs.starts)
        order = order[runs.starts[order] >= 0]
        starts, lengths = runs.starts[order], runs.lengths[order]
        if np.any(starts[1:] < starts[:-1] + lengths[:-1]):
            raise UncertainMapError("the list of bad clusters makes no sense")
        return Runs(starts, lengths)

    def check_owners(self, used_starts: Integers, used_ends: Integers, bad: Runs) -> None:
        """Confirm that the bitmap holds all that the records of the MFT own."""
        owned = 0
        marks = np.unpackbits(self._marks(), bitorder="little").view(np.bool_)
        incomplete = [np.zeros((0, 2), dtype=np.int64)]
        for first, raw in self._batches():
            batch = parse_batch(raw, self.boot.record, first, self.boot.cluster, _HIBERNATION)
            _check_marks(marks, first, batch.in_use)
            if batch.ends.size and int(batch.ends.max()) > self.boot.clusters:
                raise UncertainMapError("a file lies beyond the end of the filesystem")
            if not _within(batch.starts, batch.ends, used_starts, used_ends):
                raise UncertainMapError("the cluster bitmap says that a file's clusters are free")
            others = batch.owners != _BAD
            if _touch(batch.starts[others], batch.ends[others], bad):
                raise UncertainMapError("a file lies in clusters that are marked as bad")
            owned += int((batch.ends - batch.starts).sum())
            incomplete.append(batch.incomplete)
            for number in batch.named:
                self._check_hibernation(number)
        if owned > int((used_ends - used_starts).sum()):
            raise UncertainMapError("two files own the same clusters")
        streams, missing = np.concatenate(incomplete).T
        _, which = np.unique(streams, return_inverse=True)
        sums = np.zeros(streams.size, dtype=np.int64)
        np.add.at(sums, which, missing)
        if np.any(sums):
            raise UncertainMapError("a file lacks a part of its clusters")

    def _check_hibernation(self, number: int) -> None:
        try:
            stream = self._stream(number, ntfs_records.DATA)
        except UncertainMapError as error:
            raise UncertainMapError("the file of a hibernated Windows can't be read") from error
        header = self._read(stream, 0, _PAGE) if stream.size >= _PAGE else b""
        if header[:4] not in _AWAKE or (header[:4] == bytes(4) and any(header)):
            raise UncertainMapError(
                "Windows is hibernated on it (or was shut down by fast startup)"
            )

    def _marks(self) -> NDArray[np.uint8]:
        """The MFT's bitmap of records in use."""
        whole, size = b"", -(-self._records // 8)
        for attribute in parse_record(self._record(_MFT), _MFT)[1]:
            if attribute.kind == ntfs_records.BITMAP and attribute.value is not None:
                whole = attribute.value
        if not whole:
            stream = self._stream(_MFT, ntfs_records.BITMAP)
            whole = self._read(stream, 0, min(size, stream.initialized))
        if len(whole) < size:
            raise UncertainMapError("the MFT's own bitmap is too short")
        return np.frombuffer(whole[:size], dtype=np.uint8)

    def _batches(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield the number of the first record and the bytes of many."""
        step = _BATCH // self.boot.record
        for first in range(0, self._records, step):
            count = min(step, self._records - first)
            data = self._read(self._mft, first * self.boot.record, count * self.boot.record)
            yield first, np.frombuffer(data, dtype=np.uint8)

    def _record(self, number: int) -> bytes:
        if (number + 1) * self.boot.record > self._mft.initialized:
            raise UncertainMapError("the MFT is shorter than what it refers to")
        return self._read(self._mft, number * self.boot.record, self.boot.record)

    def _stream(self, number: int, kind: int, name: str = "") -> _Stream:
        """Return a stream that lies in clusters, put together from all its records."""
        pieces = self._pieces(number, kind, name)
        if not pieces:
            raise UncertainMapError(f"record {number} of the MFT lacks a stream")
        first, runs = pieces[0], _joined(pieces)
        if (
            int(runs.lengths.sum()) * self.boot.cluster != first.allocated
            or not 0 <= first.initialized <= first.size <= first.allocated
            or np.any(runs.starts < 0)
            or np.any(runs.starts + runs.lengths > self.boot.clusters)
        ):
            raise UncertainMapError(f"record {number} of the MFT makes no sense")
        return _Stream(runs, first.size, first.initialized)

    def _pieces(self, number: int, kind: int, name: str = "") -> list[Attribute]:
        """Return the pieces of a stream in clusters, in order; none when there is no such stream."""

        def wanted(attribute: Attribute) -> bool:
            return (attribute.kind, attribute.name) == (kind, name) and attribute.runs is not None

        base, attributes = parse_record(self._record(number), number)
        found = [attribute for attribute in attributes if wanted(attribute)]
        for attribute in attributes:
            if attribute.kind != ntfs_records.ATTRIBUTE_LIST:
                continue
            for other in _listed(self._content(attribute), kind, name):
                if other == number:
                    continue
                if number == _MFT and kind == ntfs_records.DATA:
                    # The next records of the MFT's own list lie in what is known of it until now.
                    known = _joined(found)
                    size = int(known.lengths.sum()) * self.boot.cluster
                    self._mft = _Stream(known, size, size)
                owner, more = parse_record(self._record(other), other)
                if owner != number:
                    raise UncertainMapError(f"record {number} of the MFT lists one of another file")
                found += filter(wanted, more)
        if base != number or any(
            piece.lowest != end for piece, end in zip(found, _ends(found), strict=False)
        ):
            raise UncertainMapError(f"record {number} of the MFT makes no sense")
        return found

    def _content(self, attribute: Attribute) -> bytes:
        if attribute.value is not None:
            return attribute.value
        assert attribute.runs is not None  # noqa: S101 - the one or the other
        if not 0 <= attribute.size <= int(attribute.runs.lengths.sum()) * self.boot.cluster:
            raise UncertainMapError("a list of attributes makes no sense")
        stream = _Stream(attribute.runs, attribute.size, attribute.initialized)
        return self._read(stream, 0, attribute.size)

    def _read(self, stream: _Stream, position: int, length: int) -> bytes:
        """Return bytes of a stream."""
        cluster = self.boot.cluster
        ends = np.cumsum(stream.runs.lengths) * cluster
        index = int(np.searchsorted(ends, position, side="right"))
        parts: list[bytes] = []
        while length:
            if index == ends.size:
                raise UncertainMapError("a stream is shorter than it says")
            begin = int(ends[index]) - int(stream.runs.lengths[index]) * cluster
            count = min(length, int(ends[index]) - position)
            place = int(stream.runs.starts[index]) * cluster + position - begin
            if not 0 <= place <= self.boot.clusters * cluster - count:
                raise UncertainMapError("a stream lies outside of the filesystem")
            parts.append(blockdev.read_at(self._fd, self._offset + place, count))
            position, length, index = position + count, length - count, index + 1
        return b"".join(parts)


def _joined(pieces: list[Attribute]) -> Runs:
    runs = [piece.runs for piece in pieces if piece.runs is not None]
    empty = np.zeros(0, dtype=np.int64)
    return Runs(
        np.concatenate([empty, *(part.starts for part in runs)]),
        np.concatenate([empty, *(part.lengths for part in runs)]),
    )


def _ends(pieces: list[Attribute]) -> Iterator[int]:
    """Yield where each piece must begin: at the end of the one before."""
    end = 0
    for piece in pieces:
        yield end
        assert piece.runs is not None  # noqa: S101 - only streams come here
        end += int(piece.runs.lengths.sum())


def _listed(content: bytes, kind: int, name: str) -> list[int]:
    """Return the records that an attribute list names for a stream, in order."""
    found = []
    position = 0
    while position < len(content):
        if position + _ENTRY.size > len(content):
            raise UncertainMapError("a list of attributes makes no sense")
        entry, length, name_length, name_place, lowest, reference = _ENTRY.unpack_from(
            content, position
        )
        if length < _ENTRY.size or position + length > len(content):
            raise UncertainMapError("a list of attributes makes no sense")
        start = position + name_place
        own = content[start : start + 2 * name_length].decode("utf-16-le", "replace")
        if (entry, own) == (kind, name):
            found.append((lowest, reference & ((1 << 48) - 1)))
        position += length
    return [number for _, number in sorted(found)]


def _restart(page: bytes) -> tuple[int, int, int, int]:
    """Return (sequence number, major version, client in use, flags) of a restart page."""
    magic, place, count, _, size, _, area, _, major = _RESTART_PAGE.unpack_from(page)
    if (
        magic != b"RSTR"
        or size != _PAGE
        or count != _PAGE // ntfs_records.STRIDE + 1
        or not _RESTART_PAGE.size <= place <= ntfs_records.STRIDE - 2 * count
        or not _RESTART_PAGE.size <= area <= ntfs_records.STRIDE - _RESTART_AREA.size - 2
        or {
            page[end - 2 : end]
            for end in range(ntfs_records.STRIDE, _PAGE + 1, ntfs_records.STRIDE)
        }
        != {page[place : place + 2]}
    ):
        raise UncertainMapError("the log makes no sense (or chkdsk has not finished)")
    sequence, _, _, client, flags = _RESTART_AREA.unpack_from(page, area)
    return sequence, major, client, flags


def _within(starts: Integers, ends: Integers, used_starts: Integers, used_ends: Integers) -> bool:
    """Whether each range lies in one of the used ones, which are sorted."""
    index = np.searchsorted(used_ends, starts, side="right")
    if np.any(index == used_ends.size):
        return False
    return bool(np.all((used_starts[index] <= starts) & (ends <= used_ends[index])))


def _touch(starts: Integers, ends: Integers, others: Runs) -> bool:
    """Whether any range overlaps one of the others, which are sorted."""
    index = np.searchsorted(others.starts + others.lengths, starts, side="right")
    near = index < others.starts.size
    return bool(np.any(others.starts[index[near]] < ends[near]))


def _check_marks(marks: NDArray[np.bool_], first: int, in_use: NDArray[np.bool_]) -> None:
    """Compare records with what the MFT's own bitmap says about them."""
    differs = marks[first : first + in_use.size] != in_use
    reserved = max(0, _RESERVED - first)
    differs[:reserved] &= in_use[:reserved]
    if np.any(differs):
        raise UncertainMapError("the MFT and its own bitmap disagree about what is in use")
