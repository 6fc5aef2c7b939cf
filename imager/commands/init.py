"""`remetal init`: make a repository and its keys."""

from dataclasses import dataclass
from pathlib import Path

import click

from imager.commands.repository_argument import repository_argument
from imager.commands.secrets import (
    CREDENTIAL_FILE,
    RECOVERY_KEY_FILE,
    default_folder,
    new_passphrase,
    passphrase_option,
)
from imager.console import Output, verb
from imager.errors import OutputExists, RemetalError, UsageError
from imager.repository.backend.place import Place
from imager.repository.configuration import Secrets
from imager.repository.crypto.recipient import Recipient, RecipientKey
from imager.repository.keyring import Credential, LockedRecoveryKey, NamedRecipient
from imager.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class _Made:
    repository: Repository
    recovery_key: Path | None
    credential: Path
    recipients: tuple[str, ...]


@click.command(short_help="Make a repository at REPO and its keys.")
@repository_argument()
@click.option(
    "--keys-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to put the keys; by default below ~/.config/remetal.",
)
@click.option(
    "--recovery-recipient",
    "recipients",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The public part of a recovery key, as `remetal key new` writes it (FILE.pub). "
    "May be given more than once; no key is made then.",
)
@click.option("--name", default="first", help="Name of the capture credential.")
@passphrase_option
@verb
def init(
    out: Output,
    repo: Place,
    keys_dir: Path | None,
    recipients: tuple[Path, ...],
    name: str,
    passphrase_file: Path | None,
) -> None:
    """Make a repository at REPO, its recovery key and a first capture credential.

    REPO is a new or empty directory.

    \b
    Examples:
      remetal init /srv/images
      remetal init /srv/images --recovery-recipient board.key.pub --recovery-recipient it.key.pub
    """
    if recipients:
        made = _for_recipients(repo, recipients, name, keys_dir)
    else:
        secret = new_passphrase(out, passphrase_file)
        made = _with_new_key(repo, secret, name, keys_dir)
    _tell(out, made)


def _for_recipients(
    repo: Place, paths: tuple[Path, ...], name: str, keys_dir: Path | None
) -> _Made:
    named = [NamedRecipient.read(path) for path in paths]
    chosen = [(key.label, key.recipient) for key in named]
    if len({recipient.id for _, recipient in chosen}) < len(chosen):
        raise UsageError("the same recovery key was given twice", hint="Nothing was made.")
    return _make(repo, chosen, None, "", name, keys_dir)


def _with_new_key(repo: Place, secret: str, name: str, keys_dir: Path | None) -> _Made:
    key = RecipientKey.generate()
    return _make(repo, [("recovery key", key.recipient)], key, secret, name, keys_dir)


def _make(
    repo: Place,
    recipients: list[tuple[str, Recipient]],
    key: RecipientKey | None,
    secret: str,
    name: str,
    keys_dir: Path | None,
) -> _Made:
    _refuse_old_keys(keys_dir)
    written: list[Path] = []
    issued: list[Credential] = []

    def keep(repository: Repository, secrets: Secrets) -> None:
        folder = keys_dir or default_folder(repository.id)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if key is not None:
            locked = LockedRecoveryKey.lock(key, secret, "recovery key", repository.id)
            locked.write(folder / RECOVERY_KEY_FILE)
            written.append(folder / RECOVERY_KEY_FILE)
        issued.append(repository.new_credential(secrets, name))
        issued[0].write(folder / CREDENTIAL_FILE)
        written.append(folder / CREDENTIAL_FILE)

    try:
        repository = Repository.create(repo, recipients, keep)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    try:
        repository.publish(issued[0])
    except RemetalError as error:
        # The repository is there, so its keys stay; the images of the credential make it known too.
        error.hint = (
            f"The repository and its keys were made ({written[-1].parent}); only the list of "
            "credentials lacks the first one, until it has captured something."
        )
        raise
    return _Made(
        repository,
        written[0] if key is not None else None,
        written[-1],
        tuple(label for label, _ in recipients),
    )


def _refuse_old_keys(keys_dir: Path | None) -> None:
    for name in (RECOVERY_KEY_FILE, CREDENTIAL_FILE):
        if keys_dir is not None and (keys_dir / name).exists():
            raise OutputExists(
                f"{keys_dir / name} is there already, and keys are never overwritten"
            )


def _tell(out: Output, made: _Made) -> None:
    place = made.repository.backend.location
    out.document(
        {
            "repository": place,
            "repository_id": made.repository.id.hex(),
            "recovery_key": str(made.recovery_key) if made.recovery_key else None,
            "credential": str(made.credential),
            "recipients": [recipient.id.hex() for recipient in made.repository.recipients],
        }
    )
    out.say(f"Made a repository at {place} ({made.repository.id.hex()}).")
    out.say()
    out.say("Keep these, and keep them apart:")
    if made.recovery_key:
        out.say(f"  Recovery key        {made.recovery_key}")
        out.say(
            "    Opens every image, together with its passphrase. Copy it to two places away from"
        )
        out.say("    this machine and from the repository (a safe, a second site), and write the")
        out.say("    passphrase down in a third. Whoever has lost either cannot open any image:")
        out.say("    nobody can, and there is no way around it.")
    else:
        out.say(f"  Recovery keys of    {', '.join(made.recipients)}")
        out.say("    One of them, with its passphrase, opens every image. They were not touched.")
    out.say(f"  Capture credential  {made.credential}")
    out.say("    Stays on the machines that are captured. It adds images and opens none. If it is")
    out.say("    lost, a holder of a recovery key makes another (`remetal key credential`).")
    out.say()
    out.say(f"Next: remetal capture {place}")
