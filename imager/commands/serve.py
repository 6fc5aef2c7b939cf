"""`remetal serve`: the far side of ssh://, as the forced command of a key."""

import hashlib
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import click

from imager.console import Output, verb
from imager.errors import LinkError, StoreRefused, UsageError
from imager.repository import names
from imager.repository.backend.directory import DirectoryBackend
from imager.repository.backend.frames import Role
from imager.repository.backend.protocol import is_name
from imager.repository.backend.serve import MOST_BYTES, Permit, Server, check_order
from imager.repository.backend.serve_budget import Budget
from imager.repository.backend.serve_log import ServeLog
from imager.units import format_size, parse_size

_STDIN: Final = 0
_STDOUT: Final = 1
_ROLES: Final = {
    Role.APPEND_ONLY: "--append-only",
    Role.MAY_DELETE: "--may-delete",
    Role.READ_ONLY: "--read-only",
}

_OF_CAPTURE: Final = (names.PACKS, names.INDEXES, names.IMAGES, names.STATEMENTS)


def _bytes(context: click.Context, option: click.Parameter, value: str | None) -> int | None:
    del context, option
    if value is None:
        return None
    try:
        return parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _size(name: str, text: str, default: str | None = None) -> Callable[..., Callable[..., None]]:
    decorate: Callable[..., Callable[..., None]] = click.option(
        name, callback=_bytes, metavar="SIZE", default=default, show_default=True, help=text
    )
    return decorate


@click.command(short_help="Serve REPO to a key over SSH.")
@click.argument("repo", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--append-only", "role", flag_value=Role.APPEND_ONLY, type=Role, help="The key reads and adds."
)
@click.option(
    "--may-delete",
    "role",
    flag_value=Role.MAY_DELETE,
    type=Role,
    help="It removes as well: for upkeep.",
)
@click.option("--read-only", "role", flag_value=Role.READ_ONLY, type=Role, help="It only reads.")
@click.option("--name", default="unnamed", show_default=True, help="Name of the key in the log.")
@_size("--quota", "Most bytes that the key adds in 30 days, such as 500G.")
@_size("--limit", "Most bytes per second that pass, both ways together, such as 20M.")
@_size("--most", "Most bytes of one object.", format_size(MOST_BYTES).replace(" ", ""))
@click.option(
    "--log",
    "log_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write to this file what is refused; it always goes to the system's log (auth).",
)
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where quotas are counted; by default ~/.local/state/remetal/serve.",
)
@click.option(
    "--authorize",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="KEY.pub",
    help="Serve nothing: print the line for ~/.ssh/authorized_keys that gives this key these rights.",
)
@verb
def serve(
    out: Output,
    repo: Path,
    role: Role | None,
    name: str,
    quota: int | None,
    limit: int | None,
    most: int,
    log_path: Path | None,
    state: Path | None,
    authorize: Path | None,
) -> None:
    """Serve the repository in the directory REPO to the key whose forced command this is.

    With --append-only a captured machine can add images, and nobody who takes over the machine can
    remove, change or overwrite any. A second key with --may-delete is for all else: `init`, keys, upkeep;
    keep it elsewhere.

    \b
    Examples:
      remetal serve /srv/images --append-only --name web1 --authorize web1.pub >> ~/.ssh/authorized_keys
      remetal serve /srv/images --append-only --name web1 --quota 500G --authorize web1.pub
    """
    if role is None:
        raise UsageError("say what the key may do: --append-only, --may-delete or --read-only")
    if authorize is not None:
        options = {"--name": name, "--quota": quota, "--limit": limit, "--most": most}
        paths = {"--log": log_path, "--state": state}
        out.say(_line(authorize, repo, role, {**options, **paths}))
        return
    log = ServeLog(name, os.environ.get("SSH_CONNECTION", "").partition(" ")[0], log_path)
    try:
        check_order(os.environ.get("SSH_ORIGINAL_COMMAND"), repo)
    except StoreRefused as error:
        log.refused("command", os.environ["SSH_ORIGINAL_COMMAND"], error.message)
        raise
    folder = state or Path("~/.local/state/remetal/serve").expanduser()
    whose = hashlib.sha256(f"{repo.resolve()}\0{name}".encode()).hexdigest()[:32]
    may_add = _is_of_capture if role is Role.APPEND_ONLY else is_name
    permit = Permit(role, Budget(folder / whose, quota, limit), most, may_add, _digest_of)
    server = Server(DirectoryBackend(repo), permit, log.refused, _STDIN, _STDOUT)
    try:
        server.run()
    except LinkError as error:
        log.note(f"ended: {error.message}")
        raise
    finally:
        for deleted in server.deleted:
            log.note(f"removed {deleted}")
        if server.created:
            log.note(f"added {server.created} objects of {server.stored_bytes} bytes")


def _is_of_capture(name: str) -> bool:
    """Whether captures and drills write such objects; generations of keys and removals they don't."""
    return names.folder_of(name) is not None and name.startswith(_OF_CAPTURE)


def _digest_of(name: str) -> bytes | None:
    """Return the SHA-256 that the name of an object is made of."""
    digest = names.digest_of(name)
    return None if digest is None else bytes.fromhex(digest)


def _line(
    public_key: Path, repo: Path, role: Role, options: Mapping[str, str | int | Path | None]
) -> str:
    """Return the line of authorized_keys that gives a key these rights."""
    key = public_key.read_text("utf-8").split()
    if len(key) < 2 or not key[0].startswith(("ssh-", "ecdsa-", "sk-")):
        raise UsageError(
            f"{public_key} is no public key", hint="`ssh-keygen` writes it as FILE.pub."
        )
    # sshd looks for commands in few places, and a virtual environment is none of them.
    program = Path(sys.argv[0]).absolute() if Path(sys.argv[0]).name == "remetal" else "remetal"
    words = [str(program), "serve", str(repo.absolute()), _ROLES[role]]
    for option, value in options.items():
        if value is not None:
            words += [option, str(value.absolute() if isinstance(value, Path) else value)]
    # sshd takes a backslash for itself only before a quotation mark.
    command = shlex.join(words).replace('"', '\\"')
    return f'restrict,command="{command}" {" ".join(key)}'
