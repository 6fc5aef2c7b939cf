"""Which version of a name is read: the first.

In a bucket that keeps versions an overwrite is a newer version, and a removal a marker above it.
Whoever may write can add both, and neither changes what is read here.

The first is the last in the order in which the store lists the versions of a name, newest first.
Times would not do: they are whole seconds, and some stores change them. (Of an upload that was begun
before another and ended after it, SeaweedFS takes the begin. Names say the hash of what they hold,
so nobody but the writer can begin early.)
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from botocore.parsers import ResponseParserError

from imager.errors import ObjectDamaged

if TYPE_CHECKING:
    from datetime import datetime

_REMEMBERED: Final = 1 << 16
_NEAR: Final = 100  # versions in a page; five names of it must be read for it to pay
_FOLDER: Final = ".versions"  # what SeaweedFS adds to a name for the folder of its versions
_WEED_ID: Final = 32  # hexadecimal digits


@dataclass(slots=True)
class Version:
    """The first version of a name.

    Attributes:
        key: what the store calls the object.
        id: of the version; None in a bucket that never kept any.
        size: bytes.
        modified: seconds since the epoch, when the store took it.
        newer: how many later versions with other content, and delete markers, there are.
    """

    key: str
    id: str | None
    size: int
    modified: float
    newer: int = 0


@dataclass(frozen=True, slots=True)
class Ids:
    """All that lies under one name.

    Attributes:
        markers: ids of the delete markers.
        versions: ids of the versions, newest first.
    """

    markers: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()


@dataclass(slots=True)
class _Name:
    """What was listed of a name so far, newest first."""

    versions: list[Mapping[str, Any]] = field(default_factory=list)
    markers: list[str] = field(default_factory=list)


Fetch = Callable[..., Mapping[str, Any]]


def check_page(page: Mapping[str, Any]) -> None:
    """Refuse a page of a listing that does not say whether more comes, and from where on.

    Raises:
        ResponseParserError: it does not.
    """
    where = {"NextKeyMarker", "NextContinuationToken"} & page.keys()
    if "IsTruncated" not in page or (page["IsTruncated"] and not where):
        raise ResponseParserError("a listing that does not say whether it is whole")


def plain(fetch: Fetch, prefix: str) -> Iterator[Version]:
    """Yield the objects of a bucket that never kept versions.

    Args:
        fetch: `list_objects_v2` of the bucket, each page checked with `check_page`.
        prefix: what keys begin with.
    """
    more: dict[str, str] = {}
    while True:
        page = fetch(Prefix=prefix, **more)
        for entry in page.get("Contents", ()):
            yield Version(entry["Key"], None, entry["Size"], _second(entry["LastModified"]))
        if not page["IsTruncated"]:
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


def first(fetch: Fetch, prefix: str) -> Iterator[Version]:
    """Yield the first versions in a bucket that keeps them, or once did.

    Args:
        fetch: `list_object_versions` of the bucket, likewise.
        prefix: what keys begin with.
    """
    for key, name, is_weed in _names(fetch, prefix):
        if name.versions:
            yield _first_of(key, name, is_weed)


def near(fetch: Fetch, prefix: str, key: str) -> list[Version]:
    """Return the first versions of a name and of names behind it, of what is sorted by name.

    A page costs a store little more than a single name, and who reads one reads more. The name may
    be left out: when somebody wrote so many versions that a page does not hold them, or when a
    store begins elsewhere. Only `first` proves that a name isn't there.

    Args:
        fetch: as for `first`.
        prefix: what keys begin with, `key` among them.
        key: what the store calls the object.
    """
    pages = _pages(fetch, {"Prefix": prefix, "MaxKeys": _NEAR}, {"KeyMarker": key[:-1]})
    try:
        page = next(pages)
    except ObjectDamaged:
        return []
    return [_first_of(*each) for each in page if each[1].versions]


def every(fetch: Fetch, key: str) -> Ids:
    """Return all that lies under a name.

    Args:
        fetch: as for `first`.
        key: what the store calls the object.
    """
    for found, name, _ in _names(fetch, key):
        if found == key:
            ids = (str(version["VersionId"]) for version in name.versions)
            return Ids(tuple(name.markers), tuple(ids))
    return Ids()


class Remembered:
    """Which version is the first, of as many names as fit; for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids: dict[str, str] = {}

    def get(self, key: str) -> str | None:
        """Return the id, if it is remembered."""
        return self._ids.get(key)

    def add(self, version: Version) -> None:
        """Remember one, and forget the oldest if there are too many."""
        if version.id is None:
            return
        with self._lock:
            if len(self._ids) >= _REMEMBERED and version.key not in self._ids:
                del self._ids[next(iter(self._ids))]
            self._ids[version.key] = version.id

    def forget(self, key: str) -> None:
        """Let the next one ask again."""
        with self._lock:
            self._ids.pop(key, None)


