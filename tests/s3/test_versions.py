"""Which version counts, on real stores: whatever is put or marked above it, the first."""

import base64
import contextlib
import hashlib
import math
from datetime import UTC, datetime
from typing import Any

import pytest

from imager.errors import ObjectDamaged, ObjectLocked, ObjectMissing, StoreRefused
from imager.repository.backend.place import Place
from imager.repository.backend.s3 import S3Backend
from imager.units import DAY
from tests.stores.engine import Engine

NAME = "packs/ab/1"


def bucket_of(place: Place) -> str:
    return place.location.removeprefix("s3://").partition("/")[0]


def with_pages_of(backend: S3Backend, size: int) -> S3Backend:
    """Let the store list a few at a time."""

    def limit(params: dict[str, Any], **_: Any) -> None:
        params["MaxKeys"] = size

    events = backend._caller._clients.get().meta.events
    for operation in ("ListObjectVersions", "ListObjectsV2"):
        events.register(f"provide-client-params.s3.{operation}", limit)
    return backend


def test_what_comes_later_changes_nothing_and_is_told(
    engine: Engine, backend: S3Backend, place: Place
) -> None:
    backend.put_new(NAME, [b"true"])
    thief, bucket, key = engine.client(engine.owner), bucket_of(place), f"repo/{NAME}"
    for content in (b"false", b"", b"worse"):
        thief.put_object(Bucket=bucket, Key=key, Body=content)
        assert S3Backend(place).get(NAME) == backend.get(NAME) == b"true"
    thief.delete_object(Bucket=bucket, Key=key)
    for each in (backend, S3Backend(place)):
        assert each.get(NAME) == b"true"
        assert each.get_range(NAME, 1, 2) == b"ru"
        (entry,) = each.list("packs/")
        assert (entry.name, entry.size, entry.newer) == (NAME, 4, 4)
        assert not each.put_new(NAME, [b"again"])


def test_a_marker_that_was_there_before_hides_nothing(
    engine: Engine, backend: S3Backend, place: Place
) -> None:
    engine.client(engine.owner).delete_object(Bucket=bucket_of(place), Key=f"repo/{NAME}")
    assert list(backend.list("")) == []
    with pytest.raises(ObjectMissing):
        backend.get(NAME)
    assert backend.put_new(NAME, [b"true"])
    assert backend.get(NAME) == b"true"


def test_a_put_that_was_done_twice_is_nobodys_attack(
    engine: Engine, backend: S3Backend, place: Place
) -> None:
    backend.put_new(NAME, [b"true"])
    engine.client(engine.owner).put_object(
        Bucket=bucket_of(place), Key=f"repo/{NAME}", Body=b"true"
    )
    assert [entry.newer for entry in backend.list("")] == [0]


def test_a_removal_takes_all_versions_and_markers(
    engine: Engine, backend: S3Backend, place: Place
) -> None:
    backend.put_new(NAME, [b"true"])
    client, bucket, key = engine.client(engine.owner), bucket_of(place), f"repo/{NAME}"
    client.put_object(Bucket=bucket, Key=key, Body=b"false")
    client.delete_object(Bucket=bucket, Key=key)
    backend.put_new(f"{NAME}2", [b"neighbour"])
    backend.delete(NAME)
    assert [entry.name for entry in backend.list("")] == [f"{NAME}2"]
    with pytest.raises(ObjectMissing):
        backend.get(NAME)
    left = client.list_object_versions(Bucket=bucket, Prefix=key)
    assert [version["Key"] for version in left["Versions"]] == [f"{key}2"]
    assert "DeleteMarkers" not in left


def test_what_is_brought_back_is_read_by_who_knew_the_old_one(
    backend: S3Backend, place: Place
) -> None:
    backend.put_new(NAME, [b"damaged"])
    assert backend.get(NAME) == b"damaged"
    other = S3Backend(place)
    other.delete(NAME)
    other.put_new(NAME, [b"sound"])
    assert backend.get(NAME) == b"sound"


def test_many_are_read_with_few_listings(backend: S3Backend, place: Place) -> None:
    names = [f"packs/{number:02x}/1" for number in range(20)]
    for name in names:
        backend.put_new(name, [name.encode()])
    reader, listings = S3Backend(place), []
    reader._caller._clients.get().meta.events.register(
        "before-call.s3.ListObjectVersions", lambda **_: listings.append(1)
    )
    assert [reader.get(name) for name in names] == [name.encode() for name in names]
    assert len(listings) == 1


