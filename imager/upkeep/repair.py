"""Repair: bring lost and damaged objects back, from parity or from another copy.

What verifies is never touched. What is written was verified first: its SHA-256 is what its name
says (the configuration: what the repository's id says; a generation: signed). To replace a rotten
object in a store that only creates, the good bytes are first made durable at `repaired/<name>`,
then the rotten object goes, then the good one is created, then `repaired/<name>` goes. Stopped at
any instant, the next run finishes what it finds there.

A damaged pack that can't be brought back stays: its intact chunks still serve restores.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from imager.errors import NotARepository, ObjectDamaged, RemetalError
from imager.repository import index as index_format
from imager.repository import parity_object
from imager.repository.backend.protocol import Backend
from imager.repository.configuration import CONFIG_NAME
from imager.repository.keyring import GroupKeys
from imager.repository.repository import Repository
from imager.repository.trust import Trust
from imager.upkeep import parity, repair_index
from imager.upkeep.parity_shares import GroupSolver, StoredGroup, make_shares
from imager.upkeep.repair_scan import STASH, Scan, Verifier
from imager.upkeep.repair_scan import scan as scan_objects
from imager.upkeep.repair_touched import Broken, Touched, touched_images

MISSING: Final = "missing"
DAMAGED: Final = "damaged"

Advance = Callable[[int], None]
KeysOf = Callable[[Repository], GroupKeys | None]


class Source(StrEnum):
    """Where good bytes come from."""

    PARITY = "parity"
    COPY = "copy"
    STASH = "interrupted repair"


@dataclass(frozen=True, slots=True)
class Step:
    """One object that will be brought back.

    Attributes:
        name: of the object.
        state: `damaged` or `missing`.
        source: where its bytes come from.
        place: id of the parity group, location of the copy, or name of the stash.
    """

    name: str
    state: str
    source: Source
    place: str


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """What `execute` will do, in this order.

    Attributes:
        repository: id of the repository.
        stashes: of interrupted repairs, to be finished or cleared away.
        steps: objects that will be brought back.
        shares: parity groups whose shares are made again.
        new_parity: damaged parity objects of which nothing can be used; they go, and parity is
            made anew for what they covered.
        rebuild_index: whether index objects are made from the directories of packs.
        drop_indexes: damaged indexes that go once the rebuilt ones are durable.
        broken: what can't be brought back.
        intact: how many objects verified.
    """

    repository: bytes
    stashes: tuple[str, ...]
    steps: tuple[Step, ...]
    shares: tuple[StoredGroup, ...]
    new_parity: tuple[str, ...]
    rebuild_index: bool
    drop_indexes: tuple[str, ...]
    broken: tuple[Broken, ...]
    intact: int

    @property
    def is_empty(self) -> bool:
        """Whether nothing will be changed."""
        return not (
            self.stashes or self.steps or self.shares or self.new_parity or self.rebuild_index
        )


@dataclass(frozen=True, slots=True)
class Repaired:
    """What `execute` did.

    Attributes:
        names: objects that were brought back or made again.
        failed: steps that turned out not to be possible, with the reason.
    """

    names: tuple[str, ...]
    failed: tuple[tuple[str, RemetalError], ...]


@dataclass(slots=True)
class _Work:
    """Sources for what is not intact, in the making."""

    backend: Backend
    scan: Scan
    copies: Sequence[Backend]
    steps: dict[str, Step]
    waiting: dict[str, str]
    _groups: dict[str, list[StoredGroup]] = field(default_factory=dict)

    def find_all(self) -> None:
        """Find a source for everything; what one group gives back can help another."""
        self._from_stashes()
        pending = {group.table.id for name in self.waiting for group in self.groups_of(name)}
        while pending or (pending := self._from_copies()):
            pending |= self._from_group(pending.pop())

    def groups_of(self, name: str) -> list[StoredGroup]:
        """Return the parity groups that cover an object."""
        if not self._groups:
            for group in self.scan.groups.values():
                for member in group.table.members:
                    self._groups.setdefault(member.name, []).append(group)
        return self._groups.get(name, [])

    def solver(self, group: StoredGroup) -> GroupSolver | None:
        """Return what solves a group, counting on all steps; None when its checks are gone."""
        try:
            return GroupSolver(self.backend, group, self.scan.intact | self.steps.keys())
        except ObjectDamaged:
            return None

    def _add(self, name: str, source: Source, place: str) -> set[bytes]:
        """Add a step, and return the ids of the groups that may be solved now."""
        self.steps[name] = Step(name, self.waiting.pop(name), source, place)
        return {group.table.id for group in self.groups_of(name)}

    def _from_stashes(self) -> None:
        for stash in self.scan.stashes:
            name = stash.removeprefix(STASH)
            if name in self.scan.intact or name in self.steps:
                continue
            if _good_bytes(self.scan.verifier, self.backend, name, stash) is not None:
                self.waiting.setdefault(name, MISSING)
                self._add(name, Source.STASH, stash)

    def _from_group(self, identity: bytes) -> set[bytes]:
        group = self.scan.groups[identity]
        names = [m.name for m in group.table.members if m.name in self.waiting]
        solver = self.solver(group) if names else None
        again: set[bytes] = set()
        for name in names:
            if solver is not None and solver.solvable(name) and self._may_be(name, solver):
                again |= self._add(name, Source.PARITY, identity.hex()) - {identity}
        return again

    def _may_be(self, name: str, solver: GroupSolver) -> bool:
        """Whether what parity gives verifies: certain for names made of a hash, else tried."""
        if parity_object.named_digest(name) is not None:
            return True
        try:
            return self.scan.verifier.verifies(name, solver.solve(name))
        except RemetalError:
            return False

    def _from_copies(self) -> set[bytes]:
        """Take objects from copies until parity gets a turn again: the groups that have it."""
        for name in sorted(self.waiting):
            for copy in self.copies:
                if _good_bytes(self.scan.verifier, copy, name, name) is not None:
                    again = self._add(name, Source.COPY, copy.location)
                    if again:
                        return again
                    break
        return set()


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
        NotARepository: nothing says which repository this is.
    """
    found = scan_objects(backend, advance)
    waiting = dict.fromkeys(sorted(found.damaged), DAMAGED)
    waiting |= dict.fromkeys(sorted(found.lost), MISSING)
    work = _Work(backend, found, copies, {}, waiting)
    work.find_all()
    repository = _open(backend, found, work)
    if found.config is None and repository is not None:
        work.find_all()  # generations can be judged now
    keys = keys_of(repository) if repository is not None else None
    state = repair_index.IndexState(False, False, ())
    if repository is not None and keys is not None:
        state = repair_index.look(repository, keys, found.intact, work.steps.keys())
        for name in state.lost_packs:
            if name not in found.sizes and name not in work.steps:
                work.waiting.setdefault(name, MISSING)
        work.find_all()
    elif not any(name.startswith(index_format.PREFIX) for name in found.intact | work.steps.keys()):
        state = repair_index.without_keys(found.sizes)
    damaged_indexes = tuple(n for n in work.waiting if n.startswith(index_format.PREFIX))
    rebuild = keys is not None and (state.needs_rebuild or bool(damaged_indexes))
    if rebuild:
        for name in damaged_indexes:
            del work.waiting[name]
    shares, new_parity = _plan_parity(found, work)
    broken = _broken(work)
    if state.is_lost and keys is None:
        broken.append(Broken(index_format.PREFIX, MISSING, None))
    return RepairPlan(
        found.verifier.repository,
        found.stashes,
        tuple(work.steps.values()),
        shares,
        new_parity,
        rebuild,
        tuple(n for n in damaged_indexes if n in found.sizes) if rebuild else (),
        tuple(broken),
        len(found.intact),
    )


