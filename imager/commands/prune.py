"""`remetal prune`: let go of what retention does not keep, and of what no image needs."""

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import click

from imager.commands.repository_argument import repository_argument
from imager.commands.retention_options import number, policy_options, seconds
from imager.commands.secrets import load_upkeep, recovery_options, upkeep_option
from imager.console import Output, verb
from imager.errors import ChecksFailed, UntrustedObject, UsageError
from imager.repository import image as image_format
from imager.repository.backend.place import Place
from imager.repository.repository import Repository
from imager.repository.standing import Standing, read_standing
from imager.repository.statement import LONGEST_QUARANTINE
from imager.retention import picture
from imager.retention.policy import Policy
from imager.retention.retention import Verdict, decide
from imager.units import DAY, format_duration, format_size
from imager.upkeep import extend_locks
from imager.upkeep import prune as pruning
from imager.upkeep.ages import stored_images
from imager.upkeep.extend_locks import Extension
from imager.upkeep.prune import Plan
from imager.upkeep.prune_execute import Result, execute


@click.command(short_help="Let go of old images in REPO, and of data that none needs.")
@repository_argument()
@click.option(
    "--quarantine",
    callback=seconds,
    metavar="DURATION",
    default="7d",
    show_default=True,
    help="How long what is condemned now stays, such as 12h or 7d; an hour at least.",
)
@click.option(
    "--max-waste",
    type=click.FloatRange(0, 100),
    callback=number,
    default=5.0,
    show_default=True,
    metavar="PERCENT",
    help="How much of the stored bytes may be needed by no image and stay, because they share packs "
    "with needed ones; beyond it half-empty packs are written anew without them.",
)
@click.option("--dry-run", is_flag=True, help="Show the plan and change nothing.")
@upkeep_option
@recovery_options
@verb
@policy_options
def prune(
    out: Output,
    repo: Place,
    quarantine: int,
    max_waste: float,
    dry_run: bool,
    policy: Policy,
    upkeep_credential: Path | None,
    recovery_key: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Let go of images in REPO that the policy does not keep, and of data that no image needs.

    The policy is what the --keep options say; an image stays if one of them wants it. They count for
    each machine on its own.

    Nothing goes at once: a first run condemns, and a run after the quarantine removes what is
    still not needed. Captures never wait for it. Images that are held (`remetal hold`), the newest
    of each machine, and the newest that passed a drill stay under every policy.

    On a store with object lock it also extends the locks of all that is kept.

    \b
    Examples:
      remetal prune /srv/images --dry-run
      remetal prune /srv/images
      remetal prune /srv/images --keep-within 30d --keep-weekly 8 --keep-monthly 24
    """
    if quarantine > LONGEST_QUARANTINE:
        raise UsageError(f"a quarantine is {LONGEST_QUARANTINE // DAY} days at most")
    repository = Repository.open(repo)
    signatory, keys = load_upkeep(out, repository, upkeep_credential, recovery_key, passphrase_file)
    images, _ = pruning.readable_images(repository, keys)
    standing = read_standing(repository)
    damaged = [p for p in standing.problems if not isinstance(p.error, UntrustedObject)]
    if damaged:
        names = ", ".join(problem.name for problem in damaged)
        raise ChecksFailed(
            f"nobody can tell which images these hold, so nothing was removed: {names}",
            hint="`remetal repair REPO` brings damaged objects back; then prune again.",
        )
    now = repository.backend.now()
    verdict = decide(stored_images(images, standing, now), policy, now)
    unwanted = frozenset(d.image.id for d in verdict.decisions if not d.keep)
    plan = pruning.plan(repository, keys, unwanted, quarantine=quarantine, waste=max_waste / 100)
    kept = {decision.image.id for decision in verdict.decisions if decision.keep}
    extension = extend_locks.plan(repository, keys, plan, kept)
    _tell_images(out, verdict, now)
    _tell_plan(out, plan)
    _tell_extension(out, extension)
    _warn(out, verdict, plan, standing)
    result = None
    if dry_run:
        out.say("Nothing was changed (--dry-run).")
    else:
        # Before what may fail: whatever keeps a prune from its end, what is kept stays locked.
        if extension is not None and extension.objects:
            extend_locks.execute(repository.backend, extension)
        moving = sum(item.live for item in plan.repack)
        with out.progress("repack", moving) as advance:
            result = execute(plan, repository, keys, signatory, advance)
        _tell_result(out, result)
    out.document(_document(verdict, plan, extension, result))


def _tell_images(out: Output, verdict: Verdict, now: float) -> None:
    out.table(picture.COLUMNS, picture.rows(verdict.decisions))
    lines = picture.timelines(verdict.decisions, now)
    if lines:
        out.say()
    for line in lines:
        out.say(line)
    if lines:
        out.say(picture.LEGEND)
        out.say()


def _tell_plan(out: Output, plan: Plan) -> None:
    sizes = plan.sizes
    out.say(
        f"{format_size(sizes.stored)} in packs: {format_size(sizes.live)} needed, "
        f"{format_size(sizes.dead)} not needed."
    )
    packs = sum(size for _, size in plan.remove_packs)
    if plan.due:
        out.say(
            f"The quarantine is over: {len(plan.remove_images)} images and "
            f"{len(plan.remove_packs)} packs ({format_size(packs)}) go now; "
            f"{len(plan.rescued_images)} images and {plan.rescued_packs} packs are needed again and stay."
        )
    if plan.condemn_images or plan.condemn_packs or plan.repack:
        condemned = sum(size for _, size in plan.condemn_packs)
        moving = sum(item.live for item in plan.repack)
        out.say(
            f"Condemned, to go in {format_duration(plan.quarantine)}: {len(plan.condemn_images)} images, "
            f"{len(plan.condemn_packs)} packs ({format_size(condemned)}); {len(plan.repack)} half-empty "
            f"packs are repacked ({format_size(moving)} to move)."
        )
    for removal in plan.waiting:
        out.say(
            f"In quarantine until {_moment(removal.ends)}: {len(removal.images)} images, "
            f"{len(removal.packs)} packs."
        )
    if plan.locked:
        images = sum(name.startswith(image_format.PREFIX) for name in plan.locked)
        out.say(
            f"Not wanted, and kept by the store: {images} images and {len(plan.locked) - images} packs, "
            f"{_lock_end(plan.locked.values())}."
        )
    if not (plan.due or plan.condemn_images or plan.condemn_packs or plan.repack):
        out.say("There is nothing to condemn and nothing to remove.")


def _tell_extension(out: Output, extension: Extension | None) -> None:
    if extension is not None and extension.objects:
        out.say(
            f"The locks of {len(extension.objects)} objects that are kept are extended until "
            f"{_moment(extension.until)}."
        )


def _lock_end(times: Iterable[float]) -> str:
    """Return when all of some locks have ended."""
    last = max(times)
    if math.isinf(last):
        return "until somebody lifts their lock (immutable files: `chattr -i -a`)"
    return f"the last until {_moment(last)}; a prune after that lets them go"


def _warn(out: Output, verdict: Verdict, plan: Plan, standing: Standing) -> None:
    for observation in verdict.observations:
        out.remark(f"warning: {observation.text}")
    for problem in (*plan.problems, *standing.problems):
        out.remark(f"warning: {problem.name}: {problem.error.message}")


def _tell_result(out: Output, result: Result) -> None:
    out.say(
        f"Done: {result.removed_images} images and {result.removed_packs} packs removed, "
        f"{format_size(result.freed_bytes)} freed, {format_size(result.repacked_bytes)} repacked."
    )
    for problem in result.problems:
        out.remark(f"warning: {problem.name} was not repacked: {problem.error.message}")


def _document(
    verdict: Verdict, plan: Plan, extension: Extension | None, result: Result | None
) -> dict[str, object]:
    return {
        "images": [
            {
                "image": decision.image.id,
                "machine": decision.image.machine_name,
                "keep": decision.keep,
                "reasons": decision.reasons,
            }
            for decision in verdict.decisions
        ],
        "observations": [observation.text for observation in verdict.observations],
        "remove": {"images": plan.remove_images, "packs": [name for name, _ in plan.remove_packs]},
        "condemn": {
            "images": plan.condemn_images,
            "packs": [name for name, _ in plan.condemn_packs],
            "repack": len(plan.repack),
            "quarantine_seconds": plan.quarantine,
        },
        "waiting": [
            {
                "until": _moment(removal.ends),
                "images": sorted(removal.images),
                "packs": len(removal.packs),
            }
            for removal in plan.waiting
        ],
        "locked": [
            {"object": name, "until": None if math.isinf(until) else _moment(until)}
            for name, until in sorted(plan.locked.items())
        ],
        "extended_locks": None
        if extension is None
        else {"objects": len(extension.objects), "until": _moment(extension.until)},
        "rescued": {"images": plan.rescued_images, "packs": plan.rescued_packs},
        "bytes": {
            "stored": plan.sizes.stored,
            "needed": plan.sizes.live,
            "not_needed": plan.sizes.dead,
        },
        "problems": [
            {"object": problem.name, "error": problem.error.message} for problem in plan.problems
        ],
        "result": None
        if result is None
        else {
            "removed_images": result.removed_images,
            "removed_packs": result.removed_packs,
            "freed_bytes": result.freed_bytes,
            "repacked_bytes": result.repacked_bytes,
        },
    }


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
