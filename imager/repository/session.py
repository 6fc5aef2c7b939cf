"""One capture's writing into a repository: packs, then the index, then the image."""

import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from imager.errors import (
    OBJECT_FAULTS,
    ContentRemoved,
    CredentialNeeded,
    ObjectMissing,
    UntrustedObject,
)
from imager.repository import envelope as envelopes
from imager.repository import image as image_format
from imager.repository.chunk import ID, Codec, Identifier, Sealer
from imager.repository.claims import Claims
from imager.repository.compression import Compressor
from imager.repository.crypto import derive
from imager.repository.directories import Directories
from imager.repository.header import ID_SIZE, NO_KIND, Header, Magic, PackKind, StatementKind
from imager.repository.ids import NOWHERE, Ids
from imager.repository.image import Manifest, Summary
from imager.repository.index_writer import IndexWriter
from imager.repository.keyring import Credential
from imager.repository.last_image import LastImage
from imager.repository.pack import FinishedPack, PackBuilder, object_name
from imager.repository.pack_store import LANE, PackStore
from imager.repository.removals import MARGIN, read_removals
from imager.repository.repository import Problem, Repository
from imager.repository.retrieval import MapReader, SavedMaps
from imager.repository.statement import Certificate
from imager.repository.volume_map import TreeWriter
from imager.stages import Stages

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


