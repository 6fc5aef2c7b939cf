"""What images need is known from their maps, also when nothing else names it any more."""

import random
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from imager.commands.repair import repair as repair_command
from imager.errors import RepairIncomplete
from imager.repository import pack as pack_format
from imager.repository.backend.directory import DirectoryBackend
from imager.repository.retrieval import MapReader
from imager.upkeep import repair
from tests.conftest import Tiny
from tests.racing import deeds
from tests.unit.upkeep.covered_repository import (
    ONE,
    TWO,
    content,
    keys_of,
    objects,
    packs_of,
    restored,
    run,
)


@pytest.fixture
def two(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """Two machines in many packs, without parity."""
    monkeypatch.setattr(pack_format, "TARGET_SIZE", 300_000)
    tiny.add(ONE, tmp_path, "one")
    tiny.add(TWO, tmp_path, "two")
    return tiny


def maps_of(tiny: Tiny) -> list[Path]:
    return [path for path in objects(tiny, "packs") if path.read_bytes()[10] == 2]


def test_index_and_pack_gone_together(two: Tiny, tmp_path: Path) -> None:
    """Nothing names the pack: only the maps tell that its chunks are in no pack."""
    packs_of(two, "one")[2].unlink()
    shutil.rmtree(two.path / "indexes")
    credential = tmp_path / "credential"
    two.credential.write(credential)
    shown = CliRunner().invoke(repair_command, [str(two.path), "--credential", str(credential)])
    assert isinstance(shown.exception, RepairIncomplete), shown.output
    assert "1 images are touched, of one" in shown.exception.message
    assert "All is well" not in shown.stdout
    assert "of one is touched: it needs chunks of disk0" in shown.stdout
    assert restored(two, "two") == TWO["disk0"]


def test_index_and_pack_of_maps_gone_together(two: Tiny) -> None:
    for path in maps_of(two):
        path.unlink()
    shutil.rmtree(two.path / "indexes")
    broken, touched = run(two)
    assert broken == []
    assert touched is not None
    assert sorted(image.machine for image in touched) == ["one", "two"]
    assert {image.objects for image in touched} == {("map of disk0",)}


def test_a_copy_knows_what_only_its_index_names(two: Tiny, tmp_path: Path) -> None:
    """Packs of data and of maps, and the indexes that name them: all come back in one run."""
    copy = tmp_path / "copy"
    shutil.copytree(two.path, copy)
    before = content(two)
    packs_of(two, "one")[2].unlink()
    packs_of(two, "two")[1].unlink()
    for path in maps_of(two):
        path.unlink()
    shutil.rmtree(two.path / "indexes")
    assert run(two, copy) == ([], ())
    assert content(two) == before


def test_a_copy_gives_no_index_that_is_not_needed(two: Tiny, tmp_path: Path) -> None:
    """The copy is older than a prune: what that removed stays away."""
    image = two.add({"disk0": random.Random(7).randbytes(150_000)}, tmp_path, "old")
    copy = tmp_path / "copy"
    shutil.copytree(two.path, copy)
    deeds.prune(two, frozenset({image}))
    deeds.end_quarantine(two)
    deeds.prune(two, frozenset({image}))
    shutil.rmtree(two.path / "removals")
    before = content(two)
    lost = packs_of(two, "one")[2]
    lost.unlink()
    old = {path.name for path in (copy / "indexes").iterdir()}
    old -= {path.name for path in objects(two, "indexes")}
    assert old
    shutil.rmtree(two.path / "indexes")
    assert run(two, copy) == ([], ())
    after = content(two)
    assert {n for n in after if not n.startswith("indexes/")} == {
        n for n in before if not n.startswith("indexes/")
    }
    assert restored(two, "one") == ONE["disk0"]
    assert deeds.check(two) == []
    assert not old & {path.name for path in objects(two, "indexes")}


def test_a_lost_pack_that_no_image_needs_is_no_damage(two: Tiny, tmp_path: Path) -> None:
    image = two.add({"disk0": random.Random(7).randbytes(150_000)}, tmp_path, "old")
    packs = packs_of(two, "old")
    (two.path / "images" / image).unlink()
    for path in packs:
        path.unlink()
    assert run(two) == ([], ())
    backend = DirectoryBackend(two.path)
    assert repair.plan(backend, [], keys_of(two), lambda _: None).is_empty


def test_with_an_image_that_cant_be_read_every_lost_pack_counts(two: Tiny, tmp_path: Path) -> None:
    image = two.add({"disk0": random.Random(7).randbytes(150_000)}, tmp_path, "old")
    (pack,) = packs_of(two, "old")
    path = two.path / "images" / image
    path.write_bytes(path.read_bytes()[:-9])
    pack.unlink()
    broken, touched = run(two)
    assert broken == [f"images/{image}", pack.relative_to(two.path).as_posix()]
    assert touched is not None
    assert [item.machine for item in touched] == ["unknown machine"]


def test_each_shared_node_is_read_once(
    two: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five images of the same content: as many nodes are opened as for one."""
    opened: list[bytes] = []
    load = MapReader.load

    def count(self: MapReader, identity: bytes) -> bytes:
        opened.append(identity)
        return load(self, identity)

    monkeypatch.setattr(MapReader, "load", count)
    for _ in range(4):
        two.add(ONE, tmp_path, "one")
    repair.plan(DirectoryBackend(two.path), [], keys_of(two), lambda _: None)
    assert len(opened) == len(set(opened)) > 0
