"""A repository: creating it, opening it, listing what is in it.

Locking table. Every object is created whole, only if absent, and never changed or removed, so no
operation of this version waits for another, and none takes a lock:

    | runs beside   | init          | capture       | images, show  | check         | restore       |
    |---------------|---------------|---------------|---------------|---------------|---------------|
    | init          | one wins      | -             | -             | -             | -             |
    | capture       | -             | both complete | old view      | old view      | old view      |
    | check         | -             | old view      | both complete | both complete | both complete |
    | restore       | -             | old view      | both complete | both complete | both complete |

"Old view": the reader sees the images that were complete when it listed them; what a capture adds
meanwhile is not seen, and can't disturb. Two captures that send the same new chunk at the same
time store it twice; both copies are valid.
"""

import hashlib
import secrets as random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from imager.errors import (
    NotARepository,
    ObjectMissing,
    RemetalError,
    RepositoryExists,
    UnknownImage,
    UsageError,
)
from imager.repository import image as image_format
from imager.repository import index as index_format
from imager.repository import pack as pack_format
from imager.repository.backend.directory import DirectoryBackend
from imager.repository.backend.protocol import Backend
from imager.repository.configuration import (
    CONFIG_NAME,
    Configuration,
    Secrets,
    new_configuration,
    repository_id,
)
from imager.repository.crypto.recipient import Recipient
from imager.repository.crypto.signing import Signer
from imager.repository.header import ID_SIZE
from imager.repository.image import SealedImage
from imager.repository.index import Index, Segment
from imager.repository.keyring import Credential, GroupKeys
from imager.repository.statement import Certificate

STATEMENTS: Final = "statements/"
LATEST: Final = "latest"
_SHORTEST_PREFIX: Final = 4


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


def open_backend(location: str) -> Backend:
    """Return the backend for a location.

    Raises:
        UsageError: no backend of this version serves such a location.
    """
    scheme, separator, _ = location.partition("://")
    if separator:
        raise UsageError(
            f"repositories at {scheme}:// can't be reached by this version",
            hint="Give a directory.",
        )
    return DirectoryBackend(Path(location))


