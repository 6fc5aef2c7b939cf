"""Indexes: where each id lies (FORMAT.md section 9).

An index object is one sorted array; `Index` merges those of a repository. Look-ups are binary
searches over the first eight bytes of the ids, vectorised, and then compare all 32.
"""

import copy
import hashlib
import mmap
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from imager.errors import ObjectDamaged, OutputError
from imager.repository.chunk import CODEC_SHIFT, ID, ID_SIZE, PLAIN_MASK
from imager.repository.crypto.sealing import open_once, seal_once
from imager.repository.header import HEADER_SIZE, NO_KIND, Header, Magic, PackKind
from imager.repository.pack import Entries, object_name

PREFIX: Final = "indexes/"
ENTRY: Final = np.dtype(
    [("id", "V32"), ("pack", "<u4"), ("offset", "<u4"), ("length", "<u4"), ("plain", "<u4")]
)
PACK: Final = np.dtype([("digest", "V32"), ("kind", "u1"), ("zero", "V7")])
COUNTS: Final = struct.Struct("<II")
MOST_ENTRIES: Final = 1 << 20
# 48 MiB; so many rows do not stay in memory.
MANY_ROWS: Final = 1 << 20
_WINDOW: Final = 1 << 18
# Each look-up in a mapped file may touch some pages; so many look-ups are answered between two
# times that these are given back.
_BATCH: Final = 1 << 11
NOWHERE: Final = -1
_LABEL: Final = "index"


@dataclass(frozen=True, slots=True)
class Segment:
    """One index object, opened.

    Attributes:
        packs: SHA-256 and kind of each pack it names.
        entries: dtype `ENTRY`, sorted by id.
    """

    packs: tuple[tuple[bytes, PackKind], ...]
    entries: Entries

    @classmethod
    def collect(cls, packs: Iterable[tuple[bytes, PackKind, Entries]]) -> "Segment":
        """Merge the directories of packs (dtype `pack.ENTRY`) into one sorted segment."""
        table: list[tuple[bytes, PackKind]] = []
        pieces: list[Entries] = []
        for number, (digest, kind, directory) in enumerate(packs):
            piece = np.empty(len(directory), dtype=ENTRY)
            for field in ("id", "offset", "length", "plain"):
                piece[field] = directory[field]
            piece["pack"] = number
            table.append((digest, kind))
            pieces.append(piece)
        entries = np.concatenate(pieces) if pieces else np.empty(0, dtype=ENTRY)
        return cls(tuple(table), entries[_order(entries["id"])])

    def encode(self, header: Header, directory_key: bytes) -> tuple[str, bytes]:
        """Return name and bytes of the index object."""
        table = np.zeros(len(self.packs), dtype=PACK)
        for row, (digest, kind) in zip(table, self.packs, strict=True):
            row["digest"], row["kind"] = digest, kind
        body = (
            COUNTS.pack(len(self.packs), len(self.entries))
            + table.tobytes()
            + self.entries.tobytes()
        )
        raw = header.encode()
        data = raw + seal_once(directory_key, _LABEL, raw, body)
        return PREFIX + hashlib.sha256(data).hexdigest(), data

    @classmethod
    def decode(cls, data: bytes, name: str, directory_key: bytes, repository: bytes) -> "Segment":
        """Open an index object and check all of it.

        Raises:
            ObjectDamaged: it is not as it was written, or of another repository.
            UnsupportedFormat: it is of another version.
        """
        if PREFIX + hashlib.sha256(data).hexdigest() != name:
            raise ObjectDamaged(f"{name} has other bytes than were written")
        header = Header.decode(data, Magic.INDEX, repository, name)
        body = open_once(directory_key, _LABEL, data[:HEADER_SIZE], data[HEADER_SIZE:], name)
        if header.kind != NO_KIND or len(body) < COUNTS.size:
            raise ObjectDamaged(f"{name} is malformed")
        packs, count = COUNTS.unpack_from(body)
        start = COUNTS.size + packs * PACK.itemsize
        if len(body) != start + count * ENTRY.itemsize:
            raise ObjectDamaged(f"{name} has the wrong length")
        table = np.frombuffer(body, dtype=PACK, count=packs, offset=COUNTS.size)
        entries = np.frombuffer(body, dtype=ENTRY, count=count, offset=start)
        if any(table["zero"].tobytes()) or not _is_sorted(entries["id"]):
            raise ObjectDamaged(f"{name} is not sorted, or has something where zeros must be")
        if count and int(entries["pack"].max()) >= packs:
            raise ObjectDamaged(f"{name} names a pack that it does not list")
        try:
            listed = tuple((row["digest"].tobytes(), PackKind(int(row["kind"]))) for row in table)
        except ValueError as error:
            raise ObjectDamaged(f"{name} lists a pack of unknown kind") from error
        return cls(listed, entries)


