"""Indexes: where each id lies (FORMAT.md section 9).

An index object is one sorted array; `Index` merges those of a repository. Look-ups are binary
searches over the first eight bytes of the ids, vectorised, and then compare all 32.
"""

import copy
import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from imager.errors import ObjectDamaged
from imager.repository.chunk import CODEC_SHIFT, ID, PLAIN_MASK
from imager.repository.crypto.sealing import open_once, seal_once
from imager.repository.header import HEADER_SIZE, NO_KIND, Header, Magic, PackKind
from imager.repository.ids import NOWHERE, Ids, distinct, find, is_sorted, order
from imager.repository.names import PACKS, digest_of
from imager.repository.pack import Entries, object_name
from imager.repository.scratch import Parted, scratch_file
from imager.repository.sorted_rows import Found, SortedRows, merged_parts

PREFIX: Final = "indexes/"
ENTRY: Final = np.dtype(
    [("id", "V32"), ("pack", "<u4"), ("offset", "<u4"), ("length", "<u4"), ("plain", "<u4")]
)
PACK: Final = np.dtype([("digest", "V32"), ("kind", "u1"), ("zero", "V7")])
COUNTS: Final = struct.Struct("<II")
MOST_ENTRIES: Final = 1 << 20
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
        base: what others say together, in a file.
    """

    def __init__(self, segments: Iterable[Segment] = (), base: "Merged | None" = None) -> None:
        self._base = base
        self._claims = [np.empty(0, dtype=_CLAIM) if base is None else _claims_of(base)]
        self._packs = len(self._claims[0])
        self._rows = Parted(ENTRY)
        for segment in segments:
            self.add(segment)

    @property
    def is_large(self) -> bool:
        """Whether what was merged so far lies in a file."""
        return self._base is not None or self._rows.is_spilled

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

    def merge(self, file: BinaryIO | None = None) -> "Merged":
        """Return what all segments say together.

        Args:
            file: new and empty, for the rows if they are many; else they go to a scratch file.

        Raises:
            OutputError: there is no room for them.
        """
        if self._base is not None and len(self._claims) == 1:
            return self._base
        claims = np.concatenate(self._claims)
        digests, places = distinct(claims["digest"])
        if self.is_large and file is None:
            file = scratch_file()
        rows = SortedRows(self._sorted(places.astype(np.uint32)), ENTRY, file)
        is_unlisted = np.ones(len(digests), dtype=bool)
        is_unlisted[places[claims["is_listed"]]] = False
        of_kind = {kind: np.zeros(len(digests), dtype=bool) for kind in PackKind}
        for kind, is_of_kind in of_kind.items():
            is_of_kind[places[claims["kind"] == kind]] = True
        return Merged(digests, is_unlisted, of_kind, rows)

    def _sorted(self, places: NDArray[np.uint32]) -> Iterator[Entries]:
        old = iter(()) if self._base is None else self._base.rows.parts()
        new = self._rows.parts(split=self._base is not None)
        for rows in merged_parts((old, new), ENTRY):
            rows["pack"] = places[rows["pack"]]
            yield _each_once(rows)


@dataclass(frozen=True, slots=True)
class Merged:
    """What several segments say together.

    Attributes:
        digests: SHA-256 of each pack, sorted; a pack's number is its place.
        is_unlisted: per pack, whether no index object names it.
        of_kind: for each kind, which packs are said to be of it.
        rows: dtype `ENTRY`, each once; `pack` is a number.
    """

    digests: Ids
    is_unlisted: NDArray[np.bool_]
    of_kind: dict[PackKind, NDArray[np.bool_]]
    rows: SortedRows


def _claims_of(base: Merged) -> NDArray[np.void]:
    """Return the claims of what was merged before: first one of each pack, by number."""
    kinds = np.array([base.of_kind[kind] for kind in PackKind])
    first = kinds.argmax(axis=0)
    others = kinds.copy()
    others[first, np.arange(len(first))] = False
    rows, packs = np.nonzero(others)
    claims = np.zeros(len(first) + len(packs), dtype=_CLAIM)
    packs = np.concatenate([np.arange(len(first)), packs])
    claims["digest"] = base.digests[packs]
    claims["kind"] = np.array(list(PackKind), dtype=np.uint8)[np.concatenate([first, rows])]
    claims["is_listed"] = ~base.is_unlisted[packs]
    return claims


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
        self._rows = merged.rows

    def __len__(self) -> int:
        return len(self._rows)

    def windows(self) -> Iterator[Entries]:
        """Yield all rows (dtype `ENTRY`, sorted by id; `pack` is a pack's number), some at a time.

        Rows whose ids begin with the same eight bytes are never parted.
        """
        return self._rows.windows()

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
        """Return for each pack whether its name is among some names of objects."""
        packs = (digest_of(name) for name in names if name.startswith(PACKS))
        digests = b"".join(bytes.fromhex(digest) for digest in packs if digest is not None)
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
        found = np.full(len(ids), NOWHERE, dtype=np.int64)
        for part in self.rows_of(ids):
            right = self.of_kind[kind][part.rows["pack"]]
            found[part.owners[right]] = part.rows["pack"][right]
        return found

    def rows_of(self, ids: Ids) -> Iterator[Found]:
        """Yield all rows of some ids (dtype V32)."""
        return self._rows.rows_of(ids)

    def without(self, names: Iterable[str]) -> "Index":
        """Return an index that finds nothing in these packs; the numbers of packs stay."""
        kept = ~self.are(names)
        found = copy.copy(self)
        found.of_kind = {kind: of_kind & kept for kind, of_kind in self.of_kind.items()}
        return found

    def unlisted_among(self, packs: NDArray[np.bool_]) -> list[tuple[bytes, PackKind, Entries]]:
        """Return the packs that no index names, each with its rows (dtype `ENTRY`).

        Args:
            packs: for each pack, whether it is meant.
        """
        wanted = np.flatnonzero(packs & self.is_unlisted)
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

    def locations(self, identity: bytes) -> list[Location]:
        """Return every copy of an id; empty when there is none."""
        return [
            Location(
                int(row["pack"]),
                int(row["offset"]),
                int(row["length"]),
                int(row["plain"]) & PLAIN_MASK,
                int(row["plain"]) >> CODEC_SHIFT,
            )
            for part in self.rows_of(np.frombuffer(identity, dtype=ID))
            for row in part.rows
            if self._is_known(int(row["pack"]))
        ]


def _each_once(entries: Entries) -> Entries:
    """Return rows sorted by id, each once: several indexes may name the same blob."""
    ordered = entries[order(entries["id"], entries["pack"], entries["offset"])]
    raw = ordered.view(np.uint8).reshape(len(ordered), ENTRY.itemsize)
    fresh = np.ones(len(ordered), dtype=bool)
    fresh[1:] = (raw[1:] != raw[:-1]).any(axis=1)
    found: Entries = ordered[fresh]
    return found
