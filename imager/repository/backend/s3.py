"""A repository in a bucket of an S3 store.

Objects are put in one request each, create-only where the store heeds `If-None-Match`. Where it does
not, in buckets that keep versions, the store takes a second put of a name as a newer version; the
first is the one that counts, for writers and for readers (`s3_versions`). So with versions and
object lock, nothing that a captured machine may do there changes what is read: an overwrite and a
delete marker are newer, and the first version can't be removed before its lock ends.

A call that fails for a reason that passes is tried again for five minutes (half a minute before the
store has answered at all); `s3_caller` says which reasons these are.

Nothing is ever uploaded in parts: a single put takes 5 GiB, which no object of a repository has.
"""

import base64
import functools
import hashlib
import math
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError

from imager.errors import ObjectDamaged, ObjectLocked, ObjectMissing, OutputError, StoreRefused
from imager.repository.backend import s3_versions
from imager.repository.backend.place import Place
from imager.repository.backend.protocol import Buffer, Entry
from imager.repository.backend.retry import PATIENCE
from imager.repository.backend.s3_caller import FIRST_PATIENCE, Caller, code_of, status_of
from imager.repository.backend.s3_client import READ_SECONDS, Clients
from imager.repository.backend.s3_location import Location, LockMode
from imager.repository.backend.s3_versions import Ids, Remembered, Version
from imager.units import DAY, GIB

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

_LARGEST: Final = 5 * GIB
_WRITER: Final = "remetal-writer"
_ABSENT: Final = {"NoSuchKey", "NoSuchVersion"}
_NO_LOCKS: Final = {"ObjectLockConfigurationNotFoundError", "NotImplemented", "InvalidBucketState"}
_UNLOCKED: Final = {"NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError"}


@dataclass(frozen=True, slots=True)
class _Bucket:
    """What a bucket does with what is put there.

    Attributes:
        has_versions: whether it keeps versions, or once did.
        is_suspended: whether somebody made it stop that.
        has_locks: whether it was made with object lock.
        mode: how firmly objects are locked that are put; None if they aren't.
        span: for how many seconds.
    """

    has_versions: bool
    is_suspended: bool
    has_locks: bool
    mode: LockMode | None = None
    span: float | None = None