@pytest.mark.parametrize("size", [2, 3, 5, 1000])
def test_what_is_put_beside_a_name_hides_nothing(
    engine: Engine, backend: S3Backend, place: Place, size: int
) -> None:
    """SeaweedFS lists by its folders, `1-a.versions` before `1.versions`."""
    backend.put_new(NAME, [b"true"])
    thief, bucket, key = engine.client(engine.owner), bucket_of(place), f"repo/{NAME}"
    thief.put_object(Bucket=bucket, Key=key, Body=b"false")
    for number in range(1, 7):
        thief.put_object(Bucket=bucket, Key=f"{key}-a", Body=b"%d" % number)
        for read in (
            lambda reader: reader.get(NAME),
            lambda reader: next(reader.get(entry.name) for entry in reader.list("packs/")),
        ):
            with contextlib.suppress(ObjectDamaged):
                assert read(with_pages_of(S3Backend(place), size)) == b"true"
    assert S3Backend(place).get(NAME) == b"true"


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_listings_of_many_pages(engine: Engine, place: Place, size: int) -> None:
    client, bucket = engine.client(engine.owner), bucket_of(place)
    names = [f"packs/{number}" for number in range(4)]
    for name in names:
        for content in (b"true", b"false", b"worse"):
            client.put_object(Bucket=bucket, Key=f"repo/{name}", Body=content)
    client.delete_object(Bucket=bucket, Key=f"repo/{names[1]}")
    backend = with_pages_of(S3Backend(place), size)
    listed = [(entry.name, entry.size, entry.newer) for entry in backend.list("")]
    assert listed == [(name, 4, 3 if name == names[1] else 2) for name in names]
    for name in names:
        assert with_pages_of(S3Backend(place), size).get(name) == b"true"


def test_plain_listings_of_many_pages(engine: Engine) -> None:
    place = engine.place(engine.new_bucket(locked=False), engine.owner)
    backend = with_pages_of(S3Backend(place), 2)
    names = [f"packs/{number}" for number in range(5)]
    for name in names:
        backend.put_new(name, [b"x"])
    assert [entry.name for entry in backend.list("")] == names


@pytest.mark.parametrize("mode", ["COMPLIANCE", "GOVERNANCE"])
def test_the_lock_of_the_bucket(engine: Engine, mode: str) -> None:
    place = engine.place(engine.new_bucket(mode=mode, days=3), engine.owner)
    backend = S3Backend(place)
    assert backend.lock_span == 3 * DAY
    before = backend.now()
    backend.put_new(NAME, [b"true"])
    until = backend.locked_until(NAME)
    # SeaweedFS begins a lock a second early.
    assert until is not None
    assert before - 2 <= until - 3 * DAY <= backend.now() + 1
    with pytest.raises(ObjectLocked):
        backend.delete(NAME)
    assert backend.get(NAME) == b"true"
    assert backend.locked_until("packs/none") is None


@pytest.mark.parametrize("mode", ["compliance", "governance"])
def test_the_lock_of_the_location(engine: Engine, mode: str) -> None:
    bucket = engine.new_bucket(mode=None)
    place = engine.place(bucket, engine.owner, f"&lock={mode}&keep=2d")
    backend = S3Backend(place)
    assert backend.lock_span == 2 * DAY
    backend.put_new(NAME, [b"true"])
    told = engine.client(engine.owner).get_object_retention(Bucket=bucket, Key=f"repo/{NAME}")
    assert told["Retention"]["Mode"] == mode.upper()
    until = backend.locked_until(NAME)
    assert until is not None
    assert 0 <= until - 2 * DAY - backend.now() + 5 <= 10
    with pytest.raises(ObjectLocked):
        backend.delete(NAME)


def test_a_bucket_that_can_not_lock_is_told_from_one_that_does(engine: Engine) -> None:
    place = engine.place(engine.new_bucket(locked=False), engine.owner, "&lock=compliance&keep=90d")
    with pytest.raises(StoreRefused, match="locks nothing"):
        S3Backend(place).put_new(NAME, [b"true"])


