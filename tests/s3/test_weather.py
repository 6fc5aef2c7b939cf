"""Bad weather on the way to real stores: told clearly or tried again, within stated times.

Nothing that was cut, on whichever byte, may pass for an object or a listing that is not there.
"""

import datetime as dt
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import botocore.auth
import pytest

from imager.errors import (
    ConfigError,
    LinkError,
    MalformedAnswer,
    NoRoom,
    ObjectLocked,
    ObjectMissing,
    StoreRefused,
    StoreUnreachable,
    UntrustedHost,
    UsageError,
)
from imager.repository.backend.place import Access, Place
from imager.repository.backend.s3 import S3Backend
from tests.s3.proxy import Proxy, answer
from tests.stores.engine import Engine, Identity, free_ports
from tests.stores.seaweedfs import SeaweedFS

NAME = "packs/ab/1"
CONTENT = b"true" * 5000
STORM = answer(
    "503 Slow Down",
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Calm down.</Message></Error>",
)


def impatient(place: Place) -> S3Backend:
    return S3Backend(place, patience=0, first_patience=0, read_seconds=1)


def refused(code: str, status: str, message: str = "") -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return answer(status, body.encode(), "Content-Type: application/xml")


@pytest.fixture
def filled(backend: S3Backend, place: Place) -> Place:
    """A place with an object in it."""
    backend.put_new(NAME, [CONTENT])
    return place


def test_a_name_that_nobody_knows(place: Place) -> None:
    unknown = Place(place.location.replace("127.0.0.1", "store.invalid") + "&tls=no", place.access)
    start = time.monotonic()
    with pytest.raises(StoreUnreachable, match="its name is unknown"):
        S3Backend(unknown, first_patience=1).get(NAME)
    assert time.monotonic() - start < 10


def test_nobody_listens(place: Place, engine: Engine) -> None:
    closed = place.location.replace(f":{engine.port}", f":{free_ports(1)[0]}")
    start = time.monotonic()
    with pytest.raises(StoreUnreachable, match="nobody listens there; tried for 1"):
        S3Backend(Place(closed, place.access), first_patience=1).get(NAME)
    assert 0.5 < time.monotonic() - start < 10


def test_keys_that_nobody_knows(engine: Engine, place: Place, tmp_path: Path) -> None:
    for identity, what in (
        (Identity("stranger"), "access key"),
        (replace(engine.owner, secret="x" * 40), "secret"),
    ):
        path = identity.write(tmp_path / what)
        with pytest.raises(StoreRefused, match=f"refuses the {what}") as caught:
            S3Backend(Place(place.location, Access(credentials=path))).get(NAME)
        assert identity.secret not in str(caught.value)
        assert identity.key not in str(caught.value)


def test_no_keys_at_all(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StoreRefused, match="there are no keys here"):
        S3Backend(Place(place.location, Access())).get(NAME)


