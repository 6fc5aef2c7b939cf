"""Checking a repository: is every image that is listed complete, intact and what it says?

| depth      | needs             | reads                                      | finds                         |
|------------|-------------------|--------------------------------------------|-------------------------------|
| structure  | the group secret  | images, statements, indexes, maps          | what is missing, cut or forged |
| ciphertext | no key            | every object, whole                        | each byte that changed        |
| full       | a recovery key    | every object, whole, and opens every chunk | also content that lies        |

With the group's keys, ciphertext and full look at the structure too and name images and machines.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from imager.errors import OBJECT_FAULTS, ObjectMissing
from imager.repository import image as image_format
from imager.repository import statement as statements
from imager.repository.backend.protocol import Entry
from imager.repository.configuration import CONFIG_NAME
from imager.repository.keyring import GroupKeys
from imager.repository.names import is_object
from imager.repository.removals import is_rotten
from imager.repository.repository import Repository
from imager.repository.retrieval import OpenImage, Unlocked
from imager.upkeep.check_ciphertext import Judge
from imager.upkeep.check_full import Opening
from imager.upkeep.check_report import Bad, Depth, Fault, Finding, Progress, Report
from imager.upkeep.check_round import Advance, Budget, Walked, walk, walk_round
from imager.upkeep.check_structure import Structure, examine

# What writers and repairs that run, or were interrupted, leave for a while.
_PASSING: Final = ("incoming/", "repaired/")


def data_size(repository: Repository) -> int:
    """Return how many bytes a check of depth ciphertext or full reads."""
    return sum(entry.size for entry in repository.backend.list("") if is_object(entry.name))


def check(
    repository: Repository,
    keys: GroupKeys | None,
    advance: Advance,
    *,
    depth: Depth = Depth.STRUCTURE,
    unlocked: Unlocked | None = None,
    budget: Budget | None = None,
) -> Report:
    """Check a repository; damage is reported, never raised.

    Args:
        repository: what to check.
        keys: of the group; None only with depth ciphertext, then no image is named.
        advance: told of every byte that was read whole.
        depth: how much is read.
        unlocked: a recovery key, for depth full.
        budget: of time, for depth ciphertext and full; None reads everything.

    Raises:
        ValueError: a depth without the key it needs.
    """
    if depth is Depth.STRUCTURE:
        if keys is None:
            raise ValueError("the structure is checked with the group's keys")
        structure = examine(repository, keys, {})
        # Directories keep no versions, and a listing of a large one takes a while.
        listed = () if repository.backend.folders else repository.backend.list("")
        report = Report(depth, None, 0, 0, 0, (), tampered=_tampered(listed))
        return _with_structure(report, structure)
    entries = sorted(repository.backend.list(""), key=lambda entry: entry.name)
    tampered = _tampered(entries)
    strange = tuple(
        entry.name
        for entry in entries
        if not is_object(entry.name) and not entry.name.startswith(_PASSING)
    )
    entries = [entry for entry in entries if is_object(entry.name)]
    judge = Judge(repository, entries)
    opening: Opening | None = None
    look = judge.look
    if depth is Depth.FULL:
        if unlocked is None:
            raise ValueError("a full check opens everything, and needs a recovery key")
        index, _ = repository.load_index(unlocked.keys)
        opening = Opening(repository, unlocked, index, judge)
        look = opening.look
    progress: Progress | None = None
    if budget is None:
        walked = walk(repository.backend, entries, look, advance)
    else:
        walked, progress = walk_round(repository.backend, entries, look, advance, depth, budget)
    if judge.identity != repository.id:
        message = f"{CONFIG_NAME} is not the one that the other objects were made for"
        walked.bad.setdefault(CONFIG_NAME, Bad(CONFIG_NAME, message))
    rotten = {
        name
        for name in walked.bad
        if name.startswith(statements.REMOVALS) and is_rotten(repository.backend, name)
    }
    for name in rotten:
        del walked.bad[name]
    report = Report(
        depth,
        None,
        walked.objects,
        walked.read_bytes,
        opening.chunks if opening else 0,
        (),
        unopened_packs=opening.unopened if opening else 0,
        strange=strange,
        progress=progress,
        rotten_removals=tuple(sorted(rotten)),
        tampered=tampered,
    )
    if keys is None:
        return replace(report, findings=_without_keys(repository, walked))
    structure = examine(repository, keys, walked.bad)
    if unlocked is not None:
        _open_manifests(repository, unlocked, structure)
    return _with_structure(report, structure)


def _tampered(entries: Iterable[Entry]) -> tuple[str, ...]:
    return tuple(entry.name for entry in entries if entry.newer)


def _with_structure(report: Report, structure: Structure) -> Report:
    found = [structure.findings[name] for name in sorted(structure.findings)]
    return replace(
        report,
        images=structure.count,
        objects=max(report.objects, structure.objects),
        findings=tuple(f for f in found if f.fault is not Fault.DISOWNED),
        ignored=tuple(f for f in found if f.fault is Fault.DISOWNED),
        orphan_packs=len(structure.orphans),
        orphan_bytes=sum(structure.orphans.values()),
        rotten_removals=tuple(sorted({*report.rotten_removals, *structure.rotten_removals})),
    )


def _without_keys(repository: Repository, walked: Walked) -> tuple[Finding, ...]:
    """Return what is wrong and still there; what a prune removed meanwhile is no finding."""
    there = {entry.name for entry in repository.backend.list("")} if walked.bad else set()
    return tuple(
        Finding(name, problem.message, (), fault=problem.fault)
        for name, problem in sorted(walked.bad.items())
        if name in there
    )


def _open_manifests(repository: Repository, unlocked: Unlocked, structure: Structure) -> None:
    index, _ = repository.load_index(unlocked.keys)
    for image in structure.images:
        try:
            OpenImage(repository, image, unlocked, index, lambda _: None)
        except ObjectMissing:
            continue
        except OBJECT_FAULTS as error:
            structure.add(image_format.PREFIX + image.id, error, [image])
