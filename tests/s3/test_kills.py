"""Stores that die, and links that are cut, during a capture and during a restore: both finish."""

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen

import pytest

from tests.s3.machine import Site
from tests.s3.proxy import Proxy
from tests.stores.ceph import Ceph
from tests.stores.engine import PATIENCE, Daemon, Engine, wait_for

_SIZE = 40 << 20
_MIDDLE = _SIZE // 2
_CUT_SECONDS = 20

Disturb = Callable[[Popen[str]], None]


def made(engine: Engine, folder: Path, proxy: Proxy) -> Site:
    bucket = engine.new_bucket()
    owner, machine = (engine.place(bucket, each) for each in (engine.owner, engine.capture))
    Site.make(folder, owner, machine)
    return Site(folder, proxy.before(owner), proxy.before(machine))


def disturbed(proxy: Proxy, process: Popen[str], disturb: Disturb) -> None:
    """Disturb a deed when half of what it moves has passed, and let it end."""
    assert proxy.held.wait(PATIENCE)
    assert process.poll() is None
    disturb(process)
    assert process.wait(timeout=240) == 0


def captured(site: Site, proxy: Proxy, disturb: Disturb) -> bytes:
    """Capture a disk, disturbed, and return its content."""
    content = site.new_disk(_SIZE)
    proxy.hold_after(_MIDDLE)
    words = ("--disk", "disk", "--name", "web", "--quiet")
    disturbed(proxy, site.start("capture", *words, place=site.machine), disturb)
    return content


def restored(site: Site, proxy: Proxy, disturb: Disturb) -> bytes:
    """Restore the newest image, disturbed, and return the disk."""
    target = site.folder / "target"
    proxy.hold_after(_MIDDLE)
    words = ("latest", "--map", f"disk0={target}", "--yes", "--quiet")
    disturbed(proxy, site.start("restore", *words), disturb)
    return target.read_bytes()


def has_felt_it(process: Popen[str]) -> Callable[[], bool]:
    """Return what tells whether a process has said that it tries again."""
    lines: list[str] = []
    stream = process.stderr
    assert stream is not None
    threading.Thread(target=lambda: lines.extend(iter(stream.readline, "")), daemon=True).start()

    def has() -> bool:
        assert process.poll() is None, lines
        return any("trying again" in line for line in lines)

    return has


def killing(proxy: Proxy, daemon: Daemon, wait: Callable[[], None]) -> Disturb:
    """Return what kills a daemon, and starts it again once the deed has felt it."""

    def disturb(process: Popen[str]) -> None:
        has = has_felt_it(process)
        daemon.kill(signal.SIGKILL)
        proxy.flows.set()
        wait_for("the deed has felt it", has)
        daemon.start()
        wait()

    return disturb


def test_the_gateway_is_killed_and_comes_back(engine: Engine, proxy: Proxy, tmp_path: Path) -> None:
    site = made(engine, tmp_path, proxy)
    disturb = killing(proxy, engine.gateway, engine.wait)
    content = captured(site, proxy, disturb)
    assert restored(site, proxy, disturb) == content
    assert site.tell("check", "--ciphertext")["findings"] == []


def test_twenty_seconds_without_network(engine: Engine, proxy: Proxy, tmp_path: Path) -> None:
    """Nothing is closed; then all goes on."""
    site = made(engine, tmp_path, proxy)

    def disturb(_: Popen[str]) -> None:
        threading.Timer(_CUT_SECONDS, proxy.flows.set).start()

    content = captured(site, proxy, disturb)
    assert restored(site, proxy, disturb) == content
    assert site.tell("check", "--ciphertext")["tampered"] == []


@pytest.fixture
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    ceph = Ceph(tmp_path_factory.mktemp("three"), osds=3)
    yield ceph
    ceph.close()


@pytest.mark.slow
def test_one_of_three_osds_is_killed(three: Ceph, tmp_path: Path) -> None:
    with Proxy(three.port) as proxy:
        site = made(three, tmp_path, proxy)

        def killing_osd(number: int) -> Disturb:
            def disturb(_: Popen[str]) -> None:
                three.osds[number].kill(signal.SIGKILL)
                proxy.flows.set()

            return disturb

        content = captured(site, proxy, killing_osd(1))
        three.osds[1].start()
        wait_for("all OSDs are up", lambda: three.ups() == 3)
        assert restored(site, proxy, killing_osd(2)) == content
        assert site.tell("check", "--ciphertext")["findings"] == []
