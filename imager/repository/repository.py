"""A repository: creating it, opening it, listing what is in it.

Locking table. No operation takes a lock, and none waits for another: objects are created whole,
only if absent, never changed, and removed only after a quarantine (`imager.repository.removals`).

    | runs beside | init     | capture | images, show | check    | restore  | prune    | parity, repair |
    |-------------|----------|---------|--------------|----------|----------|----------|----------------|
    | init        | one wins | -       | -            | -        | -        | -        | -              |
    | capture     | -        | both    | old view     | old view | old view | rescued  | both           |
    | check       | -        | old view| both         | both     | both     | old view | old view       |
    | restore     | -        | old view| both         | both     | both     | in time  | both           |
    | prune       | -        | rescued | old view     | old view | in time  | same     | both           |
    | repair      | -        | both    | both         | old view | both     | both     | same           |

- both: each completes as if it were alone.
- old view: the reader sees what was complete when it listed; what is added meanwhile is not seen, and
  what vanished because upkeep removed it is not damage.
- rescued: a capture may count on a chunk that prune condemned, for as long as half of the quarantine is left;
  later it sends the chunk again. Prune removes nothing that an image it can see needs. A capture that
  took so long that a pack it counted on may go makes no image, and says so.
- in time: what a restore of an image needs stays for the whole quarantine after the image was condemned.
- same: two at once choose the same copies to keep, and make the same bytes; the second finds it done.

Two captures that send the same new chunk at the same time store it twice; the next prune keeps one.
"""

import hashlib
import secrets as random
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np

from imager.errors import (
    OBJECT_FAULTS,
    NotARepository,
    ObjectDamaged,
    ObjectMissing,
    RemetalError,
    RepositoryExists,
    UnknownImage,
    UnsupportedFormat,
    UsageError,
)
from imager.repository import image as image_format
from imager.repository import index as index_format
from imager.repository import pack as pack_format
from imager.repository import statement as statements
from imager.repository.backend.opening import open_backend
from imager.repository.backend.place import Place
from imager.repository.backend.protocol import Backend
from imager.repository.configuration import (
    CONFIG_NAME,
    Configuration,
    Secrets,
    new_configuration,
    repository_id,
)
from imager.repository.crypto.recipient import Recipient, RecipientKey
from imager.repository.crypto.signing import Signer
from imager.repository.generations import Generation
from imager.repository.header import ID_SIZE, PackKind, StatementKind
from imager.repository.ids import NOWHERE, Ids, find
from imager.repository.image import SealedImage
from imager.repository.index import Index, Merger, Segment
from imager.repository.index_cache import IndexCache
from imager.repository.keyring import Credential, GroupKeys
from imager.repository.listing import PackListing
from imager.repository.names import FOLDERS, is_object
from imager.repository.pack import Entries
from imager.repository.statement import Body, Certificate, Signatory, Statement
from imager.repository.trust import Trust

LATEST: Final = "latest"
_SHORTEST_PREFIX: Final = 4
_READERS: Final = 4
# So often indexes are listed when some vanish between being listed and being read.
_LISTINGS: Final = 5
# So many directories of packs are held at once.
_DIRECTORIES: Final = 4096


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it must be.

    Attributes:
        name: of the object.
        error: what is wrong with it.
    """

    name: str
    error: RemetalError


def now() -> str:
    """Return the time as the format writes it: RFC 3339 in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True)