def _names(fetch: Fetch, prefix: str) -> Iterator[tuple[str, _Name, bool]]:
    """Yield all that is listed, name by name, however many pages a single one takes."""
    return chain.from_iterable(_pages(fetch, {"Prefix": prefix}, {}))


def _pages(
    fetch: Fetch, request: Mapping[str, Any], more: Mapping[str, str]
) -> Iterator[list[tuple[str, _Name, bool]]]:
    """Yield the names that each page completes; `more` says where the first page begins."""
    found: dict[str, _Name] = {}
    while True:
        page = fetch(**request, **more)
        is_weed = _server(page).startswith("SeaweedFS")
        for version in page.get("Versions", ()):
            found.setdefault(version["Key"], _Name()).versions.append(version)
        for marker in page.get("DeleteMarkers", ()):
            found.setdefault(marker["Key"], _Name()).markers.append(marker["VersionId"])
        last = page["NextKeyMarker"] if page["IsTruncated"] else None
        if is_weed and last is not None and found:
            _check_order(found, last, request["Prefix"])
        yield [(key, found.pop(key), is_weed) for key in sorted(found.keys() - {last})]
        if last is None:
            return
        more = {"KeyMarker": last}
        if page.get("NextVersionIdMarker"):
            more["VersionIdMarker"] = page["NextVersionIdMarker"]


def _check_order(found: Iterable[str], last: str, prefix: str) -> None:
    """Refuse a page of SeaweedFS behind which a name may be hidden.

    It takes versions in the order of its folders, `NAME.versions`, and sorts what it took by name.
    So `NAME-a`, put very often, comes before `NAME` there and behind it here: the page ends within
    `NAME` or before it, and the next one goes on behind both. No object of a repository has such a
    name (a character below the dot).

    Raises:
        ObjectDamaged: it does not end with the name that comes last in the order of folders, or
            that one is such a name.
    """

    def place(key: str) -> list[str]:
        *folders, name = key.split("/")
        return [*folders, f"{name}{_FOLDER}"]

    if max(found, key=place) == last and min(last[len(prefix) :], default=_FOLDER) >= _FOLDER[0]:
        return
    raise ObjectDamaged(
        f"the store can't list all versions: somebody put {last}, or a name like it, very often",
        hint="With the owner's keys remove all versions of it, and find out who put it.",
    )


def _first_of(key: str, name: _Name, is_weed: bool) -> Version:
    *newer, oldest = name.versions
    if is_weed and newer and oldest["VersionId"] == "null":
        # SeaweedFS lists last what has no id, also what was put after the bucket ceased to keep
        # versions.
        before = newer[-1]
        if _second(oldest["LastModified"]) >= _taken(before["VersionId"]):
            newer[-1], oldest = oldest, before
    modified = _second(oldest["LastModified"])
    if is_weed:
        modified = min(modified, _taken(oldest["VersionId"]))
    # A put whose answer was lost may have been done twice: that is nobody's attack.
    differing = sum(version.get("ETag") != oldest.get("ETag") for version in newer)
    return Version(
        key, oldest["VersionId"], oldest["Size"], modified, differing + len(name.markers)
    )


def _second(time: "datetime") -> float:
    """Return whole seconds: the clock of a store tells no more, and both are compared."""
    return float(int(time.timestamp()))


def _taken(version: str) -> float:
    """Return when SeaweedFS made a version; what it lists as its time changes with its lock.

    Its ids begin with what is left of 63 bits after the nanoseconds since the epoch.
    """
    try:
        left = int(version[:16], 16) if len(version) == _WEED_ID else 0
    except ValueError:
        left = 0
    return float(((1 << 63) - 1 - left) // 10**9)


def _server(page: Mapping[str, Any]) -> str:
    return str(page.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("server", ""))
