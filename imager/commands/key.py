"""`remetal key`: recovery keys and credentials."""

from pathlib import Path

import click

from imager.commands.secrets import (
    load_recovery_key,
    new_passphrase,
    passphrase_option,
    recovery_options,
)
from imager.console import Output, verb
from imager.errors import OutputExists
from imager.repository.crypto.recipient import RecipientKey
from imager.repository.keyring import LockedRecoveryKey, NamedRecipient
from imager.repository.repository import Repository

_NEW_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def key() -> None:
    """Make recovery keys and capture credentials."""


@key.command()
@click.argument("file", type=_NEW_FILE)
@click.option("--label", default="recovery key", help="What people call this key.")
@passphrase_option
@verb
def new(out: Output, file: Path, label: str, passphrase_file: Path | None) -> None:
    """Make a recovery key in FILE, before any repository, and its public part in FILE.pub.

    The public part goes to whoever makes the repository; FILE never needs to leave its place.

    \b
    Example:
      remetal key new board.key --label "key of the board"
      remetal init /srv/images --recovery-recipient board.key.pub
    """
    public = file.with_name(file.name + ".pub")
    for path in (file, public):
        if path.exists():
            raise OutputExists(f"{path} is there already, and keys are never overwritten")
    secret = new_passphrase(out, passphrase_file)
    locked = LockedRecoveryKey.lock(RecipientKey.generate(), secret, label, None)
    locked.write(file)
    NamedRecipient(label, locked.recipient).write(public)
    recipient = locked.recipient.id.hex()
    out.document({"recovery_key": str(file), "public_part": str(public), "recipient": recipient})
    out.say(f"Made the recovery key {file} ({recipient}).")
    out.say("It opens what is sealed to it only together with its passphrase; keep them apart.")
    out.say(f"Give {public} to whoever makes the repository; it is not secret.")


@key.command()
@click.argument("repo")
@click.argument("file", type=_NEW_FILE)
@click.option("--name", required=True, help="What people call it, usually the machine's name.")
@recovery_options
@verb
def credential(
    out: Output,
    repo: str,
    file: Path,
    name: str,
    recovery_key: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Make another capture credential for REPO in FILE.

    \b
    Example:
      remetal key credential /srv/images web1.credential --name web1
    """
    if file.exists():
        raise OutputExists(f"{file} is there already, and keys are never overwritten")
    repository = Repository.open(repo)
    unlocked = load_recovery_key(out, repository, recovery_key, passphrase_file)
    made = repository.new_credential(unlocked.secrets, name)
    made.write(file)
    repository.publish(made)
    out.document({"credential": str(file), "name": name})
    out.say(f"Made the capture credential {file} for {name}. It adds images and opens none.")
