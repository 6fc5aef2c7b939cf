"""What an `s3://` location says."""

import ipaddress
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

from imager.errors import UsageError
from imager.units import DAY, parse_duration

FORM: Final = "s3://BUCKET[/PREFIX][?endpoint=URL&region=NAME&lock=compliance|governance&keep=90d]"
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_FOLDER: Final = re.compile(r"[A-Za-z0-9._=-]+")
_REGION: Final = re.compile(r"[a-z0-9-]+")


class LockMode(StrEnum):
    """How firmly a store keeps what it locks."""

    COMPLIANCE = "COMPLIANCE"  # nobody lifts it
    GOVERNANCE = "GOVERNANCE"  # whoever has a right of its own for that lifts it


@dataclass(frozen=True, slots=True)
class Location:
    """Where in which store the objects lie.

    Attributes:
        text: as it was written; it holds no secret.
        bucket: name.
        prefix: what the key of every object begins with: empty, or ends with a slash.
        endpoint: URL of the store; None for what the AWS configuration says.
        region: likewise.
        lock: how the objects are locked when they are put; None leaves that to the bucket.
        keep: for how many seconds then.
        is_plaintext_allowed: whether the store may be spoken to over a network without TLS.
    """

    text: str
    bucket: str
    prefix: str
    endpoint: str | None = None
    region: str | None = None
    lock: LockMode | None = None
    keep: int | None = None
    is_plaintext_allowed: bool = False

    @classmethod
    def parse(cls, text: str) -> "Location":
        """Read a location.

        Raises:
            UsageError: it has another form, or options that are unknown or don't go together.
        """
        try:
            parts = urlsplit(text)
        except ValueError as error:
            raise _wrong("the location can't be read as an URL") from error
        if "@" in parts.netloc:
            # Not repeated: what stands there is most likely a secret.
            raise UsageError(
                "an s3:// location holds no keys",
                hint="Give them in a file with --store-credentials, or as the AWS tools take them.",
            )
        if not _BUCKET.fullmatch(parts.netloc) or parts.fragment:
            raise _wrong(f"{parts.netloc!r} is no name of a bucket")
        folders = [folder for folder in parts.path.split("/") if folder]
        for folder in folders:
            if not _FOLDER.fullmatch(folder) or folder in {".", ".."}:
                raise _wrong(f"{folder!r} can't be part of a prefix")
        options = _options(parts)
        location = cls(
            text,
            parts.netloc,
            "".join(f"{folder}/" for folder in folders),
            endpoint=_endpoint(options.pop("endpoint", None)),
            region=_region(options.pop("region", None)),
            lock=_lock(options.pop("lock", None)),
            keep=_keep(options.pop("keep", None)),
            is_plaintext_allowed=_no_tls(options.pop("tls", None)),
        )
        if options:
            raise _wrong(f"{next(iter(options))!r} is no option of an s3:// location")
        if (location.lock is None) != (location.keep is None):
            raise _wrong("lock= and keep= go together")
        if location.endpoint is not None:
            location.check_endpoint(location.endpoint)
        return location

    def check_endpoint(self, url: str) -> None:
        """Refuse to speak without TLS over a network, unless the location says so.

        The secret is never sent, and objects are sealed and named by their hash. But who sits on the
        way could hide objects, keep a request back, and see what is read and written when.

        Raises:
            UsageError: that is the case.
        """
        parts = urlsplit(url)
        if parts.scheme == "https" or self.is_plaintext_allowed or _is_loopback(parts.hostname):
            return
        raise UsageError(
            f"{url} would be spoken to without TLS",
            hint="Give an https:// endpoint; if the network on the way is to be trusted, add &tls=no.",
        )


def _wrong(what: str) -> UsageError:
    return UsageError(what, hint=f"The form is {FORM}")


def _options(parts: SplitResult) -> dict[str, str]:
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise _wrong("the options after ? can't be read") from error
    options = dict(pairs)
    if len(options) != len(pairs):
        raise _wrong("an option is given twice")
    return options


def _endpoint(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        parts = urlsplit(text)
        has_port = parts.port != 0
    except ValueError as error:
        raise _wrong("endpoint= can't be read as an URL") from error
    if "@" in parts.netloc:
        raise _wrong("endpoint= holds no keys")
    is_bare = parts.path in {"", "/"} and not parts.query and not parts.fragment
    if parts.scheme not in {"http", "https"} or not parts.hostname or not is_bare or not has_port:
        raise _wrong(f"{text!r} is no endpoint such as https://store.example:9000")
    return f"{parts.scheme}://{parts.netloc}"


def _region(text: str | None) -> str | None:
    if text is not None and not _REGION.fullmatch(text):
        raise _wrong(f"{text!r} is no region")
    return text


def _lock(text: str | None) -> LockMode | None:
    if text is None:
        return None
    try:
        return LockMode(text.upper())
    except ValueError as error:
        raise _wrong(f"lock={text} is neither compliance nor governance") from error


def _keep(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        span = parse_duration(text)
    except ValueError as error:
        raise _wrong(f"keep={text}: {error}") from error
    if span < DAY:
        raise _wrong("keep= is a day at least")
    return span


def _no_tls(text: str | None) -> bool:
    if text not in {None, "no"}:
        raise _wrong(f"tls={text} is unknown; TLS is used unless tls=no says otherwise")
    return text == "no"


def _is_loopback(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        return host is not None and ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
