"""Repair and parity, stopped before each write in turn: the next run brings all back."""

import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from imager.repository.backend.directory import DirectoryBackend
from imager.repository.backend.protocol import Backend, Buffer, Entry
from imager.upkeep import parity, repair
from imager.upkeep.parity_shares import read_groups
from tests.conftest import Tiny
from tests.unit.upkeep.covered_repository import content, flip, no_keys, objects, packs_of, run


def damage_config_rot(tiny: Tiny) -> None:
    flip(tiny.path / "config", 100)


def damage_image(tiny: Tiny) -> None:
    objects(tiny, "images")[0].unlink()


class Stopping:
    """A backend that lets so many operations through and then ends the process."""

    def __init__(self, inner: Backend, left: int) -> None:
        self._inner = inner
        self._left = left

    @property
    def location(self) -> str:
        return self._inner.location

    def _count(self) -> None:
        if self._left == 0:
            os._exit(9)
        self._left -= 1

    def put_new(self, name: str, parts: Sequence[Buffer], modified: float | None = None) -> bool:
        self._count()
        return self._inner.put_new(name, parts, modified)

    def delete(self, name: str) -> None:
        self._count()
        self._inner.delete(name)

    def get(self, name: str) -> bytes:
        return self._inner.get(name)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        return self._inner.get_range(name, offset, length)

    def list(self, prefix: str) -> Iterator[Entry]:
        return self._inner.list(prefix)

    def tidy(self) -> None:
        self._inner.tidy()

    def now(self) -> float:
        return self._inner.now()


def in_child(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def damage_mixed(tiny: Tiny) -> None:
    packs = packs_of(tiny, "one")
    flip(packs[0], 3000)
    packs[1].unlink()
    damage_config_rot(tiny)
    damage_image(tiny)
    flip(max(objects(tiny, "parity"), key=lambda path: path.stat().st_size), -1)


def damage_two_rows(tiny: Tiny) -> None:
    """Each needs what is intact of the others: were one deleted before it is safe, two were lost."""
    packs = [path for path in packs_of(tiny, "one") if path.stat().st_size > 80_000]
    groups, _ = read_groups(DirectoryBackend(tiny.path), tiny.open().id)
    name = packs[0].relative_to(tiny.path).as_posix()
    (shares,) = (
        group.table.shares
        for group in groups.values()
        if name in {member.name for member in group.table.members}
    )
    for number in range(2 * shares):
        flip(packs[number], 70_000 if number < shares else 100)


@pytest.mark.parametrize("damage", [damage_mixed, damage_two_rows])
def test_stopped_between_any_two_writes(
    covered: Tiny, tmp_path: Path, damage: Callable[[Tiny], None]
) -> None:
    """The process ends before each write and deletion in turn; the next run brings all back."""
    before = content(covered)
    damage(covered)
    broken = tmp_path / "broken"
    shutil.copytree(covered.path, broken)
    points = 0
    while True:
        shutil.rmtree(covered.path)
        shutil.copytree(broken, covered.path)
        stopping = Stopping(DirectoryBackend(covered.path), points)

        def work(backend: Backend = stopping) -> None:
            plan = repair.plan(backend, [], no_keys, lambda _: None)
            repair.execute(backend, no_keys, plan)

        code = in_child(work)
        intact = content(covered)
        for name, data in intact.items():
            if name in before and (broken / name).exists():
                assert data == before[name] or data == (broken / name).read_bytes()
        if code == 0:
            assert content(covered) == before
            break
        assert code == 9
        points += 1
        assert run(covered) == ([], ())
        assert content(covered) == before
    assert points >= 12


def test_parity_stopped_between_any_two_writes(
    covered: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New members make partial groups anew: at every instant one lost pack comes back."""
    covered.add({"disk0": random.Random(9).randbytes(2 << 20)}, tmp_path, "three")
    repository = covered.open()
    start = tmp_path / "start"
    shutil.copytree(covered.path, start)
    points = 0
    code = 9
    while code:
        shutil.rmtree(covered.path)
        shutil.copytree(start, covered.path)
        stopping = Stopping(DirectoryBackend(covered.path), points)

        def work(backend: Backend = stopping) -> None:
            plan = parity.plan(backend, repository.id)
            assert plan.make
            assert plan.dissolve
            parity.execute(backend, repository.id, plan, lambda _: None)

        code = in_child(work)
        assert code in {0, 9}
        points += 1
        packs_of(covered, "one")[0].unlink()
        assert run(covered) == ([], ())
    assert points >= 6
