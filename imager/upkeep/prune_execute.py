"""Carrying out what a prune has planned; see `imager.upkeep.prune`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from imager.errors import ChecksFailed, UsageError
from imager.repository import pack as pack_format
from imager.repository.header import StatementKind
from imager.repository.keyring import GroupKeys
from imager.repository.removals import HOUR, MOST_NAMED, read_removals
from imager.repository.repository import Problem, Repository, now
from imager.repository.standing import read_standing
from imager.repository.statement import RemovalBody, Signatory
from imager.upkeep import parity
from imager.upkeep.prune import Plan, object_of, uptime
from imager.upkeep.repack import outdated_indexes, repack, replace_indexes

# A plan is carried out within this time of being made, or made anew.
FRESH: Final = HOUR / 2

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Result:
    """What a prune has done.

    Attributes:
        condemned: names of the statements that start a quarantine.
        removed_images: number.
        removed_packs: number.
        freed_bytes: of removed packs.
        repacked_bytes: of blobs that moved.
        problems: packs that could not be repacked, because they are damaged.
    """

    condemned: tuple[str, ...]
    removed_images: int
    removed_packs: int
    freed_bytes: int
    repacked_bytes: int
    problems: tuple[Problem, ...]


def execute(
    made: Plan,
    repository: Repository,
    keys: GroupKeys,
    signatory: Signatory,
    advance: Advance,
) -> Result:
    """Carry out a plan. Stopped at any instant, nothing that an image needs is gone.

    Args:
        made: the plan.
        repository: the same.
        keys: of the group.
        signatory: signs what is condemned and removed.
        advance: told of every byte that was repacked.

    Raises:
        UsageError: the plan is too old; make another.
        NoRoom: the repository is full; what was removed until then is.
    """
    freed = _remove(made, repository, keys, signatory)
    # Condemning takes hardly any room, so it goes before repacking: a full store gets its room back.
    packs = [name for name, _ in made.condemn_packs]
    condemned = _condemn(made.condemn_images, packs, made, repository, keys, signatory)
    moved = repack(
        repository, keys, made.index, made.usage, [r.pack for r in made.repack], signatory, advance
    )
    condemned += _condemn((), list(moved.replaced), made, repository, keys, signatory)
    return Result(
        condemned,
        len(made.remove_images),
        len(made.remove_packs),
        freed,
        moved.moved_bytes,
        moved.problems,
    )


def _remove(made: Plan, repository: Repository, keys: GroupKeys, signatory: Signatory) -> int:
    backend = repository.backend
    packs = [name for name, _ in made.remove_packs]
    images = [object_of(image) for image in made.remove_images]
    if images or packs:
        outdated = outdated_indexes(repository, keys, frozenset(packs))
        _renew_parity(repository, {*images, *packs, *outdated.names})
        _check_fresh(made)
        others = {pack for removal in read_removals(repository).removed for pack in removal.packs}
        for body in _bodies(made.remove_images, packs, 0):
            repository.state(StatementKind.REMOVED, body, signatory, keys.group)
        _check_unchanged(made, repository, others)
        for name in images:
            backend.delete(name)
        replace_indexes(repository, keys, outdated)
    freed = 0
    for name, size in made.remove_packs:
        _check_fresh(made)
        backend.delete(name)
        freed += size
    if images or packs:
        # Parity that was made meanwhile may count on what is gone now.
        _renew_parity(repository, {*images, *packs, *outdated.names})
    for name in made.settled:
        backend.delete(name)
    return freed


def _check_unchanged(made: Plan, repository: Repository, others: set[str]) -> None:
    """Make sure that what the plan was made from still holds; captures see by now what goes.

    A condemned statement that is gone was carried out by another prune, so that its packs are gone or
    named as removed, and no capture counts on them; or the packs were rescued, and captures may.

    Args:
        made: the plan.
        repository: the same.
        others: names of packs that REMOVED statements of others name.

    Raises:
        UsageError: somebody held or rescued something since.
    """
    there = {removal.name for removal in read_removals(repository).condemned}
    going = {name for name, _ in made.remove_packs}
    rescued = {
        pack
        for removal in made.due
        if removal.name not in there
        for pack in removal.packs & going - others
    }
    if rescued:
        rescued &= {entry.name for entry in repository.backend.list(pack_format.PREFIX)}
    standing = read_standing(repository)
    held = standing.reasons(repository.backend.now()).keys() & set(made.remove_images)
    if held or rescued:
        raise UsageError(
            "the repository has changed since this plan was made; nothing of it was removed",
            hint="Run the prune again: it makes a new plan.",
        )


def _renew_parity(repository: Repository, going: set[str]) -> None:
    """See to it that what stays is covered as well as before when these objects are gone."""
    if parity.has_parity(repository.backend):
        renewal = parity.plan_without(repository.backend, repository.id, going)
        damaged = renewal.hurt
        if not damaged:
            outcome = parity.execute(repository.backend, repository.id, renewal, lambda _: None)
            damaged = outcome.damaged
        if damaged:
            raise ChecksFailed(
                "nothing was removed, because it would be missing when these are brought back: "
                + ", ".join(damaged),
                hint="Run `remetal repair REPO`; then prune again.",
            )


def _condemn(
    images: tuple[str, ...],
    packs: list[str],
    made: Plan,
    repository: Repository,
    keys: GroupKeys,
    signatory: Signatory,
) -> tuple[str, ...]:
    if not packs and not images:
        return ()
    return tuple(
        repository.state(StatementKind.CONDEMNED, body, signatory, keys.group)
        for body in _bodies(images, packs, made.quarantine)
    )


def _bodies(images: Iterable[str], packs: list[str], quarantine: int) -> list[RemovalBody]:
    """Return as many bodies as are needed to name everything; the first names the images."""
    hashes = sorted(name.rpartition("/")[2] for name in packs)
    stamp = now()
    first = RemovalBody(tuple(images), tuple(hashes[:MOST_NAMED]), quarantine, stamp)
    more = range(MOST_NAMED, len(hashes), MOST_NAMED)
    return [
        first,
        *(RemovalBody((), tuple(hashes[s : s + MOST_NAMED]), quarantine, stamp) for s in more),
    ]


def _check_fresh(made: Plan) -> None:
    if uptime() - made.made > FRESH:
        raise UsageError(
            "this plan is too old to be carried out; what it removed until now was not needed",
            hint="Run the prune again: it makes a new plan and goes on.",
        )
