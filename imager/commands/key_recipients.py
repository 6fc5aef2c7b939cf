"""`remetal key add`, `key remove`: who can open images."""

import sys
from pathlib import Path

import click

from imager.commands.repository_argument import repository_argument
from imager.commands.secrets import check_current, load_recovery_key, recovery_options
from imager.console import Output, verb
from imager.errors import NotConfirmed, UsageError
from imager.repository.backend.place import Place
from imager.repository.keyring import NamedRecipient
from imager.repository.repository import Repository
from imager.upkeep import membership

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@repository_argument()
@click.option("--recipient", required=True, type=_FILE, help="FILE.pub of `remetal key new`.")
@click.option("--label", help="What people call it; by default what FILE.pub says.")
@recovery_options
@verb
def add(
    out: Output,
    repo: Place,
    recipient: Path,
    label: str | None,
    recovery_key: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Let another recovery key open all images in REPO, old and new.

    No image is sealed anew, so this takes a moment however large REPO is.

    \b
    Example:
      remetal key add /srv/images --recipient board.key.pub
    """
    named = NamedRecipient.read(recipient)
    repository = Repository.open(repo)
    unlocked = load_recovery_key(out, repository, recovery_key, passphrase_file)
    check_current(unlocked)
    chosen = label or named.label
    number = membership.add_recipient(repository, unlocked, chosen, named.recipient)
    out.document({"added": named.recipient.id.hex(), "label": chosen, "generation": number})
    out.say(f"{chosen} ({named.recipient.id.hex()}) now opens every image, old and new.")


@click.command(short_help="Take a recovery key out: later images are not sealed to it.")
@repository_argument()
@click.argument("recipient")
@click.option("--dry-run", is_flag=True, help="Show what would be, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@recovery_options
@verb
def remove(
    out: Output,
    repo: Place,
    recipient: str,
    dry_run: bool,
    yes: bool,
    recovery_key: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Take a recovery key, by its label or id, out of REPO: images that are taken later are not sealed to it.

    The images that are there stay open to it, if its holder has or gets their bytes: what was
    sealed once can't be called back. So does what later images have in common with those.

    \b
    Example:
      remetal key remove /srv/images "key of the board" --dry-run
    """
    repository = Repository.open(repo)
    unlocked = load_recovery_key(out, repository, recovery_key, passphrase_file)
    check_current(unlocked)
    plan = membership.plan_removal(repository, unlocked, recipient)
    left = [entry.label for entry in plan.body.recipients]
    undone = [
        f"{plan.images} images that are there now stay open to it, if its holder has or gets them.",
        "The group secret stays: its holder can still read names, times and sizes of all images.",
        "Of later images it opens the content that each shares with older ones: often most of it.",
        "Captures that are running now end under the old key.",
        "Credentials that its holder made before stay accepted; `remetal key list` names them.",
    ]
    result = {
        "dry_run": dry_run,
        "removed": plan.removed.id,
        "label": plan.removed.label,
        "generation": plan.body.generation,
        "recipients_left": left,
        "not_undone": undone,
    }
    out.document(result)
    out.say(f"Removes {plan.removed.label} ({plan.removed.id}); left: {', '.join(left)}.")
    out.say(
        "Later images are not sealed to it, and it signs nothing any more. What this can't undo:"
    )
    for line in undone:
        out.say(f"  - {line}")
    if dry_run:
        return
    agree(out, yes)
    late = membership.remove_recipient(repository, plan)
    for name in late:
        out.remark(f"warning: {name} was said at the same moment and is not believed: say it again")
    out.document({**result, "too_late": list(late)})
    out.say("Done.")


def agree(out: Output, yes: bool) -> None:
    """Ask whether to go on.

    Raises:
        UsageError: nobody can be asked.
        NotConfirmed: the answer is no.
    """
    if yes:
        return
    if out.as_json:
        raise UsageError("with --json nobody can be asked", hint="Give --yes or --dry-run as well.")
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask at", hint="Give --yes or --dry-run as well.")
    if not click.confirm("Go on?", err=True):
        raise NotConfirmed("nothing was changed", hint="")
