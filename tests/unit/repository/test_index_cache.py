"""The cache of the merged index: right while all it was made from is there, and never missed."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imager.repository import pack as pack_format
from imager.repository import scratch, sorted_rows
from imager.repository.backend.directory import DirectoryBackend
from imager.repository.header import PackKind
from imager.repository.index import Index, Merger, Segment
from imager.repository.session import Session
from imager.upkeep.prune import plan
from tests.conftest import Tiny
from tests.unit.upkeep.test_prune_doubt import write_index

NOISE = random.Random(4)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(scratch, "MANY_ROWS", 8)
    monkeypatch.setattr(sorted_rows, "_WINDOW", 16)
    monkeypatch.setattr(pack_format, "TARGET_SIZE", 1 << 17)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "remetal"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of index objects that were read."""
    names: list[str] = []
    get = DirectoryBackend.get

    def note(self: DirectoryBackend, name: str) -> bytes:
        if name.startswith("indexes/"):
            names.append(name)
        return get(self, name)

    monkeypatch.setattr(DirectoryBackend, "get", note)
    return names


def add(tiny: Tiny, scratch_place: Path) -> str:
    return tiny.add({"a": NOISE.randbytes(3 << 20)}, scratch_place)


def load(tiny: Tiny) -> Index:
    repository = tiny.open()
    index, problems = repository.load_index(repository.credential_keys(tiny.credential))
    assert not problems
    return index


def said(index: Index) -> list[object]:
    """Return all that an index says, whatever numbers its packs have."""
    rows = [
        (row["id"].tobytes(), index.name(int(row["pack"])), int(row["offset"]), int(row["length"]))
        for part in index.windows()
        for row in part
    ]
    kinds = {kind: sorted(index.names(index.of_kind[kind])) for kind in PackKind}
    return [rows, kinds, sorted(index.names(index.is_unlisted))]


def without_cache(tiny: Tiny, home: Path) -> list[object]:
    for path in home.iterdir():
        path.unlink()
    return said(load(tiny))


def test_what_is_cached_is_not_read_again(tiny: Tiny, tmp_path: Path, asked: list[str]) -> None:
    add(tiny, tmp_path)
    first = said(load(tiny))
    asked.clear()
    assert said(load(tiny)) == first
    assert not asked


def test_only_what_is_new_is_read(tiny: Tiny, tmp_path: Path, home: Path, asked: list[str]) -> None:
    add(tiny, tmp_path)
    load(tiny)
    add(tiny, tmp_path)
    asked.clear()
    both = said(load(tiny))
    assert len(asked) == 1
    assert both == without_cache(tiny, home)
    (path,) = home.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_an_index_that_is_gone_said_is_forgotten(
    tiny: Tiny, tmp_path: Path, home: Path
) -> None:
    add(tiny, tmp_path)
    add(tiny, tmp_path)
    before = said(load(tiny))
    next((tiny.path / "indexes").iterdir()).unlink()
    for path in (tiny.path / "packs").rglob("*"):
        if path.is_file():
            path.unlink()
    after = said(load(tiny))
    assert len(after[0]) < len(before[0])  # type: ignore[arg-type]
    assert after == without_cache(tiny, home)


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda _: b"",
        lambda data: bytes(len(data)),
        lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
        lambda data: data[:-40] + bytes([data[-40] ^ 1]) + data[-39:],
    ],
    ids=["cut by a byte", "cut in half", "empty", "zeros", "a flipped bit", "a flipped count"],
)
def test_a_damaged_cache_is_made_again(
    tiny: Tiny, tmp_path: Path, home: Path, asked: list[str], harm: Callable[[bytes], bytes]
) -> None:
    add(tiny, tmp_path)
    whole = said(load(tiny))
    (path,) = home.iterdir()
    path.write_bytes(harm(path.read_bytes()))
    asked.clear()
    assert said(load(tiny)) == whole
    assert asked
    asked.clear()
    assert said(load(tiny)) == whole
    assert not asked


def test_packs_that_no_index_names_are_not_kept(
    tiny: Tiny, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tiny, tmp_path)
    listed = said(load(tiny))
    with monkeypatch.context() as patch:
        patch.setattr(Session, "_store_indexes", _stop)
        with pytest.raises(KeyboardInterrupt):
            add(tiny, tmp_path)
    more = said(load(tiny))
    assert more[2]
    assert more == without_cache(tiny, home)
    for name in more[2]:  # type: ignore[attr-defined]
        (tiny.path / name).unlink()
    assert said(load(tiny)) == listed


def _stop(_session: Session) -> None:
    raise KeyboardInterrupt


def test_a_pack_that_is_said_to_be_of_both_kinds_stays_so(
    tiny: Tiny, tmp_path: Path, home: Path
) -> None:
    add(tiny, tmp_path)
    index = load(tiny)
    lies = [
        (index.digests[pack].tobytes(), kind, np.zeros(0, dtype=pack_format.ENTRY))
        for pack in range(len(index.digests))
        for kind in PackKind
    ]
    write_index(tiny, lies)
    add(tiny, tmp_path)
    cached = [said(load(tiny)) for _ in range(2)]
    assert cached == [without_cache(tiny, home)] * 2
    kinds = load(tiny).of_kind
    assert (kinds[PackKind.DATA] & kinds[PackKind.MAPS]).sum() == len(index.digests)


def test_without_a_place_for_it_all_is_read_each_time(
    tiny: Tiny, tmp_path: Path, home: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tiny, tmp_path)
    whole = said(load(tiny))
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    asked.clear()
    assert said(load(tiny)) == whole
    assert asked


def test_a_prune_plans_the_same_from_the_cache(tiny: Tiny, tmp_path: Path, home: Path) -> None:
    old = add(tiny, tmp_path)
    add(tiny, tmp_path)
    plans = []
    for _ in range(2):
        repository = tiny.open()
        keys = repository.credential_keys(tiny.credential)
        plans.append(plan(repository, keys, frozenset({old})).condemn_packs)
    assert plans[0] == plans[1] != ()


def test_a_small_index_is_not_cached(
    tiny: Tiny, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "MANY_ROWS", 1 << 20)
    add(tiny, tmp_path)
    load(tiny)
    assert not home.exists() or not list(home.iterdir())


def test_merging_on_a_base_equals_merging_all(home: Path) -> None:
    chance = np.random.Generator(np.random.PCG64(2))
    segments = []
    for _ in range(12):
        rows = np.zeros(40, dtype=pack_format.ENTRY)
        rows["id"] = np.frombuffer(chance.bytes(40 * 32), dtype="V32")
        rows["id"][:3] = np.void(os.urandom(32))
        rows["offset"] = np.arange(40)
        kind = PackKind(int(chance.integers(1, 3)))
        segments.append(Segment.collect([(chance.bytes(32), kind, rows)]))
    base = Merger([*segments[:5], *segments[:2]]).merge()
    for later in (segments[5:6], segments[5:], segments):
        assert said(Index(Merger(later, base))) == said(Index([*segments[:5], *later]))
