"""A connection over SSH: who the host is, who we are, and channels for several threads.

The client is paramiko. AES-GCM is asked for first, since it is the fastest with the processors of
today, and TCP_NODELAY is set: without it small frames wait for each other.
"""

import contextlib
import getpass
import logging
import os
import socket
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import paramiko

from imager.errors import SecretError, StoreRefused, StoreUnreachable, UntrustedHost, UsageError
from imager.repository.backend.place import Access, HostKey, Place

_PORT: Final = 22
CONNECT_SECONDS: Final = 20.0
SILENCE_SECONDS: Final = 60.0
_KEEPALIVE_SECONDS: Final = 15
_WINDOW: Final = 4 << 20
_PACKET: Final = 1 << 15
_CIPHERS: Final = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr")
_SYSTEM_HOSTS: Final = Path("/etc/ssh/ssh_known_hosts")
_DEFAULT_KEYS: Final = ("id_ed25519", "id_ecdsa", "id_rsa")

# It writes tracebacks of what is raised here anyway.
if not logging.getLogger().isEnabledFor(logging.DEBUG):
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a location leads.

    Attributes:
        host: as the user wrote it.
        hostname: what is connected to.
        port: of it.
        user: to log in as.
        path: on the far side.
        identities: private keys that the user's configuration names for it.
    """

    host: str
    hostname: str
    port: int
    user: str
    path: str
    identities: tuple[Path, ...]

    @property
    def known_as(self) -> str:
        """The host as known_hosts writes it."""
        return self.host if self.port == _PORT else f"[{self.host}]:{self.port}"

    @classmethod
    def parse(cls, location: str) -> "Address":
        """Read `ssh://[USER@]HOST[:PORT]/PATH`; host aliases of ~/.ssh/config are understood.

        Raises:
            UsageError: it is no such location.
        """
        hint = "Write it like ssh://backup@server/srv/images."
        try:
            parts = urlsplit(location)
            port = parts.port
        except ValueError as error:
            raise UsageError(f"{location} is no location: {error}", hint=hint) from error
        if not parts.hostname or parts.path in {"", "/"} or parts.query or parts.fragment:
            raise UsageError(f"{location} names no host and folder", hint=hint)
        if parts.password is not None:
            raise UsageError(
                "a location holds no password",
                hint="Log in with a key: --ssh-key FILE, or what ssh itself would use.",
            )
        options = _configuration().lookup(parts.hostname)
        user = unquote(parts.username) if parts.username else options.get("user")
        return cls(
            parts.hostname,
            options["hostname"],
            port or int(options.get("port", _PORT)),
            user or getpass.getuser(),
            unquote(parts.path),
            tuple(Path(path).expanduser() for path in options.get("identityfile", ())),
        )


class Connection:
    """Channels to one host, made when they are needed and made anew when the link broke.

    Safe from any thread, and in a child process, which connects anew.

    Args:
        place: where to.
        address: what its location means.
    """

    def __init__(self, place: Place, address: Address) -> None:
        self._access = place.access
        self.address = address
        self._lock = threading.Lock()
        self._transport: paramiko.Transport | None = None
        self._owner = os.getpid()

    def open_channel(self) -> paramiko.Channel:
        """Return a new channel whose reads and writes give up after a minute of silence.

        Raises:
            StoreUnreachable: there is no way to the host.
            UntrustedHost: another host answers, or one that nobody vouches for.
            StoreRefused: it does not let us in.
        """
        with self._lock:
            if self._owner != os.getpid():
                self._transport, self._owner = None, os.getpid()
            if self._transport is None or not self._transport.is_active():
                self._transport = _connect(self.address, self._access)
            transport = self._transport
        with translated(self.address):
            channel = transport.open_session(_WINDOW, _PACKET, timeout=CONNECT_SECONDS)
        channel.settimeout(SILENCE_SECONDS)
        return channel

    def drop(self) -> None:
        """Forget a connection that does not answer."""
        with self._lock:
            transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()


def trusted_keys(address: Address, access: Access) -> tuple[str, ...]:
    """Return the keys that vouch for a host, as known_hosts writes them behind its name."""
    return _HostKeys(address, access).written()


def key_files(address: Address, access: Access) -> tuple[Path, ...]:
    """Return the files of the private keys to show to a host, in the order in which ssh would."""
    if access.ssh_key is not None:
        return (access.ssh_key,)
    named = address.identities or tuple(Path("~/.ssh", name).expanduser() for name in _DEFAULT_KEYS)
    return tuple(path for path in named if path.is_file())


@contextlib.contextmanager
def translated(address: Address) -> Iterator[None]:
    """Turn what paramiko and sockets raise into what remetal says."""
    try:
        yield
    except paramiko.AuthenticationException as error:
        raise StoreRefused(
            f"{address.host} does not let {address.user} in: {error}",
            hint="Give the key that belongs to the account there: --ssh-key FILE.",
        ) from error
    except TimeoutError as error:
        raise StoreUnreachable(f"{address.host} says nothing any more") from error
    except (paramiko.SSHException, EOFError, OSError) as error:
        text = str(error) or "the connection broke"
        raise StoreUnreachable(f"the link to {address.host} failed: {text}") from error


def _configuration() -> paramiko.SSHConfig:
    path = Path("~/.ssh/config").expanduser()
    try:
        return paramiko.SSHConfig.from_path(path) if path.is_file() else paramiko.SSHConfig()
    except paramiko.SSHException as error:
        raise UsageError(
            f"{path} can't be read: {error}", hint="Mend it; `ssh -G` shows it."
        ) from error


def _connect(address: Address, access: Access) -> paramiko.Transport:
    keys = list(_keys(address, access))
    try:
        sock = socket.create_connection((address.hostname, address.port), CONNECT_SECONDS)
    except socket.gaierror as error:
        raise StoreUnreachable(
            f"nobody knows the name {address.hostname}: {error.strerror}",
            hint="Check the name and the name server (/etc/resolv.conf).",
        ) from error
    except OSError as error:
        raise StoreUnreachable(
            f"{address.hostname} port {address.port} can't be reached: {error.strerror or error}"
        ) from error
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with translated(address):
        transport = paramiko.Transport(
            sock, default_window_size=_WINDOW, default_max_packet_size=_PACKET
        )
    try:
        with translated(address):
            hosts = _HostKeys(address, access)
            options = transport.get_security_options()
            options.ciphers = [c for c in _CIPHERS if c in options.ciphers]
            options.key_types = hosts.preferred(options.key_types)
            transport.banner_timeout = transport.auth_timeout = CONNECT_SECONDS
            transport.start_client(timeout=CONNECT_SECONDS)
            hosts.check(transport.get_remote_server_key())
            transport.set_keepalive(_KEEPALIVE_SECONDS)
            _log_in(transport, address, keys)
    except BaseException:
        transport.close()
        raise
    return transport


def _log_in(transport: paramiko.Transport, address: Address, keys: Sequence[paramiko.PKey]) -> None:
    for key in keys:
        try:
            transport.auth_publickey(address.user, key)
        except paramiko.BadAuthenticationType:
            break
        except paramiko.AuthenticationException:
            continue
        if transport.is_authenticated():
            return
    shown = f"none of {len(keys)} keys" if keys else "no key, because there is none"
    raise paramiko.AuthenticationException(f"{shown} was accepted")


def _keys(address: Address, access: Access) -> Iterator[paramiko.PKey]:
    """Yield the private keys to show, in the order in which ssh would."""
    if access.ssh_key is None:
        yield from paramiko.Agent().get_keys()
    for path in key_files(address, access):
        yield _read_key(path, access)


def _read_key(path: Path, access: Access) -> paramiko.PKey:
    try:
        mode = path.stat().st_mode
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise SecretError(
                f"others can read the key {path}", hint=f"`chmod 600 {path}`, or make a new key."
            )
        try:
            return paramiko.PKey.from_path(path)
        except paramiko.PasswordRequiredException:
            if access.ssh_passphrase is None:
                raise
            return paramiko.PKey.from_path(path, access.ssh_passphrase(path).encode())
    except paramiko.PasswordRequiredException as error:
        raise SecretError(
            f"the key {path} is under a passphrase and nobody can be asked for it",
            hint="Add it to ssh-agent, or use a key without one that can only reach this repository.",
        ) from error
    except (paramiko.SSHException, ValueError, OSError) as error:
        raise SecretError(f"the key {path} can't be read: {error}") from error


class _HostKeys:
    """The host keys that are trusted."""

    def __init__(self, address: Address, access: Access) -> None:
        self._address = address
        self._confirm = access.confirm
        own = Path("~/.ssh/known_hosts").expanduser()
        self._file = access.known_hosts or own
        files = [access.known_hosts] if access.known_hosts else [own, _SYSTEM_HOSTS]
        self._known = paramiko.HostKeys()
        for path in files:
            if path.is_file():
                self._known.load(str(path))

    def preferred(self, types: Sequence[str]) -> tuple[str, ...]:
        """Return the types of keys to ask for: those that are known of this host first."""
        known = self._known.lookup(self._address.known_as)
        ours = [kind for kind in types if known is not None and _family(kind) in known]
        return (*ours, *(kind for kind in types if kind not in ours))

    def written(self) -> tuple[str, ...]:
        """Return the keys of the host as known_hosts writes them behind its name."""
        known = self._known.lookup(self._address.known_as)
        keys = known.values() if known is not None else ()
        return tuple(f"{key.get_name()} {key.get_base64()}" for key in keys)

    def check(self, key: paramiko.PKey) -> None:
        """Make sure that a host is the one it must be.

        Raises:
            UntrustedHost: it is not, or nobody knows.
        """
        shown = HostKey(self._address.known_as, key.get_name(), key.fingerprint)
        known = self._known.lookup(self._address.known_as)
        if known is not None:
            if any(entry == key for entry in known.values()):
                return
            raise UntrustedHost(
                f"{shown.host} shows another host key than before: {shown.algorithm} "
                f"{shown.fingerprint}",
                hint="Somebody may be listening in. If the host was set up anew, remove the old key: "
                f"ssh-keygen -R '{shown.host}' -f {self._file}",
            )
        if self._confirm is None or not self._confirm(shown):
            raise UntrustedHost(
                f"nobody vouches for {shown.host}, which shows {shown.algorithm} {shown.fingerprint}",
                hint=f"If that is its key, add a line to {self._file}: "
                f"{shown.host} {key.get_name()} {key.get_base64()}",
            )
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._file.open("a", encoding="ascii") as file:
            file.write(f"{shown.host} {key.get_name()} {key.get_base64()}\n")


def _family(kind: str) -> str:
    """Return the name that known_hosts gives to keys of a signature algorithm."""
    return "ssh-rsa" if kind.startswith("rsa-sha2-") else kind
