"""Repair: bring lost and damaged objects back, from parity or from another copy.

What verifies is never touched, nor is what the store can't read: only what was read whole and has
other bytes is replaced. What is written was verified first: its SHA-256 is what its name
says (the configuration: what the repository's id says; a generation: signed). To replace a rotten
object in a store that only creates, the good bytes are first made durable at `repaired/<name>`,
then the rotten object goes, then the good one is created, then `repaired/<name>` goes. Stopped at
any instant, the next run finishes what it finds there.

A plan looks at the repository as it will be when all is back (`repair_sources.View`), so that one
run suffices: keys, removals, indexes and the maps of images are read there.

What is lost is known from parity groups and from indexes. Not lost is what a REMOVED statement
that is believed names, unless an image needs it all the same; an index that only names packs which
others name or which were removed (`repair_index.is_useful`); and, when all images and maps could
be read, a pack that no image needs and that nothing can bring back. Without keys, indexes and what
images need can't be read: then all these come back if they can. That is harmless: an index that
names what is gone damages no image, and the next repair with keys says nothing of it.

A damaged pack that can't be brought back stays: its intact chunks still serve restores.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from imager.errors import NotARepository, ObjectDamaged, RemetalError, UsageError
from imager.repository import image as image_format
from imager.repository import index as index_format
from imager.repository import pack as pack_format
from imager.repository import parity_object
from imager.repository import statement as statements
from imager.repository.backend.protocol import Backend
from imager.repository.configuration import CONFIG_NAME
from imager.repository.keyring import GroupKeys
from imager.repository.removals import KEEP_REMOVED, read_removals
from imager.repository.repository import Repository
from imager.upkeep import parity, repair_index
from imager.upkeep.parity_shares import StoredGroup
from imager.upkeep.repair_images import Broken, Survey, Touched, survey, taken_at
from imager.upkeep.repair_scan import STASH, Scan, State, Verifier, identify
from imager.upkeep.repair_scan import scan as scan_objects
from imager.upkeep.repair_sources import Source, Sources, Step, View, good_bytes
from imager.upkeep.repair_write import (
    Failed,
    clear_stashes,
    drop,
    make_shares_again,
    put_back,
)

# What prune may remove.
_REMOVABLE: Final = (pack_format.PREFIX, image_format.PREFIX, index_format.PREFIX)

Advance = Callable[[int], None]
KeysOf = Callable[[Repository], GroupKeys | None]


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """What `execute` will do, in this order.

    Attributes:
        found: what the scan found.
        sources: where the bytes of the steps come from.
        stashes: of interrupted repairs, to be finished or cleared away.
        steps: objects that will be brought back.
        shares: parity groups whose shares are made again.
        new_parity: damaged parity objects of which nothing can be used; they go, and parity is
            made anew for what they covered.
        gone: objects that parity groups still name and nothing needs any more; parity is made
            anew without them.
        rebuild_index: whether index objects are made from the directories of packs.
        drop_indexes: damaged indexes that go once the rebuilt ones are durable.
        rotten_removals: statements of removals that nothing brings back; no image needs them, and
            those a day old go.
        broken: what can't be brought back.
        touched: images that can't be restored whole when all is done; None without keys.
        intact: how many objects verified.
    """

    found: Scan
    sources: Sources
    stashes: tuple[str, ...]
    steps: tuple[Step, ...]
    shares: tuple[StoredGroup, ...]
    new_parity: tuple[str, ...]
    gone: tuple[str, ...]
    rebuild_index: bool
    drop_indexes: tuple[str, ...]
    rotten_removals: tuple[str, ...]
    broken: tuple[Broken, ...]
    touched: tuple[Touched, ...] | None
    intact: int

    @property
    def repository(self) -> bytes:
        """Id of the repository."""
        return self.found.verifier.repository

    @property
    def is_empty(self) -> bool:
        """Whether nothing will be changed."""
        return not (self.stashes or self.gone or self.rotten_removals or self.mends)

    @property
    def mends(self) -> bool:
        """Whether something damaged or lost will be made whole."""
        return bool(self.steps or self.shares or self.new_parity or self.rebuild_index)


@dataclass(frozen=True, slots=True)
class Repaired:
    """What `execute` did.

    Attributes:
        names: objects that were brought back or made again.
        failed: steps that turned out not to be possible, with the reason.
    """

    names: tuple[str, ...]
    failed: tuple[tuple[str, RemetalError], ...]


@dataclass(frozen=True, slots=True)
class _Look:
    """What the keys of the group show of a repository.

    Attributes:
        images: what their maps say; None without keys.
        gone: objects that are not there and that nothing needs.
        no_index: whether there are packs and no index at all.
    """

    images: Survey | None
    gone: frozenset[str]
    no_index: bool


def plan(
    backend: Backend, copies: Sequence[Backend], keys_of: KeysOf, advance: Advance
) -> RepairPlan:
    """Look at every object and plan what can be brought back; writes nothing.

    Args:
        backend: of the repository; its configuration may be lost.
        copies: other places where the same repository lies.
        keys_of: gives the keys of the group for the repository, or None; without them lost
            indexes are not rebuilt, and what stays broken is not named image by image.
        advance: told of every byte read.

    Raises:
        NotARepository: nothing says which repository this is, or a copy is none.
        UsageError: a copy is of another repository.
    """
    _check_copies(backend, copies)
    found = scan_objects(backend, advance)
    sources = Sources(backend, found, copies)
    sources.want(found.damaged, State.DAMAGED)
    lost = found.lost | {name.removeprefix(STASH) for name in found.stashes} - found.entries.keys()
    sources.want((name for name in lost if not name.startswith(_REMOVABLE)), State.MISSING)
    sources.find_all()
    view = View(backend, sources)
    removed = _removed(_open(view, found.verifier))
    indexes = {name for name in lost if name.startswith(index_format.PREFIX)}
    sources.want(lost - removed - indexes, State.MISSING)
    sources.find_all()
    repository = _open(view, found.verifier)
    keys = keys_of(repository) if repository is not None else None
    sources.want(indexes, State.MISSING)
    sources.find_all()
    if repository is not None and keys is not None:
        look = _look(repository, keys, found, sources, copies, lost, removed)
    else:
        names = {entry.name for entry in view.list("")}
        no_index = not any(
            name.startswith(index_format.PREFIX) for name in sources.intact | sources.steps.keys()
        )
        any_pack = any(name.startswith(pack_format.PREFIX) for name in names)
        look = _Look(None, lost & removed - names, any_pack and no_index)
    return _planned(found, sources, look)


def _check_copies(backend: Backend, copies: Sequence[Backend]) -> None:
    own = identify(backend) if copies else b""
    for copy in copies:
        if identify(copy) != own:
            raise UsageError(
                f"{copy.location} is another repository than {backend.location}",
                hint="Give a copy of this repository with --from; nothing was changed.",
            )


def _open(backend: Backend, verifier: Verifier) -> Repository | None:
    """Open the repository if its configuration verifies; else None."""
    data = good_bytes(verifier, backend, CONFIG_NAME, CONFIG_NAME)
    if data is None:
        return None
    return Repository.of(backend, verifier.repository, verifier.trust(data))


def _removed(repository: Repository | None) -> frozenset[str]:
    """Return what was removed on purpose not long ago, as far as that is known and believed."""
    removals = read_removals(repository).removed if repository is not None else ()
    return frozenset(
        name
        for removal in removals
        for name in (*removal.packs, *(image_format.PREFIX + image for image in removal.images))
    )


def _look(
    repository: Repository,
    keys: GroupKeys,
    found: Scan,
    sources: Sources,
    copies: Sequence[Backend],
    lost: frozenset[str],
    removed: frozenset[str],
) -> _Look:
    """Find out what images need, look for a source of that too, and settle what nothing needs."""
    for name in [n for n in sources.steps if n.startswith(index_format.PREFIX)]:
        if sources.steps[name].state is State.MISSING and not repair_index.is_useful(
            repository, keys, name, removed
        ):
            sources.withdraw(name)
    images = _find_needed(repository, keys, found, sources, copies, removed)
    _keep_times(images, found, sources)
    gone = {
        name
        for name, state in sources.waiting.items()
        if state is State.MISSING and not _is_wanted(name, images)
    }
    for name in gone:
        del sources.waiting[name]
    there = {entry.name for entry in repository.backend.list("")}
    gone |= {n for n in lost if n in removed or n.startswith(index_format.PREFIX)} - there
    any_pack = any(name.startswith(pack_format.PREFIX) for name in there)
    return _Look(images, frozenset(gone - sources.waiting.keys()), any_pack and not images.named)


def _find_needed(
    repository: Repository,
    keys: GroupKeys,
    found: Scan,
    sources: Sources,
    copies: Sequence[Backend],
    removed: frozenset[str],
) -> Survey:
    """Look for packs that images need until nothing more comes back, and return what maps say then."""
    other_indexes = _indexes_of(copies, found, sources)
    offered: set[str] = set()
    while True:
        images = survey(repository, keys, _broken(found, sources))
        known = sources.steps.keys() | sources.waiting.keys()
        if fresh := (images.needed if images.is_sure else images.missing - removed) - known:
            sources.want(fresh, State.MISSING)
            sources.find_all()
        elif images.touched and other_indexes:
            # They may name packs of which nothing else here knows.
            sources.want(other_indexes, State.MISSING)
            sources.find_all()
            offered, other_indexes = other_indexes & sources.steps.keys(), set()
        else:
            break
    for name in offered:
        if not repair_index.is_useful(repository, keys, name, images.missing):
            sources.withdraw(name)
    return images


def _is_wanted(name: str, images: Survey) -> bool:
    """Whether something that is lost and has no source is a loss."""
    if name.startswith(index_format.PREFIX):
        return False  # a new one is made, if any pack needs it
    return not name.startswith(pack_format.PREFIX) or not images.is_sure or name in images.needed


def _keep_times(images: Survey, found: Scan, sources: Sources) -> None:
    """See to it that a lost image which parity gives back does not become the newest."""
    for image in images.images:
        step = sources.steps.get(image_format.PREFIX + image.id)
        if (
            step is not None
            and step.state is State.MISSING
            and step.source is Source.PARITY
            and step.taken is not None
        ):
            sources.was_taken(step.name, taken_at(image, step.taken, found.entries))


def _indexes_of(copies: Sequence[Backend], found: Scan, sources: Sources) -> set[str]:
    """Return indexes that copies have and the repository has not."""
    return {
        entry.name
        for copy in copies
        for entry in copy.list(index_format.PREFIX)
        if entry.name not in found.entries.keys() | sources.steps.keys()
    }


def _broken(found: Scan, sources: Sources) -> dict[str, Broken]:
    """Return what has no source."""
    broken = {
        name: Broken(name, state, sources.bad_blocks(name) if state is State.DAMAGED else None)
        for name, state in sources.waiting.items()
    }
    for name, reason in found.unreadable.items():
        broken[name] = Broken(name, State.UNREADABLE, sources.bad_blocks(name), reason)
    return broken


def _planned(found: Scan, sources: Sources, look: _Look) -> RepairPlan:
    damaged_indexes = [n for n in sources.waiting if n.startswith(index_format.PREFIX)]
    rebuild = look.images is not None and (
        look.images.needs_index or look.no_index or bool(damaged_indexes)
    )
    for name in damaged_indexes if rebuild else ():
        del sources.waiting[name]
    rotten = [name for name in sources.waiting if name.startswith(statements.REMOVALS)]
    for name in rotten:
        del sources.waiting[name]
    shares, new_parity = _plan_parity(found, sources, look.gone)
    broken = list(_broken(found, sources).values())
    if look.no_index and look.images is None:
        broken.append(Broken(index_format.PREFIX, State.MISSING))
    named = {m.name for group in found.groups.values() for m in group.table.members}
    return RepairPlan(
        found,
        sources,
        tuple(found.stashes),
        tuple(sources.steps.values()),
        shares,
        new_parity,
        tuple(sorted(look.gone & named)),
        rebuild,
        tuple(damaged_indexes) if rebuild else (),
        tuple(rotten),
        tuple(broken),
        None if look.images is None else look.images.touched,
        len(sources.intact),
    )


def _plan_parity(
    found: Scan, sources: Sources, gone: Collection[str]
) -> tuple[tuple[StoredGroup, ...], tuple[str, ...]]:
    known: set[str] = set()
    again: list[StoredGroup] = []
    unsolved = {*sources.waiting, *gone, *found.unreadable}
    for group in found.groups.values():
        names = set(group.shares.values())
        known |= names
        whole = len(names) == group.table.shares and names <= found.intact
        if not whole and not any(member.name in unsolved for member in group.table.members):
            again.append(group)
    rotten = {name for name in found.damaged if name.startswith(parity_object.PREFIX)}
    for name in rotten:
        sources.waiting.pop(name, None)
    return tuple(again), tuple(sorted(rotten - known))


def execute(backend: Backend, keys_of: KeysOf, made_plan: RepairPlan) -> Repaired:
    """Bring back what was planned; run it again after it was stopped.

    Raises:
        NotARepository: this is not the repository that the plan was made for.
        NoRoom: the store is full; nothing that verified was touched.
        OutputError: the store does not let a rotten object go.
    """
    if made_plan.is_empty:
        return Repaired((), ())
    verifier = made_plan.found.verifier
    if identify(backend) != made_plan.repository:
        raise NotARepository("this is not the repository that the repair was planned for")
    done: list[str] = []
    failed: Failed = []
    clock = backend.now() if made_plan.steps else 0.0
    for step in made_plan.steps:
        try:
            data = made_plan.sources.fetch(step, set(done))
            put_back(backend, verifier, step.name, data, _time_of(step, clock))
        except ObjectDamaged as error:
            failed.append((step.name, error))
        else:
            done.append(step.name)
    done += make_shares_again(backend, made_plan.found, made_plan.shares, failed)
    clear_stashes(backend, verifier, made_plan.gone)
    _drop_removals(backend, made_plan)
    # What can't be read now may be good all the same, and the only way back to what is still broken.
    if not made_plan.broken and not failed:
        done += _renew_parity(backend, verifier, made_plan)
    repository = _open(backend, verifier)
    keys = keys_of(repository) if made_plan.rebuild_index and repository is not None else None
    if repository is not None and keys is not None:
        done += repair_index.rebuild(repository, keys)
        drop(backend, verifier, made_plan.drop_indexes)
    return Repaired(tuple(done), tuple(failed))


def _time_of(step: Step, clock: float) -> float | None:
    """Return the time an object keeps, if any is known; a copy's clock can't put it past now."""
    return None if step.taken is None else min(step.taken, clock)


def _drop_removals(backend: Backend, made_plan: RepairPlan) -> None:
    """Let rotten statements of removals go that are older than any REMOVED one is needed."""
    if not made_plan.rotten_removals:
        return
    clock = backend.now()
    old = [
        name
        for name in made_plan.rotten_removals
        if clock - made_plan.found.entries[name].modified > KEEP_REMOVED
    ]
    drop(backend, made_plan.found.verifier, old)


def _renew_parity(backend: Backend, verifier: Verifier, made_plan: RepairPlan) -> list[str]:
    """Make parity anew that names what is gone for good, or of which nothing can be used."""
    if made_plan.gone:
        renewal = parity.plan_without(backend, made_plan.repository, made_plan.gone)
        if not renewal.hurt:
            parity.execute(backend, made_plan.repository, renewal, lambda _: None)
    if not made_plan.new_parity:
        return []
    # They go first, for a new share may have the name of one of them. Nothing is lost with
    # them, and when this is stopped here, the next `remetal parity` makes the new ones.
    dropped = drop(backend, verifier, made_plan.new_parity)
    fresh = parity.plan(backend, made_plan.repository)
    parity.execute(backend, made_plan.repository, fresh, lambda _: None)
    return dropped


def touched_by(
    backend: Backend, made_plan: RepairPlan, result: Repaired, keys_of: KeysOf
) -> tuple[tuple[Broken, ...], tuple[Touched, ...] | None]:
    """Return what is still broken after `execute`, and the images that can't be restored whole.

    The images are None without keys.
    """
    if made_plan.is_empty:
        return made_plan.broken, made_plan.touched if made_plan.broken else made_plan.touched or ()
    broken = {item.name: item for item in made_plan.broken}
    steps = made_plan.sources.steps
    for name, error in result.failed:
        state = steps[name].state if name in steps else State.DAMAGED
        broken[name] = Broken(name, state, reason=error.message)
    repository = _open(backend, made_plan.found.verifier)
    keys = keys_of(repository) if repository is not None else None
    if repository is None or keys is None:
        return tuple(broken.values()), None if broken else ()
    return tuple(broken.values()), survey(repository, keys, broken).touched
