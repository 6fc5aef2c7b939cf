"""`remetal images`: list what is in a repository."""

import time
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from imager.commands.repository_argument import repository_argument
from imager.commands.secrets import credential_option, load_group_keys, recovery_options
from imager.console import Output, verb
from imager.repository.backend.place import Place
from imager.repository.removals import read_removals
from imager.repository.repository import Repository
from imager.repository.standing import read_standing
from imager.units import format_size


@click.command()
@repository_argument()
@credential_option
@recovery_options
@verb
def images(
    out: Output,
    repo: Place,
    credential: Path | None,
    recovery_key: Path | None,
    passphrase_file: Path | None,
) -> None:
    """List the images in REPO, oldest first.

    A capture credential is enough for this; without one the recovery key is asked for.

    \b
    Example:
      remetal images /srv/images
    """
    repository = Repository.open(repo)
    keys = load_group_keys(out, repository, credential, recovery_key, passphrase_file)
    found, problems = repository.images(keys)
    notes = _notes(repository)
    out.document(
        {
            "images": [
                {
                    "image": image.id,
                    "stored_at": _time(image.modified),
                    "signed_by": image.certificate.name,
                    "notes": notes.get(image.id, []),
                    **msgspec.to_builtins(image.summary),
                }
                for image in found
            ],
            "problems": [
                {"object": problem.name, "error": problem.error.message} for problem in problems
            ],
        }
    )
    out.table(
        ("image", "machine", "stored", "source", ">used", ">added", "notes"),
        [
            (
                image.id[:12],
                image.summary.machine_name,
                _time(image.modified),
                image.summary.source,
                format_size(image.summary.used_bytes),
                format_size(image.summary.stored_bytes),
                ", ".join(notes.get(image.id, [])),
            )
            for image in found
        ],
    )
    if not found:
        out.say("There is no image yet; `remetal capture` makes one.")
    for problem in problems:
        out.remark(f"warning: {problem.error.message}")


def _notes(repository: Repository) -> dict[str, list[str]]:
    """Return by image id what was said about it."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    standing = read_standing(repository)
    for image in standing.drilled:
        found[image].append("passed a drill")
    # The store's clock is learnt by writing there, and listing must work where nothing can be
    # written. What prune removes goes by the store's clock.
    for image, reasons in standing.reasons(time.time()).items():
        found[image] += reasons
    for removal in read_removals(repository).condemned:
        for image in removal.images:
            found[image].append(f"may go from {_time(removal.ends)} on")
    return found


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