def _open(backend: Backend, found: Scan, work: _Work) -> Repository | None:
    """Open the repository with its configuration, also one that is only about to come back."""
    data = found.config
    step = work.steps.get(CONFIG_NAME)
    if data is None and step is not None:
        try:
            data = _bytes_for(step, backend, found, work.copies, found.intact)
        except ObjectDamaged:
            return None
    if data is None:
        return None
    return _repository(backend, found.verifier, data)


def _repository(backend: Backend, verifier: Verifier, config: bytes) -> Repository:
    """Return the repository of a configuration that verifies."""
    configuration = verifier.trust(config)
    trust = Trust.read(backend, verifier.repository, configuration)
    return Repository(backend, verifier.repository, configuration, trust)


def _plan_parity(found: Scan, work: _Work) -> tuple[tuple[StoredGroup, ...], tuple[str, ...]]:
    known: set[str] = set()
    again: list[StoredGroup] = []
    unsolved = work.waiting.keys()
    for group in found.groups.values():
        names = set(group.shares.values())
        known |= names
        whole = len(names) == group.table.shares and names <= found.intact
        if not whole and not any(member.name in unsolved for member in group.table.members):
            again.append(group)
    rotten = {name for name in found.damaged if name.startswith(parity_object.PREFIX)}
    for name in rotten:
        work.waiting.pop(name, None)
    return tuple(again), tuple(sorted(rotten - known))