class Repository:
    """An open repository.

    Attributes:
        backend: where its objects lie.
        id: sixteen bytes.
        configuration: its root of trust.
        trust: whose word counts here, as it was when the repository was opened.
    """

    backend: Backend
    id: bytes
    configuration: Configuration
    trust: Trust

    @staticmethod
    def is_repository(path: Path) -> bool:
        """Whether a directory looks like a repository."""
        try:
            return '"remetal repository"' in (path / CONFIG_NAME).read_text("utf-8")[:200]
        except (OSError, UnicodeDecodeError):
            return False

    @classmethod
    def open(cls, place: Place | str) -> "Repository":
        """Open a repository.

        Args:
            place: where it is; a mere location is reached as the environment says.

        Raises:
            NotARepository: there is none, or its configuration is lost or damaged.
            UnsupportedFormat: it is of another version.
        """
        backend = open_backend(place)
        try:
            data = backend.get(CONFIG_NAME)
        except ObjectMissing as error:
            if not _has_objects(backend):
                raise NotARepository(f"there is no repository at {backend.location}") from error
            text = f"the repository at {backend.location} has lost its file `config`"
            raise NotARepository(text, hint=_way_back(backend.location)) from error
        try:
            configuration = Configuration.decode(data, backend.location)
        except (NotARepository, UnsupportedFormat) as error:
            if _has_objects(backend):
                error.hint = f"{_way_back(backend.location)} {error.hint}"
            raise
        return cls.of(backend, repository_id(data), configuration)

    @classmethod
    def of(cls, backend: Backend, identity: bytes, configuration: Configuration) -> "Repository":
        """Return the repository of a configuration that was read already."""
        trust = Trust.read(backend, identity, configuration)
        return cls(backend, identity, configuration, trust)

    @classmethod
    def create(
        cls,
        place: Place | str,
        recipients: Sequence[tuple[str, Recipient]],
        keep: Callable[["Repository", Secrets], None],
    ) -> "Repository":
        """Make a new repository.

        Args:
            place: an empty or new one.
            recipients: label and public key of each who shall be able to open images.
            keep: is given the repository to be and its secrets, and puts the keys where they are
                kept. Only when it has returned does the repository come into being, so there is
                never one without its keys.

        Raises:
            RepositoryExists: something is there.
            UsageError: nobody could open its images.
        """
        if not recipients:
            raise UsageError("a repository needs at least one recovery key")
        backend = open_backend(place)
        if any(True for _ in backend.list("")):
            raise RepositoryExists(f"{backend.location} is not empty")
        secrets = Secrets(
            Signer.generate(),
            random.token_bytes(ID_SIZE),
            random.token_bytes(32),
            (RecipientKey.generate(),),
        )
        configuration = new_configuration(secrets, tuple(recipients), now())
        data = configuration.encode()
        identity = repository_id(data)
        trust = Trust(identity, (Generation.first(configuration),))
        repository = cls(backend, identity, configuration, trust)
        keep(repository, secrets)
        if not backend.put_new(CONFIG_NAME, [data]):
            raise RepositoryExists(f"there is a repository at {backend.location} already")
        return repository

    @property
    def recipients(self) -> tuple[Recipient, ...]:
        """Who can open the images that are taken now."""
        return tuple(Recipient(entry.public_key) for entry in self.trust.current.body.recipients)

    @property
    def opening_key(self) -> Recipient:
        """What captures seal to."""
        return Recipient(self.trust.current.body.opening_key)

    def group_keys(self, secrets: Secrets) -> GroupKeys:
        """Return the keys of the group that these secrets hold."""
        return GroupKeys(self.id, secrets.group, secrets.group_secret)

    def new_credential(
        self, secrets: Secrets, name: str, kind: StatementKind = StatementKind.CREDENTIAL
    ) -> Credential:
        """Make a credential that the repository vouches for; `publish` makes it known."""
        signer = Signer.generate()
        certificate = Certificate.issue(
            kind, secrets.signer, self.id, secrets.group, name, signer.public_key, now()
        )
        return Credential(self.id, secrets.group_secret, signer, certificate.encoded)

    def publish(self, credential: Credential) -> None:
        """Store the statement that vouches for a credential."""
        data = credential.certificate
        self.backend.put_new(statements.PREFIX + hashlib.sha256(data).hexdigest(), [data])

    def read_statement(self, name: str) -> Statement:
        """Return a statement, after checking its bytes and that its signer may say it.

        Raises:
            ObjectMissing: there is none.
            ObjectDamaged: its bytes are not those that were written.
            UntrustedObject: its signer may not say it.
        """
        data = self.backend.get(name)
        if hashlib.sha256(data).hexdigest() != name.rpartition("/")[2]:
            raise ObjectDamaged(f"{name} has other bytes than were written")
        return self.trust.statement(data, name)

    def state(self, kind: StatementKind, body: Body, signatory: Signatory, group: bytes) -> str:
        """Store a statement and return its name.

        Raises:
            NoRoom: the store is full.
        """
        name, data = statements.encode(kind, body, signatory, self.id, group)
        self.backend.put_new(name, [data])
        return name

    def credential_keys(self, credential: Credential) -> GroupKeys:
        """Return the group keys of a credential, after checking that it belongs here.

        Raises:
            ObjectDamaged: it is of another repository.
            UntrustedObject: this repository does not vouch for it, or no longer.
        """
        certificate = self.trust.certificate(credential.certificate, "the credential")
        self.trust.check_usable(certificate)
        return GroupKeys(self.id, certificate.group, credential.group_secret)

    def images(self, keys: GroupKeys) -> tuple[list[SealedImage], list[Problem]]:
        """Return the images, oldest first by the store's clock, and what can't be read."""
        found: list[SealedImage] = []
        problems: list[Problem] = []
        for entry in self.backend.list(image_format.PREFIX):
            try:
                found.append(self._read_image(entry.name, entry.modified, keys))
            except ObjectMissing:
                continue  # a prune removed it after it was listed
            except OBJECT_FAULTS as error:
                problems.append(Problem(entry.name, error))
        found.sort(key=lambda image: (image.modified, image.summary.finished, image.id))
        return found, problems

    def image(self, image_id: str, keys: GroupKeys) -> SealedImage:
        """Return an image of a group; the time it was made is not asked for.

        Raises:
            ObjectMissing: it is not there.
            ObjectDamaged, UntrustedObject: it can't be read, or is not to be believed.
        """
        return self._read_image(image_format.PREFIX + image_id, 0.0, keys)

    def find_image(self, reference: str, keys: GroupKeys) -> SealedImage:
        """Return the image that a person means.

        Args:
            reference: `latest`, a machine's name or id (its newest image), or the beginning of
                an image's id.
            keys: of the group.

        Raises:
            UnknownImage: none is meant, or more than one.
            ObjectDamaged: the image that is meant can't be read.
        """
        images, problems = self.images(keys)
        for problem in problems:
            if _is_prefix(reference, problem.name.removeprefix(image_format.PREFIX)):
                raise problem.error
        if reference == LATEST:
            matching = images[-1:]
        else:
            matching = [
                image
                for image in images
                if reference in {image.summary.machine_name, image.summary.machine_id}
            ][-1:] or [image for image in images if _is_prefix(reference, image.id)]
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise UnknownImage(
                f"{reference!r} could mean {len(matching)} images",
                hint="Give more digits of the image's id.",
            )
        if problems:
            damaged = ", ".join(problem.name for problem in problems)
            raise UnknownImage(
                f"there is no image {reference!r} in {self.backend.location}, "
                f"and these can't be read: {damaged}",
                hint="`remetal check REPO` says what is wrong with them.",
            )
        raise UnknownImage(f"there is no image {reference!r} in {self.backend.location}")

    def load_index(self, keys: GroupKeys) -> tuple[Index, list[Problem]]:
        """Return the merged index, whatever state the index objects are in.

        A pack that no readable index names is asked for its own directory: a lost or damaged
        index costs time and nothing else, and what a capture stored before it was interrupted is
        not sent again.
        """
        problems: list[Problem] = []
        there = {entry.name for entry in self.backend.list(index_format.PREFIX)}
        cache = IndexCache(self.id, keys.group)
        base = cache.load(there)
        names = set() if base is None else set(base.names)
        merger = Merger(base=None if base is None else base.merged)
        for name, segment in self._segments(names, keys, problems):
            merger.add(segment)
            names.add(name)
        if merger.is_large and (base is None or names != base.names):
            merger = Merger(base=cache.keep(merger, names))
        listed = merger.digests()
        for segment in self._unlisted(listed, keys, problems):
            merger.add(segment, is_listed=False)
        return Index(merger), problems

    def list_packs(self) -> PackListing:
        """List the packs that are there."""
        return PackListing.read(self.backend)

    def lost_packs(self, index: Index, listing: PackListing | None = None) -> set[str]:
        """Return the names of packs that the index names and that are gone or cut off.

        Args:
            index: of the repository.
            listing: of its packs, if there is one that is new enough.
        """
        sizes = (listing or self.list_packs()).of(index.digests).sizes
        return {
            name
            for pack in np.flatnonzero(sizes < index.sizes_needed()).tolist()
            if not self._ends_as_a_pack(name := index.name(pack), int(sizes[pack]))
        }

    def _ends_as_a_pack(self, name: str, size: int) -> bool:
        """Whether a pack has its end, so that an index which says it is longer lies."""
        if size < pack_format.TRAILER.size:
            return False
        start = size - pack_format.TRAILER.size
        try:
            end = self.backend.get_range(name, start, pack_format.TRAILER.size)
        except OBJECT_FAULTS:
            return False
        return end.endswith(pack_format.TRAILER_MAGIC)

    def _segments(
        self, known: AbstractSet[str], keys: GroupKeys, problems: list[Problem]
    ) -> Iterator[tuple[str, Segment]]:
        """Read all other indexes; when one goes meanwhile, a prune has put others in its place."""
        known = set(known)
        for _ in range(_LISTINGS):
            missing: list[Problem] = []
            for entry in self.backend.list(index_format.PREFIX):
                if entry.name in known:
                    continue
                try:
                    data = self.backend.get(entry.name)
                    segment = Segment.decode(data, entry.name, keys.directory_key, self.id)
                except ObjectMissing as error:
                    missing.append(Problem(entry.name, error))
                    continue
                except OBJECT_FAULTS as error:
                    problems.append(Problem(entry.name, error))
                else:
                    yield entry.name, segment
                known.add(entry.name)
            if not missing:
                return
        problems.extend(missing)

    def _unlisted(self, listed: Ids, keys: GroupKeys, problems: list[Problem]) -> Iterator[Segment]:
        """Read the directories of the packs that no index names."""
        there = self.list_packs()
        is_new = find(there.digests, listed) == NOWHERE

        def read(row: int) -> tuple[bytes, PackKind, Entries] | Problem | None:
            digest = there.digests[row].tobytes()
            name = pack_format.object_name(digest)
            try:
                kind, directory = pack_format.read_directory(
                    self.backend, name, int(there.sizes[row]), keys.directory_key, self.id
                )
            except ObjectMissing:
                # It went since it was listed: a prune is at work.
                return None
            except OBJECT_FAULTS as error:
                return Problem(name, error)
            return digest, kind, directory

        directories: list[tuple[bytes, PackKind, Entries]] = []
        with ThreadPoolExecutor(_READERS, thread_name_prefix="directory") as pool:
            unlisted = np.flatnonzero(is_new).tolist()
            for start in range(0, len(unlisted), _DIRECTORIES):
                for found in pool.map(read, unlisted[start : start + _DIRECTORIES]):
                    if isinstance(found, Problem):
                        problems.append(found)
                    elif found is not None:
                        directories.append(found)
                yield Segment.collect(directories)
                directories.clear()

    def _read_image(self, name: str, modified: float, keys: GroupKeys) -> SealedImage:
        return image_format.decode(
            self.backend.get(name),
            name.removeprefix(image_format.PREFIX),
            modified,
            self.trust,
            keys.directory_key,
        )


def _has_objects(backend: Backend) -> bool:
    return any(is_object(entry.name) for folder in FOLDERS for entry in backend.list(folder))


def _way_back(location: str) -> str:
    """Return what to do about a repository that can't be opened without its configuration."""
    return (
        f"Until `remetal repair {location}` brings `config` back, from parity or from another copy of "
        "the repository (--from OTHER_REPO), every image in it is touched."
    )


def _is_prefix(reference: str, image_id: str) -> bool:
    return len(reference) >= _SHORTEST_PREFIX and image_id.startswith(reference.lower())