class S3Backend:
    """Objects in a bucket; see `protocol.Backend` for the guarantees.

    Args:
        place: a location as `s3_location` reads it, and with what it is reached.
        patience: for how many seconds a call is tried again.
        first_patience: likewise before the store has answered for the first time.
        read_seconds: after how long without a byte a link counts as hanging.

    Raises:
        UsageError: the location has another form.
    """

    def __init__(
        self,
        place: Place,
        *,
        patience: float = PATIENCE,
        first_patience: float = FIRST_PATIENCE,
        read_seconds: float = READ_SECONDS,
    ) -> None:
        self._at = Location.parse(place.location)
        clients = Clients(self._at, place.access, read_seconds)
        self._where = self._at.endpoint or "the S3 store"
        self._caller = Caller(self._where, self._at.bucket, clients, patience, first_patience)
        self._remembered = Remembered()

    @property
    def location(self) -> str:
        """The location, which never holds a secret."""
        return self._at.text

    @property
    def folders(self) -> tuple[Path, ...]:
        """None: the objects lie elsewhere."""
        return ()

    @property
    def lock_span(self) -> float | None:
        """For how long the location, else the bucket, says that objects are locked."""
        return self._bucket.span

    def put_new(self, name: str, parts: Sequence[Buffer], modified: float | None = None) -> bool:
        """Create an object; see `protocol.Backend.put_new`. The store takes its own time."""
        del modified
        key = self._key(name)
        if self._bucket.is_suspended:
            raise StoreRefused(
                f"the bucket {self._at.bucket} was told to keep no versions any more: what is put "
                "there now could be overwritten",
                hint="Let it keep versions again, and find out who changed that.",
            )
        if self._first(key) is not None:
            return False
        body = b"".join(parts)
        if len(body) > _LARGEST:
            raise OutputError(f"{name} has {len(body)} bytes, and a store takes 5 GiB at once")
        token = secrets.token_hex(16)
        request = self._request(key, body, token)
        was_tried = False

        def put(client: "S3Client") -> bool:
            nonlocal was_tried
            # The answer may have been lost, and not the object.
            if was_tried and (writer := self._writer(key)) is not None:
                return writer == token
            was_tried = True
            try:
                answer = client.put_object(**request)
            except ClientError as error:
                if status_of(error) == 412:
                    return self._writer(key) == token
                raise
            return self._is_first(key, answer.get("VersionId"), token)

        try:
            return self._caller.call(put)
        except ClientError as error:
            raise self._caller.refusal(f"take {name}", error) from error

    def get(self, name: str) -> bytes:
        """Return an object whole; see `protocol.Backend.get`."""
        return self._read(name)[0]

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Return a range of an object; see `protocol.Backend.get_range`."""
        if not length:
            self._found(name)
            return b""
        data, size = self._read(name, f"bytes={offset}-{offset + length - 1}")
        if len(data) != length:
            raise ObjectDamaged(f"{name} ends {offset + length - size} bytes too early")
        return data

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield objects; see `protocol.Backend.list`."""
        start = len(self._at.prefix)
        try:
            for version in self._versions(self._at.prefix + prefix):
                self._remembered.add(version)
                yield Entry(version.key[start:], version.size, version.modified, version.newer)
        except ClientError as error:
            raise self._caller.refusal("list what it holds", error) from error

    def delete(self, name: str) -> None:
        """Remove an object, with all that was ever put or marked above it.

        See `protocol.Backend.delete`. Either all of it can go, or nothing is removed.
        """
        key = self._key(name)
        try:
            if not self._bucket.has_versions:
                self._call("delete_object", Key=key)
                return
            ids = self._every(key)
            if len(ids.versions) > 1 and self._lock_of(key, ids.versions) is not None:
                raise _locked(name, self._where)
            # The first goes last: what is above it must never be taken for it.
            for version in (*ids.markers, *ids.versions):
                self._call("delete_object", Key=key, VersionId=version)
        except ClientError as error:
            if self._is_locked(name):
                raise _locked(name, self._where) from error
            raise self._caller.refusal(f"let {name} go", error) from error
        finally:
            self._remembered.forget(key)

    def locked_until(self, name: str, *, shortest: bool = False) -> float | None:
        """Return until when one of an object's versions is kept, or the first; see `protocol`."""
        if not self._bucket.has_locks:
            return None
        key = self._key(name)
        try:
            versions = self._every(key).versions
            return self._lock_of(key, versions[-1:] if shortest else versions)
        except ClientError as error:
            raise self._caller.refusal(f"tell until when it keeps {name}", error) from error

    def retain(self, name: str, until: float) -> None:
        """Lock the first version of an object for longer; see `protocol.Backend.retain`."""
        key = self._key(name)
        if not self._bucket.has_locks or (first := self._first(key)) is None or first.id is None:
            return
        try:
            now, mode = self._retention(key, first.id)
            if now is not None and now >= until:
                return
            # What nobody may lift stays so, whatever new objects are given.
            firm = LockMode.COMPLIANCE in {mode, self._bucket.mode or LockMode.COMPLIANCE}
            mode = LockMode.COMPLIANCE if firm else LockMode.GOVERNANCE
            self._call(
                "put_object_retention",
                Key=key,
                VersionId=first.id,
                Retention={"Mode": mode.value, "RetainUntilDate": _moment(until)},
            )
        except ClientError as error:
            if code_of(error) not in _ABSENT:
                raise self._caller.refusal(f"keep {name} for longer", error) from error

    def now(self) -> float:
        """Return the store's clock; see `protocol.Backend.now`. It tells whole seconds."""
        try:
            answer = self._call("get_bucket_versioning")
        except ClientError as error:
            raise self._caller.refusal("tell its time", error) from error
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
        try:
            return parsedate_to_datetime(date).timestamp()
        except ValueError as error:
            raise OutputError(f"{self._where} does not tell its time") from error

    def tidy(self) -> None:
        """Do nothing: what is put appears whole or not at all."""

    @functools.cached_property
    def _bucket(self) -> _Bucket:
        try:
            status = self._call("get_bucket_versioning").get("Status")
        except ClientError as error:
            raise self._caller.refusal(
                f"say whether the bucket {self._at.bucket} keeps versions", error
            ) from error
        default = self._default_lock() if status else None
        if self._at.lock is not None and default is None:
            raise StoreRefused(
                f"the bucket {self._at.bucket} locks nothing: it was made without object lock",
                hint="Make a bucket with object lock, or leave lock= and keep= out.",
            )
        mode, span = default or (None, None)
        return _Bucket(
            has_versions=bool(status),
            is_suspended=status == "Suspended",
            has_locks=default is not None,
            mode=self._at.lock or mode,
            span=self._at.keep or span,
        )

    def _default_lock(self) -> tuple[LockMode | None, float | None] | None:
        """Return how the bucket locks what is put; None of one that can't lock at all."""
        try:
            answer = self._call("get_object_lock_configuration")
        except ClientError as error:
            if code_of(error) in _NO_LOCKS:
                return None
            raise self._caller.refusal(
                f"say whether the bucket {self._at.bucket} locks what is put there", error
            ) from error
        configuration = answer.get("ObjectLockConfiguration", {})
        if configuration.get("ObjectLockEnabled") != "Enabled":
            return None
        rule = configuration.get("Rule", {}).get("DefaultRetention", {})
        days = rule.get("Days") or 365 * (rule.get("Years") or 0)
        return (LockMode(rule["Mode"]), float(days * DAY)) if days else (None, None)

    def _call(self, operation: str, **request: Any) -> Any:
        return self._caller.call(
            lambda client: getattr(client, operation)(Bucket=self._at.bucket, **request)
        )

    def _versions(self, prefix: str) -> Iterator[Version]:
        if self._bucket.has_versions:
            return s3_versions.first(self._page_of_versions, prefix)
        return s3_versions.plain(functools.partial(self._page, "list_objects_v2"), prefix)

    def _every(self, key: str) -> Ids:
        return s3_versions.every(self._page_of_versions, key)

    def _page_of_versions(self, **request: Any) -> Any:
        return self._page("list_object_versions", **request)

    def _page(self, operation: str, **request: Any) -> Any:
        def fetch(client: "S3Client") -> Any:
            page = getattr(client, operation)(Bucket=self._at.bucket, **request)
            s3_versions.check_page(page)
            return page

        return self._caller.call(fetch)

    def _first(self, key: str) -> Version | None:
        try:
            return next((each for each in self._versions(key) if each.key == key), None)
        except ClientError as error:
            raise self._caller.refusal("list what it holds", error) from error

    def _request(self, key: str, body: bytes, token: str) -> dict[str, Any]:
        request: dict[str, Any] = {
            "Bucket": self._at.bucket,
            "Key": key,
            "Body": body,
            "IfNoneMatch": "*",
            "Metadata": {_WRITER: token},
            "ContentType": "application/octet-stream",
        }
        if self._bucket.span is not None:
            # Object lock asks for it; else the signature covers the SHA-256 of the body.
            digest = hashlib.md5(body, usedforsecurity=False).digest()
            request["ContentMD5"] = base64.b64encode(digest).decode()
        if self._at.lock is not None and self._at.keep is not None:
            request["ObjectLockMode"] = self._at.lock.value
            request["ObjectLockRetainUntilDate"] = _moment(self.now() + self._at.keep)
        return request

    def _is_first(self, key: str, version: str | None, token: str) -> bool:
        """Whether what was just put is what everybody reads."""
        if not self._bucket.has_versions:
            return True
        first = self._first(key)
        if first is None:
            raise OutputError(
                f"{self._where} took {key} and does not list it",
                hint="Somebody may be removing objects just now; run this again.",
            )
        self._remembered.add(first)
        return first.id == version or self._writer(key) == token

    def _writer(self, key: str) -> str | None:
        """Return the token that the put gave which made an object; None if there is none."""
        first = self._first(key)
        if first is None:
            return None
        try:
            return str(self._peek(key, first.id).get("Metadata", {}).get(_WRITER, ""))
        except ClientError as error:
            if code_of(error) in _ABSENT:
                return None
            raise

    def _peek(self, key: str, version: str | None) -> Any:
        """Return what the store tells with an object.

        Not by HEAD: only a body that is there proves that no header was cut before it.
        """

        def peek(client: "S3Client") -> Any:
            request = self._reading(key, version)
            try:
                answer = client.get_object(**request, Range="bytes=0-0")
            except ClientError as error:
                if code_of(error) != "InvalidRange":
                    raise
                return client.head_object(**request)
            answer["Body"].read()
            return answer

        return self._caller.call(peek)

    def _reading(self, key: str, version: str | None) -> dict[str, Any]:
        request = {"Bucket": self._at.bucket, "Key": key}
        return request if version is None else request | {"VersionId": version}

    def _read(self, name: str, span: str | None = None) -> tuple[bytes, int]:
        """Return an object or a range of it, and the size of the object."""
        key = self._key(name)
        for is_second in (False, True):
            version = self._found(name)
            try:
                return self._caller.call(lambda client: self._fetch(client, key, version, span))  # noqa: B023  # called at once
            except ClientError as error:
                # It may have been removed and brought back since its version was looked up.
                self._remembered.forget(key)
                if code_of(error) == "InvalidRange":
                    raise ObjectDamaged(f"{name} ends before the range asked for") from error
                if code_of(error) not in _ABSENT:
                    raise self._caller.refusal(f"give {name}", error) from error
                if is_second or version is None:
                    break
        raise self._missing(name)

    def _fetch(
        self, client: "S3Client", key: str, version: str | None, span: str | None
    ) -> tuple[bytes, int]:
        request = self._reading(key, version)
        answer = client.get_object(**(request if span is None else request | {"Range": span}))
        if version not in {None, "null"} and answer.get("VersionId") != version:
            raise ResponseParserError("another version than was asked for")
        # Raises when it is shorter than the length that the store gave before.
        data = answer["Body"].read()
        if span is None:
            return data, len(data)
        size = str(answer.get("ContentRange", "")).rpartition("/")[2]
        if not size.isdigit():
            raise ResponseParserError("a range that does not say what it is part of")
        return data, int(size)

    def _found(self, name: str) -> str | None:
        """Return the id of the version to read; None in a bucket without versions."""
        if not self._bucket.has_versions:
            return None
        key = self._key(name)
        if (known := self._remembered.get(key)) is not None:
            return known
        folder = self._at.prefix + name[: name.find("/") + 1]
        try:
            for version in s3_versions.near(self._page_of_versions, folder, key):
                self._remembered.add(version)
        except ClientError as error:
            raise self._caller.refusal("list what it holds", error) from error
        if (known := self._remembered.get(key)) is not None:
            return known
        first = self._first(key)
        if first is None:
            raise self._missing(name)
        self._remembered.add(first)
        return first.id

    def _lock_of(self, key: str, versions: Sequence[str]) -> float | None:
        """Return until when the longest kept of some versions is kept, if it still is."""
        ends = [end for version in versions if (end := self._lock_end(key, version)) is not None]
        end = max(ends, default=None)
        return end if end is not None and end > self.now() else None

    def _lock_end(self, key: str, version: str) -> float | None:
        try:
            told = self._peek(key, version)
        except ClientError as error:
            if code_of(error) in _ABSENT:
                return None
            raise
        if told.get("ObjectLockLegalHoldStatus") == "ON":
            return math.inf
        until = told.get("ObjectLockRetainUntilDate")
        # A store leaves it out as well where these keys may not see it; asked for, it says so.
        return until.timestamp() if until is not None else self._retention(key, version)[0]

    def _is_locked(self, name: str) -> bool:
        """Whether the store says that it keeps an object; it may not tell everybody."""
        try:
            return self.locked_until(name) is not None
        except (OutputError, StoreRefused):
            return False

    def _retention(self, key: str, version: str) -> tuple[float | None, LockMode | None]:
        try:
            retention = self._call("get_object_retention", Key=key, VersionId=version)["Retention"]
        except ClientError as error:
            if code_of(error) in _UNLOCKED | _ABSENT:
                return None, None
            raise
        return retention["RetainUntilDate"].timestamp(), LockMode(retention["Mode"])

    def _key(self, name: str) -> str:
        if name.startswith("/") or ".." in name.split("/"):
            raise ObjectMissing(f"{name!r} is no name of an object")
        return self._at.prefix + name

    def _missing(self, name: str) -> ObjectMissing:
        return ObjectMissing(f"{name} is missing in {self.location}")


def _moment(seconds: float) -> datetime:
    """Return a time as stores keep it, whole seconds, never earlier."""
    return datetime.fromtimestamp(math.ceil(seconds), UTC)


def _locked(name: str, where: str) -> ObjectLocked:
    return ObjectLocked(f"{where} keeps {name} under a lock for now")
