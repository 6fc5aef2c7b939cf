"""Opening images: everything that turns sealed bytes back into plaintext.

Every way to plaintext goes through `Unlocked`, which can only be made from a recovery key. A
credential has no method here that returns content.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager.errors import (
    OBJECT_FAULTS,
    ObjectDamaged,
    ObjectMissing,
    RecoveryKeyNeeded,
    RemetalError,
    RepositoryError,
)
from imager.layout.machine import Machine
from imager.repository import envelope as envelopes
from imager.repository import volume_map
from imager.repository.chunk import ID, Identifier, Opener
from imager.repository.configuration import Secrets
from imager.repository.crypto import derive
from imager.repository.crypto.recipient import RecipientKey
from imager.repository.delivery import Delivery, Report, Take, lanes
from imager.repository.generations import Generation
from imager.repository.header import HEADER_SIZE, Header, Magic, PackKind
from imager.repository.ids import unique_ids
from imager.repository.image import Manifest, SealedImage, Summary, VolumeSummary
from imager.repository.index import Index, Location
from imager.repository.keyring import GroupKeys
from imager.repository.repository import Problem, Repository
from imager.stages import Lane, Stages

_RECENT_PACKS: Final = 2

Warn = Callable[[Problem], None]
Ids = NDArray[np.void]


class Unlocked:
    """A recovery key that was unlocked, in use with one repository; safe from any thread.

    A key that was removed from the repository opens the images that were taken before.

    Args:
        repository: the repository.
        key: an unlocked recovery key.

    Raises:
        RecoveryKeyNeeded: the key is none of the repository's.
    """

    def __init__(self, repository: Repository, key: RecipientKey) -> None:
        secrets, generation = _newest_secrets(repository, key)
        self.secrets: Secrets = secrets
        self.keys: GroupKeys = repository.group_keys(secrets)
        # Whether the repository's signing key is among the secrets.
        self.is_current: bool = (
            generation.body.signing_key == repository.trust.current.body.signing_key
        )
        self._repository = repository
        self._opening = {opening.recipient.id: opening for opening in secrets.opening_keys}
        self._sessions: dict[bytes, bytes] = {}
        self._lock = threading.Lock()

    def session_key(self, header: Header, envelope: bytes, what: str) -> bytes:
        """Return the key of the capture that wrote an object.

        Raises:
            ObjectDamaged: the envelope was changed.
            RecoveryKeyNeeded: it was taken after this key had been removed.
        """
        with self._lock:
            known = self._sessions.get(header.session)
        if known is None:
            known = envelopes.open_envelope(
                self._opening, envelope, self._repository.id, header.session, what
            )
            with self._lock:
                self._sessions[header.session] = known
        return known


def _newest_secrets(repository: Repository, key: RecipientKey) -> tuple[Secrets, Generation]:
    for generation in reversed(repository.trust.generations):
        secrets = generation.open_secrets(key)
        if secrets is not None:
            return secrets, generation
    raise RecoveryKeyNeeded(
        f"this recovery key is not among those of {repository.backend.location}",
        hint="Use the recovery key that was made or named when the repository was made, "
        "or one that was added (`remetal key list REPO` lists them).",
    )


class MapReader:
    """Reads volume maps with the group's keys alone; they hold ids, never content.

    Args:
        repository: where the maps lie.
        keys: of the group.
        index: of the repository.
        warn: told of damage that did not keep maps from being read.
    """

    def __init__(self, repository: Repository, keys: GroupKeys, index: Index, warn: Warn) -> None:
        self._repository = repository
        self._keys = keys
        self._index = index
        self._warn = warn
        self._recent: OrderedDict[str, memoryview] = OrderedDict()
        self._identifier = Identifier(keys.map_id_key)

    def read(self, summary: Summary, volume_id: str) -> volume_map.Runs:
        """Return the map of a volume, all of it in memory; see `read_parts`."""
        return np.concatenate(list(self.read_parts(summary, volume_id)))

    def read_parts(self, summary: Summary, volume_id: str) -> Iterator[volume_map.Runs]:
        """Yield the map of a volume, dtype `volume_map.RUN`, in parts of a few thousand runs.

        Raises:
            ObjectMissing: a node is nowhere, or the volume is not in the image.
            ObjectDamaged: a node is damaged and there is no intact copy.
        """
        volume = _volume(summary, volume_id)
        return volume_map.read_parts(volume.map_root, volume.length, self.load, volume_id)

    def read_parts_from(
        self, summary: Summary, volume_id: str, start: int
    ) -> Iterator[tuple[int, volume_map.Runs]]:
        """Yield the map of a volume from a byte on; see `volume_map.read_parts_from`.

        Raises:
            ObjectMissing: as `read_parts`.
            ObjectDamaged: as `read_parts`.
        """
        volume = _volume(summary, volume_id)
        return volume_map.read_parts_from(
            start, volume.map_root, volume.length, self.load, volume_id
        )

    def load(self, identity: bytes) -> bytes:
        """Return the bytes of a node, which have its map id.

        Raises:
            ObjectMissing: it is nowhere.
            ObjectDamaged: it is damaged and there is no intact copy.
        """
        return _first_intact(
            identity,
            self._index.locations_in(identity, PackKind.MAPS),
            self._open,
            "map node",
        )

    def _open(self, identity: bytes, place: Location) -> bytes:
        name = self._index.pack_name(place)
        pack = self._pack(name, self._index.digests[place.pack].tobytes())
        header = Header.decode(bytes(pack[:HEADER_SIZE]), Magic.PACK, self._repository.id, name)
        opener = Opener(self._keys.map_key(header.session), self._identifier)
        blob = pack[place.offset : place.offset + place.length]
        return opener.open(identity, place.plain, place.codec, blob)

    def _pack(self, name: str, digest: bytes) -> memoryview:
        """Return a pack of maps whole: neighbours in a map are neighbours in a pack."""
        pack = self._recent.pop(name, None)
        if pack is None:
            pack = memoryview(self._repository.backend.get(name))
            if hashlib.sha256(pack).digest() != digest:
                self._warn(
                    Problem(name, ObjectDamaged(f"{name} has other bytes than were written"))
                )
        self._recent[name] = pack
        if len(self._recent) > _RECENT_PACKS:
            self._recent.popitem(last=False)
        return pack


class SavedMaps:
    """The maps of one image, for who can do without those that can't be had.

    Args:
        maps: reads them.
        summary: of the image; None if there is none, or it can't be read.
    """

    def __init__(self, maps: MapReader, summary: Summary | None) -> None:
        self._maps = maps
        self._summary = summary

    def read_parts(self, volume_id: str, length: int) -> Iterator[volume_map.Runs]:
        """Yield the map of a volume, as far as it can be had; nothing of one with another length."""
        if self._summary is None:
            return
        if (volume_id, length) not in {(each.id, each.length) for each in self._summary.volumes}:
            return
        with suppress(*OBJECT_FAULTS):
            yield from self._maps.read_parts(self._summary, volume_id)


class OpenImage:
    """An image opened with a recovery key.

    Args:
        repository: where it lies.
        image: whose signature was checked.
        unlocked: a recovery key.
        index: of the repository.
        warn: told of damage that did not keep content from being read.
    """

    def __init__(
        self,
        repository: Repository,
        image: SealedImage,
        unlocked: Unlocked,
        index: Index,
        warn: Warn,
    ) -> None:
        self.image = image
        self.summary = image.summary
        what = f"image {image.id[:12]}"
        with self._touched():
            session_key = unlocked.session_key(image.header, image.envelope, what)
            self.manifest: Manifest = image.open_manifest(
                derive.derive(session_key, image.header.session, derive.MANIFEST)
            )
        self._repository = repository
        self._index = index
        self._maps = MapReader(repository, unlocked.keys, index, warn)
        self._identifier = Identifier(unlocked.keys.chunk_id_key)

        def opener(header: Header, envelope: bytes, name: str) -> Opener:
            return _opener(unlocked, self._identifier, header, envelope, name)

        self._delivery = Delivery(repository.backend, repository.id, index, opener, warn)

    @property
    def machine(self) -> Machine:
        """The layout of the machine."""
        return self.manifest.machine

    def map(self, volume_id: str) -> volume_map.Runs:
        """Return the map of a volume; see `MapReader.read`. Errors name the image."""
        return np.concatenate(list(self.map_parts(volume_id)))

    def map_parts(self, volume_id: str) -> Iterator[volume_map.Runs]:
        """Yield the map of a volume; see `MapReader.read_parts`. Errors name the image."""
        with self._touched():
            yield from self._maps.read_parts(self.summary, volume_id)

    def map_from(self, volume_id: str, start: int) -> Iterator[tuple[int, volume_map.Runs]]:
        """Yield the map of a volume from a byte on, each part with its place; errors name the image.

        See `MapReader.read_parts_from`.
        """
        with self._touched():
            yield from self._maps.read_parts_from(self.summary, volume_id, start)

    def identify(self, data: bytes | bytearray | memoryview) -> bytes:
        """Return the chunk id of a plaintext, to compare what was read back."""
        return self._identifier.identify(data)

    def check_presence(self) -> None:
        """Make sure that everything the image needs is there, before anything is written anywhere.

        Reads the maps and the listing of packs, not their content: a pack that rotted is found
        when its chunks are opened.

        Raises:
            ObjectMissing: chunks are in no pack, or a pack is gone or cut off.
            ObjectDamaged: a map is damaged.
        """
        lost = self._repository.lost_packs(self._index)
        for volume in self.summary.volumes:
            for part in self.map_parts(volume.id):
                with self._touched():
                    self._check_part(volume.id, volume_map.chunk_ids(part), lost)

    def _check_part(self, volume: str, ids: Ids, lost: set[str]) -> None:
        absent = self._index.absent(ids)
        if absent:
            raise ObjectMissing(
                f"chunks of {volume} are in no pack, {absent[0].hex()[:16]} among them"
            )
        if not lost:
            return
        for row in ids:
            names = {
                self._index.pack_name(place)
                for place in self._index.locations_in(row.tobytes(), PackKind.DATA)
            }
            if names <= lost:
                raise ObjectMissing(f"{min(names)}, which {volume} needs, is gone or cut off")

    def deliver(self, ids: Ids, take: Take, done: Report, stages: Stages) -> None:
        """Hand every chunk to `take`, in threads; see `Delivery.deliver`. Errors name the image."""
        with self._touched():
            self._delivery.deliver(ids, take, done, stages)

    def lanes(self, taking: Sequence[str]) -> tuple[Lane, ...]:
        """Return the lanes of a delivery; see `delivery.lanes`."""
        return lanes(self._repository.backend, taking)

    def chunks(self, ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the plaintexts of some chunks, all of them in memory; see `deliver`."""
        wanted = unique_ids(np.array(ids, dtype=ID))
        found: dict[bytes, bytes] = {}

        def keep(numbers: Sequence[int], plains: Sequence[memoryview], report: Report) -> None:
            for number, plain in zip(numbers, plains, strict=True):
                found[wanted[number].tobytes()] = bytes(plain)
                report(len(plain))

        self.deliver(wanted, keep, lambda _: None, Stages(self.lanes(())))
        return found

    @contextmanager
    def _touched(self) -> Iterator[None]:
        """Let every error that says the repository is damaged say which image that touches."""
        try:
            yield
        except RepositoryError as error:
            text = f"image {self.image.id[:12]} is touched: {error.message}"
            raise type(error)(text, hint=error.hint) from error


