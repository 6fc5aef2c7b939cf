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
from tests.stores.engine import Daemon, Engine, wait_for

_SIZE = 40 << 20
# So that a deed takes a few seconds, however fast the machine is.
_SLOW = ("--limit-upload", "8M", "--limit-download", "8M")


def made(engine: Engine, folder: Path, proxy: Proxy | None = None) -> Site:
    bucket = engine.new_bucket()
    owner, machine = (engine.place(bucket, each) for each in (engine.owner, engine.capture))
    Site.make(folder, owner, machine)
    if proxy is not None:
        return Site(folder, proxy.before(owner), proxy.before(machine))
    return Site(folder, owner, machine)


def holds_packs(engine: Engine, site: Site) -> bool:
    bucket = site.owner.location.removeprefix("s3://").partition("/")[0]
    listed = engine.client(engine.owner).list_objects_v2(Bucket=bucket, Prefix="repo/packs/")
    return listed["KeyCount"] > 0


def said(process: Popen[str], words: str) -> Callable[[], bool]:
    """Return what tells whether a process has said something on standard error."""
    lines: list[str] = []
    assert process.stderr is not None
    stream = process.stderr

    def read() -> None:
        lines.extend(iter(stream.readline, ""))

    threading.Thread(target=read, daemon=True).start()
    return lambda: any(words in line for line in lines)


def captured(site: Site, engine: Engine, disturb: Callable[[Popen[str]], None]) -> bytes:
    """Capture a disk, disturb that once some of it is stored, and return its content."""
    content = site.new_disk(_SIZE)
    words = ("--disk", "disk", "--name", "web", *_SLOW)
    process = site.start("capture", *words, place=site.machine)
    wait_for("something is stored", lambda: holds_packs(engine, site))
    assert process.poll() is None
    disturb(process)
    assert process.wait(timeout=240) == 0
    return content


def restored(site: Site, disturb: Callable[[Popen[str]], None]) -> bytes:
    """Restore the newest image, disturb that once some of it is written, and return the disk."""
    target = site.folder / "target"
    words = ("latest", "--map", f"disk0={target}", "--yes", *_SLOW)
    process = site.start("restore", *words)
    wait_for("something is written", lambda: target.exists() and target.stat().st_blocks > 1000)
    assert process.poll() is None
    disturb(process)
    assert process.wait(timeout=240) == 0
    return target.read_bytes()


def killing(daemon: Daemon, wait: Callable[[], None]) -> Callable[[Popen[str]], None]:
    """Return what kills a daemon, and starts it again once the deed has felt it."""

    def disturb(process: Popen[str]) -> None:
        has_felt = said(process, "trying again")
        daemon.kill(signal.SIGKILL)
        wait_for("the deed has felt it", has_felt)
        daemon.start()
        wait()

    return disturb


def test_the_gateway_is_killed_and_comes_back(engine: Engine, tmp_path: Path) -> None:
    site = made(engine, tmp_path)
    disturb = killing(engine.gateway, engine.wait)
    content = captured(site, engine, disturb)
    assert restored(site, disturb) == content
    assert site.tell("check", "--ciphertext")["findings"] == []


def test_twenty_seconds_without_network(engine: Engine, proxy: Proxy, tmp_path: Path) -> None:
    """Nothing is closed; then all goes on."""
    site = made(engine, tmp_path, proxy)

    def disturb(process: Popen[str]) -> None:
        has_felt = said(process, "")
        del has_felt
        proxy.flows.clear()
        threading.Timer(20, proxy.flows.set).start()

    content = captured(site, engine, disturb)
    assert restored(site, disturb) == content
    assert site.tell("check", "--ciphertext")["tampered"] == []


@pytest.fixture
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    ceph = Ceph(tmp_path_factory.mktemp("three"), osds=3)
    yield ceph
    ceph.close()


@pytest.mark.slow
def test_one_of_three_osds_is_killed(three: Ceph, tmp_path: Path) -> None:
    site = made(three, tmp_path)

    def disturb(process: Popen[str]) -> None:
        said(process, "")
        three.osds[1].kill(signal.SIGKILL)

    content = captured(site, three, disturb)
    three.osds[1].start()
    wait_for("all OSDs are up", lambda: three.ups() == 3)

    def disturb_again(process: Popen[str]) -> None:
        said(process, "")
        three.osds[2].kill(signal.SIGKILL)

    assert restored(site, disturb_again) == content
    assert site.tell("check", "--ciphertext")["findings"] == []
