"""How verbs get at secrets: a file, a credential store or a prompt; never the command line.

Where a key is looked for, in this order: the option, its environment variable, systemd's
credential store (`$CREDENTIALS_DIRECTORY`), and the place where `remetal init` puts keys by itself.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import click

from imager.console import Output
from imager.errors import (
    CredentialNeeded,
    RecoveryKeyNeeded,
    SecretError,
    UntrustedObject,
    UsageError,
    WrongPassphrase,
)
from imager.repository import shares
from imager.repository.crypto.recipient import RecipientKey
from imager.repository.header import StatementKind
from imager.repository.keyring import Credential, GroupKeys, LockedRecoveryKey, check_owner
from imager.repository.repository import Repository
from imager.repository.retrieval import Unlocked
from imager.repository.statement import Signatory

RECOVERY_KEY_FILE: Final = "recovery.key"
CREDENTIAL_FILE: Final = "capture.credential"
UPKEEP_FILE: Final = "upkeep.credential"
_PHRASE_NAME: Final = "passphrase"
_ATTEMPTS: Final = 3
_LEAST_CHARACTERS: Final = 8
_PAGES: Final = "remetal.recovery-pages"
_NEW_PAGE: Final = "/new"  # no word of a page begins so
_FROM_TERMINAL: Final = Path("-")

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
    """Add `--recovery-pages` to a verb, and what `recovery_key_options` adds.

    The pages reach `load_recovery_key` through click's context, not as an argument of the verb.
    """
    pages = click.option(
        "--recovery-pages",
        type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
        expose_value=False,
        callback=_keep_pages,
        help="Instead of a recovery key: the words of its pages, one page for each line, in this "
        "file; `-` asks for them.",
    )
    return pages(recovery_key_options(function))


def recovery_key_options(function: _F) -> _F:
    """Add `--recovery-key` and `--passphrase-file` to a verb that needs the key's file itself."""
    return click.option(
        "--recovery-key",
        type=_PATH,
        envvar="REMETAL_RECOVERY_KEY",
        help="The recovery key; by default where `remetal init` put it.",
    )(passphrase_option(function))


def _keep_pages(context: click.Context, _: click.Parameter, value: Path | None) -> None:
    context.meta[_PAGES] = value


def _pages_file() -> Path | None:
    context = click.get_current_context(silent=True)
    found: Path | None = context.meta.get(_PAGES) if context else None
    return found


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
    out: Output,
    repository: Repository,
    recovery_key: Path | None,
    passphrase_file: Path | None,
    known: Sequence[str] = (),
) -> Unlocked:
    """Find, read and unlock the recovery key of a repository, asking for the passphrase if needed.

    Args:
        out: for remarks.
        repository: whose key.
        recovery_key: its file, if one was given.
        passphrase_file: the file with its passphrase; likewise.
        known: passphrases that were typed for something else; tried before one is asked for.

    Raises:
        RecoveryKeyNeeded: there is none, or it is not among the repository's.
        WrongKey: it belongs to another repository.
        WrongPassphrase: the passphrase does not open it.
    """
    remark_problems(out, repository)
    pages = _pages_file()
    if pages is not None:
        if recovery_key is not None and _is_on_command_line("recovery_key"):
            raise UsageError("give --recovery-key or --recovery-pages, not both")
        return Unlocked(repository, load_pages(out, pages))
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
    for secret in known:
        with contextlib.suppress(WrongPassphrase):
            return Unlocked(repository, locked.unlock(secret))
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return Unlocked(repository, locked.unlock(ask(f"Passphrase of {path}")))
        except WrongPassphrase as error:
            if attempt == _ATTEMPTS:
                raise
            out.remark(f"{error.message}; try again.")
    raise AssertionError("unreachable")


def remark_problems(out: Output, repository: Repository) -> None:
    """Say which generations and revocations are not believed: images may then seem closed."""
    for problem in repository.trust.problems:
        out.remark(f"warning: {problem.message}. {problem.hint}")


def _is_on_command_line(name: str) -> bool:
    context = click.get_current_context(silent=True)
    source = context.get_parameter_source(name) if context else None
    return source is click.core.ParameterSource.COMMANDLINE


def load_pages(out: Output, path: Path) -> RecipientKey:
    """Return the recovery key that is on pages; `-` asks for them.

    Raises:
        SecretError: the pages are too few, mistyped, or do not belong together.
    """
    if path == _FROM_TERMINAL:
        if not sys.stdin.isatty():
            return shares.read_pages(sys.stdin.read()).key()
        return ask_pages(out.remark, lambda question: click.prompt(question, err=True))
    try:
        return shares.read_pages(path.read_text("utf-8")).key()
    except (OSError, UnicodeDecodeError) as error:
        raise SecretError(f"no pages could be read from {path}: {error}") from error


def ask_pages(say: Callable[[str], None], ask_line: Callable[[str], str]) -> RecipientKey:
    """Ask for pages until there are enough, and return the recovery key.

    A line that is short of words is continued on the next. A line with a word of no page is said at
    once and asked for again; so is a page whose words are not right together.

    Args:
        say: shows a line.
        ask_line: asks, and returns one line.

    Raises:
        SecretError: the pages do not belong together.
    """
    pages = shares.Pages()
    say("Type the words of a page, or scan its code. The first four letters of a word are enough.")
    while pages.missing is None or pages.missing:
        words: list[str] = []
        while len(words) < shares.WORDS:
            line = ask_line(
                f"{len(words)} of {shares.WORDS} words; go on, or {_NEW_PAGE}"
                if words
                else "Next page"
                if pages.taken
                else "First page"
            )
            if line.strip().lower() == _NEW_PAGE:
                words = []
                continue
            try:
                words += shares.read_words(line, len(words))
            except SecretError as error:
                say(f"{error.message}: type this line again. {error.hint}")
        try:
            page = pages.add(" ".join(words))
        except SecretError as error:
            say(f"{error.message}. {error.hint}")
        else:
            say(f"Page {page.number} is right; {pages.missing} more needed.")
    return pages.key()


