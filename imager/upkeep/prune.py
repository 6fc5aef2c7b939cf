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

from imager.errors import ChecksFailed, ObjectDamaged, RemetalError, UntrustedObject, UsageError
from imager.repository import image as image_format
from imager.repository import pack as pack_format
from imager.repository import statement as statements
from imager.repository.header import PackKind
from imager.repository.image import SealedImage
from imager.repository.index import Index
from imager.repository.keyring import GroupKeys
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
    listing = {entry.name: entry for entry in repository.backend.list(pack_format.PREFIX)}
    sizes = {name: entry.size for name, entry in listing.items()}
    lost = repository.lost_packs(index)
    whole = {name: entry.modified for name, entry in listing.items() if name not in lost}
    rank = _rank(index, removals, whole, _repacked(repository))
    due = tuple(removal for removal in removals.condemned if removal.ends <= clock)
    waiting = tuple(removal for removal in removals.condemned if removal.ends > clock)
    condemned_images = {image for removal in due for image in removal.images}
    condemned_images &= {image.id for image in images}
    due_packs = {pack for removal in due for pack in removal.packs} & sizes.keys()
    done = {r.name for r in removals.removed if clock - r.begins > KEEP_REMOVED}
    done |= {removal.name for removal in due}
    locks = Locks(repository, keys)
    doomed = {object_of(image.id) for image in images if image.id in unwanted}
    kept = locks.of(doomed | due_packs | done)
    going = {i for i in condemned_images & unwanted if object_of(i) not in kept}
    staying = [image for image in images if image.id not in going]
    usage = _measured(repository, keys, index, staying, rank)
    if usage.suspect:
        whole = {name: age for name, age in whole.items() if name not in usage.suspect}
        rank = _rank(index, removals, whole, _repacked(repository))
        usage = _measured(repository, keys, index, staying, rank)
    names = [object_name(digest) for digest, _ in index.packs]
    candidates = [n for n, name in enumerate(names) if name in due_packs and not usage.live[n]]
    refuted = _unconfirmed(repository, keys, index, usage, candidates)
    unneeded = {names[number] for number in candidates if number not in refuted}
    locked = {name: kept[name] for name in unneeded & kept.keys()}
    unneeded -= locked.keys() | _live_names(names, usage)
    late = {name for name in doomed if kept.get(name, clock) > clock + quarantine}
    locked |= {
        name: kept[name]
        for name in late | {object_of(i) for i in condemned_images & unwanted - going}
    }
    wanted = [i for i in staying if i.id not in unwanted or object_of(i.id) in late]
    if len(wanted) != len(staying):
        usage = _measured(repository, keys, index, wanted, rank)
    pending = {pack for removal in waiting for pack in removal.packs} | unneeded
    # A capture that runs has packs that no index names yet; interrupted ones leave theirs behind.
    pending |= {name for name in index.unlisted if clock - whole.get(name, clock) < DAY}
    condemn, repacking, measured = _phase_one(usage, names, sizes, pending, waste)
    chosen = {name for name, _ in condemn} | {names[item.pack] for item in repacking}
    later = {n: t for n, t in locks.of(chosen).items() if t > clock + quarantine}
    condemn = tuple(row for row in condemn if row[0] not in later)
    repacking = tuple(item for item in repacking if names[item.pack] not in later)
    in_quarantine = {image for removal in waiting for image in removal.images}
    return Plan(
        made,
        due,
        tuple(sorted(done - kept.keys())),
        tuple(sorted(going)),
        tuple((pack, sizes[pack]) for pack in sorted(unneeded)),
        tuple(sorted(condemned_images - unwanted)),
        len(due_packs) - len(unneeded),
        waiting,
        tuple(
            i.id
            for i in staying
            if i.id in unwanted and i.id not in in_quarantine and object_of(i.id) not in late
        ),
        condemn,
        repacking,
        locked | later,
        round(quarantine),
        measured,
        (*problems, *removals.problems, *index_problems, *refuted.values()),
        index,
        usage,
    )


