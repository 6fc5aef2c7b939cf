"""`remetal sync`: bring a copy of a repository, or all sites of a mirror, up to date."""

import threading
from datetime import datetime, timedelta
from datetime import time as clock_time

import click

from imager.commands.repository_argument import repository_argument
from imager.console import Location, Output, verb
from imager.errors import RepairIncomplete, UsageError
from imager.repository.backend.mirror import Mirror
from imager.repository.backend.opening import open_backend
from imager.repository.backend.place import Place
from imager.repository.backend.protocol import Backend
from imager.units import format_duration, format_size
from imager.upkeep import sync as work
from imager.upkeep.sync import Synced, SyncPlan


def _hours(
    context: click.Context, option: click.Parameter, value: str | None
) -> tuple[clock_time, clock_time] | None:
    del context, option
    if value is None:
        return None
    try:
        begin, end = (clock_time.fromisoformat(text) for text in value.split("-"))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not like 22:00-06:00") from error
    if begin == end:
        raise click.BadParameter(f"{value!r} is no time at all")
    return begin, end


@click.command(short_help="Bring another copy of REPO up to date.")
@repository_argument()
@click.argument("other", type=Location(), required=False)
@click.option(
    "--hours",
    callback=_hours,
    metavar="FROM-TO",
    help="Copy only at these hours of the day, such as 22:00-06:00, and wait at all others.",
)
@click.option(
    "--fill",
    is_flag=True,
    help="Also fill a site of a mirror that holds no repository. If it should hold one, its disk may "
    "not be mounted.",
)
@click.option("--dry-run", is_flag=True, help="Show what is missing, and copy nothing.")
@verb
def sync(
    out: Output,
    repo: Place,
    other: str | None,
    hours: tuple[clock_time, clock_time] | None,
    fill: bool,
    dry_run: bool,
) -> None:
    """Copy to OTHER what is in REPO and missing there; or make all sites of a mirror alike.

    No key is needed: every object is compared with its hash on the way. OTHER is another copy of the
    same repository, or an empty place. What is there is never changed, what was removed does not come
    back, and a sync that was stopped goes on where it was.

    \b
    Examples:
      remetal sync /srv/images ssh://backup@other-town/srv/images --limit-upload 5M
      remetal sync /srv/images /mnt/second-copy --dry-run
      remetal sync mirror:/etc/remetal/mirror.toml --hours 22:00-06:00
    """
    first = open_backend(repo)
    ways = _ways(first, repo, other, fill)
    done: list[tuple[str, SyncPlan, Synced | None]] = []
    for text, source, target in ways:
        made = work.plan(source, target)
        _tell_plan(out, text, made)
        if dry_run:
            done.append((text, made, None))
            continue
        with out.progress("sync", made.size) as advance:
            result = work.execute(made, source, target, advance, lambda: _wait_for(out, hours))
        done.append((text, made, result))
        _tell(out, result)
    out.document({"dry_run": dry_run, "ways": [_document(*way) for way in done]})
    problems = [p for _, _, result in done if result for p in result.problems]
    differing = sorted({name for _, made, _ in done for name in made.differing})
    if problems or differing:
        raise RepairIncomplete(
            f"{len(problems)} objects are damaged where they were to be copied from, "
            f"{len(differing)} are of another size",
            hint="`remetal check --ciphertext` says which copy is right; `remetal repair --from` mends it.",
        )
    if isinstance(first, Mirror) and not dry_run:
        first.caught_up()


def _ways(
    first: Backend, repo: Place, other: str | None, fill: bool
) -> list[tuple[str, Backend, Backend]]:
    """Return what is copied from where to where.

    Raises:
        UsageError: it is one place, or a mirror and something else, or a site holds nothing.
    """
    if isinstance(first, Mirror):
        if other is not None:
            raise UsageError("a mirror is synchronised with itself; give no OTHER")
        sites, holding = first.sites, first.holding()
        empty = [name for name in sites if name not in holding]
        if not holding or (empty and not fill):
            raise UsageError(
                f"no repository is at {', '.join(empty)}",
                hint="Mount its disk, if it should hold one. A new site is filled with --fill.",
            )
        return [
            (f"{one} -> {another}", sites[one], sites[another])
            for one in holding
            for another in sites
            if one != another
        ]
    if other is None:
        raise UsageError("say where to copy to: another copy, or an empty place")
    second = open_backend(Place(other, repo.access))
    if first.location == second.location:
        raise UsageError("a repository is no copy of itself")
    return [(f"{first.location} -> {second.location}", first, second)]


def _wait_for(out: Output, hours: tuple[clock_time, clock_time] | None) -> None:
    seconds = _seconds_until(hours, datetime.now().astimezone()) if hours else 0.0
    if seconds:
        out.remark(f"Waiting for {format_duration(seconds)}, until the hours begin.")
        threading.Event().wait(seconds)


def _seconds_until(hours: tuple[clock_time, clock_time], now: datetime) -> float:
    """Return how long it is until the hours begin; 0 if they last."""
    begin, end = hours
    at = now.time().replace(tzinfo=None)
    is_within = begin <= at < end if begin < end else at >= begin or at < end
    if is_within:
        return 0.0
    start = now.replace(hour=begin.hour, minute=begin.minute, second=0, microsecond=0)
    return (start - now if start > now else start + timedelta(days=1) - now).total_seconds()


def _tell_plan(out: Output, text: str, made: SyncPlan) -> None:
    out.say(f"{text}: {len(made.missing)} objects to copy, {format_size(made.size)}.")
    if made.removed:
        out.say(f"{len(made.removed)} objects were removed there, and stay away.")
    for name in made.differing:
        out.remark(f"warning: {name} is of another size in the other copy")


def _tell(out: Output, result: Synced) -> None:
    out.say(f"{result.copied} objects copied, {format_size(result.copied_bytes)}.")
    if result.vanished:
        out.say(f"{len(result.vanished)} objects were removed meanwhile.")
    for problem in result.problems:
        out.remark(f"warning: {problem.error.message}; not copied")


def _document(text: str, made: SyncPlan, result: Synced | None) -> dict[str, object]:
    return {
        "way": text,
        "missing": len(made.missing),
        "missing_bytes": made.size,
        "removed": list(made.removed),
        "differing": list(made.differing),
        "copied": result.copied if result else 0,
        "copied_bytes": result.copied_bytes if result else 0,
        "damaged": [problem.name for problem in result.problems] if result else [],
    }
