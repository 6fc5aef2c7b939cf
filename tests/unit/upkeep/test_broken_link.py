"""A link that breaks for one call stops what judges objects; it is never taken for damage."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imager.errors import StoreUnreachable
from imager.repository.backend.directory import DirectoryBackend
from imager.repository.backend.protocol import Entry
from imager.repository.configuration import CONFIG_NAME, Configuration, repository_id
from imager.repository.removals import read_removals
from imager.repository.repository import Repository
from imager.repository.retrieval import Unlocked, open_image
from imager.repository.standing import read_standing
from imager.repository.volume_map import chunk_ids
from imager.upkeep import parity, prune, repair
from imager.upkeep.check import check
from imager.upkeep.check_report import Depth
from tests.conftest import Tiny
from tests.unit.upkeep.covered_repository import content, keys_of


class Cut(DirectoryBackend):
    """A store whose link breaks at one call, and is there again at the next."""

    def __init__(self, root: Path, at: int) -> None:
        super().__init__(root)
        self._at = at
        self._lock = threading.Lock()
        self.calls = 0

    def _call(self) -> None:
        with self._lock:
            number, self.calls = self.calls, self.calls + 1
        if number == self._at:
            raise StoreUnreachable("the link broke")

    def get(self, name: str) -> bytes:
        self._call()
        return super().get(name)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        self._call()
        return super().get_range(name, offset, length)

    def list(self, prefix: str) -> Iterator[Entry]:
        self._call()
        return super().list(prefix)


def opened(backend: Cut) -> Repository:
    data = backend.get(CONFIG_NAME)
    return Repository.of(backend, repository_id(data), Configuration.decode(data, "here"))


def check_structure(backend: Cut, tiny: Tiny) -> None:
    repository = opened(backend)
    keys = repository.credential_keys(tiny.credential)
    assert not check(repository, keys, lambda _: None, depth=Depth.STRUCTURE).findings


def check_ciphertext(backend: Cut, tiny: Tiny) -> None:
    assert not check(opened(backend), None, lambda _: None, depth=Depth.CIPHERTEXT).findings


def check_full(backend: Cut, tiny: Tiny) -> None:
    repository = opened(backend)
    unlocked = Unlocked(repository, tiny.key)
    assert not check(
        repository, unlocked.keys, lambda _: None, depth=Depth.FULL, unlocked=unlocked
    ).findings


def plan_repair(backend: Cut, tiny: Tiny) -> None:
    made = repair.plan(backend, [], keys_of(tiny), lambda _: None)
    assert not made.mends
    assert not made.broken


def plan_parity(backend: Cut, tiny: Tiny) -> None:
    repository = opened(backend)
    made = parity.plan(backend, repository.id)
    assert not made.broken
    assert not made.hurt


def plan_prune(backend: Cut, tiny: Tiny) -> None:
    repository = opened(backend)
    prune.plan(repository, repository.credential_keys(tiny.credential), frozenset())


def listing(backend: Cut, tiny: Tiny) -> None:
    repository = opened(backend)
    found, problems = repository.images(repository.credential_keys(tiny.credential))
    assert len(found) == 2
    assert not problems
    assert not read_standing(repository).problems
    assert not read_removals(repository).problems


def restore(backend: Cut, tiny: Tiny) -> None:
    repository = opened(backend)
    problems: list[object] = []
    image = open_image(repository, "one", Unlocked(repository, tiny.key), problems.append)
    dict(image.chunks([row.tobytes() for row in chunk_ids(image.map("disk0"))]))
    assert not problems


DEEDS = [
    check_structure,
    check_ciphertext,
    check_full,
    plan_repair,
    plan_parity,
    plan_prune,
    listing,
    restore,
]


@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.__name__)
def test_a_call_that_fails_stops_the_deed(covered: Tiny, deed: Callable[[Cut, Tiny], None]) -> None:
    whole = Cut(covered.path, -1)
    deed(whole, covered)
    before = content(covered)
    step = max(1, whole.calls // 60)
    for at in [*range(min(whole.calls, 30)), *range(30, whole.calls, step)]:
        with pytest.raises(StoreUnreachable):
            deed(Cut(covered.path, at), covered)
    assert content(covered) == before
