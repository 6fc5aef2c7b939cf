"""Two sites, of which one goes down: captures and restores go on, and a sync makes both alike."""

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from imager.commands.sync import _ways as ways
from imager.errors import ConfigError, StoreUnreachable, UsageError
from imager.repository.backend import mirror as mirror_module
from imager.repository.backend.directory import DirectoryBackend
from imager.repository.backend.mirror_notes import Notes
from imager.repository.backend.opening import open_backend
from imager.repository.backend.place import Access, Place
from tests.ssh.test_weather import place_of, through
from tests.stores.mirror import write_mirror_file
from tests.stores.proxy import Proxy
from tests.stores.scene import Scene
from tests.stores.ssh import Sshd, running

SIZE = 64 << 20


@dataclass
class Sites:
    """Two sites behind sshd of their own, and the mirror of both.

    Attributes:
        sshds: one for each.
        stores: where each keeps its objects.
        proxies: the link to each.
        places: each alone.
        mirror: both.
        scene: what is captured.
    """

    sshds: list[Sshd]
    stores: list[Path]
    proxies: list[Proxy]
    places: list[Place]
    mirror: Place
    scene: Scene

    def objects(self, number: int) -> dict[str, bytes]:
        root = self.stores[number]
        return {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in root.rglob("*")
            if path.is_file() and path.relative_to(root).parts[0] != "incoming"
        }


@pytest.fixture
def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sites]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    with running(folders[0]) as first, running(folders[1]) as second:
        sshds, stores = [first, second], [folder / "store" for folder in folders]
        near = [place_of(sshd, "ssh", store) for sshd, store in zip(sshds, stores, strict=True)]
        with Proxy(first.port) as one, Proxy(second.port) as two:
            links = [one, two]
            far = [through(*item) for item in zip(near, links, sshds, strict=True)]
            mirror = write_mirror_file(
                tmp_path / "mirror.toml", dict(zip(("cellar", "town"), far, strict=True))
            )
            scene = Scene(tmp_path, SIZE)
            scene.prepare(mirror)
            yield Sites(sshds, stores, links, near, mirror, scene)


def sync(sites: Sites) -> dict[str, object]:
    said = sites.scene.finish(sites.scene.start(sites.mirror, "sync", "--json", "--quiet"))
    found: dict[str, object] = json.loads(said)
    return found


