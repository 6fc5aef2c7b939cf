"""What the store does not give now may be as it was written: repair names it and leaves it alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from imager.commands import repair as repair_module
from imager.errors import ObjectDamaged, RepairIncomplete
from imager.repository.backend.directory import DirectoryBackend
from imager.upkeep import repair
from imager.upkeep.repair_scan import State
from tests.conftest import Tiny
from tests.unit.upkeep.covered_repository import content, flip, keys_of, no_keys, objects, packs_of


class Refusing(DirectoryBackend):
    """A directory that does not give some objects, as with EACCES or EIO."""

    def __init__(self, root: Path, *names: str) -> None:
        super().__init__(root)
        self.refused = set(names)
        self.tampered: list[str] = []

    def get(self, name: str) -> bytes:
        self._check(name)
        return super().get(name)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        self._check(name)
        return super().get_range(name, offset, length)

    def delete(self, name: str) -> None:
        self.tampered.append(name)
        super().delete(name)

    def _check(self, name: str) -> None:
        if name in self.refused:
            raise ObjectDamaged(f"{name} can't be read: Input/output error")


def name_of(tiny: Tiny, path: Path) -> str:
    return path.relative_to(tiny.path).as_posix()


def pack(tiny: Tiny) -> Path:
    return packs_of(tiny, "one")[0]


def share(tiny: Tiny) -> Path:
    return max(objects(tiny, "parity"), key=lambda path: path.stat().st_size)


def image(tiny: Tiny) -> Path:
    return objects(tiny, "images")[0]


def index(tiny: Tiny) -> Path:
    return objects(tiny, "indexes")[0]


def configuration(tiny: Tiny) -> Path:
    return tiny.path / "config"


@pytest.mark.parametrize("choose", [pack, share, image, index, configuration])
def test_it_is_named_and_left_alone(covered: Tiny, choose: Callable[[Tiny], Path]) -> None:
    """Another object is damaged, so that there is something to do besides."""
    name = name_of(covered, choose(covered))
    before = content(covered)
    flip(packs_of(covered, "two")[0], 100)
    backend = Refusing(covered.path, name)
    plan = repair.plan(backend, [], keys_of(covered), lambda _: None)
    (item,) = plan.broken
    assert (item.name, item.state) == (name, State.UNREADABLE)
    assert "Input/output error" in item.reason
    result = repair.execute(backend, keys_of(covered), plan)
    assert result.failed == ()
    broken, touched = repair.touched_by(backend, plan, result, keys_of(covered))
    assert [each.name for each in broken] == [name]
    if choose is pack:
        assert touched is not None
        assert [(each.machine, each.objects) for each in touched] == [("one", (name,))]
    after = content(covered)
    assert {n: after[n] for n in before} == before
    assert len(after) == len(before) + (choose is index), "an index may be made again"
    assert name not in backend.tampered


@pytest.mark.parametrize("choose", [pack, share])
def test_it_can_t_be_read_any_more_when_its_turn_comes(
    covered: Tiny, choose: Callable[[Tiny], Path]
) -> None:
    path = choose(covered)
    name = name_of(covered, path)
    flip(path, 100)
    before = content(covered)
    backend = Refusing(covered.path)
    plan = repair.plan(backend, [], no_keys, lambda _: None)
    backend.refused.add(name)
    result = repair.execute(backend, no_keys, plan)
    ((failed, error),) = result.failed
    assert failed == name
    assert "left alone" in error.message
    assert content(covered) == before


def test_neither_stashes_nor_rotten_parity_go_unread(covered: Tiny) -> None:
    rotten = share(covered)
    whole = pack(covered)
    flip(rotten, 10)
    stash = "repaired/" + name_of(covered, whole)
    backend = Refusing(covered.path)
    backend.put_new(stash, [whole.read_bytes()])
    plan = repair.plan(backend, [], no_keys, lambda _: None)
    backend.refused |= {stash, name_of(covered, rotten), name_of(covered, whole)}
    repair.execute(backend, no_keys, plan)
    assert not backend.tampered


def test_the_command_says_what_to_do(covered: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    name = name_of(covered, pack(covered))
    monkeypatch.setattr(repair_module, "open_backend", lambda _: Refusing(covered.path, name))
    shown = CliRunner().invoke(repair_module.repair, [str(covered.path)])
    assert isinstance(shown.exception, RepairIncomplete)
    assert f"{name} is unreadable" in shown.stdout
    assert "move it away" in shown.stdout
