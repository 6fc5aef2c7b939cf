"""Removing what no image needs, in two phases and beside running captures.

`plan` reads and decides, `prune_execute.execute` does exactly what the plan lists. Phase one condemns: images
that retention no longer keeps, and packs that no other image needs. Phase two, when the quarantine
is over, removes what was condemned and is still not needed. Half-empty packs are repacked without
being opened: sealed blobs move to a new pack of the same capture, and the old pack is condemned.

Why no capture has to wait, and none is hurt:
- An image that was written in time is seen by phase two, which reads all images anew; what it needs stays.
- An image that is written later was made by a capture that looked at the statements right before, and
  counts on no pack with less than an hour of quarantine left (`imager.repository.removals`).
What the store keeps under a lock (object lock, immutable files) is condemned when its lock ends
before the quarantine would, and not removed before; until then images that are locked count as wanted.
Why two prunes at once do not both remove a copy of the same chunk, each counting on the other's:
which copy is kept follows from the statements alone (`_rank`), and a plan that has waited is refused.
"""

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager.errors import OBJECT_FAULTS, ChecksFailed, ObjectDamaged, UntrustedObject, UsageError
from imager.repository import image as image_format
from imager.repository import pack as pack_format
from imager.repository import statement as statements
from imager.repository.chunk import ID
from imager.repository.header import HEADER_SIZE, Header, Magic, PackKind
from imager.repository.ids import NOWHERE, Ids, find, unique_ids
from imager.repository.image import SealedImage
from imager.repository.index import Index
from imager.repository.keyring import GroupKeys
from imager.repository.listing import PackListing
from imager.repository.pack import object_name
from imager.repository.removals import (
    DAY,
    KEEP_REMOVED,
    LEAST_QUARANTINE,
    Removal,
    Removals,
    read_removals,
)
from imager.repository.repository import Problem, Repository
from imager.repository.statement import RepackedBody
from imager.upkeep.locks import Locks
from imager.upkeep.parity_shares import read_groups
from imager.upkeep.usage import Usage, measure

DEFAULT_QUARANTINE: Final = 7 * DAY
DEFAULT_WASTE: Final = 0.05


@dataclass(frozen=True, slots=True)
class Repacking:
    """A pack whose needed blobs move to a new one.

    Attributes:
        pack: number in the plan's index.
        live: bytes that move.
        dead: bytes that will be gone.
    """

    pack: int
    live: int
    dead: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of packs.

    Attributes:
        stored: all packs, as the listing says.
        live: blobs that kept images need, each once.
        dead: all other blobs.
    """

    stored: int
    live: int
    dead: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a prune will do; nothing but this.

    Attributes:
        made: uptime of this machine when it was made, seconds.
        due: condemned statements whose quarantine is over.
        settled: names of those and of REMOVED statements that have done their duty and go.
        remove_images: ids of images to be removed now.
        remove_packs: name and size of packs to be removed now.
        rescued_images: ids of images that were condemned and are kept after all.
        rescued_packs: number of packs that were condemned and are needed after all.
        waiting: condemned statements in quarantine.
        condemn_images: ids of images that go when the quarantine is over.
        condemn_packs: name and size of packs that go then.
        repack: half-empty packs.
        locked: images and packs that nobody wants and the store keeps: names of objects, and
            until when by the store's clock, or infinite.
        quarantine: seconds, for what is condemned by this plan.
        sizes: of the repository.
        problems: damage that does not keep this plan from being right.
        index: what the numbers in `repack` refer to.
        usage: which blobs move.
    """

    made: float
    due: tuple[Removal, ...]
    settled: tuple[str, ...]
    remove_images: tuple[str, ...]
    remove_packs: tuple[tuple[str, int], ...]
    rescued_images: tuple[str, ...]
    rescued_packs: int
    waiting: tuple[Removal, ...]
    condemn_images: tuple[str, ...]
    condemn_packs: tuple[tuple[str, int], ...]
    repack: tuple[Repacking, ...]
    locked: Mapping[str, float]
    quarantine: int
    sizes: Sizes
    problems: tuple[Problem, ...]
    index: Index
    usage: Usage


