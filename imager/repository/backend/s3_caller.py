"""Calls to an S3 store: tried again while that can help, and said clearly what went wrong if not."""

import logging
import ssl
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, TypeVar

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    SSLError,
    TokenRetrievalError,
)
from botocore.parsers import ResponseParserError

from imager.errors import (
    MalformedAnswer,
    NoRoom,
    OutputError,
    RemetalError,
    StoreRefused,
    StoreUnreachable,
    UntrustedHost,
)
from imager.repository.backend.retry import patiently
from imager.repository.backend.s3_client import Clients
from imager.units import format_duration

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

FIRST_PATIENCE: Final = 30.0
"""For how many seconds a call is tried again before the store has answered for the first time: more likely the location is wrong."""

_SILENCE: Final = 60.0  # seconds between two warnings of the same store

_FULL: Final = {
    "InsufficientCapacity",
    "InsufficientStorage",
    "QuotaExceeded",
    "XMinioAdminBucketQuotaExceeded",
    "XMinioStorageFull",
}
_EXPIRED: Final = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
# Refused for a reason that passes; what went wrong on the way to the store is among it.
_PASSING: Final = {
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "OperationAborted",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "TooManyRequests",
    "XAmzContentSHA256Mismatch",
}

T = TypeVar("T")
Action = Callable[["S3Client"], T]
_log = logging.getLogger("remetal.s3")


class _PassingFailure(StoreUnreachable):
    """One try failed; its cause says why."""