@dataclass(frozen=True, slots=True)
class Repository:
    """An open repository.

    Attributes:
        backend: where its objects lie.
        id: sixteen bytes.
        configuration: its root of trust.
    """

    backend: Backend
    id: bytes
    configuration: Configuration

    @staticmethod
    def is_repository(path: Path) -> bool:
        """Whether a directory looks like a repository."""
        try:
            return '"remetal repository"' in (path / CONFIG_NAME).read_text("utf-8")[:200]
        except (OSError, UnicodeDecodeError):
            return False

    @classmethod
    def open(cls, location: str) -> "Repository":
        """Open a repository.

        Raises:
            NotARepository: there is none.
            UnsupportedFormat: it is of another version.
        """
        backend = open_backend(location)
        try:
            data = backend.get(CONFIG_NAME)
        except ObjectMissing as error:
            raise NotARepository(f"there is no repository at {backend.location}") from error
        configuration = Configuration.decode(data, backend.location)
        return cls(backend, repository_id(data), configuration)

    @classmethod
    def create(
        cls,
        location: str,
        recipients: Sequence[tuple[str, Recipient]],
        keep: Callable[["Repository", Secrets], None],
    ) -> "Repository":
        """Make a new repository.

        Args:
            location: an empty or new place.
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
        backend = open_backend(location)
        if any(True for _ in backend.list("")):
            raise RepositoryExists(f"{backend.location} is not empty")
        secrets = Secrets(Signer.generate(), random.token_bytes(ID_SIZE), random.token_bytes(32))
        configuration = new_configuration(secrets, tuple(recipients), now())
        data = configuration.encode()
        repository = cls(backend, repository_id(data), configuration)
        keep(repository, secrets)
        if not backend.put_new(CONFIG_NAME, [data]):
            raise RepositoryExists(f"there is a repository at {backend.location} already")
        return repository

    @property
    def recipients(self) -> tuple[Recipient, ...]:
        """Who can open images."""
        return tuple(Recipient(entry.public_key) for entry in self.configuration.recipients)

    def group_keys(self, secrets: Secrets) -> GroupKeys:
        """Return the keys of the group that these secrets hold."""
        return GroupKeys(self.id, secrets.group, secrets.group_secret)

    def new_credential(self, secrets: Secrets, name: str) -> Credential:
        """Make a credential that the repository vouches for; `publish` makes it known."""
        signer = Signer.generate()
        certificate = Certificate.issue(
            secrets.signer, self.id, secrets.group, name, signer.public_key, now()
        )
        return Credential(self.id, secrets.group_secret, signer, certificate.encoded)

    def publish(self, credential: Credential) -> None:
        """Store the statement that vouches for a credential."""
        data = credential.certificate
        self.backend.put_new(STATEMENTS + hashlib.sha256(data).hexdigest(), [data])

    def credential_keys(self, credential: Credential) -> GroupKeys:
        """Return the group keys of a credential, after checking that it belongs here.

        Raises:
            ObjectDamaged: it is of another repository.
            UntrustedObject: this repository does not vouch for it.
        """
        certificate = Certificate.decode(
            credential.certificate, self.id, self.configuration.signing_key, "the credential"
        )
        return GroupKeys(self.id, certificate.group, credential.group_secret)

    def images(self, keys: GroupKeys) -> tuple[list[SealedImage], list[Problem]]:
        """Return the images, oldest first by the store's clock, and what can't be read."""
        found: list[SealedImage] = []
        problems: list[Problem] = []
        for entry in self.backend.list(image_format.PREFIX):
            try:
                found.append(self._read_image(entry.name, entry.modified, keys))
            except RemetalError as error:
                problems.append(Problem(entry.name, error))
        found.sort(key=lambda image: (image.modified, image.summary.finished, image.id))
        return found, problems

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

        A pack that no readable index names is asked for its own directory, so a lost or damaged
        index costs time and nothing else.
        """
        segments: list[Segment] = []
        problems: list[Problem] = []
        for entry in self.backend.list(index_format.PREFIX):
            try:
                data = self.backend.get(entry.name)
                segments.append(Segment.decode(data, entry.name, keys.directory_key, self.id))
            except RemetalError as error:
                problems.append(Problem(entry.name, error))
        if problems or not segments:
            segments.append(self._index_of_unlisted(segments, keys, problems))
        return Index(segments), problems

    def lost_packs(self, index: Index) -> set[str]:
        """Return the names of packs that the index names and that are gone or cut off."""
        sizes = {entry.name: entry.size for entry in self.backend.list(pack_format.PREFIX)}
        needed = index.sizes_needed()
        return {name for name, size in needed.items() if sizes.get(name, 0) < size}

    def _index_of_unlisted(
        self, segments: Sequence[Segment], keys: GroupKeys, problems: list[Problem]
    ) -> Segment:
        listed = {digest for segment in segments for digest, _ in segment.packs}
        directories = []
        for entry in self.backend.list(pack_format.PREFIX):
            try:
                digest = bytes.fromhex(entry.name.rpartition("/")[2])
            except ValueError:
                continue
            if digest in listed:
                continue
            try:
                kind, directory = pack_format.read_directory(
                    self.backend, entry.name, entry.size, keys.directory_key, self.id
                )
            except RemetalError as error:
                problems.append(Problem(entry.name, error))
            else:
                directories.append((digest, kind, directory))
        return Segment.collect(directories)

    def _read_image(self, name: str, modified: float, keys: GroupKeys) -> SealedImage:
        return image_format.decode(
            self.backend.get(name),
            name.removeprefix(image_format.PREFIX),
            modified,
            self.id,
            self.configuration.signing_key,
            keys.directory_key,
        )


def _is_prefix(reference: str, image_id: str) -> bool:
    return len(reference) >= _SHORTEST_PREFIX and image_id.startswith(reference.lower())
