"""What `repair` starts from: which objects are as they were written, and which are not."""

import hashlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from imager.errors import NotARepository, RemetalError
from imager.repository import statement as statements
from imager.repository.backend.protocol import Backend
from imager.repository.configuration import CONFIG_NAME, Configuration, repository_id
from imager.repository.crypto.signing import verify
from imager.repository.header import HEADER_SIZE, ID_SIZE
from imager.repository.names import digest_of
from imager.repository.statement import GenerationBody
from imager.upkeep.parity_shares import StoredGroup, read_groups

STASH: Final = "repaired/"
GENERATIONS: Final = "generations/"
_READERS: Final = 2

Advance = Callable[[int], None]


class Verifier:
    """Tells whether bytes are those that an object of some name must have.

    Args:
        repository: id of the repository.
        location: of the repository, for errors.
    """

    def __init__(self, repository: bytes, location: str) -> None:
        self.repository = repository
        self._location = location
        self._signing_keys: dict[int, bytes] = {}

    def trust(self, config: bytes) -> Configuration:
        """Use this configuration, which verifies, to judge generations; it is the first of them.

        Raises:
            NotARepository: it can't be read.
        """
        configuration = Configuration.decode(config, self._location)
        self._signing_keys[1] = configuration.signing_key
        return configuration

    def can_judge(self, name: str) -> bool:
        """Whether what it takes is known: for a generation, the key of the one before."""
        return not name.startswith(GENERATIONS) or _number(name) - 1 in self._signing_keys

    def verifies(self, name: str, data: bytes) -> bool:
        """Whether the object may have these bytes; False for names that nobody knows."""
        digest = digest_of(name)
        if digest is not None:
            return hashlib.sha256(data).hexdigest() == digest
        if name == CONFIG_NAME:
            return repository_id(data) == self.repository
        if not name.startswith(GENERATIONS) or not self.can_judge(name):
            return False
        number = _number(name)
        try:
            said = statements.decode(data, self.repository, name)
            verify(self._signing_keys[number - 1], said.signature, said.signed, name)
        except RemetalError:
            return False
        if not isinstance(said.body, GenerationBody) or said.body.generation != number:
            return False
        self._signing_keys[number] = said.body.signing_key
        return True

    def verifies_at(self, backend: Backend, name: str) -> bool:
        """Whether the object is there and is as it must be."""
        try:
            return self.verifies(name, backend.get(name))
        except RemetalError:
            return False


@dataclass(frozen=True, slots=True)
class Scan:
    """The state of a repository.

    Attributes:
        verifier: for this repository.
        sizes: every object that is there, stashes and unknown names excepted.
        intact: those that verify.
        damaged: those that do not.
        stashes: names below `repaired/`.
        groups: of parity.
        lost: members of parity groups that are not there.
        config: bytes of the configuration, if it verifies.
    """

    verifier: Verifier
    sizes: dict[str, int]
    intact: frozenset[str]
    damaged: frozenset[str]
    stashes: tuple[str, ...]
    groups: dict[bytes, StoredGroup]
    lost: frozenset[str]
    config: bytes | None


def total_bytes(backend: Backend) -> int:
    """Return how many bytes a scan reads."""
    return sum(entry.size for entry in backend.list(""))


def scan(backend: Backend, advance: Advance) -> Scan:
    """Read every object and compare it with its name; needs no keys and no configuration.

    The repository's id is the one that most intact objects carry; so a configuration that was
    exchanged is noticed, and one that is lost is not needed.

    Raises:
        NotARepository: nothing here says which repository it is.
    """
    sizes = {entry.name: entry.size for entry in backend.list("")}
    stashes = tuple(sorted(name for name in sizes if name.startswith(STASH)))
    hashed = [name for name in sizes if digest_of(name) is not None]
    names_only = Verifier(bytes(ID_SIZE), backend.location)

    def look(name: str) -> tuple[str, bytes | None]:
        try:
            data = backend.get(name)
        except RemetalError:
            return name, None
        finally:
            advance(sizes[name])
        if not names_only.verifies(name, data):
            return name, None
        return name, data[HEADER_SIZE - ID_SIZE : HEADER_SIZE]

    intact: set[str] = set()
    owners: Counter[bytes] = Counter()
    with ThreadPoolExecutor(_READERS, thread_name_prefix="repair") as pool:
        for name, owner in pool.map(look, sorted(hashed)):
            if owner is not None:
                intact.add(name)
                owners[owner] += 1
    config = _get(backend, CONFIG_NAME)
    verifier = Verifier(_identify(backend, config, owners), backend.location)
    groups, _ = read_groups(backend, verifier.repository)
    recorded = {
        (member.name, member.digest) for group in groups.values() for member in group.table.members
    }
    if config is not None and verifier.verifies(CONFIG_NAME, config):
        intact.add(CONFIG_NAME)
        verifier.trust(config)
    else:
        config = None
    generations = sorted((n for n in sizes if n.startswith(GENERATIONS)), key=_number)
    for name in generations:
        data = _get(backend, name) or b""
        seen = (name, hashlib.sha256(data).digest()) in recorded
        if verifier.verifies(name, data) or seen or not verifier.can_judge(name):
            intact.add(name)
    known = {*hashed, *generations, CONFIG_NAME} & sizes.keys()
    lost = {name for name, _ in recorded} | {CONFIG_NAME}
    return Scan(
        verifier,
        {name: sizes[name] for name in known},
        frozenset(intact),
        frozenset(known - intact),
        stashes,
        groups,
        frozenset(lost - known),
        config,
    )


def _identify(backend: Backend, config: bytes | None, owners: Counter[bytes]) -> bytes:
    if owners:
        return owners.most_common(1)[0][0]
    if config is None:
        raise NotARepository(f"there is no repository at {backend.location}")
    Configuration.decode(config, backend.location)
    return repository_id(config)


def _number(name: str) -> int:
    text = name.removeprefix(GENERATIONS)
    return int(text) if text.isdecimal() and len(text) < 10 else 0


def _get(backend: Backend, name: str) -> bytes | None:
    try:
        return backend.get(name)
    except RemetalError:
        return None