@dataclass(frozen=True, slots=True)
class Location:
    """Where one copy of a blob lies.

    Attributes:
        pack: number of the pack in `Index.packs`.
        offset: first byte in the pack.
        length: bytes of the blob.
        plain: bytes of its plaintext.
        codec: of its body.
    """

    pack: int
    offset: int
    length: int
    plain: int
    codec: int


class Merger:
    """Merges segments one after the other, in bounded memory.

    From `MANY_ROWS` on the rows lie in an unnamed file below `$XDG_CACHE_HOME/remetal` (else
    `~/.cache/remetal`, else where temporary files go), of which nothing stays when the process
    ends; they are split by the first byte of their ids, and each part is sorted in memory.

    Args:
        segments: to begin with.
    """

    def __init__(self, segments: Iterable[Segment] = ()) -> None:
        self.packs: dict[tuple[bytes, PackKind], int] = {}
        self._pieces: list[Entries] = []
        self._rows = 0
        self._spilled: BinaryIO | None = None
        self._parts: list[list[tuple[int, int]]] = [[] for _ in range(256)]
        for segment in segments:
            self.add(segment)

    def add(self, segment: Segment) -> None:
        """Take a segment in; a pack that several indexes name is one pack."""
        table = [self.packs.setdefault(pack, len(self.packs)) for pack in segment.packs]
        piece = segment.entries.copy()
        piece["pack"] = np.array(table, dtype=np.uint32)[piece["pack"]]
        self._pieces.append(piece)
        self._rows += len(piece)
        if self._rows >= MANY_ROWS:
            self._spill()

    def merge(self) -> tuple[Entries, mmap.mmap | None]:
        """Return all rows sorted by id, each once, and the mapped file if they lie in one."""
        if self._spilled is None:
            return _each_once(_joined(self._pieces)), None
        self._spill()
        merged = _scratch_file()
        for part in self._parts:
            rows = [
                np.frombuffer(os.pread(self._spilled.fileno(), length, start), dtype=ENTRY)
                for start, length in part
            ]
            merged.write(_each_once(_joined(rows)).data)
        merged.flush()
        self._spilled.close()
        with merged:
            mapped = mmap.mmap(merged.fileno(), 0, prot=mmap.PROT_READ)
        mapped.madvise(mmap.MADV_RANDOM)
        return np.frombuffer(mapped, dtype=ENTRY), mapped

    def _spill(self) -> None:
        if self._spilled is None:
            self._spilled = _scratch_file()
        rows = _joined(self._pieces)
        heads = rows.view(np.uint8).reshape(len(rows), ENTRY.itemsize)[:, 0]
        rows = rows[np.argsort(heads, kind="stable")]
        start = self._spilled.tell()
        for part, count in zip(self._parts, np.bincount(heads, minlength=256), strict=True):
            length = int(count) * ENTRY.itemsize
            if length:
                part.append((start, length))
            start += length
        self._spilled.write(rows.data)
        self._spilled.flush()
        self._pieces, self._rows = [], 0


