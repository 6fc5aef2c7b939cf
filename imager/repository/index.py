"""Indexes: where each id lies (FORMAT.md section 9).

An index object is one sorted array; `Index` merges those of a repository. Look-ups are binary
searches over the first eight bytes of the ids, vectorised, and then compare all 32.
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager.errors import ObjectDamaged
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


class Index:
    """All ids of a repository, merged and sorted; read-only and safe from any thread.

    Args:
        segments: opened index objects, and directories of packs that no index names.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.packs: list[tuple[bytes, PackKind]] = []
        pieces: list[Entries] = []
        for segment in segments:
            piece = segment.entries.copy()
            piece["pack"] += len(self.packs)
            self.packs += segment.packs
            pieces.append(piece)
        entries = np.concatenate(pieces) if pieces else np.empty(0, dtype=ENTRY)
        self._entries = entries[_order(entries["id"])]
        self._keys = _keys(self._entries["id"])

    def __len__(self) -> int:
        return len(self._entries)

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
        if not len(self._keys):
            return [row.tobytes() for row in ids]
        rows = np.minimum(np.searchsorted(self._keys, _keys(ids)), len(self._keys) - 1)
        of_kind = np.array([pack_kind is kind for _, pack_kind in self.packs])
        found = self._entries[rows]
        equal = (_words(found["id"]) == _words(ids)).all(axis=1) & of_kind[found["pack"]]
        # What the first row with the same beginning does not answer, the rows behind it may.
        return [
            identity
            for identity in (row.tobytes() for row in ids[~equal])
            if not self.contains(identity, kind)
        ]

    def without(self, names: set[str]) -> "Index":
        """Return an index that knows nothing of what lies in these packs."""
        numbers = [n for n, (digest, _) in enumerate(self.packs) if object_name(digest) in names]
        kept = ~np.isin(self._entries["pack"], numbers)
        return Index([Segment(tuple(self.packs), self._entries[kept])])

    def sizes_needed(self) -> dict[str, int]:
        """Return for each pack that is named how many bytes it has at least."""
        ends = np.zeros(len(self.packs), dtype=np.uint64)
        last = self._entries["offset"].astype(np.uint64) + self._entries["length"]
        np.maximum.at(ends, self._entries["pack"], last)
        return {
            object_name(digest): int(end) for (digest, _), end in zip(self.packs, ends, strict=True)
        }

    def locations(self, identity: bytes) -> list[Location]:
        """Return every copy of an id; empty when there is none."""
        key = int.from_bytes(identity[:8], "big")
        first = int(np.searchsorted(self._keys, np.uint64(key)))
        found = []
        while first < len(self._keys) and int(self._keys[first]) == key:
            row = self._entries[first]
            if row["id"].tobytes() == identity:
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


def unique_ids(ids: NDArray[np.void]) -> NDArray[np.void]:
    """Return each id of an array (dtype V32) once, sorted."""
    if not len(ids):
        return np.empty(0, dtype=ID)
    ordered = ids[_order(ids)]
    words = _words(ordered)
    fresh = np.ones(len(ordered), dtype=bool)
    fresh[1:] = (words[1:] != words[:-1]).any(axis=1)
    return ordered[fresh]


def _words(ids: NDArray[np.void]) -> NDArray[np.uint64]:
    """Return ids as rows of four big-endian integers."""
    return np.ascontiguousarray(ids).view(">u8").reshape(-1, ID_SIZE // 8)


def _keys(ids: NDArray[np.void]) -> NDArray[np.uint64]:
    """Return the first eight bytes of ids as native integers that sort as the bytes do."""
    return _words(ids)[:, 0].astype(np.uint64)


def _order(ids: NDArray[np.void]) -> NDArray[np.intp]:
    """Return the order that sorts ids as byte strings."""
    words = _words(ids)
    columns = [words[:, column].astype(np.uint64) for column in (3, 2, 1, 0)]
    return np.lexsort(columns)
