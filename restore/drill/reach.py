"""How the rescue system of a drill gets at the repository: a shared directory, or a single outlet.

On the network the guest reaches the repository's host and port and nothing else. That host has an
address of its own in the guest's network. Where the location gives a name, the guest knows it by the
same name, so that certificates and host keys fit; an address is replaced, and host keys with it.
"""

import configparser
import io
import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit, urlunsplit

from imager.errors import SecretError, UsageError
from imager.repository import ssh_key
from imager.repository.backend.endpoint import Endpoint, endpoint_of, is_remote
from imager.repository.backend.place import Place
from restore.drill.vm_spec import Outlet
from restore.medium import RUN

_GUEST_ADDRESS: Final = "10.0.2.100"
_SHARED: Final = str(RUN / "repository")  # where the rescue system mounts it


@dataclass(frozen=True, slots=True)
class Reach:
    """What the rescue system is given to reach a repository.

    Attributes:
        location: of the repository as the guest sees it.
        filesystem: the name of the one that it lies in, on a disk of the guest, or None.
        folder: a directory to share with it, or None.
        outlet: its way to the repository's host, or None.
        hosts: names it knows by heart, and their addresses.
        ssh_key: a private key, or None.
        known_hosts: host keys, or None.
        credentials: keys of an S3 store, or None.
        authorities: certificates, or None.
    """

    location: str
    filesystem: str | None = None
    folder: Path | None = None
    outlet: Outlet | None = None
    hosts: dict[str, str] = field(default_factory=dict)
    ssh_key: bytes | None = field(default=None, repr=False)
    known_hosts: bytes | None = None
    credentials: bytes | None = field(default=None, repr=False)
    authorities: bytes | None = None


def reach(place: Place) -> Reach:
    """Return how a guest gets at a repository.

    Raises:
        UsageError: no guest can; the sentence says what to change.
        SecretError: a key that the guest needs can't be read.
    """
    if not is_remote(place.location):
        if place.location.startswith("mirror:"):
            raise UsageError(
                "a drill restores from one site of a mirror", hint="Name that site instead."
            )
        return Reach(_SHARED, folder=Path(place.location).resolve())
    endpoint = endpoint_of(place.location)
    if place.location.startswith("s3://"):
        return _reach_s3(place, endpoint)
    return _reach_ssh(place)


def _reach_ssh(place: Place) -> Reach:
    from imager.repository.backend import ssh  # noqa: PLC0415  slow to load

    address = ssh.Address.parse(place.location)
    name, hosts = _guest_name(address.host)
    known_as = name if address.port == 22 else f"[{name}]:{address.port}"
    lines = [f"{known_as} {key}\n" for key in ssh.trusted_keys(address, place.access)]
    scheme = urlsplit(place.location).scheme
    user, path = quote(address.user), quote(address.path)
    return Reach(
        f"{scheme}://{user}@{name}:{address.port}{path}",
        outlet=Outlet((_GUEST_ADDRESS, address.port), (address.hostname, address.port)),
        hosts=hosts,
        ssh_key=_usable_key(ssh.key_files(address, place.access)),
        known_hosts="".join(lines).encode(),
    )


def _usable_key(paths: tuple[Path, ...]) -> bytes:
    for path in paths:
        data = _read(path)
        if not ssh_key.is_locked(data):
            return data
    raise UsageError(
        "a drill gives the rescue system a key for the store, and there is none without a passphrase",
        hint="Give one with --ssh-key FILE; one that only reads is enough.",
    )


def _reach_s3(place: Place, endpoint: Endpoint) -> Reach:
    from imager.repository.backend.s3_location import Location  # noqa: PLC0415  slow to load

    location = Location.parse(place.location)
    parts = urlsplit(place.location)
    options = [parts.query] if parts.query else []
    if location.endpoint is None:
        if location.region is None:
            raise UsageError(
                f"{place.location} does not say where the store is",
                hint="Add &region=NAME, or &endpoint=URL.",
            )
        # There the bucket is part of the name.
        own = f"{location.bucket}.{endpoint.host}"
        hosts = {endpoint.host: _GUEST_ADDRESS, own: _GUEST_ADDRESS}
    else:
        name, hosts = _guest_name(endpoint.host)
        if not hosts and endpoint.is_tls:
            raise UsageError(
                "in a drill the store has another address, for which its certificate is not made",
                hint="Give the store by a name in endpoint=.",
            )
        if not hosts:
            url = quote(f"http://{name}:{endpoint.port}", safe="")
            kept = [word for word in parts.query.split("&") if word.partition("=")[0] != "endpoint"]
            options = [*kept, f"endpoint={url}"]
            if not location.is_plaintext_allowed:
                options.append("tls=no")  # it was loopback, and does not leave this machine
    return Reach(
        urlunsplit(parts._replace(query="&".join(options))),
        outlet=Outlet((_GUEST_ADDRESS, endpoint.port), (endpoint.host, endpoint.port)),
        hosts=hosts,
        credentials=_credentials(place),
        authorities=_read(place.access.authorities) if place.access.authorities else None,
    )


def _credentials(place: Place) -> bytes:
    """Return the keys that this machine shows, wherever they come from, as a file."""
    import boto3  # noqa: PLC0415  slow to load

    from imager.repository.backend.s3_client import read_keys  # noqa: PLC0415

    path = place.access.credentials
    keys = read_keys(path) if path is not None else boto3.Session().get_credentials()
    if keys is None:
        raise SecretError("there are no keys of the store", hint="Give --store-credentials FILE.")
    frozen = keys.get_frozen_credentials()
    document = configparser.ConfigParser(interpolation=None)
    document["default"] = {
        "aws_access_key_id": frozen.access_key or "",
        "aws_secret_access_key": frozen.secret_key or "",
    }
    if frozen.token:
        document["default"]["aws_session_token"] = frozen.token
    text = io.StringIO()
    document.write(text)
    return text.getvalue().encode()


def _guest_name(host: str) -> tuple[str, dict[str, str]]:
    """Return the name of a host in the guest, and what the guest needs to be told of it."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if host != "localhost":
            return host, {host: _GUEST_ADDRESS}
    return _GUEST_ADDRESS, {}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SecretError(f"{path} can't be read: {error.strerror}") from error