class Session:
    """Adds one image to a repository; use as a context manager.

    `claim`, `holders`, `rely_on`, `identify`, `compress` and `seal` are safe from any thread, all else is for one.
    The session's key lives only here and, sealed, in the envelope: when the process ends, the
    machine that captured can't open what it wrote.

    Args:
        repository: where to.
        credential: of the machine; checked against the repository.
        compressor: of chunks; by default one that follows what is the bound.
        stages: counts what storing takes.

    Raises:
        UntrustedObject: the credential was revoked, or a generation or revocation is not to be
            believed, so that nobody can say to whom images may be sealed.
        ObjectDamaged: a generation or revocation is damaged.
    """

    def __init__(
        self,
        repository: Repository,
        credential: Credential,
        compressor: Compressor | None = None,
        stages: Stages | None = None,
    ) -> None:
        self._repository = repository
        self._credential = credential
        for problem in repository.trust.problems:
            raise problem
        self._keys = repository.credential_keys(credential)
        certificate = repository.trust.certificate(credential.certificate, "the credential")
        if certificate.kind is not StatementKind.CREDENTIAL:
            raise CredentialNeeded(f"{certificate.name} is an upkeep credential: it adds no images")
        self._session = os.urandom(ID_SIZE)
        session_key = os.urandom(derive.KEY_SIZE)
        self._envelope = envelopes.seal(
            [repository.opening_key], repository.id, self._session, session_key
        )
        self._manifest_key = derive.derive(session_key, self._session, derive.MANIFEST)
        self._sealer = Sealer(derive.derive(session_key, self._session, derive.CHUNK))
        self._map_sealer = Sealer(self._keys.map_key(self._session))
        self._compressor = compressor or Compressor()
        self.compress = self._compressor.compress
        self.seal = self._sealer.seal
        self._map_identifier = Identifier(self._keys.map_id_key)
        self.identify = Identifier(self._keys.chunk_id_key).identify
        self._index, self.problems = repository.load_index(self._keys)
        self._forget_packs()
        self._relied = np.zeros(len(self._index.digests), dtype=bool)
        self._claims = Claims()
        self._lock = threading.Lock()
        self._builders: dict[PackKind, PackBuilder] = {}
        self._directories = Directories()
        self._packs = PackStore(repository.backend, stages or Stages((LANE,)), self._stored)
        self.counters = Counters()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._packs.close()

    def _forget_packs(self) -> None:
        """See to it that what lay in packs that are gone, or may go, is sent again."""
        lost = self._repository.lost_packs(self._index)
        self.problems += [
            Problem(name, ObjectMissing(f"{name} is gone or cut off; what it held is sent again"))
            for name in sorted(lost)
        ]
        removals = read_removals(self._repository)
        self.problems += removals.problems
        doubtful = removals.doubtful_packs(self._repository.backend.now())
        if lost or doubtful:
            self._index = self._index.without(lost | doubtful)

    def _check_relied_packs(self) -> None:
        """Make sure that no pack this image counts on goes before the image can be seen.

        What was said since the capture began counts, also by keys that are newer than it.

        Raises:
            ContentRemoved: one may.
            UntrustedObject: the credential was revoked meanwhile.
        """
        current, certificate = self._look_anew()
        current.trust.check_usable(certificate)
        gone, vanishing = self._relied_packs_in_doubt(current)
        if gone or vanishing:
            raise ContentRemoved(
                f"the capture took so long that {len(gone | vanishing)} packs it counted on were "
                "removed meanwhile, or are about to be; no image was made"
            )

    def _check_late_image(self, image_id: str) -> None:
        """Find out what became of an image that may have been written after its look was too old.

        Once an image is seen, what is still there of its packs goes at most by a prune that was
        planned before, and such a plan is refused half an hour later.

        Raises:
            ContentRemoved: packs it counts on are gone, or may have been given up.
            UntrustedObject: the credential was revoked before the image was there.
        """
        current, certificate = self._look_anew()
        short = f"the image {image_id[:12]}"
        try:
            current.trust.check_accepted(certificate, image_format.PREFIX + image_id)
        except UntrustedObject as error:
            raise UntrustedObject(
                f"{short} was written, and is not believed: {error.message}",
                hint="Make another credential with `remetal key credential`, and capture again.",
            ) from error
        gone, vanishing = self._relied_packs_in_doubt(current)
        if gone:
            raise ContentRemoved(
                f"this machine was held up so long that {len(gone)} packs were removed before "
                f"{short} was written: it is there, and is not complete",
                hint="Capture again: what is gone is sent again, and that completes this image "
                "too where the disk has not changed. `remetal check REPO` says whether it did.",
            )
        if vanishing:
            raise ContentRemoved(
                f"this machine was held up so long that {short} may have been written too late to "
                f"keep {len(vanishing)} packs it counts on: it is there, and complete now",
                hint="If `remetal check REPO` still finds it complete in an hour, it stays so; "
                "to be sure at once, capture again.",
            )

    def _look_anew(self) -> tuple[Repository, Certificate]:
        """Return the repository as it is now, and the credential's certificate as it counts there."""
        opened = self._repository
        current = Repository.of(opened.backend, opened.id, opened.configuration)
        return current, current.trust.certificate(self._credential.certificate, "the credential")

    def _relied_packs_in_doubt(self, current: Repository) -> tuple[set[str], set[str]]:
        """Return which packs that this image counts on are gone, and which others may go."""
        backend = current.backend
        # Its own packs, that no image needs yet, a prune may have taken for left behind.
        own = set(map(object_name, self._directories.digests()))
        named = read_removals(current).vanishing_packs(backend.now())
        vanishing = own & named | set(self._index.names(self._relied & self._index.are(named)))
        # No clock of a machine that may sleep tells whether a statement came and went meanwhile.
        listing = current.list_packs()
        gone = listing.absent(own)
        gone |= set(self._index.names(self._relied & ~listing.has(self._index.digests)))
        return gone, vanishing - gone

    @property
    def cut_key(self) -> bytes:
        """Decides where chunks are cut."""
        return self._keys.cut_key

    def claim(self, identities: Sequence[bytes]) -> list[bool]:
        """Which of these chunks the caller must send: nobody has them, nobody claimed them before.

        An id that is given twice is claimed once.
        """
        holders = self.holders(np.frombuffer(b"".join(identities), dtype=ID))
        absent = (holders == NOWHERE).tolist()
        self.rely_on(holders)
        with self._lock:
            new = iter(self._claims.claim([*itertools.compress(identities, absent)]))
        return [is_absent and next(new) for is_absent in absent]

    def holders(self, ids: Ids) -> NDArray[np.int64]:
        """Return for each chunk id (dtype V32) the number of a pack that has it, or NOWHERE."""
        return self._index.holders(ids)

    def rely_on(self, packs: NDArray[np.int64]) -> None:
        """Count on packs, given by their numbers, NOWHERE among them: they must stay, or no image is made."""
        with self._lock:
            self._relied[packs[packs != NOWHERE]] = True

    def last_image(self, machine: str) -> LastImage:
        """Return the note of which image of a machine this group had from here last."""
        return LastImage(self._keys, machine)

    def saved_maps(self, image: str | None) -> SavedMaps:
        """Return the maps of an image of this group, given its id; none of one that can't be read."""
        summary = None
        if image is not None:
            with suppress(*OBJECT_FAULTS):
                summary = self._repository.image(image, self._keys).summary
        maps = MapReader(self._repository, self._keys, self._index, self.problems.append)
        return SavedMaps(maps, summary)

    def add(self, identity: bytes, blob: bytearray, plain_length: int, codec: Codec) -> None:
        """Store a sealed chunk. It is durable when `finish` returns.

        Raises:
            NoRoom: the repository is full.
        """
        self.counters.new_bytes += plain_length
        self.counters.new_chunks += 1
        self._add(PackKind.DATA, identity, blob, plain_length, codec)

    def new_map(self) -> TreeWriter:
        """Return what stores a volume's map; nodes that are there already cost nothing."""

        def store(node: bytes) -> bytes:
            identity = self._map_identifier.identify(node)
            if not self._is_stored(identity, PackKind.MAPS) and self._claim_map(identity):
                body, codec = self._compressor.compress(node)
                blob = self._map_sealer.seal(identity, len(node), body, codec)
                self._add(PackKind.MAPS, identity, blob, len(node), codec)
            return identity

        return TreeWriter(store)

    def finish(
        self, summarise: Callable[[tuple[str, ...], Counters], Summary], manifest: Manifest
    ) -> tuple[str, Summary]:
        """Store what is left, the index, and then the image. Returns the image's id and summary.

        Args:
            summarise: makes the summary from the indexes written and the counters.
            manifest: what only recovery keys open.

        Raises:
            NoRoom: the repository is full; there is no image then.
            ContentRemoved: packs that the image counts on went, or are about to. There is no image
                then, except when the process was held up between its last look and writing it:
                the error says what is there.
            UntrustedObject: the credential was revoked meanwhile.
        """
        for kind in _HOLDING:
            self._store_pack(kind)
        self._packs.drain()
        self._check_relied_packs()
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
        looked = _uptime()
        self._check_relied_packs()
        self._repository.backend.put_new(image_format.PREFIX + image_id, [data])
        if _uptime() - looked > MARGIN:
            self._check_late_image(image_id)
        return image_id, summary

    def _claim_map(self, identity: bytes) -> bool:
        with self._lock:
            return self._claims.claim([identity])[0]

    def _is_stored(self, identity: bytes, kind: PackKind) -> bool:
        places = self._index.locations_in(identity, kind)
        if places:
            self._relied[places[0].pack] = True
        return bool(places)

    def _header(self, magic: Magic, kind: int, envelope_length: int) -> Header:
        return Header(
            magic, kind, envelope_length, self._session, self._keys.group, self._repository.id
        )

    def _add(
        self, kind: PackKind, identity: bytes, blob: bytearray, plain_length: int, codec: Codec
    ) -> None:
        builder = self._builders.get(kind)
        if builder is None:
            envelope = self._envelope if kind is PackKind.DATA else b""
            builder = self._builders[kind] = PackBuilder(
                self._header(Magic.PACK, kind, len(envelope)), envelope, self._keys.directory_key
            )
        builder.add(identity, blob, plain_length, codec)
        if builder.is_full:
            self._store_pack(kind)

    def _store_pack(self, kind: PackKind) -> None:
        builder = self._builders.pop(kind, None)
        if builder is not None:
            is_behind = self._packs.add(builder)
            self._compressor.follow(store_is_behind=is_behind)

    def _stored(self, pack: FinishedPack) -> None:
        self.counters.stored_bytes += pack.size
        self._directories.add(pack.digest, pack.kind, pack.entries)

    def _store_indexes(self) -> tuple[str, ...]:
        writer = IndexWriter(self._repository, self._keys, self._session)
        for directory in self._directories:
            writer.add(*directory)
        # What an interrupted capture left and this image needs is found from now on.
        for directory in self._index.unlisted_among(self._relied):
            writer.add(*directory)
        writer.flush()
        self.counters.stored_bytes += writer.stored_bytes
        return tuple(name.rpartition("/")[2] for name in writer.names)


def _uptime() -> float:
    """Return seconds that passed for the machine, its sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
