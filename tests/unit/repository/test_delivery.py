"""Chunks come out of packs in any order, in bounded memory, and errors end all of it."""

import os
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from imager.errors import ObjectDamaged, RemetalError, StoreUnreachable, WriteFailed
from imager.repository import delivery, pack
from imager.repository.backend.directory import DirectoryBackend
from imager.repository.configuration import CONFIG_NAME, Configuration, repository_id
from imager.repository.delivery import Report
from imager.repository.repository import Problem, Repository
from imager.repository.retrieval import OpenImage, Unlocked, open_image
from imager.repository.volume_map import chunk_ids
from imager.stages import Stages
from imager.units import KIB, MIB
from tests.conftest import Tiny

LENGTH = 4 * MIB


class Watched(DirectoryBackend):
    """Tells of each range that is asked for, before it is read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: Callable[[str, int], None] = lambda _name, _length: None

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        self.asked(name, length)
        return super().get_range(name, offset, length)


class Content:
    """Some content in a repository of many small packs, and what came of it."""

    def __init__(self, tiny: Tiny, scratch: Path) -> None:
        half = random.Random(1).randbytes(LENGTH // 2)
        self.plain = half + bytes(byte & 3 for byte in half)  # one half shrinks
        image = tiny.add({"disk0/p1": self.plain}, scratch)
        self.backend = Watched(tiny.path)
        config = self.backend.get(CONFIG_NAME)
        repository = Repository.of(
            self.backend, repository_id(config), Configuration.decode(config, "here")
        )
        self.said: list[Problem] = []
        self.opened: OpenImage = open_image(
            repository, image, Unlocked(repository, tiny.key), self.said.append
        )
        self.map = self.opened.map("disk0/p1")
        self.ids = chunk_ids(self.map)
        self.index, _ = repository.load_index(Unlocked(repository, tiny.key).keys)
        holders = self.index.holders(self.ids).tolist()
        self.pack_of = [self.index.name(number) for number in holders]
        self.packs = sorted(set(self.pack_of))
        self.came: dict[bytes, bytes] = {}

    def take(self, numbers: Sequence[int], plains: Sequence[memoryview], report: Report) -> None:
        for number, plain in zip(numbers, plains, strict=True):
            assert self.ids[number].tobytes() not in self.came, "each comes once"
            self.came[self.ids[number].tobytes()] = bytes(plain)
            report(len(plain))

    def deliver(self, take: delivery.Take | None = None) -> int:
        done: list[int] = []
        here, before = threading.current_thread(), set(threading.enumerate())

        def advance(size: int) -> None:
            assert threading.current_thread() is here
            done.append(size)

        try:
            self.opened.deliver(self.ids, take or self.take, advance, Stages(self.opened.lanes(())))
        finally:
            assert set(threading.enumerate()) <= before, "no thread runs on"
        return sum(done)

    def assert_all_came(self) -> None:
        assert b"".join(self.came[row["id"].tobytes()] for row in self.map) == self.plain


@pytest.fixture
def content(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Content:
    monkeypatch.setattr(pack, "TARGET_SIZE", 128 * KIB)
    made = Content(tiny, tmp_path)
    assert len(made.packs) > 8
    return made


def test_all_come_once(content: Content) -> None:
    assert content.deliver() == len(content.plain)
    content.assert_all_came()
    assert not content.said


def test_a_slow_pack_stalls_no_other(content: Content) -> None:
    slow = content.pack_of[0]
    expected = sum(name != slow for name in content.pack_of)
    others_came = threading.Event()

    def wait_if_slow(name: str, _length: int) -> None:
        if name == slow:
            assert others_came.wait(60), "the others wait for the slow one"

    def take(numbers: Sequence[int], plains: Sequence[memoryview], report: Report) -> None:
        content.take(numbers, plains, report)
        if len(content.came) >= expected:
            others_came.set()

    content.backend.asked = wait_if_slow
    content.deliver(take)
    content.assert_all_came()


def test_memory_is_bounded(content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 768 * KIB
    monkeypatch.setattr(delivery, "_AHEAD", most)
    fetched = 0
    lock = threading.Lock()
    too_much = threading.Event()

    def count(_name: str, length: int) -> None:
        nonlocal fetched
        with lock:
            fetched += length
            if fetched > most:
                too_much.set()

    is_first = True

    def take(numbers: Sequence[int], plains: Sequence[memoryview], report: Report) -> None:
        nonlocal is_first
        was_first, is_first = is_first, False
        if was_first:
            # Nothing that was fetched has been given back yet. This event must not come.
            assert not too_much.wait(1), "what was fetched is held without bound"
            content.backend.asked = lambda _name, _length: None
        content.take(numbers, plains, report)

    monkeypatch.setattr(delivery, "opening_threads", lambda: 1)
    content.backend.asked = count
    content.deliver(take)
    assert fetched
    content.assert_all_came()


def test_what_the_taker_raises_ends_all(content: Content) -> None:
    def take(numbers: Sequence[int], plains: Sequence[memoryview], report: Report) -> None:
        if content.came:
            raise WriteFailed("the disk is gone")
        content.take(numbers, plains, report)

    with pytest.raises(WriteFailed, match="the disk is gone"):
        content.deliver(take)


def test_what_the_listener_raises_ends_all(content: Content) -> None:
    def interrupt(_size: int) -> None:
        raise KeyboardInterrupt

    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        content.opened.deliver(
            content.ids, content.take, interrupt, Stages(content.opened.lanes(()))
        )
    assert set(threading.enumerate()) <= before
    assert len(content.came) < len(content.ids)


def test_a_broken_link_is_no_damage(content: Content) -> None:
    def cut(name: str, _length: int) -> None:
        if name == content.packs[3]:
            raise StoreUnreachable("the link broke")

    content.backend.asked = cut
    with pytest.raises(StoreUnreachable):
        content.deliver()
    assert not content.said


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
        return
    if how == "cut":
        del data[len(data) // 2 :]
    elif how == "rotten":
        data[len(data) // 2] ^= 1
    elif how == "header":
        data[0] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["missing", "cut", "rotten", "header"])
def test_a_damaged_pack_is_named_and_so_is_the_image(
    content: Content, tiny: Tiny, how: str
) -> None:
    broken = content.packs[2]
    damage(tiny.path / broken, how)
    with pytest.raises(RemetalError) as caught:
        content.deliver()
    assert content.opened.image.id[:12] in str(caught.value)
    kept = [name != broken for name in content.pack_of]
    content.came.clear()
    content.ids = content.ids[np.array(kept)]
    content.deliver()


@pytest.mark.parametrize("how", ["missing", "cut", "rotten", "header"])
def test_another_site_or_pack_stands_in_and_is_told_of_once(
    content: Content, tiny: Tiny, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = content.packs[2]
    intact = (tiny.path / broken).read_bytes()
    damage(tiny.path / broken, how)
    get = content.backend.get
    # As a mirror does: the pack whole comes from the site that has it intact.
    monkeypatch.setattr(
        content.backend, "get", lambda name: intact if name == broken else get(name)
    )
    content.deliver()
    content.assert_all_came()
    assert [problem.name for problem in content.said] == [broken]


def test_of_a_cut_pack_what_is_left_comes(content: Content, tiny: Tiny) -> None:
    """Only what was cut off is lost."""
    name = max(content.packs, key=content.pack_of.count)
    in_pack = content.ids[np.array([each == name for each in content.pack_of])]
    assert len(in_pack) > 1
    rows = np.concatenate([found.rows for found in content.index.rows_of(in_pack)])
    last = int(rows["offset"].max())
    os.truncate(tiny.path / name, last + 1)
    lost = []
    for row in in_pack:
        content.ids = np.array([row])
        try:
            content.deliver()
        except ObjectDamaged:
            lost.append(row.tobytes())
    assert lost == [rows["id"][rows["offset"].argmax()].tobytes()]


def test_few_chunks_of_a_pack_cost_few_bytes(
    content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_GAP", 8 * KIB)
    asked: list[int] = []
    content.backend.asked = lambda _name, length: asked.append(length)
    content.ids = content.ids[np.array([number % 9 == 0 for number in range(len(content.ids))])]
    content.deliver()
    assert sum(asked) < 0.6 * sum((content.backend.size(name)) for name in content.packs)
