"""What the medium needs for repositories on the network: whom to trust, and what to show.

All of it is checked when the medium is built: on the worst day nobody can mend it.
"""

import configparser
import io
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509

from bootmedia.config import MediumConfig
from imager.errors import ConfigError, RemetalError, WrongPassphrase
from imager.repository import ssh_key
from imager.repository.backend.endpoint import endpoint_of, is_remote
from imager.repository.store_keys import StoreKeys

_LARGEST = 1 << 20


def check_repositories(config: MediumConfig) -> None:
    """Refuse locations that mean something on this machine only, or that nobody vouches for.

    Raises:
        ConfigError: there is such a one.
    """
    known = _known_hosts(config)
    for location in config.repositories:
        if location.startswith("mirror:"):
            raise ConfigError(
                f"`repositories`: {location} is a file on this machine",
                hint="List the locations of its sites instead; at the rescued machine any one will do.",
            )
    for location in filter(is_remote, config.repositories):
        try:
            endpoint = endpoint_of(location)
        except RemetalError as error:
            raise ConfigError(
                f"`repositories`: {location}: {error.message}", hint=error.hint
            ) from error
        parts = urlsplit(location)
        if parts.scheme not in {"ssh", "sftp"}:
            continue
        if not parts.username:
            raise ConfigError(
                f"`repositories`: {location} does not say who logs in",
                hint=f"Such as {parts.scheme}://backup@{parts.hostname}{parts.path}.",
            )
        if endpoint.host != parts.hostname:
            raise ConfigError(
                f"`repositories`: {parts.hostname} is an alias of this machine's ~/.ssh/config",
                hint=f"The medium does not know it: write {endpoint.host}.",
            )
        if endpoint.port != (parts.port or 22):
            raise ConfigError(
                f"`repositories`: the port {endpoint.port} of {location} is known from this machine's "
                "~/.ssh/config only",
                hint=f"The medium does not know it: write {parts.hostname}:{endpoint.port}.",
            )
        name = parts.hostname if endpoint.port == 22 else f"[{parts.hostname}]:{endpoint.port}"
        if known is not None and name not in known:
            raise ConfigError(
                f"`host-keys` holds no key of {name}, where {location} is",
                hint=f"`ssh-keyscan -p {endpoint.port} {parts.hostname}` shows its keys; compare "
                "them with those on the host itself.",
            )


def known_hosts(config: MediumConfig) -> bytes | None:
    """Return the host keys that the medium trusts; None when a person is to confirm each.

    Raises:
        ConfigError: a line is none.
    """
    lines = _host_key_lines(config)
    return None if lines is None else "".join(f"{line}\n" for line in lines).encode()


def authorities(config: MediumConfig) -> bytes | None:
    """Return the certificates that vouch for TLS stores; None for the usual ones.

    Raises:
        ConfigError: the file holds none, or one that is over.
    """
    if config.authorities is None:
        return None
    data = _read("authorities", config.authorities)
    try:
        found = x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise ConfigError(
            f"`authorities`: {config.authorities} holds no certificates in PEM: {error}"
        ) from error
    for certificate in found:
        if certificate.not_valid_after_utc < datetime.now(UTC):
            name = certificate.subject.rfc4514_string()
            raise ConfigError(
                f"`authorities`: the certificate {name} is over since "
                f"{certificate.not_valid_after_utc:%Y-%m-%d}"
            )
    return data


def store_keys(config: MediumConfig, ask: Callable[[str], str]) -> StoreKeys | None:
    """Return what the medium shows to stores, in clear; None when there is nothing.

    Args:
        config: names the files.
        ask: returns the passphrase that an SSH key is under; is given words for the question.

    Raises:
        ConfigError: a file is not what it must be.
        WrongPassphrase: the passphrase does not open the SSH key.
    """
    if not config.has_store_keys:
        return None
    key = credentials = None
    if config.ssh_key is not None:
        key = _read("ssh-key", config.ssh_key)
        try:
            if ssh_key.is_locked(key):
                key = ssh_key.unlocked(key, ask(f"Passphrase of {config.ssh_key}"))
        except WrongPassphrase:
            raise
        except RemetalError as error:
            raise ConfigError(
                f"`ssh-key`: {config.ssh_key}: {error.message}", hint=error.hint
            ) from error
    if config.store_credentials is not None:
        credentials = _credentials(config.store_credentials)
    return StoreKeys(key, credentials)


def _credentials(path: Path) -> bytes:
    """Return the one profile that is used, and no other keys that may be in the file."""
    from imager.repository.backend.s3_client import read_keys  # noqa: PLC0415  slow to load

    try:
        keys = read_keys(path)
    except RemetalError as error:
        raise ConfigError(f"`store-credentials`: {error.message}", hint=error.hint) from error
    if keys.token:
        raise ConfigError(
            f"`store-credentials`: {path} holds a session, which will be over when it is needed",
            hint="Make keys for the rescue medium that may only read.",
        )
    document = configparser.ConfigParser(interpolation=None)
    document["default"] = {
        "aws_access_key_id": keys.access_key,
        "aws_secret_access_key": keys.secret_key,
    }
    text = io.StringIO()
    document.write(text)
    return text.getvalue().encode()


def _host_key_lines(config: MediumConfig) -> list[str] | None:
    if isinstance(config.host_keys, str):
        try:
            text = _read("host-keys", Path(config.host_keys)).decode("ascii")
        except UnicodeDecodeError as error:
            raise ConfigError(f"`host-keys`: {config.host_keys} is no text") from error
        lines = text.splitlines()
    elif config.host_keys:
        lines = list(config.host_keys)
    else:
        return None
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _known_hosts(config: MediumConfig) -> "_Known | None":
    lines = _host_key_lines(config)
    return None if lines is None else _Known(lines)


class _Known:
    """Which hosts some lines of known_hosts vouch for."""

    def __init__(self, lines: list[str]) -> None:
        import paramiko  # noqa: PLC0415  slow to load

        self._keys = paramiko.HostKeys()
        for number, line in enumerate(lines, 1):
            try:
                entry = paramiko.hostkeys.HostKeyEntry.from_line(line, number)
            except (paramiko.hostkeys.InvalidHostKey, paramiko.SSHException) as error:
                raise self._wrong(line) from error
            if entry is None:
                raise self._wrong(line)
            for name in entry.hostnames:
                self._keys.add(name, entry.key.get_name(), entry.key)

    def __contains__(self, name: str) -> bool:
        return self._keys.lookup(name) is not None

    @staticmethod
    def _wrong(line: str) -> ConfigError:
        return ConfigError(
            f"`host-keys`: {line[:60]!r} is no host key",
            hint='Such as "10.0.0.5 ssh-ed25519 AAAA...", as in ~/.ssh/known_hosts.',
        )


def _read(field: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise ConfigError(f"`{field}`: {path} can't be read: {error.strerror}") from error
    if len(data) > _LARGEST:
        raise ConfigError(f"`{field}`: {path} is larger than any such file")
    return data
