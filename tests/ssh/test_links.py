"""What links do that are narrow, or that go bad in a way that nothing tells of."""

import hashlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import quote

import pytest

from imager.errors import OutputError, StoreRefused, StoreUnreachable
from imager.repository.backend import retry, ssh
from imager.repository.backend.opening import open_backend
from tests.ssh.test_weather import place_of, through
from tests.stores.proxy import Proxy
from tests.stores.ssh import Sshd, running

SCHEMES = ["ssh", "sftp"]


@pytest.fixture
def own_sshd(tmp_path: Path) -> Iterator[Sshd]:
    """One that a test may configure and kill."""
    (tmp_path / "sshd").mkdir()
    with running(tmp_path / "sshd") as started:
        yield started


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_host_that_lets_few_sessions_in(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guides for hardening say `MaxSessions 2`: sixteen threads share two."""
    monkeypatch.setattr(retry, "PATIENCE", 1.0)
    (tmp_path / "sshd").mkdir()
    sshd = Sshd(tmp_path / "sshd")
    with (sshd.folder / "sshd_config").open("a") as config:
        config.write("\nMaxSessions 2\n")
    sshd.start()
    try:
        backend = open_backend(place_of(sshd, scheme, tmp_path / "store"))
        contents = {f"packs/{n:02x}": bytes([n]) * 1_500_000 for n in range(96)}
        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(lambda name: backend.put_new(name, [contents[name]]), contents))
            found = dict(zip(contents, pool.map(backend.get, contents), strict=True))
        assert found == contents
    finally:
        sshd.stop()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_link_that_takes_nothing_any_more(
    scheme: str, own_sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow line holds less than a window of SSH, so the one that sends waits below all time limits."""
    monkeypatch.setattr(retry, "PATIENCE", 1.0)
    monkeypatch.setattr(ssh, "SILENCE_SECONDS", 3.0)
    monkeypatch.setattr(ssh, "CONNECT_SECONDS", 3.0)
    connect = socket.create_connection

    def narrow(address: tuple[str, int], timeout: float | None = None) -> socket.socket:
        sock = connect(address, timeout)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        return sock

    place = place_of(own_sshd, scheme, tmp_path / "store")
    with Proxy(own_sshd.port) as proxy, ThreadPoolExecutor(1) as pool:
        proxy._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        monkeypatch.setattr(socket, "create_connection", narrow)
        backend = open_backend(through(place, proxy, own_sshd))
        assert list(backend.list("")) == []
        proxy.after(1 << 20, proxy.pause)
        sending = pool.submit(backend.put_new, "packs/a", [bytes(16 << 20)])
        try:
            with pytest.raises(StoreUnreachable):
                sending.result(30)
        finally:
            proxy.cut()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_child_process_leaves_the_link_of_its_parent_alone(
    scheme: str, own_sshd: Sshd, tmp_path: Path
) -> None:
    place = place_of(own_sshd, scheme, tmp_path / "store")
    with Proxy(own_sshd.port) as proxy:
        backend = open_backend(through(place, proxy, own_sshd))
        backend.put_new("packs/a", [b"a"])
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(backend.get, ["packs/a"] * 60))
        child = get_context("fork").Process(target=backend.get, args=("packs/a",))
        child.start()
        child.join()
        assert child.exitcode == 0
        assert backend.get("packs/a") == b"a"
        assert own_sshd.log.read_text().count("Accepted publickey") == 2


def test_a_host_that_starts_up_refuses_for_a_while(
    own_sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as nologin is there, or what is served is not mounted, a capture waits."""
    monkeypatch.setattr(retry, "PATIENCE", 20.0)
    backend = open_backend(place_of(own_sshd, "ssh", tmp_path / "store"))
    backend.put_new("packs/a", [b"a"])
    authorized = own_sshd.folder / "authorized_keys"
    lines = authorized.read_text()
    authorized.write_text("")
    own_sshd.stop()
    own_sshd.start()
    timer = threading.Timer(2.0, lambda: authorized.write_text(lines))
    timer.start()
    assert backend.get("packs/a") == b"a"
    monkeypatch.setattr(retry, "PATIENCE", 1.0)
    authorized.write_text("")
    own_sshd.stop()
    own_sshd.start()
    with pytest.raises(StoreRefused, match="does not let root in"):
        backend.get("packs/a")


def test_a_narrow_line_is_shared_and_is_as_narrow_as_it_says(
    own_sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of eight connections is silent for so long that it seems to be dead."""
    monkeypatch.setattr(retry, "PATIENCE", 1.0)
    monkeypatch.setattr(ssh, "SILENCE_SECONDS", 3.0)
    key = own_sshd.new_key("narrow")
    own_sshd.serve(key, tmp_path / "store", "--append-only", "--limit", "4M")
    backend = open_backend(own_sshd.place("ssh", key, tmp_path / "store"))
    contents = [number.to_bytes(1 << 20) for number in range(8)]
    names = [f"images/{hashlib.sha256(data).hexdigest()}" for data in contents]
    begin = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda name, data: backend.put_new(name, [data]), names, contents))
        assert list(pool.map(backend.get, names)) == contents
    assert time.monotonic() - begin > 3.8, "sixteen megabytes can't pass in less"


def test_a_quota_that_can_not_be_counted(own_sshd: Sshd, tmp_path: Path) -> None:
    key = own_sshd.new_key("uncounted")
    own_sshd.serve(key, tmp_path / "store", "--append-only", "--quota", "1M")
    (own_sshd.folder / "state").symlink_to("/proc/none")
    backend = open_backend(own_sshd.place("ssh", key, tmp_path / "store"))
    with pytest.raises(OutputError, match="can't count"):
        backend.put_new(f"images/{hashlib.sha256(b'x').hexdigest()}", [b"x"])


def test_a_forced_command_keeps_every_character(own_sshd: Sshd, tmp_path: Path) -> None:
    folder = tmp_path / 'a "b" \\ \\"c\' d'
    key = own_sshd.new_key("odd")
    own_sshd.serve(key, folder, "--may-delete")
    place = own_sshd.place("ssh", key, folder)
    backend = open_backend(replace(place, location=quote(place.location, safe="/:@")))
    assert backend.put_new("packs/a", [b"a"])
    assert (folder / "packs" / "a").read_bytes() == b"a"


@pytest.mark.parametrize("limit", ["100K", "40M", "100G"])
def test_under_every_limit_an_object_comes_in_frames_as_they_must_be(
    own_sshd: Sshd, tmp_path: Path, limit: str
) -> None:
    key = own_sshd.new_key("limited")
    own_sshd.serve(key, tmp_path / "store", "--append-only", "--limit", limit)
    data = random.Random(1).randbytes(100_000 if limit == "100K" else (6 << 20) + 7)
    backend = open_backend(own_sshd.place("ssh", key, tmp_path / "store"))
    name = f"images/{hashlib.sha256(data).hexdigest()}"
    assert backend.put_new(name, [data])
    assert backend.get(name) == data
