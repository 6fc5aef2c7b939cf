"""Where good bytes of what is lost or damaged come from: a stash, parity, or another copy."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeVar

from imager.errors import OBJECT_FAULTS, ObjectDamaged, OutputError
from imager.repository import parity_object
from imager.repository.backend.protocol import Backend, Buffer, Entry
from imager.repository.configuration import CONFIG_NAME
from imager.upkeep.parity_shares import GroupSolver, StoredGroup
from imager.upkeep.repair_scan import (
    STASH,
    Scan,
    State,
    Verifier,
    is_generation,
    number_of,
)

# The checks of a group and its damaged blocks take about half a megabyte.
_MOST_SOLVERS: Final = 64
_MOST_OBJECTS: Final = 8

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


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
        state: damaged or missing.
        source: where its bytes come from.
        place: id of the parity group, location of the copy, or name of the stash.
        size: bytes.
        taken: when the store took it first: known of what is damaged; of what is missing the
            earliest time at which it is known to have been there, or None.
    """

    name: str
    state: State
    source: Source
    place: str
    size: int
    taken: float | None = None


class Sources:
    """Finds a source for what is not intact; what is found helps to find more.

    Attributes:
        intact: names of what verifies; generations join when they can be judged.
        waiting: names of what has no source yet, and how it is.
        steps: what has one, in an order in which each needs only earlier ones.

    Args:
        backend: of the repository.
        found: its state.
        copies: other places where the same repository lies.
    """

    def __init__(self, backend: Backend, found: Scan, copies: Sequence[Backend]) -> None:
        self.intact = set(found.intact)
        self.waiting: dict[str, State] = {}
        self.steps: dict[str, Step] = {}
        self._backend = backend
        self._found = found
        self._verifier = found.verifier
        self._copies = copies
        self._unsure = set(found.unsure)
        self._groups: dict[str, list[StoredGroup]] = {}
        for group in found.groups.values():
            for member in group.table.members:
                self._groups.setdefault(member.name, []).append(group)
        self._solvers: OrderedDict[bytes, GroupSolver | None] = OrderedDict()
        self._objects: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.RLock()
        # Groups that may give something now.
        self._pending: set[bytes] = set()
        # Copies that were asked for an object and have nothing good.
        self._asked: set[tuple[str, str]] = set()
        self._times: dict[str, dict[str, float]] = {}

    def want(self, names: Iterable[str], state: State) -> None:
        """Look for these too, unless they have a source already."""
        for name in sorted(names):
            if name not in self.steps:
                self.waiting.setdefault(name, state)
                self._pending |= self._groups_with(name)

    def find_all(self) -> None:
        """Find a source for everything that waits; what one gives back can help another."""
        self._judge()
        while self._from_stashes() or self._from_groups() or self._from_copies():
            pass

    def withdraw(self, name: str) -> bool:
        """Give up bringing an object back, unless something else counts on it."""
        later = list(self.steps)[list(self.steps).index(name) + 1 :]
        groups = {group.table.id.hex() for group in self.groups_of(name)}
        if any(
            self.steps[n].source is Source.PARITY and self.steps[n].place in groups for n in later
        ):
            return False
        del self.steps[name]
        return True

    def was_taken(self, name: str, when: float) -> None:
        """Note that the store took an object at that time, as far as anybody can tell."""
        self.steps[name] = replace(self.steps[name], taken=when)

    def groups_of(self, name: str) -> list[StoredGroup]:
        """Return the parity groups that cover an object."""
        return self._groups.get(name, [])

    def bad_blocks(self, name: str) -> frozenset[int] | None:
        """Return which blocks of an object are damaged; None if no parity tells."""
        solvers = [self._solver(group) for group in self.groups_of(name)]
        return next((s.bad_blocks(name) for s in solvers if s is not None), None)

    def planned(self, name: str) -> bytes:
        """Return what the step for an object will give, before any step was taken.

        Raises:
            ObjectDamaged: it gives nothing any more.
        """
        with self._lock:
            data = self._objects.pop(name, None)
            if data is None:
                order = list(self.steps)
                back = set(order[: order.index(name)])
                data = self._bytes_for(self.steps[name], back, View(self._backend, self).get_range)
            _keep(self._objects, name, data, _MOST_OBJECTS)
        return data

    def fetch(self, step: Step, back: Collection[str]) -> bytes:
        """Return what the source of a step has; else, when that lies or is gone, what any other has.

        Args:
            step: to be taken.
            back: names of what was brought back before.

        Raises:
            ObjectDamaged: none has anything that verifies.
        """
        problem: ObjectDamaged | None = None
        others = [(Source.PARITY, group.table.id.hex()) for group in self.groups_of(step.name)]
        others += [(Source.COPY, copy.location) for copy in self._copies]
        for source, place in [(step.source, step.place), *others]:
            try:
                data = self._bytes_for(Step(step.name, step.state, source, place, 0), back, None)
            except ObjectDamaged as error:
                problem = problem or error
                continue
            if self._verifier.verifies(step.name, data):
                return data
        raise problem or ObjectDamaged(f"what {step.source} gives for {step.name} does not verify")

    def _bytes_for(
        self,
        step: Step,
        back: Collection[str],
        read_back: Callable[[str, int, int], bytes] | None,
    ) -> bytes:
        if step.source is Source.PARITY:
            group = self._found.groups.get(bytes.fromhex(step.place))
            solver = self._solver(group) if group is not None else None
            if solver is None:
                raise ObjectDamaged(f"the parity of {step.name} is gone")
            return solver.solve(step.name, back, read_back)
        places = [(self._backend, step.place)] if step.source is Source.STASH else []
        places += [(copy, step.name) for copy in self._copies if copy.location == step.place]
        for place, name in places:
            data = good_bytes(self._verifier, place, step.name, name)
            if data is not None:
                return data
        raise ObjectDamaged(f"{step.place} has no good {step.name} any more")

    def _solver(self, group: StoredGroup) -> GroupSolver | None:
        """Return what solves a group; None when its checks are gone."""
        identity = group.table.id
        with self._lock:
            if identity in self._solvers:
                solver = self._solvers.pop(identity)
            else:
                try:
                    solver = GroupSolver(self._backend, group, self.intact)
                except ObjectDamaged:
                    solver = None
            _keep(self._solvers, identity, solver, _MOST_SOLVERS)
        return solver

    def _groups_with(self, name: str) -> set[bytes]:
        return {group.table.id for group in self.groups_of(name)}

    def _add(self, name: str, source: Source, place: str, size: int) -> None:
        state = self.waiting.pop(name)
        taken = self._taken(name, source, place)
        self.steps[name] = Step(name, state, source, place, size, taken)
        self._pending |= self._groups_with(name)
        if name == CONFIG_NAME or is_generation(name):
            self._judge()
            for other in self.waiting:
                if is_generation(other):
                    self._pending |= self._groups_with(other)

    def _taken(self, name: str, source: Source, place: str) -> float | None:
        entries = self._found.entries
        if name in entries:
            return entries[name].modified
        if source is Source.STASH:
            return self._found.stashes[place].modified
        if source is Source.PARITY:
            shares = self._found.groups[bytes.fromhex(place)].shares.values()
            return min(
                (entries[share].modified for share in shares if share in entries), default=None
            )
        return self._times_at(place).get(name)

    def _times_at(self, place: str) -> dict[str, float]:
        """Return when the copy at a place took its objects; it is listed once."""
        if place not in self._times:
            self._times[place] = {
                entry.name: entry.modified
                for copy in self._copies
                if copy.location == place
                for entry in copy.list("")
            }
        return self._times[place]

    def _judge(self) -> None:
        """Judge generations whose predecessor is known by now."""
        for name in sorted(self._unsure, key=number_of):
            if not self._verifier.can_judge(name):
                break
            self._unsure.discard(name)
            if good_bytes(self._verifier, self._backend, name, name) is not None:
                self.intact.add(name)
            else:
                self.intact.discard(name)
                self._solvers.clear()
                self.want([name], State.DAMAGED)

    def _from_stashes(self) -> bool:
        found = False
        for stash, entry in self._found.stashes.items():
            name = stash.removeprefix(STASH)
            if name in self.waiting and (
                good_bytes(self._verifier, self._backend, name, stash) is not None
            ):
                self._add(name, Source.STASH, stash, entry.size)
                found = True
        return found

    def _from_groups(self) -> bool:
        count = len(self.steps)
        while self._pending:
            group = self._found.groups[self._pending.pop()]
            waiting = [m for m in group.table.members if m.name in self.waiting]
            solver = self._solver(group) if waiting else None
            for member in waiting if solver is not None else ():
                name = member.name
                if (
                    solver is not None
                    and solver.solvable(name, self.steps)
                    and self._may_be(name, solver)
                ):
                    self._add(name, Source.PARITY, group.table.id.hex(), member.length)
        return len(self.steps) > count

    def _may_be(self, name: str, solver: GroupSolver) -> bool:
        """Whether what parity gives verifies: certain for names made of a hash, else tried."""
        if parity_object.named_digest(name) is not None:
            return True
        view = View(self._backend, self)
        try:
            data = solver.solve(name, set(self.steps), view.get_range)
        except OBJECT_FAULTS:
            return False
        return self._verifier.verifies(name, data)

    def _from_copies(self) -> bool:
        """Take objects from copies until parity gets a turn again; whether there was any."""
        found = False
        for name in sorted(self.waiting):
            for copy in self._copies:
                if (name, copy.location) in self._asked:
                    continue
                if self._verifier.can_judge(name):
                    self._asked.add((name, copy.location))
                data = good_bytes(self._verifier, copy, name, name)
                if data is not None:
                    self._add(name, Source.COPY, copy.location, len(data))
                    found = True
                    if self._pending:
                        return True
                    break
        return found