def test_keys_of_the_environment(
    engine: Engine, filled: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = filled.location.replace(f"endpoint={engine.endpoint}&", "")
    monkeypatch.setenv("AWS_ENDPOINT_URL", engine.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", engine.owner.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", engine.owner.secret)
    assert S3Backend(Place(location, Access())).get(NAME) == CONTENT
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://192.0.2.1:9000")
    with pytest.raises(UsageError, match="without TLS"):
        S3Backend(Place(location, Access())).get(NAME)


def test_a_file_with_keys_that_others_can_read(filled: Place) -> None:
    path = filled.access.credentials
    assert path is not None
    try:
        for mode in (0o640, 0o604, 0o660):
            path.chmod(mode)
            with pytest.raises(ConfigError, match="others can read") as caught:
                S3Backend(filled).get(NAME)
            assert "chmod 600" in caught.value.hint
    finally:
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    assert S3Backend(filled).get(NAME) == CONTENT


def test_what_these_keys_may_not_do(engine: Engine) -> None:
    for mode in (None, "COMPLIANCE"):
        bucket = engine.new_bucket(mode=mode)
        S3Backend(engine.place(bucket, engine.owner)).put_new(NAME, [b"true"])
        machine = S3Backend(engine.place(bucket, engine.capture))
        with pytest.raises((StoreRefused, ObjectLocked), match=NAME):
            machine.delete(NAME)
        assert machine.get(NAME) == b"true"


def test_no_such_bucket(engine: Engine, place: Place) -> None:
    bucket = place.location.removeprefix("s3://").partition("/")[0]
    with pytest.raises(StoreRefused, match="there is no bucket b0000"):
        S3Backend(Place(place.location.replace(bucket, "b0000"), place.access)).put_new(NAME, [])


def test_clocks_that_are_apart(
    engine: Engine, filled: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = botocore.auth.get_current_datetime

    def wrong(*args: object) -> dt.datetime:
        return right(*args) - dt.timedelta(hours=3)

    monkeypatch.setattr(botocore.auth, "get_current_datetime", wrong)
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.0)
    with pytest.raises(StoreRefused) as caught:
        S3Backend(filled).get(NAME)
    assert "this machine says 2001-09-09T01:46:40Z, that of http://127.0.0.1" in str(caught.value)
    assert "Z, and it takes no requests" in str(caught.value)


def test_a_token_that_has_expired_may_have_been_renewed(proxy: Proxy, filled: Place) -> None:
    expired = refused("ExpiredToken", "400 Bad Request", "The provided token has expired.")
    backend = S3Backend(proxy.before(filled))
    proxy.will_answer([expired])
    assert backend.get(NAME) == CONTENT
    proxy.will_answer([expired] * 2)
    with pytest.raises(StoreRefused, match="have expired"):
        S3Backend(proxy.before(filled)).get(NAME)


@pytest.mark.parametrize(
    "full",
    [
        refused("QuotaExceeded", "403 Forbidden"),
        refused("XMinioStorageFull", "507 Insufficient Storage"),
        answer("507 Insufficient Storage"),
    ],
)
def test_a_store_that_says_it_is_full(proxy: Proxy, place: Place, full: bytes) -> None:
    backend = S3Backend(proxy.before(place))
    backend.now()
    proxy.will_answer([])
    fresh = S3Backend(proxy.before(place))
    proxy.will_answer([full])
    with pytest.raises(NoRoom, match="no room left in http://127"):
        fresh.put_new(NAME, [b"x"])
    assert backend.put_new(NAME, [b"x"])


def test_a_storm_of_503(proxy: Proxy, filled: Place) -> None:
    proxy.will_answer([STORM] * 4)
    backend = S3Backend(proxy.before(filled))
    assert backend.get(NAME) == CONTENT
    proxy.will_answer(repeat(STORM))
    with pytest.raises(StoreUnreachable, match="it answers 503 SlowDown Calm down"):
        S3Backend(proxy.before(filled), first_patience=1).get(NAME)


def test_something_else_answers(proxy: Proxy, filled: Place) -> None:
    page = answer("200 OK", b"<html><body>Please log in", "Content-Type: text/html")
    for said in (page, answer("403 Forbidden", b"<html>No</html>"), b"SSH-2.0-OpenSSH_9.2\r\n"):
        proxy.will_answer(repeat(said))
        with pytest.raises(LinkError) as caught:
            S3Backend(proxy.before(filled), first_patience=1, read_seconds=1).get(NAME)
        assert isinstance(caught.value, MalformedAnswer | StoreUnreachable), said


def test_a_listing_that_does_not_say_whether_it_is_whole(proxy: Proxy, filled: Place) -> None:
    backend = S3Backend(proxy.before(filled), patience=1)
    assert backend.lock_span is None
    said = b"<?xml version='1.0'?><ListVersionsResult><Name>b</Name></ListVersionsResult>"
    backend._caller._clients.get()._endpoint.http_session.close()  # type: ignore[attr-defined]
    proxy.will_answer(repeat(answer("200 OK", said, "Content-Type: application/xml")))
    with pytest.raises(MalformedAnswer):
        list(backend.list(""))


def test_a_link_that_hangs_without_closing(proxy: Proxy, filled: Place) -> None:
    backend = S3Backend(proxy.before(filled), patience=2, read_seconds=1)
    assert backend.get(NAME) == CONTENT
    proxy.flows.clear()
    start = time.monotonic()
    with pytest.raises(StoreUnreachable, match="it does not answer"):
        backend.get(NAME)
    assert time.monotonic() - start < 10
    proxy.flows.set()
    assert backend.get(NAME) == CONTENT


def test_a_link_that_comes_back(proxy: Proxy, filled: Place) -> None:
    backend = S3Backend(proxy.before(filled), read_seconds=1)
    assert backend.get(NAME) == CONTENT
    proxy.flows.clear()
    threading.Timer(3, proxy.flows.set).start()
    assert backend.get(NAME) == CONTENT
    assert backend.put_new("packs/ab/2", [CONTENT])
    assert [entry.newer for entry in backend.list("")] == [0, 0]


def test_nobody_vouches_for_a_certificate(
    filled: Place, tls: tuple[int, Path], tmp_path: Path
) -> None:
    port, authority = tls
    location = (
        filled.location.partition("?")[0] + f"?endpoint=https://127.0.0.1:{port}&region=us-east-1"
    )
    with pytest.raises(UntrustedHost, match="nobody who counts here vouches"):
        S3Backend(Place(location, filled.access)).get(NAME)
    trusting = replace(filled.access, authorities=authority)
    assert S3Backend(Place(location, trusting)).get(NAME) == CONTENT


DEEDS: dict[str, Callable[[S3Backend], object]] = {
    "get": lambda backend: backend.get(NAME),
    "get a range": lambda backend: backend.get_range(NAME, 4, 8),
    "list": lambda backend: [(entry.name, entry.size) for entry in backend.list("")],
    "lock": lambda backend: backend.locked_until(NAME),
    "put": lambda backend: backend.put_new(NAME, [b"again"]),
    "time": lambda backend: backend.now() > 1e9,
}


@pytest.mark.filterwarnings("ignore:tzname")  # of a time that was cut
@pytest.mark.parametrize("deed", list(DEEDS))
@pytest.mark.parametrize("locked", [True, False], ids=["locked", "plain"])
def test_an_answer_that_is_cut_anywhere_says_nothing(
    engine: Engine, proxy: Proxy, deed: str, locked: bool
) -> None:
    """Every connection is cut after so many bytes, whatever is asked for first."""
    place = engine.place(engine.new_bucket(locked=locked), engine.owner)
    S3Backend(place).put_new(NAME, [b"0123456789" * 3])
    expected = DEEDS[deed](S3Backend(place))
    clients = impatient(proxy.before(place))._caller._clients
    said = {}
    # Each byte counts; Ceph is slow, and what it says is cut by the same code.
    ends = range(0, 2600, 7) if isinstance(engine, SeaweedFS) else range(0, 6000, 97)
    for proxy.cut_after in ends:
        clients.get()._endpoint.http_session.close()  # type: ignore[attr-defined]
        backend = impatient(proxy.before(place))
        # To make a client takes longer than all that is done with it.
        backend._caller._clients = clients
        try:
            said[proxy.cut_after] = DEEDS[deed](backend) == expected
        except (StoreUnreachable, MalformedAnswer):
            said[proxy.cut_after] = None
    assert False not in said.values()
    assert set(said.values()) == {None, True}


def test_a_put_whose_answer_is_cut_is_done_once(engine: Engine, proxy: Proxy, place: Place) -> None:
    direct = S3Backend(place)
    backend = S3Backend(proxy.before(place), patience=20)
    assert backend.lock_span is None
    for number, proxy.cut_after in enumerate(range(0, 900, 90)):
        backend._caller._clients.get()._endpoint.http_session.close()  # type: ignore[attr-defined]
        threading.Timer(0.3, setattr, (proxy, "cut_after", None)).start()
        assert backend.put_new(f"packs/{number}", [CONTENT])
        assert not backend.put_new(f"packs/{number}", [CONTENT])
        assert backend.get(f"packs/{number}") == CONTENT
    assert {entry.newer for entry in direct.list("")} == {0}


def test_what_is_not_there_is_not_there_also_in_bad_weather(proxy: Proxy, filled: Place) -> None:
    proxy.will_answer([STORM] * 2)
    with pytest.raises(ObjectMissing):
        S3Backend(proxy.before(filled)).get("packs/none")