def load_upkeep(
    out: Output,
    repository: Repository,
    upkeep_credential: Path | None,
    recovery_key: Path | None,
    passphrase_file: Path | None,
) -> tuple[Signatory, GroupKeys]:
    """Return who signs upkeep, and the group's keys: an upkeep credential, else a recovery key.

    Raises:
        SecretError: neither can be had.
        UntrustedObject: the credential was revoked, or may not do upkeep.
    """
    if upkeep_credential is not None and _is_on_command_line("upkeep_credential"):
        recovery_key = None
    elif recovery_key is not None and _is_on_command_line("recovery_key"):
        upkeep_credential = None
    path = upkeep_credential or (None if recovery_key else _find(repository, UPKEEP_FILE))
    if path is not None and _pages_file() is None:
        found = Credential.read(path)
        check_owner(found.repository, repository.id, f"the credential {path}")
        keys = repository.credential_keys(found)
        kind = repository.trust.certificate(found.certificate, f"the credential {path}").kind
        if kind is not StatementKind.UPKEEP:
            raise CredentialNeeded(
                f"{path} is a capture credential, which may add images and nothing else",
                hint="Make one with `remetal key credential --upkeep`, or give --recovery-key.",
            )
        return Signatory(found.signer, found.certificate), keys
    unlocked = load_recovery_key(out, repository, recovery_key, passphrase_file)
    check_current(unlocked)
    return Signatory(unlocked.secrets.signer), unlocked.keys


def check_current(unlocked: Unlocked) -> None:
    """Refuse a recovery key that was removed from its repository: it opens, and signs nothing.

    Raises:
        RecoveryKeyNeeded: it was removed.
    """
    if not unlocked.is_current:
        raise RecoveryKeyNeeded(
            "this recovery key was removed from the repository: it opens images that were taken "
            "before, and can't change anything",
            hint="Use one of the keys that `remetal key list REPO` names.",
        )


def upkeep_option(function: _F) -> _F:
    """Add `--upkeep-credential` to a verb."""
    return click.option(
        "--upkeep-credential",
        type=_PATH,
        envvar="REMETAL_UPKEEP_CREDENTIAL",
        help=f"The upkeep credential; by default {UPKEEP_FILE} beside the other keys.",
    )(function)


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

    A credential that was found, not given, and that was revoked, is passed over.

    Raises:
        SecretError: neither can be had.
        UntrustedObject: the credential that was given was revoked.
    """
    if (
        credential is not None
        and _is_on_command_line("credential")
        and not _is_on_command_line("recovery_key")
    ):
        recovery_key = None
    if (
        recovery_key is None
        and _pages_file() is None
        and (credential or _find(repository, CREDENTIAL_FILE))
    ):
        try:
            keys = repository.credential_keys(load_credential(repository, credential))
        except UntrustedObject as error:
            if credential is not None:
                raise
            out.remark(f"{error.message}: the recovery key is used instead.")
        else:
            remark_problems(out, repository)
            return keys
    return load_recovery_key(out, repository, recovery_key, passphrase_file).keys


def load_keys_if_any(
    out: Output,
    repository: Repository,
    credential: Path | None,
    recovery_key: Path | None,
    passphrase_file: Path | None,
) -> GroupKeys | None:
    """Return what lists images, for work that can do without it; None when it can't be had.

    A key that this repository does not vouch for is passed over with a remark, also one that was
    given: the generation that vouches for it may be lost. So is all else that is wrong with a key
    that was found, not given.

    Raises:
        SecretError: what was given on the command line can't be used.
        UsageError: its passphrase is needed, and there is no terminal.
    """
    given = _pages_file() is not None or any(
        _is_on_command_line(name) for name in ("credential", "recovery_key")
    )
    places = (credential, recovery_key, _find(repository, CREDENTIAL_FILE))
    if not given and not any((*places, _find(repository, RECOVERY_KEY_FILE))):
        return None
    try:
        return load_group_keys(out, repository, credential, recovery_key, passphrase_file)
    except (UntrustedObject, RecoveryKeyNeeded, CredentialNeeded) as error:
        out.remark(f"warning: {error.message}: going on without keys, so no image is named.")
    except (SecretError, UsageError) as error:
        if given:
            raise
        out.remark(f"warning: {error.message}: going on without keys, so no image is named.")
    return None


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


def new_passphrase(
    out: Output, passphrase_file: Path | None, what: str = "the recovery key"
) -> str:
    """Return the passphrase for something new, asking for it twice if needed.

    Raises:
        SecretError: it is too short, or the two differ too often.
    """
    secret = read_passphrase(passphrase_file)
    for _ in range(_ATTEMPTS):
        if secret is None:
            secret = ask(f"New passphrase for {what}")
            if ask("The same again") != secret:
                out.remark("The two differ; try again.")
                secret = None
                continue
        refuse_weak(secret)
        return secret
    raise SecretError("the two passphrases differed three times", hint="Nothing was made.")


def refuse_weak(secret: str) -> None:
    """Refuse a passphrase that is guessed at once.

    Raises:
        SecretError: it is too short.
    """
    if len(secret) < _LEAST_CHARACTERS:
        raise SecretError(
            f"a passphrase of {len(secret)} characters protects nothing",
            hint=f"Use at least {_LEAST_CHARACTERS}; four random words are good.",
        )


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
