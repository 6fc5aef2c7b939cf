"""What the store keeps for now, and until when: objects under a lock, and what only they name.

A pack or image that is not needed any more has to stay as long as an index or parity object that
names it is locked: a reader would find the name, and take what is gone for damage.
"""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from imager.repository import index as index_format
from imager.repository import parity_object
from imager.repository.backend.protocol import Backend
from imager.repository.keyring import GroupKeys
from imager.repository.repository import Repository
from imager.upkeep.parity_shares import read_groups
from imager.upkeep.repair_index import packs_named

AT_ONCE: Final = 8  # requests to a store

Times = Mapping[str, float]


class Locks:
    """The locks of a repository's objects, asked for as they are needed.

    Args:
        repository: where they lie.
        keys: of the group.
    """

    def __init__(self, repository: Repository, keys: GroupKeys) -> None:
        self._repository = repository
        self._keys = keys
        self._named: Times | None = None

    def of(self, names: Iterable[str]) -> Times:
        """Return those of some objects that can't go now, with the time from which on they can.

        Returns:
            Seconds since the epoch by the store's clock; infinite where somebody has to lift a lock.

        Raises:
            OutputError: the store does not tell.
        """
        wanted = set(names)
        if not wanted:
            return {}
        if self._named is None:
            self._named = self._named_by_locked_objects()
        return _latest(ask(self._repository.backend, wanted), self._named, wanted)

    def _named_by_locked_objects(self) -> Times:
        backend = self._repository.backend
        members = _members_of_locked_parity(self._repository)
        indexes = {entry.name for entry in backend.list(index_format.PREFIX)}
        found = dict(members)
        for index, until in _latest(ask(backend, indexes), members, indexes).items():
            for pack in packs_named(self._repository, self._keys, index):
                found[pack] = max(until, found.get(pack, until))
        return found


def ask(backend: Backend, names: Iterable[str], *, shortest: bool = False) -> Times:
    """Return until when the store keeps each of some objects; see `Backend.locked_until`.

    Raises:
        OutputError: the store does not tell.
    """
    ordered = sorted(names)
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="lock") as pool:
        times = list(pool.map(partial(backend.locked_until, shortest=shortest), ordered))
    return {name: until for name, until in zip(ordered, times, strict=True) if until is not None}


def _latest(one: Times, other: Times, names: set[str]) -> Times:
    """Return the later of two times of each name that has any."""
    return {
        name: max(locks[name] for locks in (one, other) if name in locks)
        for name in sorted(names & (one.keys() | other.keys()))
    }


def _members_of_locked_parity(repository: Repository) -> Times:
    backend = repository.backend
    locks = ask(backend, [entry.name for entry in backend.list(parity_object.PREFIX)])
    found: dict[str, float] = {}
    for group in read_groups(backend, repository.id)[0].values() if locks else ():
        times = [locks[share] for share in group.shares.values() if share in locks]
        for member in group.table.members if times else ():
            found[member.name] = max(*times, found.get(member.name, 0.0))
    return found