def _phase_one(
    usage: Usage, names: list[str], sizes: dict[str, int], pending: set[str], waste: float
) -> tuple[tuple[tuple[str, int], ...], tuple[Repacking, ...], Sizes]:
    condemn, mixed = [], []
    live_names = _live_names(names, usage)
    dead_bytes = 0
    for number, name in enumerate(names):
        live, dead = int(usage.live[number]), int(usage.dead[number])
        if name not in sizes or name in pending:
            continue
        if name not in live_names:
            condemn.append((name, sizes[name]))
        elif dead:
            mixed.append(Repacking(number, live, dead))
            dead_bytes += dead
    staying = sum(usage.live.tolist()) + dead_bytes
    mixed.sort(key=lambda item: (-item.dead / (item.live + item.dead), names[item.pack]))
    chosen = []
    for item in mixed:
        if dead_bytes <= waste * staying and item.dead < item.live:
            break
        chosen.append(item)
        dead_bytes -= item.dead
        staying -= item.dead
    stored = sum(sizes.values())
    measured = Sizes(stored, int(usage.live.sum()), int(usage.dead.sum()))
    return tuple(sorted(set(condemn))), tuple(chosen), measured


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
        except RemetalError:
            continue
        if isinstance(body, RepackedBody):
            found.update(object_name(bytes.fromhex(pack)) for pack in body.packs)
    return found


def _rank(
    index: Index, removals: Removals, whole: dict[str, float], repacked: set[str]
) -> NDArray[np.int64]:
    """Return the order in which packs are preferred as the place of a kept copy.

    Packs that are gone or cut off come last; then those condemned first, to those never
    condemned. Among those, what upkeep moved comes before what captures sent, and older before
    younger: so who takes over a machine can't make prune give up an older copy for his own.
    A statement that appears between two prunes only adds a later condemnation, so it changes
    nothing in the order of packs that were condemned before.
    """
    since = removals.condemned_since()

    def key(number: int) -> tuple[bool, float, bool, float, bytes]:
        digest = index.packs[number][0]
        name = object_name(digest)
        age = -whole.get(name, 0.0)
        return name in whole, since.get(name, float("inf")), name in repacked, age, digest

    rank = np.empty(len(index.packs), dtype=np.int64)
    for position, number in enumerate(sorted(range(len(index.packs)), key=key)):
        rank[number] = position
    return rank


def _unconfirmed(
    repository: Repository,
    keys: GroupKeys,
    index: Index,
    usage: Usage,
    packs: list[int],
) -> dict[int, Problem]:
    """Return which packs must stay, because a copy that would be kept is rotten or is not there."""
    directories: dict[int, tuple[PackKind | None, set[bytes]]] = {}
    found: dict[int, Problem] = {}
    for pack, identity, keeper in usage.given_up(packs):
        name = object_name(index.packs[keeper][0])
        if keeper not in directories:
            directories[keeper] = _verified_ids(repository, keys, name)
        kind, ids = directories[keeper]
        if kind is not index.packs[pack][1] or identity not in ids:
            error = ObjectDamaged(
                f"{name} is damaged, or an index names chunks in it that its directory does not; "
                "other copies of them stay"
            )
            found[pack] = Problem(name, error)
    return found


def _verified_ids(
    repository: Repository, keys: GroupKeys, name: str
) -> tuple[PackKind | None, set[bytes]]:
    """Read a pack whole; return its kind and ids if it is as it was written."""
    try:
        data = repository.backend.get(name)
        if object_name(hashlib.sha256(data).digest()) != name:
            return None, set()
        kind, rows = pack_format.decode_directory(data, name, keys.directory_key, repository.id)
    except RemetalError:
        return None, set()
    return kind, {row["id"].tobytes() for row in rows}


def _live_names(names: list[str], usage: Usage) -> set[str]:
    """Return the packs that are needed, whatever else indexes say of the same packs."""
    return {names[number] for number in np.flatnonzero(usage.live)}


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
