"""Bad weather between a machine and its repository over SSH: a clear error, or it goes on; never a loss."""

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from imager.errors import (
    MalformedAnswer,
    NoRoom,
    StoreRefused,
    StoreUnreachable,
    UntrustedHost,
    UsageError,
)
from imager.repository.backend import retry, ssh
from imager.repository.backend.opening import open_backend
from imager.repository.backend.place import Access, HostKey, Place
from tests.ssh.conftest import Served
from tests.stores.proxy import Proxy
from tests.stores.scene import Scene
from tests.stores.ssh import Sshd, free_port, make_key, running

SCHEMES = ["ssh", "sftp"]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "PATIENCE", 2.0)
    monkeypatch.setattr(retry, "FIRST_PATIENCE", 0.5)
    monkeypatch.setattr(ssh, "CONNECT_SECONDS", 2.0)
    monkeypatch.setattr(ssh, "SILENCE_SECONDS", 2.0)


@pytest.fixture
def reach(sshd: Sshd, tmp_path: Path) -> Callable[[str], Place]:
    """Return the place of a fresh folder, by scheme."""
    key = sshd.new_key(f"weather-{tmp_path.name}")
    made: set[str] = set()

    def place(scheme: str) -> Place:
        folder = tmp_path / scheme
        if scheme not in made:
            made.add(scheme)
            if scheme == "ssh":
                sshd.serve(key, folder, "--may-delete")
                return sshd.place(scheme, key, folder)
        other = sshd.new_key(f"sftp-{tmp_path.name}")
        sshd.authorize(f'restrict,command="internal-sftp" {Path(f"{other}.pub").read_text()}')
        return sshd.place(scheme, other, folder)

    return place


