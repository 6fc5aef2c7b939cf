"""Which host and port a location leads to."""

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from imager.errors import UsageError

_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a store listens.

    Attributes:
        host: name or address.
        port: TCP.
        is_tls: it speaks TLS.
        is_signed_by_time: it takes requests only from those whose clock is right.
    """

    host: str
    port: int
    is_tls: bool = False
    is_signed_by_time: bool = False


def is_remote(location: str) -> bool:
    """Whether a location is reached over the network."""
    return "://" in location


def endpoint_of(location: str) -> Endpoint:
    """Return where a location on the network leads.

    Raises:
        UsageError: it is no location, or of a kind that this version does not know.
    """
    scheme = location.partition("://")[0]
    if scheme in {"ssh", "sftp"}:
        from imager.repository.backend.ssh import Address  # noqa: PLC0415  paramiko is slow to load

        address = Address.parse(location)
        return Endpoint(address.hostname, address.port)
    if scheme == "s3":
        from imager.repository.backend.s3_location import Location  # noqa: PLC0415

        place = Location.parse(location)
        url = place.endpoint or f"https://s3.{place.region or 'us-east-1'}.amazonaws.com"
        parts = urlsplit(url)
        port = parts.port or _PORTS[parts.scheme]
        return Endpoint(
            parts.hostname or "", port, is_tls=parts.scheme == "https", is_signed_by_time=True
        )
    raise UsageError(
        f"{location} can't be reached by this version", hint="ssh://, sftp:// or s3://"
    )
