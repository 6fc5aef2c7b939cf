"""One capture's writing into a repository: packs, then the index, then the image."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from imager.errors import ObjectMissing
from imager.repository import envelope as envelopes
from imager.repository import image as image_format
from imager.repository.chunk import DEFAULT_LEVEL, Codec, Identifier, Sealer
from imager.repository.crypto import derive
from imager.repository.header import ID_SIZE, NO_KIND, Header, Magic, PackKind
from imager.repository.image import Manifest, Summary
from imager.repository.index import MOST_ENTRIES, Segment
from imager.repository.keyring import Credential
from imager.repository.pack import Entries, PackBuilder
from imager.repository.repository import Problem, Repository
from imager.repository.volume_map import Root, Runs, write_tree

_HOLDING: Final = (PackKind.DATA, PackKind.MAPS)


@dataclass(slots=True)
class Counters:
    """What a session has written so far.

    Attributes:
        new_bytes: plaintext bytes of new chunks.
        new_chunks: their number.
        stored_bytes: bytes of packs and indexes in the repository.
    """

    new_bytes: int = 0
    new_chunks: int = 0
    stored_bytes: int = 0


@dataclass(slots=True)
class _Shelf:
    """Packs of one kind in the making, and the directories of those stored."""

    builder: PackBuilder | None = None
    stored: list[tuple[bytes, PackKind, Entries]] = field(default_factory=list)


class Session:
    """Adds one image to a repository; `claim`, `identify` and `seal` are safe from any thread.

    The session's key lives only here and, sealed, in the envelope: when the process ends, the
    machine that captured can't open what it wrote.

    Args:
        repository: where to.
        credential: of the machine; checked against the repository.
        level: of zstd.
    """

    def __init__(
        self, repository: Repository, credential: Credential, level: int = DEFAULT_LEVEL
    ) -> None:
        self._repository = repository
        self._credential = credential
        self._keys = repository.credential_keys(credential)
        self._session = os.urandom(ID_SIZE)
        session_key = os.urandom(derive.KEY_SIZE)
        self._envelope = envelopes.seal(
            repository.recipients, repository.id, self._session, session_key
        )
        self._manifest_key = derive.derive(session_key, self._session, derive.MANIFEST)
        self._chunk_sealer = Sealer(derive.derive(session_key, self._session, derive.CHUNK), level)
        self._map_sealer = Sealer(self._keys.map_key(self._session), level)
        self._map_identifier = Identifier(self._keys.map_id_key)
        self.identify = Identifier(self._keys.chunk_id_key).identify
        self._index, self.problems = repository.load_index(self._keys)
        self._forget_lost_packs()
        self._claimed: set[bytes] = set()
        self._lock = threading.Lock()
        self._shelves = {kind: _Shelf() for kind in _HOLDING}
        self.counters = Counters()

    def _forget_lost_packs(self) -> None:
        """See to it that what lay in packs that are gone is sent again, not counted on."""
        lost = self._repository.lost_packs(self._index)
        if lost:
            self._index = self._index.without(lost)
            self.problems += [
                Problem(
                    name, ObjectMissing(f"{name} is gone or cut off; what it held is sent again")
                )
                for name in sorted(lost)
            ]

    @property
    def cut_key(self) -> bytes:
        """Decides where chunks are cut."""
        return self._keys.cut_key

    def claim(self, identity: bytes) -> bool:
        """Whether the caller must send this chunk: nobody has it, and nobody claimed it before."""
        with self._lock:
            if identity in self._claimed:
                return False
            if self._index.contains(identity):
                return False
            self._claimed.add(identity)
            return True

    def seal(
        self, identity: bytes, plain: bytes | bytearray | memoryview
    ) -> tuple[bytearray, Codec]:
        """Compress and seal a chunk that was claimed."""
        return self._chunk_sealer.seal(identity, plain)

    def add(self, identity: bytes, blob: bytearray, plain_length: int, codec: Codec) -> None:
        """Store a sealed chunk; for one thread. It is durable when `finish` returns.

        Raises:
            NoRoom: the repository is full.
        """
        self.counters.new_bytes += plain_length
        self.counters.new_chunks += 1
        self._add(PackKind.DATA, identity, blob, plain_length, codec)

    def add_map(self, volume_map: Runs) -> Root:
        """Store a volume's map; nodes that are there already cost nothing. For one thread."""

        def store(node: bytes) -> bytes:
            identity = self._map_identifier.identify(node)
            if identity not in self._claimed and not self._index.contains(identity, PackKind.MAPS):
                self._claimed.add(identity)
                blob, codec = self._map_sealer.seal(identity, node)
                self._add(PackKind.MAPS, identity, blob, len(node), codec)
            return identity

        return write_tree(volume_map, store)

    def finish(
        self, summarise: Callable[[tuple[str, ...], Counters], Summary], manifest: Manifest
    ) -> tuple[str, Summary]:
        """Store what is left, the index, and then the image. Returns the image's id and summary.

        Args:
            summarise: makes the summary from the indexes written and the counters.
            manifest: what only recovery keys open.

        Raises:
            NoRoom: the repository is full; there is no image then.
        """
        for kind in _HOLDING:
            self._store_pack(kind)
        summary = summarise(self._store_indexes(), self.counters)
        image_id, data = image_format.encode(
            self._header(Magic.IMAGE, NO_KIND, len(self._envelope)),
            self._envelope,
            summary,
            manifest,
            self._keys.directory_key,
            self._manifest_key,
            self._credential.certificate,
            self._credential.signer,
        )
        self._repository.backend.put_new(image_format.PREFIX + image_id, [data])
        return image_id, summary

    def _header(self, magic: Magic, kind: int, envelope_length: int) -> Header:
        return Header(
            magic, kind, envelope_length, self._session, self._keys.group, self._repository.id
        )

    def _add(
        self, kind: PackKind, identity: bytes, blob: bytearray, plain_length: int, codec: Codec
    ) -> None:
        shelf = self._shelves[kind]
        if shelf.builder is None:
            envelope = self._envelope if kind is PackKind.DATA else b""
            shelf.builder = PackBuilder(
                self._header(Magic.PACK, kind, len(envelope)), envelope, self._keys.directory_key
            )
        shelf.builder.add(identity, blob, plain_length, codec)
        if shelf.builder.is_full:
            self._store_pack(kind)

    def _store_pack(self, kind: PackKind) -> None:
        shelf = self._shelves[kind]
        if shelf.builder is None:
            return
        pack = shelf.builder.finish()
        self._repository.backend.put_new(pack.name, pack.parts)
        self.counters.stored_bytes += pack.size
        shelf.stored.append((pack.digest, pack.kind, pack.entries))
        shelf.builder = None

    def _store_indexes(self) -> tuple[str, ...]:
        names = []
        batch: list[tuple[bytes, PackKind, Entries]] = []
        stored = [row for kind in _HOLDING for row in self._shelves[kind].stored]
        for number, row in enumerate(stored, 1):
            batch.append(row)
            entries = sum(len(directory) for _, _, directory in batch)
            if entries >= MOST_ENTRIES or number == len(stored):
                header = self._header(Magic.INDEX, NO_KIND, 0)
                name, data = Segment.collect(batch).encode(header, self._keys.directory_key)
                self._repository.backend.put_new(name, [data])
                self.counters.stored_bytes += len(data)
                names.append(name.rpartition("/")[2])
                batch = []
        return tuple(names)
