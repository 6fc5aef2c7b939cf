"""Moving needed blobs out of half-empty packs, and indexes that name no removed pack.

Blobs move as they are, sealed: a new pack carries the header and the envelope of the capture that
wrote the old one. So nobody needs a key that opens content, and no nonce is used twice.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from imager.errors import OBJECT_FAULTS, ObjectDamaged, ObjectMissing
from imager.repository import index as index_format
from imager.repository.chunk import CODEC_SHIFT, PLAIN_MASK, Codec
from imager.repository.header import (
    HEADER_SIZE,
    ID_SIZE,
    Header,
    Magic,
    StatementKind,
)
from imager.repository.index import Index, Segment
from imager.repository.index_writer import IndexWriter
from imager.repository.keyring import GroupKeys
from imager.repository.pack import PackBuilder, decode_directory, object_name
from imager.repository.removals import MOST_NAMED
from imager.repository.repository import Problem, Repository, now
from imager.repository.statement import RepackedBody, Signatory
from imager.upkeep.usage import Usage

Advance = Callable[[int], None]


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


class _Work:
    """Fills new packs, of one capture after the other, so that one at most is in the making."""

    def __init__(self, repository: Repository, keys: GroupKeys) -> None:
        self.repository = repository
        self.keys = keys
        self.indexes = IndexWriter(repository, keys, os.urandom(ID_SIZE))
        self.stored: list[str] = []
        self._origin = b""
        self._builder: PackBuilder | None = None

    def builder(self, header: Header, envelope: bytes) -> PackBuilder:
        """Return the pack in the making that takes blobs of packs with this header and envelope."""
        origin = header.encode() + envelope
        if self._builder is None or self._builder.is_full or origin != self._origin:
            self.store()
            self._origin = origin
            self._builder = PackBuilder(header, envelope, self.keys.directory_key)
        return self._builder

    def store(self) -> None:
        """Store the pack in the making."""
        if self._builder is not None:
            pack = self._builder.finish()
            self.repository.backend.put_new(pack.name, pack.parts)
            self.stored.append(pack.digest.hex())
            self.indexes.add(pack.digest, pack.kind, pack.entries)
            self._builder = None


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
    problems: list[Problem] = []
    replaced: list[str] = []
    moved = 0
    for _, number in sorted(_headers(repository, index, packs, problems)):
        name = index.name(number)
        try:
            count = _copy(work, name, usage, number)
        except OBJECT_FAULTS as error:
            if not isinstance(error, (ObjectDamaged, ObjectMissing)):
                raise
            problems.append(Problem(name, error))
            continue
        replaced.append(name)
        moved += count
        advance(count)
    work.store()
    for start in range(0, len(work.stored), MOST_NAMED):
        body = RepackedBody(tuple(work.stored[start : start + MOST_NAMED]), now())
        repository.state(StatementKind.REPACKED, body, signatory, keys.group)
    work.indexes.flush()
    return Repacked(tuple(replaced), moved, tuple(problems))


def _headers(
    repository: Repository, index: Index, packs: Sequence[int], problems: list[Problem]
) -> Iterator[tuple[bytes, int]]:
    for number in packs:
        name = index.name(number)
        try:
            yield repository.backend.get_range(name, 0, HEADER_SIZE), number
        except OBJECT_FAULTS as error:
            problems.append(Problem(name, error))


@dataclass(frozen=True, slots=True)
class OutdatedIndexes:
    """Indexes that name packs which go.

    Attributes:
        names: of the indexes.
        gone: names of the packs.
    """

    names: tuple[str, ...]
    gone: frozenset[str]


def outdated_indexes(
    repository: Repository, keys: GroupKeys, gone: frozenset[str]
) -> OutdatedIndexes:
    """Find the indexes that name packs which go. Those with false bytes are left alone.

    Raises:
        ObjectDamaged: the store can't read an index back now; it may name packs which go.
    """
    names = []
    for entry in repository.backend.list(index_format.PREFIX) if gone else ():
        segment = _segment(repository, keys, entry.name)
        if segment and any(object_name(digest) in gone for digest, _ in segment.packs):
            names.append(entry.name)
    return OutdatedIndexes(tuple(names), gone)


def replace_indexes(repository: Repository, keys: GroupKeys, outdated: OutdatedIndexes) -> None:
    """Write what outdated indexes say of packs that stay anew, durably, and remove them."""
    writer = IndexWriter(repository, keys, os.urandom(ID_SIZE))
    replaced: list[str] = []
    for name in outdated.names:
        segment = _segment(repository, keys, name)
        if segment is None:  # another prune has put others in its place
            continue
        written = len(writer.names)
        for digest, kind, directory in segment.directories():
            if object_name(digest) not in outdated.gone:
                writer.add(digest, kind, directory)
        if len(writer.names) > written:
            # What the ones before say is written; what this one says may be so in part.
            _delete(repository, replaced)
            replaced = []
        replaced.append(name)
    writer.flush()
    _delete(repository, replaced)


def _delete(repository: Repository, names: Iterable[str]) -> None:
    for name in names:
        repository.backend.delete(name)


def _segment(repository: Repository, keys: GroupKeys, name: str) -> Segment | None:
    """Return an index; None if it is gone, or is nothing that readers count on.

    Raises:
        ObjectDamaged: the store can't read it back now.
    """
    try:
        data = repository.backend.get(name)
    except ObjectMissing:
        return None
    try:
        return Segment.decode(data, name, keys.directory_key, repository.id)
    except OBJECT_FAULTS:
        return None


def _copy(work: _Work, name: str, usage: Usage, number: int) -> int:
    data = work.repository.backend.get(name)
    if object_name(hashlib.sha256(data).digest()) != name:
        raise ObjectDamaged(f"{name} has other bytes than were written")
    header = Header.decode(data[:HEADER_SIZE], Magic.PACK, work.repository.id, name)
    envelope = data[HEADER_SIZE : HEADER_SIZE + header.envelope_length]
    kind, directory = decode_directory(data, name, work.keys.directory_key, work.repository.id)
    chosen = directory[usage.are_kept(number, directory["id"])]
    if len(chosen) != usage.kept[number] or kind != header.kind:
        raise ObjectDamaged(f"an index names chunks in {name} that its directory does not")
    count = 0
    for row in chosen:
        start, length, packed = int(row["offset"]), int(row["length"]), int(row["plain"])
        blob = bytearray(data[start : start + length])
        work.builder(header, envelope).add(
            row["id"].tobytes(), blob, packed & PLAIN_MASK, Codec(packed >> CODEC_SHIFT)
        )
        count += length
    return count
