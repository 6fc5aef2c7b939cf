"""The operations that are tortured: what each starts from, does, and must have done."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imager.repository.keyring import GroupKeys
from imager.repository.repository import Repository
from imager.repository.retrieval import Unlocked
from imager.upkeep import parity as parity_work
from imager.upkeep import prune as prune_work
from imager.upkeep import repair as repair_work
from imager.upkeep.check import check
from imager.upkeep.check_report import Depth
from imager.upkeep.prune_execute import execute
from tests.torture.world import World, age

_WAIT: Final = prune_work.DEFAULT_QUARANTINE + 60

Done = dict[str, str]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    Attributes:
        name: of the row in the table.
        prepare: changes a copy of the first world into what the operation starts from.
        run: does it, in the repository at a path, and returns what it claims to have done.
        goal: returns what is not as a run that reported success promised; empty when all is.
        adds: machine whose image it adds, or nothing.
        removes: machine whose image it may remove, or nothing.
        must_see_faults: a fault of any read must lead to an error or a finding.
        begins_damaged: images need not be restorable before it has succeeded.
    """

    name: str
    prepare: Callable[[World], None]
    run: Callable[[World, Path, Path], Done]
    goal: Callable[[World, Path], str]
    adds: str = ""
    removes: str = ""
    must_see_faults: bool = False
    begins_damaged: bool = False


def opened(world: World, root: Path) -> tuple[Repository, GroupKeys]:
    """Return the repository and the keys of its group."""
    repository = Repository.open(str(root))
    return repository, repository.credential_keys(world.credential)


def _nothing(_: World) -> None:
    pass


def _no_goal(_world: World, _root: Path) -> str:
    return ""


def _capture(world: World, root: Path, scratch: Path) -> Done:
    return {"image": world.capture(root, "new", scratch)}


def _check(world: World, root: Path, _scratch: Path) -> Done:
    repository, keys = opened(world, root)
    unlocked = Unlocked(repository, world.key)
    report = check(repository, keys, lambda _: None, depth=Depth.FULL, unlocked=unlocked)
    return {"findings": "; ".join(f"{f.name}: {f.message}" for f in report.findings)}


def _check_goal(world: World, root: Path) -> str:
    return _check(world, root, root)["findings"]


def _unwanted(world: World) -> frozenset[str]:
    return frozenset({world.images["old"]})


def _prune(world: World, root: Path, _scratch: Path) -> Done:
    repository, keys = opened(world, root)
    made = prune_work.plan(repository, keys, _unwanted(world), waste=0.0)
    result = execute(made, repository, keys, world.signatory, lambda _: None)
    return {"findings": "; ".join(p.name for p in (*made.problems, *result.problems))}


def _left_to_prune(world: World, root: Path) -> prune_work.Plan:
    repository, keys = opened(world, root)
    return prune_work.plan(repository, keys, _unwanted(world), waste=0.0)


def has_to_repack(world: World) -> bool:
    """Whether a pack holds something that stays and something that goes."""
    return bool(_left_to_prune(world, world.template).repack)


def _condemn_goal(world: World, root: Path) -> str:
    left = _left_to_prune(world, root)
    what = [*left.condemn_images, *left.condemn_packs, *left.repack]
    return f"prune left to condemn: {what}" if what else ""


def _prepare_removal(world: World) -> None:
    _prune(world, world.template, world.folder)
    age(world.template / "removals", _WAIT)


def _removal_goal(world: World, root: Path) -> str:
    left = _left_to_prune(world, root)
    what = [*left.remove_images, *left.remove_packs, *left.due]
    if world.images["old"] in {path.name for path in (root / "images").rglob("*")}:
        what.append(world.images["old"])
    return f"prune left to remove: {what}" if what else ""


def _parity(_world: World, root: Path, _scratch: Path) -> Done:
    repository = Repository.open(str(root))
    made = parity_work.plan(repository.backend, repository.id)
    outcome = parity_work.execute(repository.backend, repository.id, made, lambda _: None)
    return {"damaged": "; ".join(outcome.damaged)}


def _parity_goal(_world: World, root: Path) -> str:
    repository = Repository.open(str(root))
    left = parity_work.plan(repository.backend, repository.id)
    return f"parity left to make: {left.make}" if left.make or left.broken else ""


def _prepare_damage(world: World) -> None:
    root = world.template
    _parity(world, root, world.folder)
    packs = sorted(path for path in (root / "packs").rglob("*") if path.is_file())
    packs[0].unlink()
    os.truncate(packs[1], packs[1].stat().st_size // 2)
    for path in (root / "indexes").rglob("*"):
        if path.is_file():
            path.unlink()


def _keys_of(world: World) -> Callable[[Repository], GroupKeys | None]:
    def keys_of(repository: Repository) -> GroupKeys | None:
        return repository.credential_keys(world.credential)

    return keys_of


def _repair(world: World, root: Path, _scratch: Path) -> Done:
    backend = Repository.open(str(root)).backend
    made = repair_work.plan(backend, [], _keys_of(world), lambda _: None)
    result = repair_work.execute(backend, _keys_of(world), made)
    broken, _ = repair_work.touched_by(backend, made, result, _keys_of(world))
    return {"broken": "; ".join(item.name for item in broken)}


def _repair_goal(world: World, root: Path) -> str:
    backend = Repository.open(str(root)).backend
    left = repair_work.plan(backend, [], _keys_of(world), lambda _: None)
    if not left.is_empty or left.broken:
        return f"repair left: {left.steps} {left.broken} {left.stashes} {left.rebuild_index}"
    return _check_goal(world, root)


OPERATIONS: Final = (
    Operation("capture", _nothing, _capture, _no_goal, adds="new"),
    Operation("prune, condemn", _nothing, _prune, _condemn_goal),
    Operation("prune, remove", _prepare_removal, _prune, _removal_goal, removes="old"),
    Operation("check", _nothing, _check, _check_goal, must_see_faults=True),
    Operation("repair", _prepare_damage, _repair, _repair_goal, begins_damaged=True),
    Operation("parity", _nothing, _parity, _parity_goal),
)
