"""Moving needed blobs out of half-empty packs, and indexes that name no removed pack.

Blobs move as they are, sealed: a new pack carries the header and the envelope of the capture that
wrote the old one. So nobody needs a key that opens content, and no nonce is used twice.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from imager.errors import ObjectDamaged, ObjectMissing, RemetalError
from imager.repository import index as index_format
from imager.repository.chunk import CODEC_SHIFT, PLAIN_MASK, Codec
from imager.repository.header import (
    HEADER_SIZE,
    ID_SIZE,
    NO_KIND,
    Header,
    Magic,
    PackKind,
    StatementKind,
)
from imager.repository.index import MOST_ENTRIES, Index, Segment
from imager.repository.keyring import GroupKeys
from imager.repository.pack import Entries, PackBuilder, object_name, read_directory
from imager.repository.repository import Problem, Repository, now
from imager.repository.statement import RepackedBody, Signatory
from imager.upkeep.usage import Usage

Advance = Callable[[int], None]
_Directory = tuple[bytes, PackKind, Entries]


@dataclass(frozen=True, slots=True)
class Repacked:
    """What has moved.

    Attributes:
        replaced: names of packs that are no longer needed.
        moved_bytes: of blobs.
        problems: packs that are damaged and were left as they are.
    """

    replaced: tuple[str, ...]
    moved_bytes: int
    problems: tuple[Problem, ...]


@dataclass(slots=True)
class _Work:
    repository: Repository
    keys: GroupKeys
    builders: dict[bytes, PackBuilder] = field(default_factory=dict)
    stored: list[_Directory] = field(default_factory=list)

    def builder(self, header: bytes, envelope: bytes, name: str) -> PackBuilder:
        key = header + envelope
        if key not in self.builders:
            decoded = Header.decode(header, Magic.PACK, self.repository.id, name)
            self.builders[key] = PackBuilder(decoded, envelope, self.keys.directory_key)
        return self.builders[key]

    def store(self, key: bytes) -> None:
        pack = self.builders.pop(key).finish()
        self.repository.backend.put_new(pack.name, pack.parts)
        self.stored.append((pack.digest, pack.kind, pack.entries))


def repack(
    repository: Repository,
    keys: GroupKeys,
    index: Index,
    usage: Usage,
    packs: Sequence[int],
    signatory: Signatory,
    advance: Advance,
) -> Repacked:
    """Copy the needed blobs of some packs into new ones, and index those.

    Args:
        repository: where they lie.
        keys: of the group.
        index: what the numbers refer to.
        usage: which blobs are needed.
        packs: numbers in `index.packs`.
        signatory: vouches for the new packs.
        advance: told of every byte that moved.

    Raises:
        NoRoom: the repository is full; nothing is lost.
    """
    work = _Work(repository, keys)
    replaced, problems, moved = [], [], 0
    for number in packs:
        name = object_name(index.packs[number][0])
        try:
            count = _copy(work, name, usage.kept(number))
        except RemetalError as error:
            if not isinstance(error, (ObjectDamaged, ObjectMissing)):
                raise
            problems.append(Problem(name, error))
            continue
        replaced.append(name)
        moved += count
        advance(count)
    for key in list(work.builders):
        work.store(key)
    if work.stored:
        names = tuple(digest.hex() for digest, _, _ in work.stored)
        body = RepackedBody(names, now())
        repository.state(StatementKind.REPACKED, body, signatory, keys.group)
    _write_indexes(repository, keys, work.stored)
    return Repacked(tuple(replaced), moved, tuple(problems))


@dataclass(frozen=True, slots=True)
class OutdatedIndexes:
    """Indexes that name packs which go.

    Attributes:
        names: of the indexes.
        kept: what they say of packs that stay.
    """

    names: tuple[str, ...]
    kept: tuple[tuple[bytes, PackKind, Entries], ...]


def outdated_indexes(repository: Repository, keys: GroupKeys, gone: set[str]) -> OutdatedIndexes:
    """Find the indexes that name packs which go. Those with false bytes are left alone.

    Raises:
        ObjectDamaged: the store can't read an index back now; it may name packs which go.
    """
    kept: list[_Directory] = []
    names: list[str] = []
    for entry in repository.backend.list(index_format.PREFIX) if gone else ():
        try:
            data = repository.backend.get(entry.name)
        except ObjectMissing:  # another prune has put others in its place
            continue
        try:
            segment = Segment.decode(data, entry.name, keys.directory_key, repository.id)
        except RemetalError:
            continue
        packs = [object_name(digest) for digest, _ in segment.packs]
        if gone.isdisjoint(packs):
            continue
        names.append(entry.name)
        for number, (pack, (digest, kind)) in enumerate(zip(packs, segment.packs, strict=True)):
            if pack not in gone:
                kept.append((digest, kind, segment.entries[segment.entries["pack"] == number]))
    return OutdatedIndexes(tuple(names), tuple(kept))


def replace_indexes(repository: Repository, keys: GroupKeys, outdated: OutdatedIndexes) -> None:
    """Write what outdated indexes say of packs that stay anew, durably, and remove them."""
    _write_indexes(repository, keys, outdated.kept)
    for name in outdated.names:
        repository.backend.delete(name)


def _copy(work: _Work, name: str, rows: Entries) -> int:
    data = memoryview(work.repository.backend.get(name))
    if object_name(hashlib.sha256(data).digest()) != name:
        raise ObjectDamaged(f"{name} has other bytes than were written")
    raw = bytes(data[:HEADER_SIZE])
    header = Header.decode(raw, Magic.PACK, work.repository.id, name)
    envelope = bytes(data[HEADER_SIZE : HEADER_SIZE + header.envelope_length])
    kind, directory = read_directory(
        work.repository.backend, name, len(data), work.keys.directory_key, work.repository.id
    )
    wanted = {row["id"].tobytes() for row in rows}
    chosen = [row for row in directory if row["id"].tobytes() in wanted]
    if len(chosen) != len(wanted) or kind != header.kind:
        raise ObjectDamaged(f"an index names chunks in {name} that its directory does not")
    count = 0
    for row in chosen:
        builder = work.builder(raw, envelope, name)
        start, length, packed = int(row["offset"]), int(row["length"]), int(row["plain"])
        blob = bytearray(data[start : start + length])
        builder.add(row["id"].tobytes(), blob, packed & PLAIN_MASK, Codec(packed >> CODEC_SHIFT))
        count += length
        if builder.is_full:
            work.store(raw + envelope)
    return count


def _write_indexes(
    repository: Repository, keys: GroupKeys, directories: Sequence[_Directory]
) -> None:
    header = Header(Magic.INDEX, NO_KIND, 0, os.urandom(ID_SIZE), keys.group, repository.id)
    ends = np.cumsum([len(entries) for _, _, entries in directories]) // MOST_ENTRIES
    for batch in np.unique(ends):
        chosen = [d for d, number in zip(directories, ends, strict=True) if number == batch]
        name, data = Segment.collect(chosen).encode(header, keys.directory_key)
        repository.backend.put_new(name, [data])
