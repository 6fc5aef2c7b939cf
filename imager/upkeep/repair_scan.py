"""What `repair` starts from: which objects are as they were written, and which are not."""

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from imager.errors import OBJECT_FAULTS, NotARepository, ObjectMissing
from imager.repository import generations
from imager.repository import statement as statements
from imager.repository.backend.protocol import Backend, Entry
from imager.repository.configuration import CONFIG_NAME, Configuration, repository_id
from imager.repository.crypto.signing import verify
from imager.repository.header import HEADER_SIZE, ID_SIZE
from imager.repository.names import digest_of, is_object
from imager.repository.statement import GenerationBody
from imager.upkeep.parity_shares import StoredGroup, read_groups

STASH: Final = "repaired/"
_READERS: Final = 2
_IN_FLIGHT: Final = 2 * _READERS
# So many headers say whose objects these are; a handful of them may be damaged.
_WITNESSES: Final = 33

Advance = Callable[[int], None]


class State(StrEnum):
    """How an object is.

    Only what was read whole and has other bytes is damaged. What the store does not give now may
    be as it was written all the same, so nothing ever replaces it.
    """

    INTACT = "intact"
    DAMAGED = "damaged"
    MISSING = "missing"
    UNREADABLE = "unreadable"


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
        return not is_generation(name) or number_of(name) - 1 in self._signing_keys

    def verifies(self, name: str, data: bytes) -> bool:
        """Whether the object may have these bytes; False for names that nobody knows."""
        digest = digest_of(name)
        if digest is not None:
            return hashlib.sha256(data).hexdigest() == digest
        if name == CONFIG_NAME:
            return repository_id(data) == self.repository
        if not is_generation(name) or not self.can_judge(name):
            return False
        number = number_of(name)
        try:
            said = statements.decode(data, self.repository, name)
            verify(self._signing_keys[number - 1], said.signature, said.signed, name)
        except OBJECT_FAULTS:
            return False
        if not isinstance(said.body, GenerationBody) or said.body.generation != number:
            return False
        self._signing_keys[number] = said.body.signing_key
        return True

    def state_at(self, backend: Backend, name: str, at: str = "") -> State:
        """Return how the object is now, or how what lies at another place would do for it."""
        try:
            data = backend.get(at or name)
        except ObjectMissing:
            return State.MISSING
        except OBJECT_FAULTS:
            return State.UNREADABLE
        return State.INTACT if self.verifies(name, data) else State.DAMAGED


@dataclass(frozen=True, slots=True)
class Scan:
    """The state of a repository.

    Attributes:
        verifier: for this repository.
        entries: every object that is there, stashes and unknown names excepted.
        intact: those that verify.
        damaged: those that were read whole and do not.
        unreadable: those that the store does not give, with the reason.
        unsure: generations that nobody can judge before the one before them is back.
        stashes: below `repaired/`, by name.
        groups: of parity.
        lost: members of parity groups that are not there.
        config: bytes of the configuration, if it verifies.
    """

    verifier: Verifier
    entries: dict[str, Entry]
    intact: frozenset[str]
    damaged: frozenset[str]
    unreadable: Mapping[str, str]
    unsure: frozenset[str]
    stashes: Mapping[str, Entry]
    groups: dict[bytes, StoredGroup]
    lost: frozenset[str]
    config: bytes | None


@dataclass(slots=True)
class _Seen:
    """What reading the objects has shown."""

    intact: set[str]
    damaged: set[str]
    unreadable: dict[str, str]
    vanished: set[str]
    owners: Counter[bytes]


def total_bytes(backend: Backend) -> int:
    """Return how many bytes a scan reads."""
    return sum(entry.size for entry in backend.list(""))


def identify(backend: Backend) -> bytes:
    """Return the id that most of some objects carry; without any, what the configuration gives.

    Raises:
        NotARepository: nothing here says which repository it is.
    """
    owners: Counter[bytes] = Counter()
    for entry in backend.list(""):
        if digest_of(entry.name) is None:
            continue
        try:
            owners[backend.get_range(entry.name, 0, HEADER_SIZE)[-ID_SIZE:]] += 1
        except OBJECT_FAULTS:
            continue
        if owners.total() >= _WITNESSES:
            break
    return _majority(backend, owners)


