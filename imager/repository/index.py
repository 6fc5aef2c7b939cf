"""Indexes: where each id lies (FORMAT.md section 9).

An index object is one sorted array; `Index` merges those of a repository. Look-ups are binary
searches over the first eight bytes of the ids, vectorised, and then compare all 32.
"""

import copy
import hashlib
import mmap
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager.errors import ObjectDamaged
from imager.repository.chunk import CODEC_SHIFT, ID, ID_SIZE, PLAIN_MASK
from imager.repository.crypto.sealing import open_once, seal_once
from imager.repository.header import HEADER_SIZE, NO_KIND, Header, Magic, PackKind
from imager.repository.ids import NOWHERE, Ids, distinct, find, heads, is_sorted, order, words
from imager.repository.pack import Entries, object_name
from imager.repository.scratch import Parted, scratch_file

PREFIX: Final = "indexes/"
ENTRY: Final = np.dtype(
    [("id", "V32"), ("pack", "<u4"), ("offset", "<u4"), ("length", "<u4"), ("plain", "<u4")]
)
PACK: Final = np.dtype([("digest", "V32"), ("kind", "u1"), ("zero", "V7")])
COUNTS: Final = struct.Struct("<II")
MOST_ENTRIES: Final = 1 << 20
_WINDOW: Final = 1 << 18
# Each look-up in a mapped file may touch some pages; so many look-ups are answered between two
# times that these are given back.
_BATCH: Final = 1 << 11
_LABEL: Final = "index"
_CLAIM: Final = np.dtype([("digest", ID), ("kind", "u1"), ("is_listed", "?")])


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
        return cls(tuple(table), entries[order(entries["id"])])

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
        if any(table["zero"].tobytes()) or not is_sorted(entries["id"]):
            raise ObjectDamaged(f"{name} is not sorted, or has something where zeros must be")
        if count and int(entries["pack"].max()) >= packs:
            raise ObjectDamaged(f"{name} names a pack that it does not list")
        try:
            listed = tuple((row["digest"].tobytes(), PackKind(int(row["kind"]))) for row in table)
        except ValueError as error:
            raise ObjectDamaged(f"{name} lists a pack of unknown kind") from error
        return cls(listed, entries)

    def directories(self) -> Iterator[tuple[bytes, PackKind, Entries]]:
        """Yield each pack with its rows."""
        rows = self.entries[np.argsort(self.entries["pack"], kind="stable")]
        starts = np.searchsorted(rows["pack"], np.arange(1, len(self.packs)))
        for (digest, kind), part in zip(self.packs, np.split(rows, starts), strict=False):
            yield digest, kind, part