def _broken(work: _Work) -> list[Broken]:
    found = []
    for name, state in work.waiting.items():
        solvers = [work.solver(group) for group in work.groups_of(name)]
        located = [solver.bad_blocks(name) for solver in solvers if solver is not None]
        found.append(Broken(name, state, located[0] if located and state == DAMAGED else None))
    return found


def execute(
    backend: Backend, copies: Sequence[Backend], keys_of: KeysOf, made_plan: RepairPlan
) -> Repaired:
    """Bring back what was planned; run it again after it was stopped.

    Raises:
        NoRoom: the store is full; nothing that verified was touched.
        OutputError: the store does not let a rotten object go.
    """
    if made_plan.is_empty:
        return Repaired((), ())
    found = scan_objects(backend, lambda _: None)
    verifier = found.verifier
    if verifier.repository != made_plan.repository:
        raise NotARepository("this is not the repository that the repair was planned for")
    done: list[str] = []
    failed: list[tuple[str, RemetalError]] = []
    good = set(found.intact)
    for step in sorted(made_plan.steps, key=lambda step: step.source is not Source.STASH):
        try:
            data = _from_anywhere(step, backend, found, copies, frozenset(good))
            put_back(backend, verifier, step.name, data)
            if step.name == CONFIG_NAME:
                verifier.trust(data)
        except (NotARepository, ObjectDamaged) as error:
            failed.append((step.name, error))
        else:
            good.add(step.name)
            done.append(step.name)
    done += _make_shares_again(backend, verifier, made_plan.shares, failed)
    clear_stashes(backend, verifier)
    # What can't be read now may be good all the same, and the only way back to what is still broken.
    if made_plan.new_parity and not made_plan.broken and not failed:
        # They go first, for a new share may have the name of one of them. Nothing is lost with
        # them, and when this is stopped here, the next `remetal parity` makes the new ones.
        done += _drop(backend, verifier, made_plan.new_parity)
        fresh = parity.plan(backend, made_plan.repository)
        parity.execute(backend, made_plan.repository, fresh, lambda _: None)
    repository = open_repaired(backend, verifier)
    keys = keys_of(repository) if made_plan.rebuild_index and repository is not None else None
    if repository is not None and keys is not None:
        done += repair_index.rebuild(repository, keys)
        _drop(backend, verifier, made_plan.drop_indexes)
    return Repaired(tuple(done), tuple(failed))


def touched_by(
    backend: Backend, made_plan: RepairPlan, result: Repaired, keys_of: KeysOf
) -> tuple[tuple[Broken, ...], tuple[Touched, ...] | None]:
    """Return what is still broken after `execute`, and the images that need it.

    The images are None without keys.
    """
    broken = {item.name: item for item in made_plan.broken}
    for name, _ in result.failed:
        broken[name] = Broken(name, DAMAGED, None)
    if not broken:
        return (), ()
    repository = open_repaired(backend, Verifier(made_plan.repository, backend.location))
    keys = keys_of(repository) if repository is not None else None
    if repository is None or keys is None:
        return tuple(broken.values()), None
    return tuple(broken.values()), tuple(touched_images(repository, keys, broken))


def open_repaired(backend: Backend, verifier: Verifier) -> Repository | None:
    """Open the repository if its configuration verifies; else None."""
    data = _good_bytes(verifier, backend, CONFIG_NAME, CONFIG_NAME)
    if data is None:
        return None
    return Repository.of(backend, verifier.repository, verifier.trust(data))


