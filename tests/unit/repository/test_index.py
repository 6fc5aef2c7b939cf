"""The index: look-ups of many ids at once, and what a capture that was killed had stored."""

import itertools
import multiprocessing
import os
import random
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imager.errors import ContentRemoved, ObjectMissing
from imager.repository import pack as pack_format
from imager.repository import scratch, sorted_rows
from imager.repository.backend.directory import DirectoryBackend
from imager.repository.backend.protocol import Buffer, Entry
from imager.repository.header import PackKind, StatementKind
from imager.repository.ids import NOWHERE
from imager.repository.index import Index, Segment
from imager.repository.removals import DAY
from imager.repository.repository import now
from imager.repository.retrieval import Unlocked, open_image
from imager.repository.session import Session
from imager.repository.statement import RemovalBody, Signatory
from imager.repository.volume_map import are_chunks
from imager.upkeep.prune import plan
from tests.conftest import Tiny

CONTENT = random.Random(8).randbytes(3_000_000)


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_format, "TARGET_SIZE", 1 << 18)


def segment(digest: bytes, kind: PackKind, ids: list[bytes]) -> Segment:
    rows = np.zeros(len(ids), dtype=pack_format.ENTRY)
    rows["id"] = np.array(ids, dtype="V32")
    rows["offset"] = np.arange(len(ids))
    return Segment.collect([(digest, kind, rows)])


# Few different beginnings, so that rows that begin alike are many.
IDS = st.builds(
    lambda head, tail: bytes([head] * 8 + [tail] * 24), st.integers(0, 2), st.integers(0, 5)
)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(PackKind), st.lists(IDS, max_size=8)), max_size=5),
    st.lists(IDS, max_size=12),
    st.sampled_from(PackKind),
)
def test_holders(
    packs: list[tuple[PackKind, list[bytes]]], asked: list[bytes], kind: PackKind
) -> None:
    index = Index([segment(bytes([n]) * 32, of, ids) for n, (of, ids) in enumerate(packs)])
    found = index.holders(np.array(asked, dtype="V32"), kind)
    for identity, number in zip(asked, found.tolist(), strict=True):
        right = {n for n, (of, ids) in enumerate(packs) if of is kind and identity in ids}
        assert number in right if right else number == NOWHERE


@pytest.mark.parametrize("window", [7, 700])
@pytest.mark.parametrize("place", ["cache", "nowhere to write"])
def test_an_index_in_a_file_equals_one_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, window: int
) -> None:
    chance = random.Random(1)
    ids = [chance.randbytes(32) for _ in range(3000)]
    ids += [bytes([n % 3]) * 8 + chance.randbytes(24) for n in range(300)]
    segments = [
        segment(chance.randbytes(32), chance.choice(list(PackKind)), chance.sample(ids, 400))
        for _ in range(20)
    ]
    segments += segments[:3]
    small = Index(segments)
    (tmp_path / "file").touch()
    cache = tmp_path / ("cache" if place == "cache" else "file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(scratch, "MANY_ROWS", 1000)
    monkeypatch.setattr(sorted_rows, "_WINDOW", window)
    monkeypatch.setattr(sorted_rows, "_BATCH", 64)
    big = Index(segments)
    assert small._rows.file is None
    assert big._rows.file is not None
    assert big.digests.tolist() == small.digests.tolist()
    assert big.sizes_needed().tolist() == small.sizes_needed().tolist()
    windows = list(big.windows())
    assert len(windows) > 3
    assert np.concatenate(windows).tobytes() == np.concatenate([*small.windows()]).tobytes()
    edges = itertools.pairwise(windows)
    assert all(one["id"][-1].tobytes()[:8] < two["id"][0].tobytes()[:8] for one, two in edges)
    asked = np.array([*ids, *(chance.randbytes(32) for _ in range(999))], dtype="V32")
    for kind in PackKind:
        assert big.holders(asked, kind).tolist() == small.holders(asked, kind).tolist()
    gone = {big.pack_name(big.locations(ids[0])[0])}
    for identity in ids:
        assert big.locations(identity) == small.locations(identity)
        left = [place for place in small.locations(identity) if small.pack_name(place) not in gone]
        assert big.without(gone).locations(identity) == left
        for kind in PackKind:
            assert big.without(gone).locations_in(identity, kind) == [
                place for place in left if small.of_kind[kind][place.pack]
            ]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "file"]


def data_ids(tiny: Tiny, names: set[str]) -> set[bytes]:
    repository = tiny.open()
    key = repository.credential_keys(tiny.credential).directory_key
    found: set[bytes] = set()
    for name in names:
        size = (tiny.path / name).stat().st_size
        kind, rows = pack_format.read_directory(repository.backend, name, size, key, repository.id)
        if kind is PackKind.DATA:
            found.update(row["id"].tobytes() for row in rows)
    return found


