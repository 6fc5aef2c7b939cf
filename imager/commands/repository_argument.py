"""REPO, the argument of most verbs, with what stores are reached with."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from imager.console import Location
from imager.repository.backend import place
from imager.repository.backend.place import Access, HostKey, Place
from imager.units import parse_size

_LEAST_RATE: Final = 1024


def repository_argument(
    *, required: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb the argument REPO, as a `Place` named `repo`, and the options that belong to it."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @click.argument("repo", type=Location(), required=required)
        @_file("--ssh-key", place.SSH_KEY, "For ssh:// and sftp://: the private key to show.")
        @_file("--known-hosts", place.KNOWN_HOSTS, "For these: the host keys that are trusted.")
        @_file(
            "--store-credentials", place.STORE_CREDENTIALS, "For s3://: file with the access key."
        )
        @_file("--authorities", place.AUTHORITIES, "For s3://: certificates to trust, in PEM.")
        @_rate("--limit-upload", "Most bytes per second sent to the store, such as 20M.")
        @_rate("--limit-download", "Most bytes per second that come from it.")
        @functools.wraps(function)
        def wrapper(
            *args: Any,
            repo: str | None,
            ssh_key: Path | None,
            known_hosts: Path | None,
            store_credentials: Path | None,
            authorities: Path | None,
            limit_upload: int | None,
            limit_download: int | None,
            **options: Any,
        ) -> None:
            access = Access(
                ssh_key,
                known_hosts,
                store_credentials,
                authorities,
                _confirm if sys.stdin.isatty() else None,
                _passphrase if sys.stdin.isatty() else None,
                upload=limit_upload,
                download=limit_download,
            )
            function(*args, repo=Place(repo, access) if repo else None, **options)

        return wrapper

    return decorate


def _file(
    option: str, variable: str, text: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    decorate: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
        option,
        envvar=variable,
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help=f"{text} Also {variable}.",
    )
    return decorate


def _rate(option: str, text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    decorate: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
        option, callback=_bytes_per_second, metavar="RATE", help=text
    )
    return decorate


def _bytes_per_second(
    context: click.Context, option: click.Parameter, value: str | None
) -> int | None:
    del context, option
    if value is None:
        return None
    try:
        rate = parse_size(value.removesuffix("/s"))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    if rate < _LEAST_RATE:
        raise click.BadParameter(f"{value} is too little to get anywhere")
    return rate


def _confirm(key: HostKey) -> bool:
    click.echo(
        f"{key.host} was never seen before. Its {key.algorithm} key is\n  {key.fingerprint}\n"
        "On that host, `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` (or the file of another "
        "algorithm) must print the same.",
        err=True,
    )
    return click.confirm("Trust it from now on?", default=False, err=True)


def _passphrase(path: Path) -> str:
    answer: str = click.prompt(f"Passphrase of the key {path}", hide_input=True, err=True)
    return answer
