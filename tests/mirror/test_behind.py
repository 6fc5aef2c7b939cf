"""A site that has missed something: no image is shown there whose packs are not."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from imager.errors import StoreUnreachable
from imager.repository.backend import mirror
from imager.repository.backend.opening import open_backend
from imager.repository.backend.place import Access, Place
from imager.repository.retrieval import Unlocked, open_image
from imager.upkeep import sync
from tests.conftest import Tiny
from tests.stores.mirror import write_mirror_file


@pytest.fixture
def other(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The second site, which was away while a machine was captured."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(mirror, "_GRACE", 1.0)
    site = tmp_path / "other"
    everything(tiny.path, site)
    mirrored(tiny, site, 1)
    site.rename(tmp_path / "away")
    mirrored(tiny, site, 1).add({"a": DATA}, tmp_path)
    (tmp_path / "away").rename(site)
    return site


DATA = os.urandom(1 << 20)


def everything(source: Path, target: Path) -> None:
    one, another = (open_backend(str(path)) for path in (source, target))
    sync.execute(sync.plan(one, another), one, another, lambda _: None)


def mirrored(tiny: Tiny, other: Path, copies: int) -> Tiny:
    """The same repository with a second site."""
    file = other.parent / "mirror.toml"
    sites = {"here": Place(str(tiny.path), Access()), "other": Place(str(other), Access())}
    write_mirror_file(file, sites, copies)
    return replace(tiny, path=Path(f"mirror:{file}"))


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_it_gets_no_image_that_relies_on_what_it_lacks(
    tiny: Tiny, other: Path, tmp_path: Path
) -> None:
    before = names(other)
    mirrored(tiny, other, 1).add({"a": DATA}, tmp_path, "again")
    assert names(other) == before
    everything(tiny.path, other)
    mirrored(tiny, other, 2).add({"a": DATA}, tmp_path, "after")
    assert names(other) == names(tiny.path)
    opened = replace(tiny, path=other).open()
    for name in ("again", "after"):
        open_image(opened, name, Unlocked(opened, tiny.key), lambda _: None)


def test_it_counts_as_no_copy(tiny: Tiny, other: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreUnreachable, match="other: it lacks 1 of 1 objects"):
        mirrored(tiny, other, 2).add({"a": DATA}, tmp_path, "again")


def test_nothing_is_removed_meanwhile(tiny: Tiny, other: Path) -> None:
    backend = mirrored(tiny, other, 1).open().backend
    with pytest.raises(StoreUnreachable, match="it lacks 1 of 1 objects"):
        backend.delete("packs/none")


def test_where_each_lacks_something_captures_go_on(tiny: Tiny, other: Path, tmp_path: Path) -> None:
    replace(tiny, path=other).add({"b": os.urandom(1 << 20)}, tmp_path, "there")
    mirrored(tiny, other, 2).add({"a": DATA}, tmp_path, "again")
    assert len(list((other / "images").iterdir())) == 2