def put_back(backend: Backend, verifier: Verifier, name: str, data: bytes) -> None:
    """Create an object, or replace it if it does not verify; `data` must verify.

    Raises:
        ObjectDamaged: `data` does not verify.
    """
    if not verifier.verifies(name, data):
        raise ObjectDamaged(f"the bytes for {name} do not verify")
    if backend.put_new(name, [data]) or verifier.verifies_at(backend, name):
        return
    stash = STASH + name
    if not backend.put_new(stash, [data]) and not _good_bytes(verifier, backend, name, stash):
        backend.delete(stash)
        backend.put_new(stash, [data])
    backend.delete(name)
    backend.put_new(name, [data])
    if verifier.verifies_at(backend, name):
        backend.delete(stash)


def clear_stashes(backend: Backend, verifier: Verifier) -> None:
    """Remove stashes whose objects verify, and those that are themselves rotten."""
    for entry in list(backend.list(STASH)):
        name = entry.name.removeprefix(STASH)
        rotten = verifier.can_judge(name) and (
            _good_bytes(verifier, backend, name, entry.name) is None
        )
        if rotten or verifier.verifies_at(backend, name):
            backend.delete(entry.name)


def _drop(backend: Backend, verifier: Verifier, names: Sequence[str]) -> list[str]:
    """Remove objects that do not verify, and return those that went."""
    rotten = [name for name in names if not verifier.verifies_at(backend, name)]
    for name in rotten:
        backend.delete(name)
    return rotten


def _make_shares_again(
    backend: Backend,
    verifier: Verifier,
    groups: Sequence[StoredGroup],
    failed: list[tuple[str, RemetalError]],
) -> list[str]:
    done: list[str] = []
    for group in groups:
        table = group.table
        rows = [(member.name, member.length, member.digest) for member in table.members]
        made, bad = make_shares(backend, verifier.repository, rows, table.shares, lambda _: None)
        if made is None:
            reason = ObjectDamaged(f"its parity can't be made again: {', '.join(bad)} is damaged")
            failed.append((f"parity group {table.id.hex()[:16]}", reason))
            continue
        for name, (prefix, body) in made.objects:
            if not verifier.verifies_at(backend, name):
                put_back(backend, verifier, name, prefix + body)
                done.append(name)
        # A table that lies about itself gives objects of other names; the liars stay as they are.
    return done


def _from_anywhere(
    step: Step, backend: Backend, found: Scan, copies: Sequence[Backend], good: frozenset[str]
) -> bytes:
    """Return what the planned source has; else, when that lies or is gone, what any other has.

    Raises:
        ObjectDamaged: none has anything that verifies.
    """
    others = [
        Step(step.name, step.state, Source.PARITY, group.table.id.hex())
        for group in found.groups.values()
        if any(member.name == step.name for member in group.table.members)
    ]
    others += [Step(step.name, step.state, Source.COPY, copy.location) for copy in copies]
    problem: ObjectDamaged | None = None
    for source in (step, *others):
        try:
            data = _bytes_for(source, backend, found, copies, good)
        except ObjectDamaged as error:
            problem = problem or error
            continue
        if found.verifier.verifies(step.name, data):
            return data
    raise problem or ObjectDamaged(f"what {step.source} gives for {step.name} does not verify")


def _bytes_for(
    step: Step, backend: Backend, found: Scan, copies: Sequence[Backend], good: frozenset[str]
) -> bytes:
    """Return what the source of a step has.

    Raises:
        ObjectDamaged: it has nothing that verifies any more.
    """
    if step.source is Source.PARITY:
        group = found.groups.get(bytes.fromhex(step.place))
        if group is None:
            raise ObjectDamaged(f"the parity of {step.name} is gone")
        return GroupSolver(backend, group, good).solve(step.name)
    places = [(backend, step.place)] if step.source is Source.STASH else []
    places += [(copy, step.name) for copy in copies if copy.location == step.place]
    for place, name in places:
        data = _good_bytes(found.verifier, place, step.name, name)
        if data is not None:
            return data
    raise ObjectDamaged(f"{step.place} has no good {step.name} any more")


def _good_bytes(verifier: Verifier, backend: Backend, name: str, at: str) -> bytes | None:
    try:
        data = backend.get(at)
    except RemetalError:
        return None
    return data if verifier.verifies(name, data) else None
