"""`remetal hold` and `remetal release`: images that must not be removed."""

from datetime import UTC, datetime
from pathlib import Path

import click

from imager.commands.repository_argument import repository_argument
from imager.commands.retention_options import seconds
from imager.commands.secrets import load_upkeep, recovery_options, upkeep_option
from imager.console import Output, verb
from imager.errors import UnknownImage, UsageError
from imager.repository.backend.place import Place
from imager.repository.header import StatementKind
from imager.repository.repository import Repository, now
from imager.repository.standing import Hold, read_standing
from imager.repository.statement import HoldBody, ReleaseBody

_SHORTEST = 4


@click.command(short_help="Hold images in REPO, so that no prune removes them.")
@repository_argument()
@click.argument("images", nargs=-1)
@click.option("--reason", help="Why, for people; needed to hold.")
@click.option(
    "--for",
    "duration",
    callback=seconds,
    metavar="DURATION",
    help="Hold for so long, such as 365d; until it is released, if not given.",
)
@upkeep_option
@recovery_options
@verb
def hold(
    out: Output,
    repo: Place,
    images: tuple[str, ...],
    reason: str | None,
    duration: int | None,
    upkeep_credential: Path | None,
    recovery_key: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Hold IMAGES in REPO: no prune removes them until the hold is released, or its time is over.

    An image is named by the beginning of its id, by a machine's name (its newest image), or
    `latest`. Without IMAGES the holds are listed.

    \b
    Examples:
      remetal hold /srv/images 3fa9 --reason "before the upgrade"
      remetal hold /srv/images web1 --reason "court case 12" --for 730d
      remetal hold /srv/images
    """
    if not images and (reason or duration is not None):
        raise UsageError("say which images are to be held", hint="`latest` is one.")
    if images and not reason:
        raise UsageError("a hold needs a --reason, for those who will wonder")
    if duration == 0:
        raise UsageError("a hold for no time holds nothing", hint="Leave --for out, or give more.")
    repository = Repository.open(repo)
    signatory, keys = load_upkeep(out, repository, upkeep_credential, recovery_key, passphrase_file)
    if not images or not reason:
        _list(out, repository)
        return
    found = tuple(repository.find_image(reference, keys).id for reference in images)
    until = None
    if duration is not None:
        end = datetime.fromtimestamp(repository.backend.now() + duration, UTC)
        until = end.strftime("%Y-%m-%dT%H:%M:%SZ")
    name = repository.state(
        StatementKind.HOLD, HoldBody(found, reason, until, now()), signatory, keys.group
    )
    identity = name.rpartition("/")[2]
    out.document({"hold": identity, "images": found, "reason": reason, "until": until})
    out.say(f"Held {', '.join(image[:12] for image in found)} ({reason}), hold {identity[:12]}.")


@click.command(short_help="Release holds in REPO.")
@repository_argument()
@click.argument("holds", nargs=-1, required=True)
@upkeep_option
@recovery_options
@verb
def release(
    out: Output,
    repo: Place,
    holds: tuple[str, ...],
    upkeep_credential: Path | None,
    recovery_key: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Release HOLDS in REPO: the policy decides about their images again.

    A hold is named by the beginning of its id, which `remetal hold REPO` lists.

    \b
    Example:
      remetal hold /srv/images            lists holds
      remetal release /srv/images 81c2
    """
    repository = Repository.open(repo)
    signatory, keys = load_upkeep(out, repository, upkeep_credential, recovery_key, passphrase_file)
    known = read_standing(repository).holds
    chosen = tuple(_find(known, reference) for reference in holds)
    repository.state(
        StatementKind.RELEASE,
        ReleaseBody(tuple(item.id for item in chosen), now()),
        signatory,
        keys.group,
    )
    out.document({"released": [item.id for item in chosen]})
    for item in chosen:
        out.say(f"Released {item.id[:12]} ({item.reason}).")


def _list(out: Output, repository: Repository) -> None:
    standing = read_standing(repository)
    out.document(
        {
            "holds": [
                {
                    "hold": item.id,
                    "images": item.images,
                    "reason": item.reason,
                    "until": item.until,
                    "created": item.created,
                }
                for item in standing.holds
            ]
        }
    )
    out.table(
        ("hold", "images", "reason", "until", "created"),
        [
            (
                item.id[:12],
                " ".join(image[:12] for image in item.images),
                item.reason,
                item.until or "it is released",
                item.created,
            )
            for item in standing.holds
        ],
    )
    if not standing.holds:
        out.say("Nothing is held.")
    for problem in standing.problems:
        out.remark(f"warning: {problem.name}: {problem.error.message}")


def _find(known: tuple[Hold, ...], reference: str) -> Hold:
    matching = [item for item in known if item.id.startswith(reference.lower())]
    if len(reference) < _SHORTEST or len(matching) != 1:
        raise UnknownImage(
            f"{reference!r} names {len(matching)} holds",
            hint="`remetal hold REPO` lists them; give at least four digits of one.",
        )
    return matching[0]