class Caller:
    """Speaks to one store, for any number of threads.

    Args:
        place: what messages call it.
        bucket: name.
        clients: makes the client.
        patience: for how many seconds a call is tried again.
        first_patience: see `FIRST_PATIENCE`.
    """

    def __init__(
        self, place: str, bucket: str, clients: Clients, patience: float, first_patience: float
    ) -> None:
        self._place = place
        self._bucket = bucket
        self._clients = clients
        self._patience = patience
        self._first_patience = min(first_patience, patience)
        self._has_answered = False
        self._lock = threading.Lock()
        self._warned = -_SILENCE

    def call(self, action: Action[T]) -> T:
        """Do something with the client, and again while it fails for reasons that pass.

        Args:
            action: must be harmless when it is done twice.

        Returns:
            What it returns.

        Raises:
            ClientError: the store refuses this call for a reason of its own, such as an object that
                is not there; `refusal` turns it into an error for people.
            StoreUnreachable: it failed for as long as the patience says.
            MalformedAnswer: likewise, and what answers does not speak like an S3 store.
            StoreRefused: no or expired keys, clocks apart, or no such bucket.
            UntrustedHost: nobody vouches for the store's certificate.
            NoRoom: the store is full.
        """
        patience = self._patience if self._has_answered else self._first_patience
        try:
            return patiently(lambda: self._once(action), patience)
        except _PassingFailure as error:
            failure = error.__cause__
            if isinstance(failure, ResponseParserError | ValueError) or (
                isinstance(failure, ClientError) and _is_foreign(failure)
            ):
                raise MalformedAnswer(
                    f"what answers for {self._place} does not speak like an S3 store"
                ) from failure
            tried = format_duration(patience)
            raise StoreUnreachable(f"{error.message}; tried for {tried}") from failure

    def refusal(self, what: str, error: ClientError) -> RemetalError:
        """Return what it means that the store refuses something.

        Args:
            what: what it refuses, as in "does not ...".
            error: from `call`.
        """
        said = f"{code_of(error)} {error.response['Error'].get('Message') or ''}".strip()
        if status_of(error) in {401, 403}:
            return StoreRefused(f"{self._place} does not {what}: {said}")
        return OutputError(f"{self._place} does not {what}: {said}")

    def _once(self, action: Action[T]) -> T:
        client = self._clients.get()
        try:
            try:
                result = action(client)
            except ClientError as error:
                if code_of(error) not in _EXPIRED:
                    raise
                # They may have been renewed meanwhile.
                self._clients.forget()
                result = action(self._clients.get())
        except ParamValidationError:
            raise
        except ClientError as error:
            self._has_answered = True
            if not _passes(error):
                self._raise_if_general(error)
                raise
            raise self._failed(error) from error
        except (BotoCoreError, HTTPClientError, ResponseParserError, ValueError) as error:
            # The AWS library lets a ValueError pass for a header that was cut within its value.
            self._raise_if_hopeless(error)
            raise self._failed(error) from error
        self._has_answered = True
        return result

    def _failed(self, failure: Exception) -> "_PassingFailure":
        """Return that a call failed for a reason that passes, and warn of it now and then."""
        said = f"{self._place}: {_reason(failure)}"
        now = time.monotonic()
        with self._lock:
            is_new = now - self._warned > _SILENCE
            self._warned = now if is_new else self._warned
        if is_new:
            _log.warning("%s; trying again", said)
        return _PassingFailure(said)

    def _raise_if_general(self, error: ClientError) -> None:
        code = code_of(error)
        if code in _FULL or status_of(error) == 507:
            raise NoRoom(f"no room left in {self._place}: {code}") from error
        if code == "NoSuchBucket":
            raise StoreRefused(
                f"there is no bucket {self._bucket} in {self._place}",
                hint="Check its name; remetal makes no buckets: README says how one is made.",
            ) from error
        if code == "RequestTimeTooSkewed":
            raise StoreRefused(
                f"the clock of this machine says {_utc(time.time())}, that of {self._place} "
                f"{_date_of(error)}, and it takes no requests from so far away",
                hint="Set the clock that is wrong, then run this again.",
            ) from error
        if code in _EXPIRED:
            raise StoreRefused(
                f"the keys for {self._place} have expired",
                hint="Get new ones, with their session token, and run this again.",
            ) from error
        if code in {"PermanentRedirect", "AuthorizationHeaderMalformed"}:
            region = error.response["Error"].get("Region")
            raise StoreRefused(
                f"the bucket {self._bucket} is in another region",
                hint=f"Add &region={region} to the location." if region else "Give its region.",
            ) from error
        if code in {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"}:
            what = {"InvalidAccessKeyId": "access key", "InvalidToken": "session token"}
            raise StoreRefused(
                f"{self._place} refuses the {what.get(code, 'secret')} that this machine shows"
            ) from error

    def _raise_if_hopeless(self, error: Exception) -> None:
        if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
            raise StoreRefused(
                f"there are no keys here for {self._place}",
                hint="Give them in a file with --store-credentials, or as the AWS tools take them.",
            ) from error
        if isinstance(error, (CredentialRetrievalError, TokenRetrievalError)):
            raise StoreRefused(f"no keys for {self._place}: {error}") from error
        if isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise UntrustedHost(
                f"nobody who counts here vouches for the certificate of {self._place}",
                hint="Give the certificates of its authority in PEM with --authorities; if it had "
                "been trusted so far, somebody else may be answering.",
            ) from error


def code_of(error: ClientError) -> str:
    """Return the store's name for what went wrong."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: ClientError) -> int:
    """Return the HTTP status."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _passes(error: ClientError) -> bool:
    status = status_of(error)
    if code_of(error) in _FULL or status == 507:
        return False
    # What no store implements is not going to be implemented meanwhile.
    is_ill = status >= 500 and status != 501
    return is_ill or status == 429 or code_of(error) in _PASSING or _is_foreign(error)


def _is_foreign(error: ClientError) -> bool:
    """Whether a refusal does not name its reason, as every answer of a store does."""
    code = code_of(error)
    return not code or code.isdigit()


def _reason(failure: Exception) -> str:
    if isinstance(failure, ClientError):
        said = failure.response["Error"].get("Message") or ""
        return f"it answers {status_of(failure)} {code_of(failure)} {said}".rstrip()
    if isinstance(failure, EndpointConnectionError):
        cause = str(getattr(failure, "kwargs", {}).get("error", ""))
        if "NameResolution" in cause or "resolve" in cause:
            return "its name is unknown"
        return "nobody listens there" if "refused" in cause else "it can't be connected to"
    if isinstance(failure, IncompleteReadError | ResponseParserError | ValueError):
        return "its answers end too early or make no sense"
    if isinstance(failure, ssl.SSLError | SSLError):
        return f"TLS fails: {failure}"
    return {
        "ConnectTimeoutError": "it can't be connected to",
        "ReadTimeoutError": "it does not answer",
        "ConnectionClosedError": "it closes the connection",
        "ResponseStreamingError": "the connection breaks",
    }.get(type(failure).__name__, f"{type(failure).__name__}: {failure}")


def _date_of(error: ClientError) -> str:
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    try:
        return _utc(parsedate_to_datetime(headers["date"]).timestamp())
    except (KeyError, ValueError):
        return "another time"


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