class View:
    """The repository as it will be when all steps are taken; nothing can be written to it.

    Args:
        backend: as it is.
        sources: the steps.
    """

    def __init__(self, backend: Backend, sources: Sources) -> None:
        self._backend = backend
        self._sources = sources

    @property
    def location(self) -> str:
        """That of the repository."""
        return self._backend.location

    @property
    def folders(self) -> tuple[Path, ...]:
        """Those of the repository."""
        return self._backend.folders

    @property
    def lock_span(self) -> float | None:
        """That of the repository."""
        return self._backend.lock_span

    def get(self, name: str) -> bytes:
        """Return an object whole, also one that is only about to come back."""
        if name in self._sources.steps:
            return self._sources.planned(name)
        return self._backend.get(name)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Return a range of an object, also of one that is only about to come back."""
        if name not in self._sources.steps:
            return self._backend.get_range(name, offset, length)
        data = self._sources.planned(name)[offset : offset + length]
        if len(data) != length:
            raise ObjectDamaged(f"{name} ends {length - len(data)} bytes too early")
        return data

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield what will be there, by name."""
        there = {entry.name: entry for entry in self._backend.list(prefix)}
        for name, step in self._sources.steps.items():
            if name.startswith(prefix):
                modified = there[name].modified if name in there else 0.0
                there[name] = Entry(name, step.size, modified)
        yield from (there[name] for name in sorted(there))

    def put_new(self, name: str, parts: Sequence[Buffer], modified: float | None = None) -> bool:
        """Refuse: a plan writes nothing."""
        del parts, modified
        raise OutputError(f"{name} can't be written while a repair is planned")

    def delete(self, name: str) -> None:
        """Refuse: a plan removes nothing."""
        raise OutputError(f"{name} can't be removed while a repair is planned")

    def locked_until(self, name: str, *, shortest: bool = False) -> float | None:
        """Return until when the store keeps an object."""
        return self._backend.locked_until(name, shortest=shortest)

    def retain(self, name: str, until: float) -> None:
        """Refuse: a plan locks nothing."""
        del until
        raise OutputError(f"{name} can't be locked while a repair is planned")

    def now(self) -> float:
        """Return the store's clock."""
        return self._backend.now()

    def tidy(self) -> None:
        """Do nothing."""


def good_bytes(verifier: Verifier, backend: Backend, name: str, at: str) -> bytes | None:
    """Return what lies at a place if it is what the object must be."""
    try:
        data = backend.get(at)
    except OBJECT_FAULTS:
        return None
    return data if verifier.verifies(name, data) else None


def _keep(cache: OrderedDict[_Key, _Value], key: _Key, value: _Value, most: int) -> None:
    cache[key] = value
    if len(cache) > most:
        cache.popitem(last=False)
