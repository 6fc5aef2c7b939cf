"""The clock of this machine against that of a store.

Stores that speak S3 refuse requests of another time, and certificates count for a time. But what a
store says of the time before anybody has proved who it is may come from anybody: it is shown to a
person, and believed only if they say so.
"""

import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from imager.errors import StoreUnreachable
from imager.repository.backend.endpoint import Endpoint

TOLERANCE: Final = 300.0  # seconds; S3 stores allow 900
_TIMEOUT: Final = 20.0


def store_time(endpoint: Endpoint) -> float | None:
    """Return what a store says the time is, in seconds since 1970; None when it does not say.

    Nothing vouches for the answer.

    Raises:
        StoreUnreachable: it does not answer.
    """
    import http.client  # noqa: PLC0415  a medium that reads an attached disk never needs them
    import ssl  # noqa: PLC0415

    connection: http.client.HTTPConnection
    if endpoint.is_tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # With a wrong clock no certificate is valid; and a valid one would not make the time right.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            endpoint.host, endpoint.port, timeout=_TIMEOUT, context=context
        )
    else:
        connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=_TIMEOUT)
    try:
        connection.request("HEAD", "/")
        said = connection.getresponse().getheader("Date")
    except (OSError, http.client.HTTPException) as error:
        raise StoreUnreachable(
            f"{endpoint.host} does not tell the time: {error or type(error).__name__}"
        ) from error
    finally:
        connection.close()
    try:
        return parsedate_to_datetime(said).timestamp() if said else None
    except ValueError:
        return None


def show(moment: float) -> str:
    """Return a time as people read it."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def now() -> str:
    """Return the time as people read it."""
    return show(time.time())


def set_clock(moment: float) -> None:
    """Set the clock of this system, until it ends; the hardware's clock stays as it is.

    Raises:
        OSError: this process may not.
    """
    time.clock_settime(time.CLOCK_REALTIME, moment)