def through(place: Place, proxy: Proxy, sshd: Sshd) -> Place:
    """Return the same place behind a proxy, whose host key is the same."""
    known = sshd.folder / f"known-{proxy.port}"
    known.write_text(sshd.known_hosts.read_text().replace(f":{sshd.port} ", f":{proxy.port} "))
    return Place(
        place.location.replace(f":{sshd.port}/", f":{proxy.port}/"),
        replace(place.access, known_hosts=known),
    )


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("scheme", SCHEMES)
class TestReaching:
    def test_a_name_that_nobody_knows(self, scheme: str) -> None:
        with pytest.raises(StoreUnreachable, match="nobody knows the name"):
            open_backend(Place(f"{scheme}://root@no-such-host.invalid/x", Access())).get("config")

    def test_nobody_listens(self, scheme: str) -> None:
        place = Place(f"{scheme}://root@127.0.0.1:{free_port()}/x", Access())
        with pytest.raises(StoreUnreachable, match=r"127\.0\.0\.1 port .* can't be reached"):
            open_backend(place).get("config")

    def test_a_wrong_key(self, scheme: str, sshd: Sshd, tmp_path: Path) -> None:
        key = sshd.new_key(f"wrong-{scheme}-{tmp_path.name}")
        with pytest.raises(StoreRefused, match="does not let root in"):
            open_backend(sshd.place(scheme, key, tmp_path)).get("config")

    def test_a_host_key_that_changed(self, scheme: str, sshd: Sshd, tmp_path: Path) -> None:
        make_key(tmp_path / "other")
        public = (tmp_path / "other.pub").read_text().split()
        known = tmp_path / "known"
        known.write_text(f"[127.0.0.1]:{sshd.port} {public[0]} {public[1]}\n")
        place = sshd.place(scheme, sshd.folder / "host", tmp_path)
        asked: list[HostKey] = []

        def confirm(key: HostKey) -> bool:
            asked.append(key)
            return True

        access = replace(place.access, known_hosts=known, confirm=confirm)
        with pytest.raises(UntrustedHost, match="another host key than before"):
            open_backend(Place(place.location, access)).get("config")
        assert not asked, "nobody may be asked to trust a key that changed"

    def test_a_host_that_nobody_knows(self, scheme: str, sshd: Sshd, tmp_path: Path) -> None:
        place = sshd.place(scheme, sshd.folder / "host", tmp_path)
        access = replace(place.access, known_hosts=tmp_path / "known")
        with pytest.raises(UntrustedHost, match="nobody vouches for") as caught:
            open_backend(Place(place.location, access)).get("config")
        line = subprocess.run(
            ["ssh-keygen", "-lf", sshd.folder / "host.pub"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert line.split()[1] in caught.value.message
        assert not (tmp_path / "known").exists()

    def test_something_else_answers(
        self, scheme: str, sshd: Sshd, reach: Callable[[str], Place]
    ) -> None:
        place = reach(scheme)
        with Proxy(sshd.port) as proxy:
            proxy.change_answers(
                lambda _: b"HTTP/1.1 200 OK\r\n\r\n<html>Please log in</html>\r\n" * 50
            )
            with pytest.raises((StoreUnreachable, MalformedAnswer)):
                open_backend(through(place, proxy, sshd)).get("config")

    def test_a_proxy_that_cuts_answers_off(
        self, scheme: str, sshd: Sshd, reach: Callable[[str], Place]
    ) -> None:
        place = reach(scheme)
        open_backend(place).put_new("packs/a", [os.urandom(3 << 20)])
        with Proxy(sshd.port) as proxy:
            backend = open_backend(through(place, proxy, sshd))
            assert [entry.name for entry in backend.list("")] == ["packs/a"]
            proxy.change_answers(lambda data: data[: len(data) // 2])
            with pytest.raises((StoreUnreachable, MalformedAnswer)):
                backend.get("packs/a")
            with pytest.raises((StoreUnreachable, MalformedAnswer)):
                list(backend.list(""))


@pytest.mark.parametrize(
    "location",
    [
        "ssh://",
        "ssh://host",
        "ssh://host/",
        "ssh://u:secret@host/x",
        "ssh://host:nix/x",
        "sftp:///x",
    ],
)
def test_locations_that_make_no_sense(location: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_backend(Place(location, Access()))
    assert "secret" not in caught.value.message or "password" in caught.value.message


def test_first_contact_is_shown_and_remembered_when_confirmed(
    sshd: Sshd, reach: Callable[[str], Place], tmp_path: Path
) -> None:
    place, asked = reach("ssh"), []

    def confirm(key: HostKey) -> bool:
        asked.append(key)
        return True

    access = replace(place.access, known_hosts=tmp_path / "new" / "known", confirm=confirm)
    assert list(open_backend(Place(place.location, access)).list("")) == []
    assert list(open_backend(Place(place.location, access)).list("")) == []
    assert [key.host for key in asked] == [f"[127.0.0.1]:{sshd.port}"]
    found = subprocess.run(
        ["ssh-keygen", "-F", f"[127.0.0.1]:{sshd.port}", "-f", tmp_path / "new" / "known"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (sshd.folder / "host.pub").read_text().split()[1] in found.stdout


def test_a_key_that_others_can_read_is_refused(served: Served) -> None:
    served.key.chmod(0o644)
    with pytest.raises(StoreRefused, match="others can read"):
        served.backend.get("config")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_full_disk(scheme: str, sshd: Sshd, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=True)
    try:
        key = sshd.new_key(f"full-{tmp_path.name}")
        if scheme == "ssh":
            sshd.serve(key, folder, "--may-delete")
        else:
            sshd.authorize(f'restrict,command="internal-sftp" {Path(f"{key}.pub").read_text()}')
        backend = open_backend(sshd.place(scheme, key, folder))
        backend.put_new("packs/a", [b"a" * 2_000_000])
        with pytest.raises(NoRoom):
            backend.put_new("packs/b", [b"b" * 6_000_000])
        assert [entry.name for entry in backend.list("")] == ["packs/a"]
        assert backend.get("packs/a") == b"a" * 2_000_000
        assert backend.put_new("packs/c", [b"c" * 1_000_000])
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def own_sshd(tmp_path: Path) -> Iterator[Sshd]:
    """One that a test may kill."""
    (tmp_path / "sshd").mkdir()
    with running(tmp_path / "sshd") as started:
        yield started


def place_of(sshd: Sshd, scheme: str, folder: Path) -> Place:
    key = sshd.new_key(f"key-{scheme}")
    if scheme == "ssh":
        sshd.serve(key, folder, "--may-delete")
    else:
        sshd.authorize(f'restrict,command="internal-sftp" {Path(f"{key}.pub").read_text()}')
    return sshd.place(scheme, key, folder)


def kill_and_start(sshd: Sshd) -> None:
    """Kill sshd with all its sessions; it is back two seconds later."""
    sshd.stop()
    timer = threading.Timer(2.0, sshd.start)
    timer.daemon = True
    timer.start()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_sshd_is_killed_in_a_capture_and_in_a_restore(
    scheme: str, own_sshd: Sshd, tmp_path: Path
) -> None:
    scene = Scene(tmp_path, 80 << 20)
    place = place_of(own_sshd, scheme, tmp_path / "store")
    scene.prepare(place)
    with Proxy(own_sshd.port) as proxy:
        far = through(place, proxy, own_sshd)
        killed: list[int] = []

        def kill() -> None:
            killed.append(proxy.passed)
            kill_and_start(own_sshd)

        proxy.after(30 << 20, kill)
        scene.finish(scene.capture(far))
        assert len(killed) == 1
        proxy.after(30 << 20, kill)
        scene.finish(scene.restore(far, tmp_path / "back.raw"))
        assert len(killed) == 2
    assert scene.is_equal(tmp_path / "back.raw")


def test_twenty_seconds_without_network_in_a_capture_and_in_a_restore(
    own_sshd: Sshd, tmp_path: Path
) -> None:
    """Nothing is closed, nothing comes through, and then it all does; both schemes at once."""
    scenes = {}
    for scheme in SCHEMES:
        (tmp_path / scheme).mkdir()
        scenes[scheme] = Scene(tmp_path / scheme, 64 << 20)
        place = place_of(own_sshd, scheme, tmp_path / scheme / "store")
        scenes[scheme].prepare(place)
        scenes[scheme] = scenes[scheme], place
    with ExitStack() as stack:
        proxies = {scheme: stack.enter_context(Proxy(own_sshd.port)) for scheme in SCHEMES}

        def dark(proxy: Proxy) -> Callable[[], None]:
            def pull() -> None:
                proxy.pause()
                paused.append(proxy)
                timer = threading.Timer(20.0, proxy.resume)
                timer.daemon = True
                timer.start()

            return pull

        for verb in ("capture", "restore"):
            paused: list[Proxy] = []
            running_now = []
            for scheme, (scene, place) in scenes.items():
                proxy = proxies[scheme]
                far = through(place, proxy, own_sshd)
                proxy.after(20 << 20, dark(proxy))
                words = (far, scene.folder / "back.raw")
                running_now.append(
                    (scene, scene.capture(far) if verb == "capture" else scene.restore(*words))
                )
            for scene, process in running_now:
                scene.finish(process)
            assert len(paused) == 2
    for scene, _ in scenes.values():
        assert scene.is_equal(scene.folder / "back.raw")