def test_a_lock_is_extended_for_what_is_read_and_its_time_stays(
    engine: Engine, backend: S3Backend, place: Place
) -> None:
    client, bucket, key = engine.client(engine.owner), bucket_of(place), f"repo/{NAME}"
    backend.put_new(NAME, [b"true"])
    client.put_object(Bucket=bucket, Key=key, Body=b"false")
    (entry,) = backend.list("")
    while backend.now() <= entry.modified:
        pass
    until = backend.now() + 40 * DAY
    backend.retain(NAME, until)
    assert backend.locked_until(NAME) == math.ceil(until)
    assert backend.locked_until(NAME, shortest=True) == math.ceil(until)
    backend.retain(NAME, until - DAY)
    assert backend.locked_until(NAME) == math.ceil(until)
    backend.retain(NAME, until + DAY)
    assert backend.locked_until(NAME) == math.ceil(until + DAY)
    assert [each.modified for each in backend.list("")] == [entry.modified]
    with pytest.raises(ObjectLocked):
        backend.delete(NAME)
    assert [each.newer for each in backend.list("")] == [1], "all of it goes, or nothing"


def test_what_is_put_above_an_object_does_not_stand_in_for_its_lock(
    engine: Engine, backend: S3Backend, place: Place
) -> None:
    """Else whoever may put could keep locks from being extended: what is new is locked anew."""
    client, bucket, key = engine.client(engine.owner), bucket_of(place), f"repo/{NAME}"
    backend.put_new(NAME, [b"true"])
    assert backend.locked_until(NAME, shortest=True) is None
    until = datetime.fromtimestamp(math.ceil(backend.now() + 40 * DAY), UTC)
    client.put_object(
        Bucket=bucket,
        Key=key,
        Body=b"false",
        ObjectLockMode="GOVERNANCE",
        ObjectLockRetainUntilDate=until,
        ContentMD5=base64.b64encode(hashlib.md5(b"false", usedforsecurity=False).digest()).decode(),
    )
    assert backend.locked_until(NAME) == until.timestamp()
    assert backend.locked_until(NAME, shortest=True) is None
    backend.retain(NAME, backend.now() + 2 * DAY)
    found = backend.locked_until(NAME, shortest=True)
    assert found is not None
    assert found < until.timestamp()


def test_what_nobody_may_lift_stays_so(engine: Engine) -> None:
    bucket = engine.new_bucket(mode="COMPLIANCE", days=1)
    S3Backend(engine.place(bucket, engine.owner)).put_new(NAME, [b"true"])
    weaker = S3Backend(engine.place(bucket, engine.owner, "&lock=governance&keep=10d"))
    weaker.retain(NAME, weaker.now() + 9 * DAY)
    told = engine.client(engine.owner).get_object_retention(Bucket=bucket, Key=f"repo/{NAME}")
    assert told["Retention"]["Mode"] == "COMPLIANCE"


def test_a_legal_hold_ends_when_somebody_lifts_it(
    engine: Engine, backend: S3Backend, place: Place
) -> None:
    backend.put_new(NAME, [b"true"])
    client, where = engine.client(engine.owner), {"Bucket": bucket_of(place), "Key": f"repo/{NAME}"}
    client.put_object_legal_hold(**where, LegalHold={"Status": "ON"})  # type: ignore[arg-type]
    assert backend.locked_until(NAME) == math.inf
    with pytest.raises(ObjectLocked):
        backend.delete(NAME)
    client.put_object_legal_hold(**where, LegalHold={"Status": "OFF"})  # type: ignore[arg-type]
    assert backend.locked_until(NAME) is None
    backend.delete(NAME)


def test_nothing_is_put_where_versions_are_no_longer_kept(engine: Engine) -> None:
    bucket = engine.new_bucket(locked=False)
    client, place = engine.client(engine.owner), engine.place(bucket, engine.owner)
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    S3Backend(place).put_new(NAME, [b"true"])
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
    client.put_object(Bucket=bucket, Key=f"repo/{NAME}", Body=b"false")
    backend = S3Backend(place)
    assert backend.get(NAME) == b"true"
    with pytest.raises(StoreRefused, match="no versions any more"):
        backend.put_new("packs/ab/2", [b"x"])