@pytest.mark.parametrize("down", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_site_that_is_killed_in_a_capture_is_left_out_and_catches_up(
    sites: Sites, tmp_path: Path, down: int
) -> None:
    scene = sites.scene
    sites.proxies[down].after(20 << 20, sites.sshds[down].stop)
    said = scene.finish(scene.capture(sites.mirror))
    label = ("cellar", "town")[down]
    assert f"site {label} is left out" in said
    assert "remetal sync mirror:" in said
    assert len(sites.objects(down)) < len(sites.objects(1 - down))
    scene.finish(scene.restore(sites.mirror, tmp_path / "while-down.raw"))
    assert scene.is_equal(tmp_path / "while-down.raw")
    sites.sshds[down].start()
    assert sync(sites)["dry_run"] is False
    assert sites.objects(0) == sites.objects(1)
    scene.finish(scene.restore(sites.places[down], tmp_path / "from-it-alone.raw"))
    assert scene.is_equal(tmp_path / "from-it-alone.raw")
    assert "left out" not in scene.finish(scene.start(sites.mirror, "check", "--ciphertext"))


def test_a_site_that_hangs_holds_up_no_write_and_no_read(sites: Sites, tmp_path: Path) -> None:
    """It says nothing and closes nothing, to the end of each."""
    scene, proxy = sites.scene, sites.proxies[0]
    proxy.after(20 << 20, proxy.pause)
    assert "site cellar is left out" in scene.finish(scene.capture(sites.mirror))
    proxy.resume()
    sync(sites)
    assert sites.objects(0) == sites.objects(1)
    proxy.after(20 << 20, proxy.pause)
    scene.finish(scene.restore(sites.mirror, tmp_path / "back.raw"))
    assert scene.is_equal(tmp_path / "back.raw")


def test_nothing_is_removed_while_a_site_is_down(sites: Sites) -> None:
    scene = sites.scene
    scene.finish(scene.capture(sites.mirror))
    before = sites.objects(0)
    sites.sshds[1].stop()
    backend = open_backend(sites.mirror)
    with pytest.raises(StoreUnreachable, match=r"site town of mirror:.* is not up"):
        backend.delete(next(name for name in before if name.startswith("packs/")))
    assert sites.objects(0) == before


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Place, list[Path]]:
    """A mirror of two directories, and their repository."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    stores = [tmp_path / "one" / "store", tmp_path / "two" / "store"]
    sites = {name: Place(str(store), Access()) for name, store in zip("ab", stores, strict=True)}
    place = write_mirror_file(tmp_path / "mirror.toml", sites)
    backend = open_backend(place)
    for name in ("config", "packs/ab/1", "images/1"):
        assert backend.put_new(name, [name.encode()])
    return place, stores


def test_a_disk_that_is_not_there_is_no_empty_site(
    folders: tuple[Place, list[Path]], caplog: pytest.LogCaptureFixture
) -> None:
    """An unmounted disk looks like an empty folder; nothing may be written into it."""
    place, stores = folders
    stores[0].rename(stores[0].with_name("elsewhere"))
    backend = open_backend(place)
    assert backend.put_new("packs/ab/2", [b"two"])
    assert not stores[0].exists()
    assert "it holds no repository" in caplog.text
    assert backend.get("images/1") == b"images/1"
    with pytest.raises(StoreUnreachable, match="not every site is up"):
        backend.get("images/none")
    with pytest.raises(StoreUnreachable):
        backend.delete("packs/ab/1")
    assert (stores[1] / "packs/ab/1").exists()


def test_what_one_site_lost_or_let_rot_comes_from_the_other(
    folders: tuple[Place, list[Path]],
) -> None:
    place, stores = folders
    backend = open_backend(place)
    (stores[0] / "packs/ab/1").unlink()
    assert backend.get("packs/ab/1") == b"packs/ab/1"
    assert backend.get_range("packs/ab/1", 0, 5) == b"packs"
    assert {entry.name for entry in backend.list("")} == {"config", "packs/ab/1", "images/1"}
    # SHA-256 of nothing.
    name = "packs/e3/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    backend.put_new(name, [])
    (stores[0] / name).write_bytes(b"rot")
    assert backend.get(name) == b""


def test_two_sites_of_different_repositories_are_refused(
    folders: tuple[Place, list[Path]],
) -> None:
    place, stores = folders
    (stores[1] / "config").write_bytes(b"another")
    with pytest.raises(UsageError, match="hold different repositories"):
        open_backend(place).get("images/1")


def test_too_few_copies_are_an_error(tmp_path: Path, folders: tuple[Place, list[Path]]) -> None:
    _, stores = folders
    sites = {name: Place(str(store), Access()) for name, store in zip("ab", stores, strict=True)}
    place = write_mirror_file(tmp_path / "both.toml", sites, copies=2)
    assert open_backend(place).put_new("packs/ab/3", [b"3"])
    shutil.rmtree(stores[1])
    with pytest.raises(StoreUnreachable, match="1 of 2 sites"):
        open_backend(place).put_new("packs/ab/4", [b"4"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "copies = 3\n[[site]]\nname='a'\nlocation='x'\n[[site]]\nname='b'\nlocation='y'",
        "[[site]]\nname='a'\nlocation='x'",
        "[[site]]\nname='a'\nlocation='x'\n[[site]]\nname='a'\nlocation='y'",
        "[[site]]\nname='a'\nlocation='x'\n[[site]]\nname='b'\nlocation='x'",
        "[[site]]\nname='a'\nlocation='x'\n[[site]]\nname='b'\nlocation='mirror:y'",
        "[[site]]\nname='a'\nlocation='x'\nnonsense=1\n[[site]]\nname='b'\nlocation='y'",
    ],
)
def test_files_that_make_no_sense(tmp_path: Path, text: str) -> None:
    (tmp_path / "mirror.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        open_backend(f"mirror:{tmp_path / 'mirror.toml'}")
    assert "mirror.toml" in caught.value.message or "mirror itself" in caught.value.message
    assert caught.value.hint


class Slow(DirectoryBackend):
    """Answers late."""

    def __init__(self, root: Path, release: threading.Event) -> None:
        super().__init__(root)
        self._release = release

    def get(self, name: str) -> bytes:
        self._release.wait(60)
        return super().get(name)


def test_nothing_is_put_anywhere_while_the_site_that_may_hold_the_repository_is_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One disk is not mounted, and the other site takes its time."""
    monkeypatch.setattr(mirror_module, "_GRACE", 0.2)
    held = DirectoryBackend(tmp_path / "town")
    held.put_new("config", [b"config"])
    release = threading.Event()
    sites = {
        "cellar": DirectoryBackend(tmp_path / "cellar"),
        "town": Slow(held.folders[0], release),
    }
    notes = Notes(tmp_path / "mirror.toml", tmp_path)
    try:
        backend = mirror_module.Mirror("mirror:", sites, 1, "config", "indexes/", notes)
        with pytest.raises(StoreUnreachable, match="not all answer"):
            backend.put_new("packs/ab/1", [b"1"])
    finally:
        release.set()
    assert not (tmp_path / "cellar").exists()


def test_a_foreign_file_leaves_no_site_behind(folders: tuple[Place, list[Path]]) -> None:
    place, stores = folders
    (stores[0] / "indexes").mkdir()
    (stores[0] / "indexes" / ".nfs0001").write_bytes(b"left over")
    backend = open_backend(place)
    backend.put_new("packs/ab/2", [b"2"])
    assert (stores[1] / "packs/ab/2").exists()
    backend.delete("packs/ab/2")


def test_nothing_is_removed_when_each_site_lacks_something(
    folders: tuple[Place, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "_GRACE", 0.2)
    place, stores = folders
    for store, digit in zip(stores, "ab", strict=True):
        DirectoryBackend(store).put_new(f"indexes/{digit * 64}", [b"x"])
    backend = open_backend(place)
    assert backend.put_new("packs/ab/2", [b"2"])
    with pytest.raises(StoreUnreachable, match="is not up"):
        backend.delete("packs/ab/1")


def test_a_sync_fills_no_mount_point(folders: tuple[Place, list[Path]]) -> None:
    place, stores = folders
    shutil.rmtree(stores[0])
    with pytest.raises(UsageError, match="no repository is at a"):
        ways(open_backend(place), place, None, fill=False)
    assert len(ways(open_backend(place), place, None, fill=True)) == 1
    shutil.rmtree(stores[1])
    with pytest.raises(UsageError, match="no repository is at a, b"):
        ways(open_backend(place), place, None, fill=True)