def readable_images(
    repository: Repository, keys: GroupKeys
) -> tuple[list[SealedImage], list[Problem]]:
    """Return the images, and those that nobody vouches for, which need nothing.

    Raises:
        ChecksFailed: an image is damaged, so nobody can tell what it needs; nothing may be removed.
            Or a generation or revocation is, so that nobody can tell whose images count.
    """
    if repository.trust.problems:
        raise ChecksFailed(
            "nobody can tell whose images count, so nothing was removed: "
            + "; ".join(problem.message for problem in repository.trust.problems),
            hint="`remetal repair REPO` brings damaged objects back; then prune again.",
        )
    images, problems = repository.images(keys)
    damaged = [p for p in problems if not isinstance(p.error, UntrustedObject)]
    if damaged:
        raise _refusal(damaged)
    return images, problems


def plan(
    repository: Repository,
    keys: GroupKeys,
    unwanted: frozenset[str],
    *,
    quarantine: float = DEFAULT_QUARANTINE,
    waste: float = DEFAULT_WASTE,
) -> Plan:
    """Decide what goes.

    Args:
        repository: what to prune.
        keys: of the group.
        unwanted: ids of images that retention does not keep; all others stay.
        quarantine: seconds, at least an hour.
        waste: share of the bytes in packs that stay which may be dead.

    Raises:
        ChecksFailed: an image or its map is damaged, so nobody can tell what it needs.
        UsageError: the quarantine is too short.
    """
    if quarantine < LEAST_QUARANTINE:
        raise UsageError("the quarantine is an hour at least, so that running captures can finish")
    made = uptime()
    clock = repository.backend.now()
    removals = read_removals(repository)
    images, problems = readable_images(repository, keys)
    index, index_problems = repository.load_index(keys)
    listing = repository.list_packs()
    stored = listing.of(index.digests)
    is_there = listing.has(index.digests)
    is_whole = is_there & ~index.are(repository.lost_packs(index, listing))
    repacked = index.are(_repacked(repository))
    rank = _rank(index, removals, stored.modified, is_whole, repacked)
    due = tuple(removal for removal in removals.condemned if removal.ends <= clock)
    waiting = tuple(removal for removal in removals.condemned if removal.ends > clock)
    condemned_images = {image for removal in due for image in removal.images}
    condemned_images &= {image.id for image in images}
    is_due = index.are(pack for removal in due for pack in removal.packs) & is_there
    done = {removal.name for removal in (*due, *_served(repository, removals, clock))}
    locks = Locks(repository, keys)
    doomed = {object_of(image.id) for image in images if image.id in unwanted}
    kept = locks.of(doomed | set(index.names(is_due)) | done)
    going = {i for i in condemned_images & unwanted if object_of(i) not in kept}
    staying = [image for image in images if image.id not in going]
    usage = _measured(repository, keys, index, staying, rank)
    if usage.suspect:
        is_whole &= ~index.are(usage.suspect)
        rank = _rank(index, removals, stored.modified, is_whole, repacked)
        usage = _measured(repository, keys, index, staying, rank)
    candidates = np.flatnonzero(is_due & (usage.live == 0)).tolist()
    refuted = _unconfirmed(repository, keys, index, usage, candidates)
    unneeded = {index.name(number) for number in candidates if number not in refuted}
    locked = {name: kept[name] for name in unneeded & kept.keys()}
    unneeded -= locked.keys()
    late = {name for name in doomed if kept.get(name, clock) > clock + quarantine}
    locked |= {
        name: kept[name]
        for name in late | {object_of(i) for i in condemned_images & unwanted - going}
    }
    wanted = [i for i in staying if i.id not in unwanted or object_of(i.id) in late]
    if len(wanted) != len(staying):
        usage = _measured(repository, keys, index, wanted, rank)
    is_going = index.are(unneeded)
    is_pending = is_going | index.are(pack for removal in waiting for pack in removal.packs)
    # A capture that runs has packs that no index names yet; interrupted ones leave theirs behind.
    is_pending |= _perhaps_of_running(repository, index, clock - stored.modified)
    condemn, repacking = _phase_one(usage, is_there & ~is_pending, waste)
    chosen = [*condemn, *(item.pack for item in repacking)]
    later = {n: t for n, t in locks.of(map(index.name, chosen)).items() if t > clock + quarantine}
    is_late = index.are(later)
    in_quarantine = {image for removal in waiting for image in removal.images}
    return Plan(
        made,
        due,
        tuple(sorted(done - kept.keys())),
        tuple(sorted(going)),
        _named(index, stored, np.flatnonzero(is_going).tolist()),
        tuple(sorted(condemned_images - unwanted)),
        int(is_due.sum()) - len(unneeded),
        waiting,
        tuple(
            i.id
            for i in staying
            if i.id in unwanted and i.id not in in_quarantine and object_of(i.id) not in late
        ),
        _named(index, stored, [pack for pack in condemn if not is_late[pack]]),
        tuple(item for item in repacking if not is_late[item.pack]),
        locked | later,
        round(quarantine),
        Sizes(int(listing.sizes.sum()), int(usage.live.sum()), int(usage.dead.sum())),
        (*problems, *removals.problems, *index_problems, *refuted.values()),
        index,
        usage,
    )