class Index:
    """All ids of a repository, merged and sorted; read-only and safe from any thread.

    Args:
        segments: opened index objects, and directories of packs that no index names.
        unlisted: digests of packs that no index names.

    Attributes:
        packs: SHA-256 and kind of each pack; its number is its place.
        unlisted: names of packs that no index names.
        of_kind: for each kind, which packs are of it and may be counted on.
    """

    def __init__(
        self, segments: Iterable[Segment] | Merger, unlisted: Iterable[bytes] = ()
    ) -> None:
        self.unlisted = frozenset(object_name(digest) for digest in unlisted)
        merger = segments if isinstance(segments, Merger) else Merger(segments)
        self._entries, self._mapped = merger.merge()
        self.packs = list(merger.packs)
        kinds = np.array([kind for _, kind in self.packs], dtype=np.uint8)
        self.of_kind = {kind: kinds == kind for kind in PackKind}
        rows = self._entries.view(np.uint8).reshape(len(self._entries), ENTRY.itemsize)
        # The first eight bytes of each id, where they lie.
        self._keys = rows[:, :8].view(">u8")[:, 0]

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def entries(self) -> Entries:
        """All rows, dtype `ENTRY`, sorted by id; `pack` counts in `packs`."""
        return self._entries

    def windows(self) -> Iterator[Entries]:
        """Yield all rows in order, some at a time; of a mapped file only those stay in memory."""
        for start in range(0, len(self._entries), _WINDOW):
            yield self._entries[start : start + _WINDOW]
            self._give_back()

    def _give_back(self) -> None:
        """Let the kernel take back the pages of a mapped file; they are read again when needed."""
        if self._mapped is not None:
            self._mapped.madvise(mmap.MADV_DONTNEED)

    def _is_known(self, pack: int) -> bool:
        return any(of_kind[pack] for of_kind in self.of_kind.values())

    def pack_name(self, location: Location) -> str:
        """Return the name of the pack a blob lies in."""
        return object_name(self.packs[location.pack][0])

    def contains(self, identity: bytes, kind: PackKind = PackKind.DATA) -> bool:
        """Whether any pack of this kind holds the id."""
        return bool(self.locations_in(identity, kind))

    def locations_in(self, identity: bytes, kind: PackKind) -> list[Location]:
        """Return every copy of an id that lies in packs of a kind."""
        return [place for place in self.locations(identity) if self.packs[place.pack][1] is kind]

    def absent(self, ids: NDArray[np.void], kind: PackKind = PackKind.DATA) -> list[bytes]:
        """Return which of many ids (dtype V32) no pack of this kind holds."""
        return [row.tobytes() for row in ids[self.holders(ids, kind) == NOWHERE]]

    def holders(self, ids: NDArray[np.void], kind: PackKind = PackKind.DATA) -> NDArray[np.int64]:
        """Return for each of many ids (dtype V32) a pack of this kind that holds it, or NOWHERE.

        Packs are numbers in `packs`.
        """
        if len(ids) > _BATCH:
            parts = [ids[start : start + _BATCH] for start in range(0, len(ids), _BATCH)]
            return np.concatenate([self.holders(part, kind) for part in parts])
        found = np.full(len(ids), NOWHERE, dtype=np.int64)
        keys, words = _keys(ids), _words(ids)
        rows = self._first_rows(keys)
        asked = np.arange(len(ids))
        # Rows that begin alike lie side by side; hardly ever there is more than one.
        while len(asked):
            asked = asked[rows[asked] < len(self._keys)]
            asked = asked[self._keys[rows[asked]] == keys[asked]]
            rows_now = self._entries[rows[asked]]
            right = self.of_kind[kind][rows_now["pack"]]
            right &= (_words(rows_now["id"]) == words[asked]).all(axis=1)
            found[asked[right]] = rows_now["pack"][right]
            asked = asked[~right]
            rows[asked] += 1
        self._give_back()
        return found

    def _first_rows(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return for each key the first row whose id does not begin with less."""
        low = np.zeros(len(keys), dtype=np.int64)
        high = np.full(len(keys), len(self._keys), dtype=np.int64)
        for _ in range(len(self._keys).bit_length()):
            middle = (low + high) >> 1
            is_less = np.zeros(len(keys), dtype=bool)
            is_open = low < high
            is_less[is_open] = self._keys[middle[is_open]] < keys[is_open]
            low = np.where(is_less, middle + 1, low)
            high = np.where(is_open & ~is_less, middle, high)
        return low

    def without(self, names: set[str]) -> "Index":
        """Return an index that finds nothing in these packs; the numbers of packs stay."""
        kept = np.array([object_name(digest) not in names for digest, _ in self.packs], dtype=bool)
        found = copy.copy(self)
        found.of_kind = {kind: of_kind & kept for kind, of_kind in self.of_kind.items()}
        return found

    def unlisted_among(self, packs: Iterable[int]) -> list[tuple[bytes, PackKind, Entries]]:
        """Return those of some packs that no index names, each with its rows (dtype `ENTRY`)."""
        wanted = [n for n in packs if object_name(self.packs[n][0]) in self.unlisted]
        rows = self._entries[np.isin(self._entries["pack"], wanted)] if wanted else self._entries
        return [(*self.packs[n], rows[rows["pack"] == n]) for n in sorted(wanted)]

    def sizes_needed(self) -> dict[str, int]:
        """Return for each pack that is named how many bytes it has at least."""
        ends = np.zeros(len(self.packs), dtype=np.uint64)
        for rows in self.windows():
            np.maximum.at(ends, rows["pack"], rows["offset"].astype(np.uint64) + rows["length"])
        return {
            object_name(digest): int(end) for (digest, _), end in zip(self.packs, ends, strict=True)
        }

    def locations(self, identity: bytes) -> list[Location]:
        """Return every copy of an id; empty when there is none."""
        key = int.from_bytes(identity[:8], "big")
        first = int(self._first_rows(np.array([key], dtype=np.uint64))[0])
        found = []
        while first < len(self._keys) and int(self._keys[first]) == key:
            row = self._entries[first]
            if row["id"].tobytes() == identity and self._is_known(int(row["pack"])):
                packed = int(row["plain"])
                found.append(
                    Location(
                        int(row["pack"]),
                        int(row["offset"]),
                        int(row["length"]),
                        packed & PLAIN_MASK,
                        packed >> CODEC_SHIFT,
                    )
                )
            first += 1
        return found


def among(entries: Entries, ids: NDArray[np.void]) -> NDArray[np.bool_]:
    """Return which rows have one of these ids (dtype V32, sorted).

    Only the first eight bytes are compared: a row may be taken for named that is not, never the
    other way round.
    """
    if not len(ids):
        return np.zeros(len(entries), dtype=bool)
    wanted = _keys(ids)
    found = _keys(entries["id"])
    places = np.minimum(np.searchsorted(wanted, found), len(wanted) - 1)
    named: NDArray[np.bool_] = wanted[places] == found
    return named


def numbered(entries: Entries) -> NDArray[np.int64]:
    """Return a number for each row (sorted by id) that only rows of the same id share."""
    words = _words(entries["id"])
    fresh = np.zeros(len(entries), dtype=np.int64)
    fresh[1:] = (words[1:] != words[:-1]).any(axis=1)
    return np.cumsum(fresh)


def unique_ids(ids: NDArray[np.void]) -> NDArray[np.void]:
    """Return each id of an array (dtype V32) once, sorted."""
    if not len(ids):
        return np.empty(0, dtype=ID)
    ordered = ids[_order(ids)]
    words = _words(ordered)
    fresh = np.ones(len(ordered), dtype=bool)
    fresh[1:] = (words[1:] != words[:-1]).any(axis=1)
    return ordered[fresh]


def _each_once(entries: Entries) -> Entries:
    """Return rows sorted by id, each once: several indexes may name the same blob."""
    words = [_words(entries["id"])[:, column].astype(np.uint64) for column in (3, 2, 1, 0)]
    ordered = entries[np.lexsort([entries["offset"], entries["pack"], *words])]
    raw = ordered.view(np.uint8).reshape(len(ordered), ENTRY.itemsize)
    fresh = np.ones(len(ordered), dtype=bool)
    fresh[1:] = (raw[1:] != raw[:-1]).any(axis=1)
    found: Entries = ordered[fresh]
    return found


def _joined(pieces: list[Entries]) -> Entries:
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=ENTRY)


def _scratch_file() -> BinaryIO:
    """Return a new file without a name.

    Raises:
        OutputError: there is no place for one.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "remetal"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=home)
    except (OSError, RuntimeError):
        pass
    try:
        return tempfile.TemporaryFile()
    except OSError as error:
        raise OutputError(f"there is no place for the index of the repository: {error}") from error


def _words(ids: NDArray[np.void]) -> NDArray[np.uint64]:
    """Return ids as rows of four big-endian integers."""
    return np.ascontiguousarray(ids).view(">u8").reshape(-1, ID_SIZE // 8)


def _keys(ids: NDArray[np.void]) -> NDArray[np.uint64]:
    """Return the first eight bytes of ids as native integers that sort as the bytes do."""
    return _words(ids)[:, 0].astype(np.uint64)


def _is_sorted(ids: NDArray[np.void]) -> bool:
    words = _words(ids)
    before, after = words[:-1], words[1:]
    differs = (before != after).argmax(axis=1)
    rows = np.arange(len(differs))
    return bool((before[rows, differs] <= after[rows, differs]).all())


def _order(ids: NDArray[np.void]) -> NDArray[np.intp]:
    """Return the order that sorts ids as byte strings."""
    words = _words(ids)
    columns = [words[:, column].astype(np.uint64) for column in (3, 2, 1, 0)]
    return np.lexsort(columns)