def open_image(repository: Repository, reference: str, unlocked: Unlocked, warn: Warn) -> OpenImage:
    """Open the image that a person means; see `Repository.find_image` for references.

    Args:
        repository: where it lies.
        reference: what the person wrote.
        unlocked: a recovery key.
        warn: told of damage that does not keep the image from being read.

    Raises:
        UnknownImage: none is meant, or more than one.
        ObjectDamaged: it can't be read.
    """
    image = repository.find_image(reference, unlocked.keys)
    index, problems = repository.load_index(unlocked.keys)
    for problem in problems:
        warn(problem)
    return OpenImage(repository, image, unlocked, index, warn)


def pack_opener(unlocked: Unlocked, header: Header, data: bytes, name: str) -> Opener:
    """Return what opens the blobs of a pack that was read whole.

    Raises:
        ObjectDamaged: its envelope was changed.
        RecoveryKeyNeeded: it was written after this key had been removed.
    """
    keys = unlocked.keys
    if header.kind == PackKind.MAPS:
        return Opener(keys.map_key(header.session), Identifier(keys.map_id_key))
    envelope = data[HEADER_SIZE : HEADER_SIZE + header.envelope_length]
    return _opener(unlocked, Identifier(keys.chunk_id_key), header, envelope, name)


def _opener(
    unlocked: Unlocked, identifier: Identifier, header: Header, envelope: bytes, name: str
) -> Opener:
    session_key = unlocked.session_key(header, envelope, name)
    return Opener(derive.derive(session_key, header.session, derive.CHUNK), identifier)


def _volume(summary: Summary, volume_id: str) -> VolumeSummary:
    for volume in summary.volumes:
        if volume.id == volume_id:
            return volume
    raise ObjectMissing(f"the image has no volume {volume_id}")


def _first_intact(
    identity: bytes,
    places: Sequence[Location],
    fetch: Callable[[bytes, Location], bytes],
    what: str,
) -> bytes:
    problem: RemetalError = ObjectMissing(f"{what} {identity.hex()[:16]} is nowhere")
    for place in places:
        try:
            return fetch(identity, place)
        except OBJECT_FAULTS as error:
            problem = error
    raise problem
