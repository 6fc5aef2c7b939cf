"""What is needed and which copy is kept, against a simple reference; in memory and in scratch files."""

import os
from pathlib import Path

import numpy as np
import pytest

from imager.repository import pack, scratch, sorted_rows
from imager.repository.header import PackKind
from imager.repository.image import SealedImage
from imager.repository.index import Index
from imager.repository.keyring import GroupKeys
from imager.repository.repository import Repository
from imager.repository.retrieval import MapReader
from imager.repository.session import Session
from imager.repository.volume_map import chunk_ids
from imager.upkeep.usage import measure
from tests.conftest import Tiny
from tests.unit.upkeep.test_prune import _send_all, data

Key = tuple[PackKind, bytes]


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "TARGET_SIZE", 1 << 16)


def needs(
    repository: Repository, keys: GroupKeys, index: Index, images: list[SealedImage]
) -> set[Key]:
    """Return what images need, read one map at a time."""
    found: set[Key] = set()
    reader = MapReader(repository, keys, index, lambda _: None)

    def load(identity: bytes) -> bytes:
        found.add((PackKind.MAPS, identity))
        return MapReader.load(reader, identity)

    reader.load = load  # type: ignore[method-assign]
    for image in images:
        for volume in image.summary.volumes:
            runs = reader.read(image.summary, volume.id)
            found |= {(PackKind.DATA, row.tobytes()) for row in chunk_ids(runs)}
    return found


@pytest.mark.parametrize("place", ["memory", "scratch files"])
def test_usage_agrees_with_a_simple_reference(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    shared, own = data(), data()
    tiny.add({"a": shared, "b": own}, tmp_path)
    kept = [tiny.add({"a": shared + data(70_000)}, tmp_path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "claim", _send_all)
        kept.append(tiny.add({"a": shared[:600_000], "c": data(300_000)}, tmp_path))
    if place == "scratch files":
        monkeypatch.setattr(scratch, "MANY_ROWS", 7)
        monkeypatch.setattr(sorted_rows, "_WINDOW", 5)
    repository = tiny.open()
    keys = repository.credential_keys(tiny.credential)
    index, _ = repository.load_index(keys)
    images = [image for image in repository.images(keys)[0] if image.id in kept]
    wanted = needs(repository, keys, index, images)
    assert len(wanted) < len(index)
    rank = np.random.Generator(np.random.PCG64(5)).permutation(len(index.digests))
    usage = measure(repository, keys, index, images, rank)
    assert not usage.problems
    assert not usage.suspect
    live, dead, kept_ids, elsewhere = reference(index, wanted, rank)
    assert usage.live.tolist() == live
    assert usage.dead.tolist() == dead
    assert usage.kept.tolist() == [len(ids) for ids in kept_ids]
    every = np.unique(np.concatenate([rows["id"] for rows in index.windows()]).view("S32")).view(
        "V32"
    )
    every = np.append(every, np.frombuffer(os.urandom(32), dtype="V32"))
    for number, ids in enumerate(kept_ids):
        assert {row.tobytes() for row in every[usage.are_kept(number, every)]} == ids
    groups = list(usage.given_up(range(len(index.digests))))
    assert [(g.keeper, g.kind) for g in groups] == sorted({(g.keeper, g.kind) for g in groups})
    assert elsewhere
    assert elsewhere == {
        (number, identity.tobytes(), group.keeper)
        for group in groups
        for number, identity in zip(group.packs.tolist(), group.ids, strict=True)
    }


def reference(
    index: Index, wanted: set[Key], rank: np.ndarray
) -> tuple[list[int], list[int], list[set[bytes]], set[tuple[int, bytes, int]]]:
    keeper: dict[Key, int] = {}
    rows = [
        (row["id"].tobytes(), int(row["pack"]), int(row["length"]))
        for part in index.windows()
        for row in part
    ]
    kind_of = [
        next(kind for kind in PackKind if index.of_kind[kind][number])
        for number in range(len(index.digests))
    ]
    for identity, number, _ in rows:
        key = kind_of[number], identity
        if key in wanted and (key not in keeper or rank[number] > rank[keeper[key]]):
            keeper[key] = number
    live, dead = [0] * len(kind_of), [0] * len(kind_of)
    kept: list[set[bytes]] = [set() for _ in kind_of]
    elsewhere = set()
    for identity, number, length in rows:
        key = kind_of[number], identity
        if keeper.get(key) == number:
            live[number] += length
            kept[number].add(identity)
        else:
            dead[number] += length
            if key in keeper:
                elsewhere.add((number, identity, keeper[key]))
    return live, dead, kept, elsewhere