def _served(repository: Repository, removals: Removals, clock: float) -> list[Removal]:
    """Return the REMOVED statements that nobody needs any more.

    While parity names something of what one says, a repair learns from it that this is not lost.
    """
    old = [removal for removal in removals.removed if clock - removal.begins > KEEP_REMOVED]
    covered = {
        member.name
        for group in (read_groups(repository.backend, repository.id)[0] if old else {}).values()
        for member in group.table.members
    }
    return [
        removal
        for removal in old
        if covered.isdisjoint(removal.packs) and covered.isdisjoint(map(object_of, removal.images))
    ]


def _perhaps_of_running(
    repository: Repository, index: Index, ages: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return which packs no index names and a capture that runs may have stored.

    It may run if it has stored one of them within the last day.

    Args:
        repository: where they lie.
        index: of it.
        ages: of each pack, seconds.
    """
    found = index.is_unlisted & (ages < DAY)
    old = np.flatnonzero(index.is_unlisted & ~found).tolist()
    if old and found.any():
        young = np.flatnonzero(found).tolist()
        running = {_session_of(repository, index.name(pack)) for pack in young} - {None}
        found[[p for p in old if _session_of(repository, index.name(p)) in running]] = True
    return found


def _session_of(repository: Repository, name: str) -> bytes | None:
    try:
        raw = repository.backend.get_range(name, 0, HEADER_SIZE)
        return Header.decode(raw, Magic.PACK, repository.id, name).session
    except OBJECT_FAULTS:
        return None


def _phase_one(
    usage: Usage, may_go: NDArray[np.bool_], waste: float
) -> tuple[list[int], tuple[Repacking, ...]]:
    """Return the packs that nobody needs, and those to be repacked; all by number."""
    mixed = np.flatnonzero(may_go & (usage.live > 0) & (usage.dead > 0))
    live, dead = usage.live[mixed].astype(np.float64), usage.dead[mixed].astype(np.float64)
    order = np.argsort(-dead / (live + dead), kind="stable")
    dead_bytes = int(usage.dead[mixed].sum())
    staying = int(usage.live.sum()) + dead_bytes
    chosen = []
    for pack in mixed[order].tolist():
        item = Repacking(pack, int(usage.live[pack]), int(usage.dead[pack]))
        if dead_bytes <= waste * staying and item.dead < item.live:
            break
        chosen.append(item)
        dead_bytes -= item.dead
        staying -= item.dead
    return np.flatnonzero(may_go & (usage.live == 0)).tolist(), tuple(chosen)


def _named(index: Index, stored: PackListing, packs: list[int]) -> tuple[tuple[str, int], ...]:
    """Return name and size of some packs, by name."""
    return tuple((index.name(pack), int(stored.sizes[pack])) for pack in packs)


def _measured(
    repository: Repository,
    keys: GroupKeys,
    index: Index,
    images: list[SealedImage],
    rank: NDArray[np.int64],
) -> Usage:
    usage = measure(repository, keys, index, images, rank)
    if usage.problems:
        raise _refusal(usage.problems)
    return usage


def _repacked(repository: Repository) -> set[str]:
    """Return the names of packs that upkeep vouches for."""
    found: set[str] = set()
    for entry in repository.backend.list(statements.PREFIX):
        try:
            body = repository.read_statement(entry.name).body
        except OBJECT_FAULTS:
            continue
        if isinstance(body, RepackedBody):
            found.update(object_name(bytes.fromhex(pack)) for pack in body.packs)
    return found


def _rank(
    index: Index,
    removals: Removals,
    modified: NDArray[np.float64],
    is_whole: NDArray[np.bool_],
    is_repacked: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Return the order in which packs are preferred as the place of a kept copy.

    Packs that are gone or cut off come last; then those condemned first, to those never
    condemned. Among those, what upkeep moved comes before what captures sent, and older before
    younger: so who takes over a machine can't make prune give up an older copy for his own.
    A statement that appears between two prunes only adds a later condemnation, so it changes
    nothing in the order of packs that were condemned before.
    """
    since = np.full(len(index.digests), np.inf)
    for removal in removals.condemned:
        named = index.are(removal.packs)
        since[named] = np.minimum(since[named], removal.begins)
    rank = np.empty(len(index.digests), dtype=np.int64)
    rank[np.lexsort((-modified, is_repacked, since, is_whole))] = np.arange(len(rank))
    return rank


def _unconfirmed(
    repository: Repository,
    keys: GroupKeys,
    index: Index,
    usage: Usage,
    packs: list[int],
) -> dict[int, Problem]:
    """Return which packs must stay, because a copy that would be kept is rotten or is not there."""
    found: dict[int, Problem] = {}
    for group in usage.given_up(packs):
        name = index.name(group.keeper)
        kind, ids = _verified_ids(repository, keys, name)
        is_kept = (find(group.ids, ids) != NOWHERE) & (kind is group.kind)
        for pack in np.unique(group.packs[~is_kept]).tolist():
            error = ObjectDamaged(
                f"{name} is damaged, or an index names chunks in it that its directory does not; "
                "other copies of them stay"
            )
            found[pack] = Problem(name, error)
    return found


def _verified_ids(
    repository: Repository, keys: GroupKeys, name: str
) -> tuple[PackKind | None, Ids]:
    """Read a pack whole; return its kind and its ids, sorted, if it is as it was written."""
    try:
        data = repository.backend.get(name)
        if object_name(hashlib.sha256(data).digest()) != name:
            raise ObjectDamaged(f"{name} has other bytes than were written")
        kind, rows = pack_format.decode_directory(data, name, keys.directory_key, repository.id)
    except OBJECT_FAULTS:
        return None, np.empty(0, dtype=ID)
    return kind, unique_ids(rows["id"])


def object_of(image: str) -> str:
    """Return the name of the object that an image is."""
    return image_format.PREFIX + image


def _refusal(problems: Iterable[Problem]) -> ChecksFailed:
    named = ", ".join(sorted({problem.name for problem in problems}))
    return ChecksFailed(
        f"nobody can tell what these images need, so nothing was removed: {named}",
        hint="`remetal repair REPO` brings damaged objects back; then prune again.",
    )


def uptime() -> float:
    """Return seconds that passed for the machine, its sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
