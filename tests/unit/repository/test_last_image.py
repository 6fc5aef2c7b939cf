"""The note of the last image: there, gone, damaged, or of something else, it never stops a capture."""

from collections.abc import Callable
from pathlib import Path

import pytest

from imager.repository.keyring import GroupKeys
from imager.repository.last_image import LastImage
from imager.repository.session import Session
from imager.repository.volume_map import Runs
from tests.conftest import Tiny

KEYS = GroupKeys(b"r" * 16, b"g" * 16, b"s" * 32)
IMAGE = "a1" * 32


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "remetal"


def test_it_is_one_machines_in_one_group(folder: Path) -> None:
    note = LastImage(KEYS, "machine")
    assert note.load() is None
    note.keep(IMAGE)
    note.keep("b2" * 32)
    assert note.load() == "b2" * 32
    assert LastImage(KEYS, "another").load() is None
    assert LastImage(GroupKeys(b"r" * 16, b"h" * 16, b"s" * 32), "machine").load() is None
    assert LastImage(GroupKeys(b"q" * 16, b"g" * 16, b"s" * 32), "machine").load() is None
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b"../config", IMAGE.encode()[:-1], b"\xff" * 64])
def test_what_is_no_image_is_no_note(folder: Path, content: bytes) -> None:
    note = LastImage(KEYS, "machine")
    note.keep(IMAGE)
    (path,) = folder.iterdir()
    path.write_bytes(content)
    assert note.load() is None


def test_without_a_place_for_it_there_is_none(folder: Path) -> None:
    folder.parent.write_text("no folder")
    note = LastImage(KEYS, "machine")
    note.keep(IMAGE)
    assert note.load() is None


def lose_the_maps(repository: Path) -> None:
    for path in sorted(repository.rglob("*")):
        if path.is_file() and "packs" in path.parts:
            path.unlink()


def damage_the_image(repository: Path) -> None:
    for path in (repository / "images").rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            path.write_bytes(path.read_bytes()[:-1] + b"?")


@pytest.mark.parametrize("deed", [None, lose_the_maps, damage_the_image])
def test_a_map_comes_as_far_as_it_is_there(
    tiny: Tiny, tmp_path: Path, deed: Callable[[Path], None] | None
) -> None:
    image = tiny.add({"disk": bytes(range(256)) * 4096}, tmp_path)
    if deed is not None:
        deed(tiny.path)

    def runs(image: str, volume: str, length: int) -> list[Runs]:
        return list(session.saved_maps(image).read_parts(volume, length))

    with Session(tiny.open(), tiny.credential) as session:
        found = runs(image, "disk", 1 << 20)
        assert runs(image, "disk", 1 << 19) == []
        assert runs(image, "another", 1 << 20) == []
        assert runs(IMAGE, "disk", 1 << 20) == []
    assert sum(int(part["length"].sum()) for part in found) == (0 if deed else 1 << 20)
