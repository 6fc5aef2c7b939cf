"""A saved volume is read at any place: as it was, in bounded memory, with few requests."""

import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from memory_image import MemoryImage, disk, identify, image_of, machine

from imager.errors import ObjectDamaged, ObjectMissing
from imager.repository import volume_map
from imager.repository.retrieval import OpenImage, Unlocked, open_image
from imager.units import KIB, MIB
from restore import saved_volume
from restore.saved_volume import SavedVolume
from tests.conftest import Tiny

ID = "disk0/whole"


class Counted(MemoryImage):
    """Counts how many chunks are asked for at once."""

    def chunks(self, ids: Sequence[bytes]) -> dict[bytes, bytes]:
        self.asked.append(len(ids))
        return super().chunks(ids)


def made(parts: list[bytes | tuple[str, int]]) -> tuple[MemoryImage, bytes]:
    """Return an image of such a volume, and what it reads as."""
    whole = b"".join(part if isinstance(part, bytes) else bytes(part[1]) for part in parts)
    image = image_of(machine(disk(size=len(whole))), {ID: parts})
    return Counted(image.machine, image.runs, image.store), whole


def varied(seed: int, count: int = 200) -> list[bytes | tuple[str, int]]:
    rng = random.Random(seed)
    parts: list[bytes | tuple[str, int]] = []
    for _ in range(count):
        size = rng.randrange(1, 64) * 512
        parts.append(rng.choice([("zero", size), ("free", size), rng.randbytes(size)]))
    return parts


def test_reads_anywhere_return_what_was_saved() -> None:
    image, whole = made(varied(1))
    volume = SavedVolume(image, ID)
    assert volume.size == len(whole)
    rng = random.Random(2)
    for _ in range(500):
        offset = rng.randrange(len(whole))
        length = rng.randrange(min(200_000, len(whole) - offset) + 1)
        assert volume.read(offset, length) == whole[offset : offset + length]
    assert volume.read(0, len(whole)) == whole


def test_threads_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved_volume, "_CACHED", MIB)
    monkeypatch.setattr(saved_volume, "_AHEAD", 256 * KIB)
    monkeypatch.setattr(saved_volume, "_PARTS", 2)
    image, whole = made(varied(3, 400))
    volume = SavedVolume(image, ID)

    def look(seed: int) -> bool:
        rng = random.Random(seed)
        offsets = [rng.randrange(len(whole) - 5000) for _ in range(40)]
        return all(volume.read(at, 5000) == whole[at : at + 5000] for at in offsets)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(look, range(8)))


def test_reading_on_asks_the_repository_seldom() -> None:
    parts: list[bytes | tuple[str, int]] = [os.urandom(128 * KIB) for _ in range(256)]
    image, whole = made(parts)
    volume = SavedVolume(image, ID)
    for offset in range(0, len(whole), 128 * KIB):
        assert volume.read(offset, 128 * KIB) == whole[offset : offset + 128 * KIB]
    assert sum(image.asked) == len(parts)
    assert len(image.asked) < 12


def test_reads_here_and_there_fetch_little_more_than_they_need() -> None:
    image, _ = made([os.urandom(128 * KIB) for _ in range(256)])
    volume = SavedVolume(image, ID)
    for offset in range(31 * MIB, 0, -MIB):
        volume.read(offset, 4 * KIB)
    assert sum(image.asked) <= 31 * 4


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved_volume, "_CACHED", 2 * MIB)
    image, whole = made([os.urandom(128 * KIB) for _ in range(128)])
    volume = SavedVolume(image, ID)
    for offset in range(0, len(whole), MIB):
        volume.read(offset, MIB)
    assert sum(map(len, volume._chunks.values())) == volume._cached <= 2 * MIB


def test_a_chunk_of_another_length_is_damage() -> None:
    image, _ = made([bytes(512 * [1]), bytes(512 * [2])])
    image.store[identify(bytes(512 * [2]))] = b"short"
    volume = SavedVolume(image, ID)
    with pytest.raises(ObjectDamaged, match="has 5 bytes where the image says 512"):
        volume.read(600, 10)


def test_what_is_not_in_the_image_is_named() -> None:
    image, _ = made([bytes(512)])
    with pytest.raises(ObjectMissing, match="no volume disk7/p1"):
        SavedVolume(image, "disk7/p1")
    with pytest.raises(ValueError, match="no bytes 512 to 513"):
        SavedVolume(image, ID).read(512, 1)


def opened(tiny: Tiny, reference: str) -> OpenImage:
    repository = tiny.open()
    return open_image(repository, reference, Unlocked(repository, tiny.key), lambda _: None)


@pytest.fixture
def large(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[OpenImage, bytes]:
    """An image in a real repository, whose map is a tree of small nodes."""
    monkeypatch.setattr(volume_map, "LEAST_RUNS", 8)
    monkeypatch.setattr(volume_map, "_CUT_MODULUS", 4)
    rng = random.Random(8)
    data = b"".join(rng.randbytes(32 * KIB) + bytes(32 * KIB) for _ in range(300))
    image = opened(tiny, tiny.add({"disk0/v": data}, tmp_path))
    (volume,) = image.summary.volumes
    assert volume.level > 0
    return image, data


def test_a_volume_of_a_real_repository_reads_as_it_was(large: tuple[OpenImage, bytes]) -> None:
    image, data = large
    volume = SavedVolume(image, "disk0/v")
    for offset in (0, 12345, len(data) // 2 - 7, len(data) - 100_000):
        assert volume.read(offset, 100_000) == data[offset : offset + 100_000]


def test_only_the_map_from_a_place_on_is_loaded(
    large: tuple[OpenImage, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, data = large
    parts = list(image.map_from("disk0/v", 0))
    assert len(parts) > 2
    assert [start for start, _ in parts] == [
        sum(int(runs["length"].sum()) for _, runs in parts[:count]) for count in range(len(parts))
    ]
    loaded: list[bytes] = []
    load = image._maps.load
    monkeypatch.setattr(image._maps, "load", lambda node: loaded.append(node) or load(node))
    ((start, runs),) = image.map_from("disk0/v", len(data) - 1)
    assert start + int(runs["length"].sum()) == len(data)
    (volume,) = image.summary.volumes
    assert len(loaded) == volume.level + 1  # from the root to the last leaf


def test_damage_in_the_repository_is_raised_as_what_it_is(
    large: tuple[OpenImage, bytes], tiny: Tiny
) -> None:
    image, _ = large
    packs = sorted((tiny.path / "packs").rglob("*"), key=lambda path: path.stat().st_size)
    packs[-1].chmod(0o600)
    with packs[-1].open("r+b") as file:
        file.seek(packs[-1].stat().st_size // 2)
        file.write(os.urandom(256 * KIB))
    volume = SavedVolume(image, "disk0/v")
    with pytest.raises(ObjectDamaged, match="is touched"):
        volume.read(0, volume.size)
