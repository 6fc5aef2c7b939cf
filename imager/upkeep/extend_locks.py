"""Extending the locks of what is kept.

A store with object lock keeps each object for a span from the moment it was put. What an image needs
may be much older than the image, so the locks of all that is kept are extended, once less than half
of the span is left: whoever prunes more often than that has everything under lock at all times.

What no image needs, and what is condemned or about to be repacked, is left to its lock's end; so are
indexes and parity that name it, since their locks would keep it (`imager.upkeep.locks`). Prune
writes them anew without it, and what is new is locked anew. Packs of an image that nobody
wants, but that the store still keeps, count as needed: that delays them by a span at most.
"""

import math
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from imager.repository import names
from imager.repository.backend.mirror import Mirror
from imager.repository.backend.protocol import Backend, Entry
from imager.repository.keyring import GroupKeys
from imager.repository.repository import Repository
from imager.upkeep.locks import AT_ONCE, ask
from imager.upkeep.parity_shares import read_groups
from imager.upkeep.prune import Plan, object_of
from imager.upkeep.repair_index import packs_named

# Folders of which everything is kept that the format knows.
_ALWAYS: Final = (names.GENERATIONS, names.STATEMENTS, names.REVOCATIONS)


@dataclass(frozen=True, slots=True)
class Extension:
    """Which locks are extended.

    Attributes:
        objects: names.
        until: until when, seconds since the epoch by the store's clock.
    """

    objects: tuple[str, ...]
    until: float


def plan(
    repository: Repository, keys: GroupKeys, made: Plan, kept: Iterable[str]
) -> Extension | None:
    """Decide which locks are extended.

    Args:
        repository: where they are.
        keys: of the group.
        made: what prune will do.
        kept: ids of the images that retention keeps.

    Returns:
        None if the store has no locks.

    Raises:
        OutputError: the store does not tell until when it keeps an object.
    """
    backend = repository.backend
    span = backend.lock_span
    if span is None:
        return None
    clock = backend.now()
    going = _going(made)
    # A mirror tells the time of the youngest copy, and each site locks its own.
    before = math.inf if isinstance(backend, Mirror) else clock - span / 2
    old = [names.CONFIG, *_old_packs(repository, made, going, before)]
    old += [
        entry.name
        for entry in _others(repository, keys, going, {object_of(image) for image in kept} - going)
        if entry.modified < before
    ]
    times = ask(backend, old, shortest=True)
    due = tuple(name for name in old if times.get(name, -math.inf) < clock + span / 2)
    return Extension(due, clock + span)


def execute(backend: Backend, extension: Extension) -> None:
    """Extend the locks. Stopped at any instant, the next run goes on.

    Args:
        backend: the store.
        extension: which, and until when.

    Raises:
        OutputError: the store does not take it.
    """
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="lock") as pool:
        for _ in pool.map(lambda name: backend.retain(name, extension.until), extension.objects):
            pass


def _going(made: Plan) -> set[str]:
    """Return the names of what goes, now or when its quarantine or its lock has ended."""
    packs = {name for name, _ in (*made.remove_packs, *made.condemn_packs)}
    packs |= {made.index.name(item.pack) for item in made.repack}
    packs |= {pack for removal in made.waiting for pack in removal.packs}
    images = {*made.remove_images, *made.condemn_images}
    images |= {image for removal in made.waiting for image in removal.images}
    return packs | {object_of(image) for image in images} | made.locked.keys()


def _old_packs(
    repository: Repository, made: Plan, going: Collection[str], before: float
) -> Iterator[str]:
    listing = repository.list_packs()
    digests = made.index.digests
    is_kept = listing.has(digests) & (made.usage.live > 0) & ~made.index.are(going)
    return made.index.names(is_kept & (listing.of(digests).modified < before))


def _others(
    repository: Repository, keys: GroupKeys, going: Collection[str], images: Collection[str]
) -> Iterator[Entry]:
    backend = repository.backend
    for folder in _ALWAYS:
        yield from (entry for entry in backend.list(folder) if names.is_object(entry.name))
    yield from (entry for entry in backend.list(names.IMAGES) if entry.name in images)
    for entry in backend.list(names.INDEXES):
        named = packs_named(repository, keys, entry.name)
        if named and named.isdisjoint(going):
            yield entry
    groups, _ = read_groups(backend, repository.id)
    shares = {
        share
        for group in groups.values()
        if not any(member.name in going for member in group.table.members)
        for share in group.shares.values()
    }
    yield from (entry for entry in backend.list(names.PARITY) if entry.name in shares)