def scan(backend: Backend, advance: Advance) -> Scan:
    """Read every object and compare it with its name; needs no keys and no configuration.

    The repository's id is the one that most intact objects carry; so a configuration that was
    exchanged is noticed, and one that is lost is not needed. What vanishes while this reads was
    removed by a prune and is passed over, unless a new listing still names it.

    Raises:
        NotARepository: nothing here says which repository it is.
    """
    listed = {entry.name: entry for entry in backend.list("")}
    seen = _read_hashed(
        backend, [listed[n] for n in sorted(listed) if digest_of(n) is not None], advance
    )
    verifier = Verifier(_majority(backend, seen.owners), backend.location)
    groups, _ = read_groups(backend, verifier.repository)
    recorded = {
        (member.name, member.digest) for group in groups.values() for member in group.table.members
    }
    config = _read(backend, CONFIG_NAME, seen)
    if config is not None and verifier.verifies(CONFIG_NAME, config):
        seen.intact.add(CONFIG_NAME)
        verifier.trust(config)
    else:
        if config is not None:
            seen.damaged.add(CONFIG_NAME)
        config = None
    unsure = set()
    for name in sorted((n for n in listed if is_generation(n)), key=number_of):
        data = _read(backend, name, seen)
        if data is None:
            continue
        if verifier.verifies(name, data):
            seen.intact.add(name)
        elif (name, hashlib.sha256(data).digest()) in recorded:
            seen.intact.add(name)
            unsure.add(name)
        elif verifier.can_judge(name):
            seen.damaged.add(name)
        else:
            unsure.add(name)
    # What came since the first listing is not lost either.
    there = {entry.name for entry in backend.list("")}
    for name in seen.vanished & there:
        if name in listed:
            seen.damaged.add(name)
    gone = seen.vanished - there
    lost = {name for name, _ in recorded} | {CONFIG_NAME}
    return Scan(
        verifier,
        {n: e for n, e in listed.items() if n not in gone and (is_object(n) or is_generation(n))},
        frozenset(seen.intact),
        frozenset(seen.damaged),
        seen.unreadable,
        frozenset(unsure),
        {n: e for n, e in sorted(listed.items()) if n.startswith(STASH)},
        groups,
        frozenset(lost - there),
        config,
    )


def is_generation(name: str) -> bool:
    """Whether an object is, or may be meant as, a key generation."""
    return name.startswith(generations.PREFIX)


def number_of(name: str) -> int:
    """Return the number of a generation; 0 if its name has none."""
    text = name.removeprefix(generations.PREFIX)
    return int(text) if text.isdecimal() and len(text) < 10 else 0


def _read_hashed(backend: Backend, entries: Iterable[Entry], advance: Advance) -> _Seen:
    seen = _Seen(set(), set(), {}, set(), Counter())
    judge = Verifier(bytes(ID_SIZE), backend.location)
    queue: deque[tuple[str, Future[bytes | None]]] = deque()

    def owner(entry: Entry) -> bytes | None:
        """Return the repository id in an object; None if it has other bytes than were written."""
        try:
            data = backend.get(entry.name)
        finally:
            advance(entry.size)
        return (
            data[HEADER_SIZE - ID_SIZE : HEADER_SIZE] if judge.verifies(entry.name, data) else None
        )

    def note(name: str, future: Future[bytes | None]) -> None:
        try:
            found = future.result()
        except ObjectMissing:
            seen.vanished.add(name)
        except OBJECT_FAULTS as error:
            seen.unreadable[name] = error.message
        else:
            if found is None:
                seen.damaged.add(name)
            else:
                seen.intact.add(name)
                seen.owners[found] += 1

    with ThreadPoolExecutor(_READERS, thread_name_prefix="repair") as pool:
        for entry in entries:
            while len(queue) >= _IN_FLIGHT:
                note(*queue.popleft())
            queue.append((entry.name, pool.submit(owner, entry)))
        while queue:
            note(*queue.popleft())
    return seen


def _read(backend: Backend, name: str, seen: _Seen) -> bytes | None:
    try:
        return backend.get(name)
    except ObjectMissing:
        seen.vanished.add(name)
    except OBJECT_FAULTS as error:
        seen.unreadable[name] = error.message
    return None


def _majority(backend: Backend, owners: Counter[bytes]) -> bytes:
    if owners:
        return owners.most_common(1)[0][0]
    try:
        config = backend.get(CONFIG_NAME)
    except OBJECT_FAULTS as error:
        raise NotARepository(f"there is no repository at {backend.location}") from error
    Configuration.decode(config, backend.location)
    return repository_id(config)
