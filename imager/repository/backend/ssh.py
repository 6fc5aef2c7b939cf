"""A connection over SSH: who the host is, who we are, and channels for several threads.

The client is paramiko. AES-GCM is asked for first, since it is the fastest with the processors of
today, and TCP_NODELAY is set: without it small frames wait for each other.
"""

import contextlib
import getpass
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import paramiko

from imager.errors import StoreRefused, StoreUnreachable, UsageError
from imager.repository.backend.place import Access, Place
from imager.repository.backend.ssh_hosts import HostKeys
from imager.repository.backend.ssh_keys import PrivateKeys

_PORT: Final = 22
CONNECT_SECONDS: Final = 20.0
SILENCE_SECONDS: Final = 60.0
_KEEPALIVE_SECONDS: Final = 15
_WINDOW: Final = 4 << 20
_PACKET: Final = 1 << 15
_CIPHERS: Final = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr")

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
        known_as: the host as known_hosts writes it.
        user: to log in as.
        path: on the far side.
        identities: private keys that the user's configuration names for it.
    """

    host: str
    hostname: str
    port: int
    known_as: str
    user: str
    path: str
    identities: tuple[Path, ...]

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
        options = _options(parts.hostname)
        user = unquote(parts.username) if parts.username else options.get("user")
        hostname = options["hostname"]
        port = port or int(options.get("port", _PORT))
        return cls(
            parts.hostname,
            hostname,
            port,
            options.get("hostkeyalias") or (hostname if port == _PORT else f"[{hostname}]:{port}"),
            user or getpass.getuser(),
            unquote(parts.path),
            tuple(Path(path).expanduser() for path in options.get("identityfile", ())),
        )


class SessionRefused(StoreUnreachable):
    """A host that lets no further session into a connection."""


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
        self._keys = PrivateKeys(place.access, address.identities)
        self._lock = threading.Lock()
        self._transport: paramiko.Transport | None = None
        self._owner = os.getpid()

    def open_channel(self) -> paramiko.Channel:
        """Return a new channel whose reads and writes give up after a minute of silence.

        Raises:
            StoreUnreachable: there is no way to the host.
            SessionRefused: it has let as many in as it does.
            UntrustedHost: another host answers, or one that nobody vouches for.
            StoreRefused: it does not let us in.
        """
        with self._lock:
            if self._owner != os.getpid():
                self._transport, self._owner = None, os.getpid()
            if self._transport is None or not self._transport.is_active():
                self._transport = _connect(self.address, self._access, self._keys)
            transport = self._transport
        begin = time.monotonic()
        with translated(self.address):
            try:
                channel = transport.open_session(_WINDOW, _PACKET, timeout=CONNECT_SECONDS)
            except paramiko.SSHException as error:
                # Of threads that are refused at once, only one is told the reason.
                if transport.is_active() and time.monotonic() - begin < CONNECT_SECONDS:
                    raise SessionRefused(
                        f"{self.address.host} lets no further session in",
                        hint="MaxSessions in its sshd_config says how many it lets in.",
                    ) from error
                raise
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
    return HostKeys(address.known_as, access).written()


def key_files(address: Address, access: Access) -> tuple[Path, ...]:
    """Return the files of the private keys to show to a host, in the order in which ssh would."""
    return PrivateKeys(access, address.identities).files


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


def _options(host: str) -> Mapping[str, Any]:
    """Return what the user's configuration says of a host."""
    path = Path("~/.ssh/config").expanduser()
    try:
        found = paramiko.SSHConfig.from_path(path) if path.is_file() else paramiko.SSHConfig()
        options: Mapping[str, Any] = found.lookup(host)
        int(options.get("port", _PORT))
    except (paramiko.SSHException, ValueError, OSError) as error:
        raise UsageError(
            f"{path} can't be read: {error}", hint="Mend it; `ssh -G` shows it."
        ) from error
    return options


def _connect(address: Address, access: Access, keys: PrivateKeys) -> paramiko.Transport:
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
    # paramiko itself waits without end for a link that takes nothing more.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(SILENCE_SECONDS * 1000))
    with translated(address):
        transport = paramiko.Transport(
            sock, default_window_size=_WINDOW, default_max_packet_size=_PACKET
        )
    try:
        with translated(address):
            hosts = HostKeys(address.known_as, access)
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


def _log_in(transport: paramiko.Transport, address: Address, keys: PrivateKeys) -> None:
    refused = 0
    for key in keys:
        begin = time.monotonic()
        try:
            transport.auth_publickey(address.user, key)
        except paramiko.BadAuthenticationType:
            break
        except paramiko.AuthenticationException as error:
            # What paramiko says of a link that breaks or hangs just now is the same as of a refusal.
            if time.monotonic() - begin >= CONNECT_SECONDS:
                raise TimeoutError from error
            if not transport.is_active() and not refused:
                raise EOFError("it was closed while logging in") from error
            refused += 1
            if not transport.is_active():
                break
            continue
        if transport.is_authenticated():
            return
        refused += 1
    shown = f"none of {refused} keys" if refused else "no key, because there is none"
    skipped = "".join(f"; {why}" for why in keys.skipped)
    raise paramiko.AuthenticationException(f"{shown} was accepted{skipped}")