@dataclass(frozen=True, slots=True)
class Location:
    """Where one copy of a blob lies.

    Attributes:
        pack: number of the pack.
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
    """Merges segments one after the other, in bounded memory (`imager.repository.scratch`).

    Args:
        segments: to begin with.
    """

    def __init__(self, segments: Iterable[Segment] = ()) -> None:
        self._claims = [np.empty(0, dtype=_CLAIM)]
        self._packs = 0
        self._rows = Parted(ENTRY)
        for segment in segments:
            self.add(segment)

    def add(self, segment: Segment, *, is_listed: bool = True) -> None:
        """Take a segment in; a pack that several name is one pack.

        Args:
            segment: an index object, or directories of packs.
            is_listed: whether it is an index object of the repository.
        """
        claims = np.zeros(len(segment.packs), dtype=_CLAIM)
        for row, (digest, kind) in zip(claims, segment.packs, strict=True):
            row["digest"], row["kind"] = digest, kind
        claims["is_listed"] = is_listed
        piece = segment.entries.copy()
        piece["pack"] += self._packs
        self._claims.append(claims)
        self._packs += len(claims)
        self._rows.add(piece)

    def digests(self) -> Ids:
        """Return the digests of the packs that were named so far, each once, sorted."""
        return distinct(np.concatenate(self._claims)["digest"])[0]

    def merge(self) -> "Merged":
        """Return what all segments say together."""
        claims = np.concatenate(self._claims)
        digests, places = distinct(claims["digest"])
        entries, mapped = self._merge_rows(places.astype(np.uint32))
        is_unlisted = np.ones(len(digests), dtype=bool)
        is_unlisted[places[claims["is_listed"]]] = False
        of_kind = {kind: np.zeros(len(digests), dtype=bool) for kind in PackKind}
        for kind, is_of_kind in of_kind.items():
            is_of_kind[places[claims["kind"] == kind]] = True
        return Merged(digests, is_unlisted, of_kind, entries, mapped)

    def _merge_rows(self, places: NDArray[np.uint32]) -> tuple[Entries, mmap.mmap | None]:
        def parts() -> Iterator[Entries]:
            for _, rows in self._rows.parts():
                rows["pack"] = places[rows["pack"]]
                yield _each_once(rows)

        if not self._rows.is_spilled:
            return next(parts()), None
        with scratch_file() as merged:
            for rows in parts():
                merged.write(rows.data)
            merged.flush()
            mapped = mmap.mmap(merged.fileno(), 0, prot=mmap.PROT_READ)
        mapped.madvise(mmap.MADV_RANDOM)
        return np.frombuffer(mapped, dtype=ENTRY), mapped


@dataclass(frozen=True, slots=True)
class Merged:
    """What several segments say together.

    Attributes:
        digests: SHA-256 of each pack, sorted; a pack's number is its place.
        is_unlisted: per pack, whether no index object names it.
        of_kind: for each kind, which packs are said to be of it.
        entries: all rows sorted by id, each once; `pack` is a number.
        mapped: the file they lie in, if they do.
    """

    digests: Ids
    is_unlisted: NDArray[np.bool_]
    of_kind: dict[PackKind, NDArray[np.bool_]]
    entries: Entries
    mapped: mmap.mmap | None


class Index:
    """All ids of a repository, merged and sorted; read-only and safe from any thread.

    Args:
        segments: opened index objects, and directories of packs that no index names.

    Attributes:
        digests: SHA-256 of each pack (dtype V32), sorted; a pack's number is its place.
        is_unlisted: per pack, whether no index names it.
        of_kind: for each kind, which packs are of it and may be counted on. An index can lie, so
            that a pack seems to be of both.
    """

    def __init__(self, segments: Iterable[Segment] | Merger) -> None:
        merged = (segments if isinstance(segments, Merger) else Merger(segments)).merge()
        self.digests = merged.digests
        self.is_unlisted = merged.is_unlisted
        self.of_kind = merged.of_kind
        self._entries, self._mapped = merged.entries, merged.mapped
        rows = self._entries.view(np.uint8).reshape(len(self._entries), ENTRY.itemsize)
        # The first eight bytes of each id, where they lie.
        self._keys = rows[:, :8].view(">u8")[:, 0]

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def entries(self) -> Entries:
        """All rows, dtype `ENTRY`, sorted by id; `pack` is a pack's number."""
        return self._entries

    def windows(self) -> Iterator[Entries]:
        """Yield all rows in order, some at a time; of a mapped file only those stay in memory.

        Rows whose ids begin alike are never parted.
        """
        start, count = 0, len(self._keys)
        while start < count:
            end = min(start + _WINDOW, count)
            while end < count and self._keys[end] == self._keys[end - 1]:
                end += 1
            yield self._entries[start:end]
            start = end
            self._give_back()

    def _give_back(self) -> None:
        """Let the kernel take back the pages of a mapped file; they are read again when needed."""
        if self._mapped is not None:
            self._mapped.madvise(mmap.MADV_DONTNEED)

    def _is_known(self, pack: int) -> bool:
        return any(of_kind[pack] for of_kind in self.of_kind.values())

    def name(self, pack: int) -> str:
        """Return the name of a pack, given its number."""
        return object_name(self.digests[pack].tobytes())

    def names(self, packs: NDArray[np.bool_]) -> Iterator[str]:
        """Yield the names of some packs, given whether each of all is meant."""
        for pack in np.flatnonzero(packs).tolist():
            yield self.name(pack)

    def are(self, names: Iterable[str]) -> NDArray[np.bool_]:
        """Return for each pack whether its name is among some names of packs."""
        digests = b"".join(bytes.fromhex(name[-2 * ID_SIZE :]) for name in names)
        places = find(np.frombuffer(digests, dtype=ID), self.digests)
        named = np.zeros(len(self.digests), dtype=bool)
        named[places[places != NOWHERE]] = True
        return named

    def pack_name(self, location: Location) -> str:
        """Return the name of the pack a blob lies in."""
        return self.name(location.pack)

    def locations_in(self, identity: bytes, kind: PackKind) -> list[Location]:
        """Return every copy of an id that lies in packs of a kind."""
        return [place for place in self.locations(identity) if self.of_kind[kind][place.pack]]

    def absent(self, ids: NDArray[np.void], kind: PackKind = PackKind.DATA) -> list[bytes]:
        """Return which of many ids (dtype V32) no pack of this kind holds."""
        return [row.tobytes() for row in ids[self.holders(ids, kind) == NOWHERE]]

    def holders(self, ids: NDArray[np.void], kind: PackKind = PackKind.DATA) -> NDArray[np.int64]:
        """Return for each of many ids (dtype V32) a pack of this kind that holds it, or NOWHERE.

        Packs are given by their numbers.
        """
        if len(ids) > _BATCH:
            parts = [ids[start : start + _BATCH] for start in range(0, len(ids), _BATCH)]
            return np.concatenate([self.holders(part, kind) for part in parts])
        found = np.full(len(ids), NOWHERE, dtype=np.int64)
        keys, wanted = heads(ids), words(ids)
        rows = self._first_rows(keys)
        asked = np.arange(len(ids))
        # Rows that begin alike lie side by side; hardly ever there is more than one.
        while len(asked):
            asked = asked[rows[asked] < len(self._keys)]
            asked = asked[self._keys[rows[asked]] == keys[asked]]
            rows_now = self._entries[rows[asked]]
            right = self.of_kind[kind][rows_now["pack"]]
            right &= (words(rows_now["id"]) == wanted[asked]).all(axis=1)
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

    def without(self, names: Iterable[str]) -> "Index":
        """Return an index that finds nothing in these packs; the numbers of packs stay."""
        kept = ~self.are(names)
        found = copy.copy(self)
        found.of_kind = {kind: of_kind & kept for kind, of_kind in self.of_kind.items()}
        return found

    def unlisted_among(self, packs: Iterable[int]) -> list[tuple[bytes, PackKind, Entries]]:
        """Return those of some packs that no index names, each with its rows (dtype `ENTRY`)."""
        wanted = np.unique(np.fromiter(packs, dtype=np.uint32))
        wanted = wanted[self.is_unlisted[wanted]]
        if not len(wanted):
            return []
        rows = np.concatenate([rows[np.isin(rows["pack"], wanted)] for rows in self.windows()])
        rows = rows[np.argsort(rows["pack"], kind="stable")]
        starts = np.searchsorted(rows["pack"], wanted)
        return [
            (
                self.digests[pack].tobytes(),
                next(kind for kind, of_kind in self.of_kind.items() if of_kind[pack]),
                part,
            )
            for pack, part in zip(wanted, np.split(rows, starts[1:]), strict=True)
        ]

    def sizes_needed(self) -> NDArray[np.uint64]:
        """Return for each pack how many bytes it has at least."""
        ends = np.zeros(len(self.digests), dtype=np.uint64)
        for rows in self.windows():
            np.maximum.at(ends, rows["pack"], rows["offset"].astype(np.uint64) + rows["length"])
        return ends

    def rows_of(self, ids: Ids) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return where the rows of some ids are in `entries`, and whose each of them is.

        Returns:
            Numbers of rows, and for each the place of its id in `ids`. Rows of other ids that begin
            with the same eight bytes may be among them.
        """
        keys = heads(ids)
        first = self._first_rows(keys)
        rows, owners = [], []
        asked = np.arange(len(ids))
        while len(asked):
            asked = asked[first[asked] < len(self._keys)]
            asked = asked[self._keys[first[asked]] == keys[asked]]
            rows.append(first[asked])
            owners.append(asked)
            first[asked] += 1
        self._give_back()
        return np.concatenate([np.empty(0, np.intp), *rows]), np.concatenate(
            [np.empty(0, np.intp), *owners]
        )

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


def _each_once(entries: Entries) -> Entries:
    """Return rows sorted by id, each once: several indexes may name the same blob."""
    columns = [words(entries["id"])[:, column].astype(np.uint64) for column in (3, 2, 1, 0)]
    ordered = entries[np.lexsort([entries["offset"], entries["pack"], *columns])]
    raw = ordered.view(np.uint8).reshape(len(ordered), ENTRY.itemsize)
    fresh = np.ones(len(ordered), dtype=bool)
    fresh[1:] = (raw[1:] != raw[:-1]).any(axis=1)
    found: Entries = ordered[fresh]
    return found
