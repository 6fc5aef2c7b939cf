"""`remetal repair`: bring lost and damaged objects back."""

from pathlib import Path

import click

from imager.commands.repository_argument import repository_argument
from imager.commands.secrets import credential_option, load_keys_if_any, recovery_options
from imager.console import Output, verb
from imager.errors import ChecksFailed, RepairIncomplete, RepositoryError, UsageError
from imager.repository.backend.opening import open_backend
from imager.repository.backend.place import Place
from imager.repository.keyring import GroupKeys
from imager.repository.repository import Repository
from imager.upkeep import repair as work
from imager.upkeep.repair_images import Broken, Touched
from imager.upkeep.repair_scan import State, total_bytes
from imager.upkeep.repair_sources import Source


@click.command(short_help="Bring lost and damaged objects in REPO back.")
@repository_argument()
@click.option(
    "--from",
    "others",
    multiple=True,
    metavar="OTHER_REPO",
    help="Another copy of the same repository; may be given several times.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be done; write nothing.")
@credential_option
@recovery_options
@verb
def repair(
    out: Output,
    repo: Place,
    others: tuple[str, ...],
    dry_run: bool,
    credential: Path | None,
    recovery_key: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Bring lost and damaged objects in REPO back, from parity or from another copy.

    Every object is read. What is intact is never touched; what comes back is verified before it is
    written. No key is needed for that. A capture credential rebuilds a lost index besides, and
    names image by image and machine by machine what could not be brought back.

    \b
    Examples:
      remetal repair /srv/images --dry-run
      remetal repair /srv/images --from /mnt/second-copy
    """
    backend = open_backend(repo)
    copies = [open_backend(other) for other in others]
    if any(copy.location == backend.location for copy in copies):
        raise UsageError("a repository is no copy of itself")

    keys: list[GroupKeys | None] = []

    def keys_of(repository: Repository) -> GroupKeys | None:
        """Ask once: the plan does when every generation that comes back is known."""
        if not keys:
            keys.append(
                load_keys_if_any(out, repository, credential, recovery_key, passphrase_file)
            )
        return keys[0]

    with out.progress("repair", total_bytes(backend)) as advance:
        plan = work.plan(backend, copies, keys_of, advance)
    _tell_plan(out, plan)
    if dry_run:
        out.document({"dry_run": True, **_document(plan, None, plan.broken, plan.touched)})
        if plan.mends or plan.broken or plan.touched:
            raise _unwell(repo, plan)
        out.say("All is well.")
        return
    result = work.execute(backend, keys_of, plan)
    broken, touched = work.touched_by(backend, plan, result, keys_of)
    out.document({"dry_run": False, **_document(plan, result, broken, touched)})
    for name in result.names:
        out.say(f"{name}: is whole again")
    for name, error in result.failed:
        out.say(f"{name}: {error.message}")
    if not broken and not touched:
        out.say("All is well.")
        return
    raise _incomplete(out, broken, touched)


def _unwell(repo: Place, plan: work.RepairPlan) -> ChecksFailed:
    count = len(plan.broken)
    return ChecksFailed(
        f"{len(plan.steps)} objects would be brought back, {count} would stay broken"
        + (f", {len(plan.touched)} images would stay touched" if plan.touched else ""),
        hint=f"Nothing was written. `remetal repair {repo}` does what it can.",
    )


def _incomplete(
    out: Output, broken: tuple[Broken, ...], touched: tuple[Touched, ...] | None
) -> RepositoryError:
    for item in broken:
        out.say(f"{item.name} is {item.state}: {_why_not(item)}")
    text = f"{len(broken)} objects could not be brought back"
    if touched is None:
        return RepairIncomplete(
            text,
            hint="A capture credential (--credential FILE) would name the images that need them. "
            "Another copy of the repository (--from OTHER_REPO) may have them.",
        )
    for image in touched:
        objects = ", ".join(image.objects)
        out.say(f"image {image.image[:12]} of {image.machine} is touched: it needs {objects}")
    machines = sorted({image.machine for image in touched})
    return RepairIncomplete(
        f"{text}; {len(touched)} images are touched"
        + (f", of {', '.join(machines)}" if machines else ""),
        hint="All other images restore. Another copy of the repository (--from OTHER_REPO) may "
        "have what is missing; what was touched should be captured again.",
    )


def _tell_plan(out: Output, plan: work.RepairPlan) -> None:
    out.say(f"{plan.intact} objects are intact.")
    for name in plan.stashes:
        out.say(f"finish {name}, which an interrupted repair left")
    for step in plan.steps:
        place = step.place[:16] if step.source is Source.PARITY else step.place
        out.say(f"{step.name} is {step.state}: bring it back from {step.source} {place}")
    for group in plan.shares:
        out.say(f"make the parity of group {group.table.id.hex()[:16]} again")
    if plan.new_parity:
        out.say(f"replace {len(plan.new_parity)} unreadable parity objects")
    if plan.rotten_removals:
        out.say(
            f"{len(plan.rotten_removals)} statements of removals have rotted; no image needs them, "
            "and they go when they are a day old"
        )
    if plan.rebuild_index:
        out.say("make indexes again from the packs")
    for item in plan.broken:
        out.say(f"{item.name} is {item.state}: {_why_not(item)}")


def _why_not(item: Broken) -> str:
    if item.state is State.UNREADABLE:
        return (
            f"is left alone ({item.reason}); if the storage has lost it for good, move it away and "
            "repair again"
        )
    return item.reason or "there is nothing to bring it back from"


def _document(
    plan: work.RepairPlan,
    result: work.Repaired | None,
    broken: tuple[Broken, ...],
    touched: tuple[Touched, ...] | None,
) -> dict[str, object]:
    return {
        "repository": plan.repository.hex(),
        "intact": plan.intact,
        "steps": [
            {"object": s.name, "state": s.state, "source": s.source, "place": s.place}
            for s in plan.steps
        ],
        "parity_groups_made_again": len(plan.shares),
        "rotten_removals": list(plan.rotten_removals),
        "rebuild_index": plan.rebuild_index,
        "repaired": [] if result is None else list(result.names),
        "broken": [
            {"object": item.name, "state": item.state, "reason": item.reason} for item in broken
        ],
        "touched": None
        if touched is None
        else [
            {"image": item.image, "machine": item.machine, "needs": item.objects}
            for item in touched
        ],
    }
