"""`remetal key`: recovery keys and credentials."""

from pathlib import Path

import click

from imager.commands.key_credentials import list_keys, revoke
from imager.commands.key_pages import join, split
from imager.commands.key_recipients import add, remove
from imager.commands.repository_argument import repository_argument
from imager.commands.secrets import (
    check_current,
    load_recovery_key,
    new_passphrase,
    passphrase_option,
    recovery_options,
)
from imager.console import Output, verb
from imager.repository.backend.place import Place
from imager.repository.crypto.recipient import RecipientKey
from imager.repository.header import StatementKind
from imager.repository.keyring import LockedRecoveryKey, check_new, public_path
from imager.repository.repository import Repository

_NEW_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group(short_help="Make, list, add and take away keys and credentials.")
def key() -> None:
    """Recovery keys, which open images, and credentials, which add them.

    \b
    Examples:
      remetal key list /srv/images
      remetal key credential /srv/images web1.credential --name web1
      remetal key split recovery.key --need 3 --pages 5 -o /media/stick/pages
    """


for _verb in (list_keys, add, remove, revoke, split, join):
    key.add_command(_verb)


@key.command(short_help="Make a recovery key, before any repository.")
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
    for path in (file, public_path(file)):
        check_new(path)
    secret = new_passphrase(out, passphrase_file)
    locked = LockedRecoveryKey.lock(RecipientKey.generate(), secret, label, None)
    public = locked.write_with_public(file)
    recipient = locked.recipient.id.hex()
    out.document({"recovery_key": str(file), "public_part": str(public), "recipient": recipient})
    out.say(f"Made the recovery key {file} ({recipient}).")
    out.say("It opens what is sealed to it only together with its passphrase; keep them apart.")
    out.say(f"Give {public} to whoever makes the repository; it is not secret.")


@key.command(short_help="Make another capture credential, or an upkeep credential.")
@repository_argument()
@click.argument("file", type=_NEW_FILE)
@click.option("--name", required=True, help="What people call it, usually the machine's name.")
@click.option(
    "--upkeep",
    is_flag=True,
    help="It may prune, hold and record drills, and adds no images; for the machine that does "
    "upkeep, as upkeep.credential beside its other keys.",
)
@recovery_options
@verb
def credential(
    out: Output,
    repo: Place,
    file: Path,
    name: str,
    upkeep: bool,
    recovery_key: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Make another capture credential for REPO in FILE, or an upkeep credential.

    \b
    Example:
      remetal key credential /srv/images web1.credential --name web1
    """
    check_new(file)
    repository = Repository.open(repo)
    unlocked = load_recovery_key(out, repository, recovery_key, passphrase_file)
    check_current(unlocked)
    kind = StatementKind.UPKEEP if upkeep else StatementKind.CREDENTIAL
    made = repository.new_credential(unlocked.secrets, name, kind)
    # Known first: a credential that nobody could list could not be revoked.
    repository.publish(made)
    made.write(file)
    out.document({"credential": str(file), "name": name})
    if upkeep:
        out.say(f"Made the upkeep credential {file} for {name}. It may prune, and opens no image.")
    else:
        out.say(f"Made the capture credential {file} for {name}. It adds images and opens none.")
