"""`remetal parity`: make what brings lost and rotten objects back."""

import click

from imager.commands.repository_argument import repository_argument
from imager.console import Output, verb
from imager.errors import ChecksFailed
from imager.repository.backend.place import Place
from imager.repository.repository import Repository
from imager.units import format_size
from imager.upkeep import parity as work


@click.command(short_help="Make the spare data that repair brings objects back from.")
@repository_argument()
@click.option(
    "--overhead",
    type=click.FloatRange(1, 100),
    default=work.DEFAULT_OVERHEAD,
    show_default=True,
    metavar="PERCENT",
    help="How much full groups of objects add to what is stored; more brings more back.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be made; write nothing.")
@verb
def parity(out: Output, repo: Place, overhead: float, dry_run: bool) -> None:
    """Make parity for every object in REPO that has none yet.

    Parity is spare data, from which `remetal repair` brings lost and damaged objects back. Needs no keys, so the machine
    that stores the repository can run it, every night after the captures. Only what is new is read.

    \b
    Examples:
      remetal parity /srv/images
      remetal parity /srv/images --overhead 10
    """
    repository = Repository.open(repo)
    backend = repository.backend
    plan = work.plan(backend, repository.id, overhead)
    for name in plan.too_large:
        out.remark(f"{name} is empty or too large, and not covered")
    if plan.broken:
        out.remark(
            f"{len(plan.broken)} groups have lost members: `remetal repair {repo}` brings them "
            "back; their parity is kept."
        )
    if dry_run:
        _tell_plan(out, plan)
        return
    with out.progress("parity", plan.read_bytes) as advance:
        outcome = work.execute(backend, repository.id, plan, advance)
    out.document(
        {
            "groups": outcome.groups,
            "groups_made": outcome.made,
            "groups_broken": len(plan.broken),
            "members": outcome.members,
            "member_bytes": outcome.member_bytes,
            "parity_bytes": outcome.parity_bytes,
            "overhead_percent": round(outcome.overhead, 2),
            "fewest_shares": outcome.weakest,
            "damaged": outcome.damaged,
            "too_large": plan.too_large,
        }
    )
    out.say(
        f"{outcome.groups} groups cover {outcome.members} objects "
        f"({format_size(outcome.member_bytes)}) with {format_size(outcome.parity_bytes)} of "
        f"parity, {outcome.overhead:.1f} %; {outcome.made} groups are new."
    )
    if outcome.weakest:
        out.say(
            f"Of every group any {outcome.weakest} objects may be lost at once, and of objects "
            f"damaged in places, any that have at most {outcome.weakest} damaged blocks of "
            "64 KiB at the same place: `remetal repair` brings them back."
        )
    for name in outcome.damaged:
        out.say(f"{name} is damaged; no parity was made of it")
    if outcome.damaged:
        raise ChecksFailed(
            f"{len(outcome.damaged)} objects are damaged and not covered",
            hint=f"Run `remetal repair {repo}`, then this again.",
        )


def _tell_plan(out: Output, plan: work.ParityPlan) -> None:
    rows = [
        {
            "members": [entry.name for entry in group.members],
            "shares": group.shares,
            "parity_bytes": group.parity_bytes,
        }
        for group in plan.make
    ]
    out.document({"dry_run": True, "make": rows, "groups_kept": len(plan.kept)})
    for group in plan.make:
        out.say(
            f"would make {group.shares} parity objects, about {format_size(group.parity_bytes)}, "
            f"over {len(group.members)} objects"
        )
    old = sum(len(group.shares) for group in plan.dissolve)
    out.say(
        f"{format_size(plan.read_bytes)} would be read; {len(plan.kept)} groups stay as they are, "
        f"{old} old parity objects would go."
    )
