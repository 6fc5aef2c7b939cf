"""The part of a check that needs no key: are the bytes of each object those that were written?

Objects are named by their SHA-256; the configuration is proven by the repository id that all other
objects carry, generations by the chain of their signatures.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import Final

from imager.errors import OBJECT_FAULTS, ObjectDamaged
from imager.repository import generations, names
from imager.repository import statement as statements
from imager.repository.backend.protocol import Entry
from imager.repository.configuration import CONFIG_NAME, repository_id
from imager.repository.crypto.signing import verify
from imager.repository.header import HEADER_SIZE, ID_SIZE, Header
from imager.repository.repository import Repository
from imager.repository.statement import GenerationBody
from imager.upkeep.check_report import Bad

# So many headers say whose repository this is; a handful of them may be damaged.
_WITNESSES: Final = 33


class Judge:
    """Tells whether bytes are those an object must have; safe from any thread.

    Args:
        repository: whose public keys and id count.
        entries: of its objects, by name; the headers of some say which id is right.
    """

    def __init__(self, repository: Repository, entries: Iterable[Entry]) -> None:
        self._repository = repository
        self._chain, _ = generations.read(
            repository.backend, repository.id, repository.configuration
        )
        self.identity = self._majority(entries)

    def _majority(self, entries: Iterable[Entry]) -> bytes:
        """Return the repository id that most objects carry; between equals, the configuration's."""
        votes: Counter[bytes] = Counter()
        for entry in entries:
            if names.folder_of(entry.name) is None:
                continue
            try:
                header = self._repository.backend.get_range(entry.name, 0, HEADER_SIZE)
            except OBJECT_FAULTS:
                continue
            votes[header[-ID_SIZE:]] += 1
            if votes.total() >= _WITNESSES:
                break
        if not votes:
            return self._repository.id
        found, count = votes.most_common(1)[0]
        return found if count > votes[self._repository.id] else self._repository.id

    def look(self, name: str, data: bytes) -> Bad | None:
        """Return what is wrong with an object of a known name, if anything."""
        try:
            self._check(name, data)
        except OBJECT_FAULTS as error:
            return Bad(name, error.message)
        return None

    def _check(self, name: str, data: bytes) -> None:
        if name == CONFIG_NAME:
            if repository_id(data) != self.identity:
                raise ObjectDamaged(f"{name} is not the one that the other objects were made for")
            return
        number = names.generation_of(name)
        if number is not None:
            self._check_generation(name, number, data)
            return
        folder = names.folder_of(name)
        if folder is None:
            raise ObjectDamaged(f"{name} is no name of an object")
        if hashlib.sha256(data).hexdigest() != names.digest_of(name):
            raise ObjectDamaged(f"{name} has other bytes than were written")
        Header.decode(data, folder.magic, self.identity, name)

    def _check_generation(self, name: str, number: int, data: bytes) -> None:
        if not 2 <= number <= len(self._chain) + 1:
            raise ObjectDamaged(f"{name} does not follow any generation that can be believed")
        found = statements.decode(data, self._repository.id, name)
        before = self._chain[number - 2].body
        verify(before.signing_key, found.signature, found.signed, name)
        if not isinstance(found.body, GenerationBody) or found.body.generation != number:
            raise ObjectDamaged(f"{name} is not generation {number}")
