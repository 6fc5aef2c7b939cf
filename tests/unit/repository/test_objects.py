"""Packs, indexes and maps: what is written comes back, and copies stand in for each other."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imager.errors import ObjectDamaged, ObjectMissing
from imager.repository import pack as pack_format
from imager.repository.backend.directory import DirectoryBackend
from imager.repository.chunk import FREE, ZERO, Codec, Identifier, Opener, Sealer
from imager.repository.compression import Compressor
from imager.repository.header import Header, Magic, PackKind
from imager.repository.ids import unique_ids
from imager.repository.index import Index, Segment
from imager.repository.pack import PackBuilder, read_directory
from imager.repository.repository import Problem
from imager.repository.retrieval import Unlocked, open_image
from imager.repository.volume_map import Root, Runs, TreeWriter, are_chunks, read_tree, runs
from tests.conftest import Tiny

KEY = b"k" * 32
REPOSITORY = b"r" * 16


def header(kind: PackKind = PackKind.DATA) -> Header:
    return Header(Magic.PACK, kind, 0, b"s" * 16, b"g" * 16, REPOSITORY)


def segment(ids: list[bytes], digest: bytes = b"p" * 32) -> Segment:
    rows = [(identity, 100 * n, 50, 4096 | 1 << 24, 0) for n, identity in enumerate(ids)]
    entries = np.array(rows, dtype=pack_format.ENTRY)
    return Segment.collect([(digest, PackKind.DATA, entries)])


def test_pack_round_trip(tmp_path: Path) -> None:
    identifier, sealer = Identifier(KEY), Sealer(b"s" * 32)
    opener = Opener(b"s" * 32, identifier)
    builder = PackBuilder(header(), b"", KEY)
    plains = [b"text " * 2000, os.urandom(5000), b"x"]
    for plain in plains:
        identity = identifier.identify(plain)
        body, codec = Compressor().compress(plain)
        blob = sealer.seal(identity, len(plain), body, codec)
        builder.add(identity, blob, len(plain), codec)
    pack = builder.finish()
    backend = DirectoryBackend(tmp_path)
    backend.put_new(pack.name, pack.parts)
    kind, entries = read_directory(backend, pack.name, pack.size, KEY, REPOSITORY)
    assert kind is PackKind.DATA
    assert entries.tobytes() == pack.entries.tobytes()
    index = Index([Segment.collect([(pack.digest, kind, entries)])])
    codecs = []
    for plain in plains:
        (place,) = index.locations(identifier.identify(plain))
        blob_bytes = backend.get_range(index.pack_name(place), place.offset, place.length)
        identity = identifier.identify(plain)
        assert opener.open(identity, place.plain, place.codec, blob_bytes) == plain
        codecs.append(place.codec)
    assert codecs == [Codec.ZSTD, Codec.STORED, Codec.STORED]


def test_a_blob_serves_only_its_own_entry() -> None:
    identifier, sealer = Identifier(KEY), Sealer(b"s" * 32)
    opener = Opener(b"s" * 32, identifier)
    one, other = b"one " * 100, b"two " * 100
    body, codec = Compressor().compress(one)
    blob = sealer.seal(identifier.identify(one), len(one), body, codec)
    for identity, length, used in [
        (identifier.identify(other), len(one), codec),
        (identifier.identify(one), len(one) - 1, codec),
        (identifier.identify(one), len(one), Codec.STORED),
        (identifier.identify(one), 2 << 20, codec),
        (identifier.identify(one), len(one), 9),
    ]:
        with pytest.raises(ObjectDamaged):
            opener.open(identity, length, used, bytes(blob))


def test_a_chunk_that_lies_about_its_content_is_refused() -> None:
    """Poisoned deduplication: sealed properly, by somebody with a key, under a false id."""
    identifier, sealer = Identifier(KEY), Sealer(b"s" * 32)
    false = identifier.identify(b"what it says")
    blob = sealer.seal(false, 12, b"what it has!", Codec.STORED)
    with pytest.raises(ObjectDamaged, match="other content"):
        Opener(b"s" * 32, identifier).open(false, 12, Codec.STORED, bytes(blob))


def test_every_nonce_is_new() -> None:
    sealer = Sealer(b"s" * 32)
    nonces = {bytes(sealer.seal(bytes(32), 4, b"same", Codec.STORED)[:12]) for _ in range(1000)}
    assert len(nonces) == 1000


def test_index_round_trip() -> None:
    ids = [os.urandom(32) for _ in range(5000)]
    made = Header(Magic.INDEX, 0, 0, b"s" * 16, b"g" * 16, REPOSITORY)
    name, data = segment(ids).encode(made, KEY)
    opened = Segment.decode(data, name, KEY, REPOSITORY)
    sorted_ids = [row.tobytes() for row in opened.entries["id"]]
    assert sorted_ids == sorted(ids)
    with pytest.raises(ObjectDamaged):
        Segment.decode(data[:-1], name, KEY, REPOSITORY)


def test_index_tells_ids_with_the_same_beginning_apart() -> None:
    ids = [b"\xff" * 8 + os.urandom(24) for _ in range(20)] + [b"\0" * 32, b"\0" * 31 + b"\1"]
    index = Index([segment(ids[:15]), segment(ids[10:], b"q" * 32)])
    for number, identity in enumerate(ids):
        assert len(index.locations(identity)) == (2 if 10 <= number < 15 else 1)
    assert index.locations(b"\xff" * 32) == []
    assert not index.locations_in(ids[0], PackKind.MAPS)


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=50))
def test_unique_ids(ids: list[bytes]) -> None:
    found = [row.tobytes() for row in unique_ids(np.array(ids, dtype="V32"))]
    assert found == sorted(set(ids))


def tree(volume_map: Runs, at_once: int = 1 << 20) -> tuple[Root, dict[bytes, bytes]]:
    stored: dict[bytes, bytes] = {}
    identifier = Identifier(KEY)

    def store(node: bytes) -> bytes:
        identity = identifier.identify(node)
        stored[identity] = node
        return identity

    writer = TreeWriter(store)
    for start in range(0, len(volume_map), at_once):
        writer.add(volume_map[start : start + at_once])
    return writer.finish(), stored


def big_map(count: int, seed: int) -> Runs:
    noise = random.Random(seed)
    return runs(
        [
            (4096 * noise.randint(1, 128), noise.choice([ZERO, FREE, noise.randbytes(32)]))
            for _ in range(count)
        ]
    )


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([1, 2, 255, 256, 257, 4096, 4097, 60_000]), st.integers(0, 3))
def test_map_round_trip(count: int, seed: int) -> None:
    volume_map = big_map(count, seed)
    root, stored = tree(volume_map)
    length = int(volume_map["length"].sum())
    assert read_tree(root, length, stored.__getitem__, "v").tobytes() == volume_map.tobytes()
    for at_once in (7, 1000, 5000):
        assert tree(volume_map, at_once) == (root, stored)
    with pytest.raises(ObjectDamaged):
        read_tree(root, length + 1, stored.__getitem__, "v")


def test_a_change_costs_few_nodes() -> None:
    """An unchanged terabyte costs bytes: only the nodes on the way to the change are new."""
    before = big_map(100_000, 5)
    after = np.concatenate([before[:50_000], runs([(4096, b"n" * 32)] * 3), before[50_000:]])
    _, old = tree(before)
    _, new = tree(after)
    assert len(old) > 50
    assert len(set(new) - set(old)) <= 8


def test_a_map_with_a_loop_is_refused() -> None:
    with pytest.raises(ObjectDamaged):
        read_tree(Root(bytes(32), 9), 4096, lambda _: b"", "v")


def data_packs(tiny: Tiny) -> list[Path]:
    return [path for path in (tiny.path / "packs").rglob("*/*") if path.stat().st_size > 1_000_000]


def test_another_copy_stands_in(tiny: Tiny, tmp_path: Path) -> None:
    """Two racing captures have stored the same chunks; either pack may rot."""
    content = {"disk0/p1": random.Random(3).randbytes(2_000_000)}
    image = tiny.add(content, tmp_path)
    aside = tmp_path / "aside"
    aside.mkdir()
    for folder in ("indexes", "packs"):
        (tiny.path / folder).rename(aside / folder)
    tiny.add(content, tmp_path)
    for path in [path for path in aside.rglob("*") if path.is_file()]:
        target = tiny.path / path.relative_to(aside)
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    assert len(data_packs(tiny)) == 2
    said: list[Problem] = []
    for pack in data_packs(tiny):
        original = pack.read_bytes()
        damaged = bytearray(original)
        damaged[len(damaged) // 2] ^= 1
        pack.write_bytes(damaged)
        repository = tiny.open()
        opened = open_image(repository, image, Unlocked(repository, tiny.key), said.append)
        found = opened.map("disk0/p1")
        plain = dict(opened.chunks([row.tobytes() for row in found["id"][are_chunks(found)]]))
        assert b"".join(plain[row["id"].tobytes()] for row in found) == content["disk0/p1"]
        pack.write_bytes(original)
    assert said


def test_a_missing_chunk_is_named(tiny: Tiny, tmp_path: Path) -> None:
    image = tiny.add({"disk0/p1": b"some text" * 999}, tmp_path)
    repository = tiny.open()
    opened = open_image(repository, image, Unlocked(repository, tiny.key), lambda _: None)
    with pytest.raises(ObjectMissing, match=image[:12]):
        list(opened.chunks([b"\7" * 32]))


@pytest.mark.parametrize("cut", [True, False])
def test_a_lost_pack_is_noticed_before_anything_is_read(
    tiny: Tiny, tmp_path: Path, cut: bool
) -> None:
    image = tiny.add({"disk0/p1": random.Random(5).randbytes(2_000_000)}, tmp_path)
    repository = tiny.open()
    opened = open_image(repository, image, Unlocked(repository, tiny.key), lambda _: None)
    opened.check_presence()
    (pack,) = data_packs(tiny)
    if cut:
        os.truncate(pack, 1_000_000)
    else:
        pack.unlink()
    with pytest.raises(ObjectMissing, match=f"{image[:12]} is touched.*gone or cut off"):
        opened.check_presence()


def test_what_a_lost_pack_held_is_sent_again(tiny: Tiny, tmp_path: Path) -> None:
    """A capture must not count on chunks that are named by an index and lie nowhere."""
    content = {"disk0/p1": random.Random(6).randbytes(2_000_000)}
    first = tiny.add(content, tmp_path)
    for pack in (tiny.path / "packs").rglob("*/*"):
        pack.unlink()
    second = tiny.add(content, tmp_path)
    for image in (first, second):
        repository = tiny.open()
        opened = open_image(repository, image, Unlocked(repository, tiny.key), lambda _: None)
        opened.check_presence()
        found = opened.map("disk0/p1")
        plain = dict(opened.chunks([row.tobytes() for row in found["id"][are_chunks(found)]]))
        assert b"".join(plain[row["id"].tobytes()] for row in found) == content["disk0/p1"]


def test_absent() -> None:
    ids = [b"\xff" * 8 + bytes([n]) * 24 for n in range(20)] + [os.urandom(32) for _ in range(99)]
    index = Index([segment(ids[:10] + ids[30:])])
    asked = np.array(ids, dtype="V32")
    assert index.absent(asked) == ids[10:30]
    assert index.absent(asked[:1], PackKind.MAPS) == ids[:1]
    assert Index([]).absent(asked[:1]) == ids[:1]


def test_same_content_is_stored_once(tiny: Tiny, tmp_path: Path) -> None:
    content = {"disk0/p1": random.Random(4).randbytes(3_000_000)}
    tiny.add(content, tmp_path)
    before = sum(path.stat().st_size for path in tiny.path.rglob("packs/*/*"))
    tiny.add(content, tmp_path, "other name")
    after = sum(path.stat().st_size for path in tiny.path.rglob("packs/*/*"))
    assert after == before
