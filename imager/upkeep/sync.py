"""Bringing one copy of a repository up to date from another, without any key.

Only what is missing is copied, and nothing that is there is touched. What is named by its SHA-256
is compared with it on the way. The order is that of needs: an image comes after everything it may
need, so a sync that is stopped leaves a repository without its newest images, and no lie. What a
statement says was removed is not brought back.

    sync from A to B, beside          is
    a capture into A                  safe: what is new after the listing comes with the next sync
    a capture into B                  safe: names are created, never replaced
    prune of A                        safe: what vanishes on the way is told; if it was a pack, no image
                                      is copied before the next sync
    prune of B                        safe: likewise of packs that B takes for unneeded before their
                                      image is there; a new image brings back what B had removed
    check, repair of either           safe: objects appear whole
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from imager.errors import OBJECT_FAULTS, ObjectDamaged, ObjectMissing, OutputError, UsageError
from imager.repository import names
from imager.repository.backend.protocol import Backend, Entry
from imager.repository.configuration import Configuration, repository_id
from imager.repository.removals import read_removals
from imager.repository.repository import Problem, Repository
from imager.upkeep.prune import object_of

# What is needed comes before what needs it.
_ORDER: Final = (
    names.CONFIG,
    names.GENERATIONS,
    names.REVOCATIONS,
    names.STATEMENTS,
    names.PACKS,
    names.INDEXES,
    names.PARITY,
    names.REMOVALS,
    names.IMAGES,
)
_AT_ONCE: Final = 4

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """What a sync will copy.

    Attributes:
        missing: at the target, in the order in which it comes.
        removed: names of objects that are left out, because they were removed.
        differing: names of objects that are of another size at the target; `repair` is for them.
        packs: names of the packs that the target must have before an index or an image comes.
    """

    missing: tuple[Entry, ...]
    removed: tuple[str, ...]
    differing: tuple[str, ...]
    packs: frozenset[str]

    @property
    def size(self) -> int:
        """Bytes to copy."""
        return sum(entry.size for entry in self.missing)


@dataclass(frozen=True, slots=True)
class Synced:
    """What a sync has done.

    Attributes:
        copied: number of objects.
        copied_bytes: of them.
        vanished: names of objects that a prune has removed meanwhile.
        problems: objects that are damaged at the source; they are not copied.
    """

    copied: int
    copied_bytes: int
    vanished: tuple[str, ...]
    problems: tuple[Problem, ...]


def plan(source: Backend, target: Backend) -> SyncPlan:
    """Compare two copies.

    Args:
        source: a repository.
        target: another copy of it, or an empty place.

    Raises:
        NotARepository: the source is none.
        UsageError: the target is another repository.
    """
    config = source.get(names.CONFIG)
    configuration = Configuration.decode(config, source.location)
    there = {entry.name: entry for entry in target.list("")}
    if names.CONFIG in there:
        if target.get(names.CONFIG) != config:
            raise UsageError(
                f"{target.location} is another repository than {source.location}",
                hint="A sync goes from a repository to a copy of itself, or to an empty place.",
            )
    elif any(map(names.is_object, there)):
        raise UsageError(
            f"{target.location} has lost its `config`",
            hint=f"`remetal repair {target.location} --from {source.location}` brings it back.",
        )
    gone = _removed(Repository.of(source, repository_id(config), configuration))
    entries = list(source.list(""))
    if names.CONFIG in there:
        gone_there = _removed(Repository.of(target, repository_id(config), configuration))
        known = there.keys() | gone | gone_there
        is_new = any(
            entry.name.startswith(names.IMAGES) and entry.name not in known for entry in entries
        )
        # A new image may need a pack that was removed there: without a key nobody can tell.
        gone |= {n for n in gone_there if not (is_new and n.startswith(names.PACKS))}
    missing, removed, differing = [], [], []
    for entry in entries:
        if not names.is_object(entry.name):
            continue
        other = there.get(entry.name)
        if other is not None:
            if other.size != entry.size:
                differing.append(entry.name)
        elif entry.name in gone:
            removed.append(entry.name)
        else:
            missing.append(entry)
    missing.sort(key=lambda entry: (_rank(entry.name), entry.modified, entry.name))
    packs = {
        entry.name
        for entry in entries
        if entry.name.startswith(names.PACKS) and names.is_object(entry.name)
    }
    return SyncPlan(
        tuple(missing), tuple(removed), tuple(differing), frozenset(packs.difference(removed))
    )


def execute(
    made: SyncPlan,
    source: Backend,
    target: Backend,
    advance: Advance,
    proceed: Callable[[], None] = lambda: None,
) -> Synced:
    """Copy what a plan lists; run again after an interruption, it copies the rest.

    Args:
        made: the plan.
        source: as it was planned.
        target: likewise.
        advance: told of every byte that was copied.
        proceed: called before each object; it waits, or raises, when it is not the time.

    Raises:
        OutputError: the target does not take it, or has lost packs meanwhile that images may need.
    """
    copied = size = 0
    vanished: list[str] = []
    problems: list[Problem] = []
    for rank, group in groupby(made.missing, key=lambda entry: _rank(entry.name)):
        if rank in {_rank(names.INDEXES), _rank(names.IMAGES)}:
            _refuse_without(made.packs - {problem.name for problem in problems}, target)
        for entry, fault in _copied(list(group), source, target, proceed):
            if fault is None:
                copied += 1
                size += entry.size
                advance(entry.size)
            elif isinstance(fault, ObjectMissing):
                vanished.append(entry.name)
            else:
                problems.append(Problem(entry.name, fault))
    return Synced(copied, size, tuple(vanished), tuple(problems))


def _refuse_without(packs: frozenset[str], target: Backend) -> None:
    """Let no image come before its packs: a long sync meets prunes of both sides."""
    lost = packs.difference(entry.name for entry in target.list(names.PACKS))
    if lost:
        raise OutputError(
            f"{len(lost)} packs were removed meanwhile, so no image was copied",
            hint="Run the sync again: it copies what is missing now.",
        )


def _copied(
    entries: Sequence[Entry], source: Backend, target: Backend, proceed: Callable[[], None]
) -> Iterator[tuple[Entry, ObjectMissing | ObjectDamaged | None]]:
    """Copy objects that don't need each other; yield each, and what was wrong with it."""

    def copy(entry: Entry) -> ObjectMissing | ObjectDamaged | None:
        try:
            data = source.get(entry.name)
        except (ObjectMissing, ObjectDamaged) as fault:
            return fault
        digest = names.digest_of(entry.name)
        if digest is not None and hashlib.sha256(data).hexdigest() != digest:
            return ObjectDamaged(f"{entry.name} has other bytes than were written")
        target.put_new(entry.name, [data], entry.modified)
        return None

    waiting = iter(entries)
    running: dict[Future[ObjectMissing | ObjectDamaged | None], Entry] = {}
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="sync") as pool:
        try:
            while True:
                for entry in waiting:
                    proceed()
                    running[pool.submit(copy, entry)] = entry
                    if len(running) == _AT_ONCE:
                        break
                if not running:
                    return
                for done in wait(running, return_when=FIRST_COMPLETED)[0]:
                    yield running.pop(done), done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _rank(name: str) -> int:
    return next(place for place, prefix in enumerate(_ORDER) if name.startswith(prefix))


def _removed(repository: Repository) -> set[str]:
    """Return the objects that were removed, as far as statements still say so."""
    try:
        return {
            name
            for removal in read_removals(repository).removed
            for name in (*removal.packs, *map(object_of, removal.images))
        }
    except OBJECT_FAULTS:
        return set()
