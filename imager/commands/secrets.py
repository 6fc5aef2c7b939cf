"""How verbs get at secrets: a file, a credential store or a prompt; never the command line.

Where a key is looked for, in this order: the option, its environment variable, systemd's
credential store (`$CREDENTIALS_DIRECTORY`), and the place where `remetal init` puts keys by itself.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import click

from imager.console import Output
from imager.errors import (
    CredentialNeeded,
    RecoveryKeyNeeded,
    SecretError,
    UsageError,
    WrongPassphrase,
)
from imager.repository.keyring import Credential, GroupKeys, LockedRecoveryKey, check_owner
from imager.repository.repository import Repository
from imager.repository.retrieval import Unlocked

RECOVERY_KEY_FILE: Final = "recovery.key"
CREDENTIAL_FILE: Final = "capture.credential"
_PHRASE_NAME: Final = "passphrase"
_ATTEMPTS: Final = 3
_LEAST_CHARACTERS: Final = 8

_F = TypeVar("_F", bound=Callable[..., None])
_PATH: Final = click.Path(dir_okay=False, path_type=Path)


def passphrase_option(function: _F) -> _F:
    """Add `--passphrase-file` to a verb."""
    return click.option(
        "--passphrase-file",
        type=_PATH,
        envvar="REMETAL_PASSPHRASE_FILE",
        help="Read the recovery key's passphrase from the first line of this file.",
    )(function)


def recovery_options(function: _F) -> _F:
    """Add `--recovery-key` and `--passphrase-file` to a verb."""
    return click.option(
        "--recovery-key",
        type=_PATH,
        envvar="REMETAL_RECOVERY_KEY",
        help="The recovery key; by default where `remetal init` put it.",
    )(passphrase_option(function))


def credential_option(function: _F) -> _F:
    """Add `--credential` to a verb."""
    return click.option(
        "--credential",
        type=_PATH,
        envvar="REMETAL_CREDENTIAL",
        help="The capture credential; by default where `remetal init` put it.",
    )(function)


def default_folder(repository: bytes) -> Path:
    """Return where the keys of a repository lie when nobody says otherwise."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return Path(base or Path.home() / ".config") / "remetal" / repository.hex()


def load_recovery_key(
    out: Output, repository: Repository, recovery_key: Path | None, passphrase_file: Path | None
) -> Unlocked:
    """Find, read and unlock the recovery key of a repository, asking for the passphrase if needed.

    Raises:
        RecoveryKeyNeeded: there is none, or it is not among the repository's.
        WrongKey: it belongs to another repository.
        WrongPassphrase: the passphrase does not open it.
    """
    path = recovery_key or _find(repository, RECOVERY_KEY_FILE)
    if path is None:
        raise RecoveryKeyNeeded(
            "opening an image needs a recovery key, and none was given or found; "
            "a capture credential can add images but cannot open them"
        )
    if is_credential(path):
        raise RecoveryKeyNeeded(
            f"{path} is a capture credential: it can add images but cannot open them"
        )
    locked = LockedRecoveryKey.read(path)
    check_owner(locked.repository, repository.id, f"the recovery key {path}")
    secret = read_passphrase(passphrase_file)
    if secret is not None:
        return Unlocked(repository, locked.unlock(secret))
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return Unlocked(repository, locked.unlock(ask(f"Passphrase of {path}")))
        except WrongPassphrase as error:
            if attempt == _ATTEMPTS:
                raise
            out.remark(f"{error.message}; try again.")
    raise AssertionError("unreachable")


def load_credential(repository: Repository, credential: Path | None) -> Credential:
    """Find and read the capture credential for a repository.

    Raises:
        CredentialNeeded: there is none.
        WrongKey: it belongs to another repository.
    """
    path = credential or _find(repository, CREDENTIAL_FILE)
    if path is None:
        raise CredentialNeeded("adding an image needs a capture credential, and none was found")
    found = Credential.read(path)
    check_owner(found.repository, repository.id, f"the credential {path}")
    return found


def load_group_keys(
    out: Output,
    repository: Repository,
    credential: Path | None,
    recovery_key: Path | None,
    passphrase_file: Path | None,
) -> GroupKeys:
    """Return what lists images: from a credential if there is one, else from a recovery key.

    Raises:
        SecretError: neither can be had.
    """
    if recovery_key is None and (credential or _find(repository, CREDENTIAL_FILE)):
        return repository.credential_keys(load_credential(repository, credential))
    return load_recovery_key(out, repository, recovery_key, passphrase_file).keys


def read_passphrase(passphrase_file: Path | None) -> str | None:
    """Return the passphrase from its file or the credential store; None when it must be asked for.

    Raises:
        SecretError: the file can't be read or is empty.
    """
    path = passphrase_file or _in_store(_PHRASE_NAME)
    if path is None:
        return None
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SecretError(f"no passphrase could be read from {path}: {error}") from error
    if not lines or not lines[0]:
        raise SecretError(f"the first line of {path} is empty, and that is no passphrase")
    return lines[0]


def new_passphrase(out: Output, passphrase_file: Path | None) -> str:
    """Return the passphrase for a new recovery key, asking for it twice if needed.

    Raises:
        SecretError: it is too short, or the two differ too often.
    """
    secret = read_passphrase(passphrase_file)
    for _ in range(_ATTEMPTS):
        if secret is None:
            secret = ask("New passphrase for the recovery key")
            if ask("The same again") != secret:
                out.remark("The two differ; try again.")
                secret = None
                continue
        if len(secret) < _LEAST_CHARACTERS:
            raise SecretError(
                f"a passphrase of {len(secret)} characters protects nothing",
                hint=f"Use at least {_LEAST_CHARACTERS}; four random words are good.",
            )
        return secret
    raise SecretError("the two passphrases differed three times", hint="Nothing was made.")


def is_credential(path: Path) -> bool:
    """Whether a file is a capture credential."""
    try:
        return b'"remetal credential"' in path.read_bytes()[:200]
    except OSError:
        return False


def ask(question: str) -> str:
    """Ask for a passphrase at the terminal.

    Raises:
        UsageError: there is none to ask at.
    """
    if not sys.stdin.isatty():
        raise UsageError(
            "a passphrase is needed, and there is no terminal to ask at",
            hint="Give --passphrase-file FILE, or REMETAL_PASSPHRASE_FILE.",
        )
    answer: str = click.prompt(question, hide_input=True, err=True)
    return answer


def _find(repository: Repository, name: str) -> Path | None:
    stored = _in_store(name)
    if stored is not None:
        return stored
    path = default_folder(repository.id) / name
    return path if path.exists() else None


def _in_store(name: str) -> Path | None:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(folder) / f"remetal.{name}" if folder else None
    return path if path is not None and path.exists() else None