def pack_names(tiny: Tiny) -> set[str]:
    return {entry.name for entry in tiny.open().backend.list(pack_format.PREFIX)}


def die_at_the_sixth_pack(tiny: Tiny, scratch: Path) -> None:
    put, count = DirectoryBackend.put_new, 0

    def put_new(self: DirectoryBackend, name: str, parts: Sequence[Buffer]) -> bool:
        nonlocal count
        count += name.startswith(pack_format.PREFIX)
        if count == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return put(self, name, parts)

    DirectoryBackend.put_new = put_new  # type: ignore[method-assign]
    tiny.add({"a": CONTENT}, scratch)


def killed_capture(tiny: Tiny, scratch: Path) -> set[str]:
    """Return what a capture that was killed left behind."""
    before = pack_names(tiny)
    fork = multiprocessing.get_context("fork")
    child = fork.Process(target=die_at_the_sixth_pack, args=(tiny, scratch))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    left = pack_names(tiny) - before
    # Others were underway beside it.
    assert 3 <= len(left) <= 5
    return left


@pytest.mark.parametrize("others", [False, True], ids=["empty", "beside an indexed image"])
def test_a_capture_sends_nothing_again_that_a_killed_one_stored(
    tiny: Tiny, tmp_path: Path, others: bool
) -> None:
    if others:
        tiny.add({"b": random.Random(9).randbytes(1_000_000)}, tmp_path)
    before = pack_names(tiny)
    left = killed_capture(tiny, tmp_path)
    image = tiny.add({"a": CONTENT}, tmp_path)
    sent = pack_names(tiny) - before - left
    assert len(data_ids(tiny, left)) >= len(left)
    assert data_ids(tiny, sent)
    assert not data_ids(tiny, left) & data_ids(tiny, sent)
    repository = tiny.open()
    index, problems = repository.load_index(repository.credential_keys(tiny.credential))
    assert not index.is_unlisted.any()
    assert not problems
    opened = open_image(repository, image, Unlocked(repository, tiny.key), lambda _: None)
    found = opened.map("a")
    plain = dict(opened.chunks([row.tobytes() for row in found["id"][are_chunks(found)]]))
    assert b"".join(plain[row["id"].tobytes()] for row in found) == CONTENT


def test_prune_leaves_what_a_running_capture_stored_and_takes_what_was_left_behind(
    tiny: Tiny, tmp_path: Path
) -> None:
    left = killed_capture(tiny, tmp_path)
    repository = tiny.open()
    keys = repository.credential_keys(tiny.credential)
    assert not plan(repository, keys, frozenset()).condemn_packs
    for name in left:
        when = (tiny.path / name).stat().st_mtime - DAY - 60
        os.utime(tiny.path / name, (when, when))
    assert {name for name, _ in plan(repository, keys, frozenset()).condemn_packs} == left


def test_a_capture_whose_own_packs_may_go_makes_no_image(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Session.finish
    secrets = Unlocked(tiny.open(), tiny.key).secrets

    def condemn_first(self: Session, *arguments: object) -> object:
        hashes = tuple(name.rpartition("/")[2] for name in pack_names(tiny))
        tiny.open().state(
            StatementKind.CONDEMNED,
            RemovalBody((), hashes, 60, now()),
            Signatory(secrets.signer),
            secrets.group,
        )
        return finish(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Session, "finish", condemn_first)
    with pytest.raises(ContentRemoved):
        tiny.add({"a": CONTENT}, tmp_path)


def test_an_index_that_goes_while_it_is_read_is_no_damage(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prune wrote another in its place, after the listing."""
    tiny.add({"a": CONTENT}, tmp_path)
    repository = tiny.open()
    (entry,) = repository.backend.list("indexes/")
    gone = Entry("indexes/" + "0" * 64, 100, 0.0)
    list_all, said = DirectoryBackend.list, [gone]

    def list_with_ghost(self: DirectoryBackend, prefix: str) -> Iterator[Entry]:
        if prefix == "indexes/" and said:
            yield said.pop()
        yield from list_all(self, prefix)

    monkeypatch.setattr(DirectoryBackend, "list", list_with_ghost)
    index, problems = repository.load_index(repository.credential_keys(tiny.credential))
    assert not problems
    assert not said
    assert not index.is_unlisted.any()
    with pytest.raises(ObjectMissing):
        repository.backend.get(gone.name)
    assert entry.name in {found.name for found in repository.backend.list("indexes/")}
