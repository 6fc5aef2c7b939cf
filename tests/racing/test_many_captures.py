"""Four machines capture while prune and check loop: nobody fails, and nobody waits.

There are two repositories of the same shape. Upkeep loops on one of them at a time and changes
over again and again; the machines capture into both in turn. So captures with a prune on their
repository are compared with captures under the same load, of the same time, with the prune
elsewhere.
"""

import random
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from imager.repository.configuration import Secrets
from imager.repository.crypto.recipient import RecipientKey
from imager.repository.keyring import Credential
from imager.repository.repository import Repository
from tests.conftest import Tiny
from tests.racing import deeds
from tests.racing.actors import Actor

MACHINES = ("anna", "bert", "cora", "dirk")
_KEPT = 8
_LOWEST_COUNT = 10

# Begin, end and repository of one thing that was done.
Span = tuple[float, float, int]


def content(image: str) -> bytes:
    """Return what a machine holds at one of its captures: half of it stays, half is new."""
    machine = image.partition("-")[0]
    return random.Random(machine).randbytes(384 << 10) + random.Random(image).randbytes(384 << 10)


def new_repository(path: Path, key: RecipientKey) -> Tiny:
    held: list[Credential] = []

    def keep(repository: Repository, secrets: Secrets) -> None:
        held.append(repository.new_credential(secrets, "racer"))

    Repository.create(str(path), [("test", key.recipient)], keep).publish(held[0])
    return Tiny(path, key, held[0])


def _capture(both: tuple[Tiny, Tiny], machine: str, place: Path, until: float) -> list[Span]:
    spans = []
    count = 0
    while time.monotonic() < until:
        number = count % 2
        begin = time.monotonic()
        name = f"{machine}-{count}"
        both[number].add({"disk": content(name)}, place, name)
        spans.append((begin, time.monotonic(), number))
        count += 1
    return spans


def _look_after(both: tuple[Tiny, Tiny], until: float) -> list[Span]:
    """Prune and check one repository, then the other, and so on; say when it was which."""
    spans = []
    count = 0
    while time.monotonic() < until:
        number = count // 2 % 2
        begin = time.monotonic()
        tiny = both[number]
        if count % 2:
            assert not deeds.structure(tiny)
        else:
            there = deeds.images(tiny)
            old = list(there.values())[:-_KEPT]
            deeds.prune(tiny, frozenset([*old, there.get("gone-0", "")]))
        spans.append((begin, time.monotonic(), number))
        count += 1
    return spans


@pytest.mark.parametrize(
    "seconds", [pytest.param(12, id="short"), pytest.param(60, id="long", marks=pytest.mark.slow)]
)
def test_no_capture_waits_for_a_prune(
    tmp_path: Path, recipient_key: RecipientKey, seconds: int
) -> None:
    both = (
        new_repository(tmp_path / "first", recipient_key),
        new_repository(tmp_path / "second", recipient_key),
    )
    for tiny in both:  # something that the first prune removes
        tiny.add({"disk": content("gone-0")}, tmp_path, "gone-0")
        deeds.prune(tiny, frozenset(deeds.images(tiny).values()))
        deeds.end_quarantine(tiny)
    until = time.monotonic() + seconds
    works: list[Callable[[object], object]] = [lambda _: _look_after(both, until)]
    for machine in MACHINES:
        place = deeds.source(tmp_path, machine)
        works.append(lambda _, m=machine, p=place: _capture(both, m, p, until))  # type: ignore[misc]
    with ExitStack() as stack:
        actors = [stack.enter_context(Actor(work)) for work in works]
        ended = [actor.wait() for actor in actors]
    assert [word for word, _ in ended] == ["done"] * len(works), ended
    upkeep, *captures = [what for _, what in ended]
    beside, elsewhere = _durations([span for spans in captures for span in spans], upkeep)
    assert min(len(beside), len(elsewhere)) >= _LOWEST_COUNT, (len(beside), len(elsewhere))
    print(  # noqa: T201
        f"captures beside upkeep {len(beside)}, median {statistics.median(beside):.3f} s, "
        f"slowest {max(beside):.3f} s; with upkeep elsewhere {len(elsewhere)}, "
        f"median {statistics.median(elsewhere):.3f} s, slowest {max(elsewhere):.3f} s; "
        f"{len(upkeep)} prunes and checks"
    )
    assert statistics.median(beside) <= 1.2 * statistics.median(elsewhere)
    # The slowest of a few dozen on a busy machine says little; a wait for a lock would be
    # as long as what upkeep does, and so would show in the high quantiles.
    assert _high(beside) <= 1.2 * max(elsewhere)
    for tiny in both:
        found = deeds.restore(tiny)
        assert all(found[name] == content(name) for name in found)
        assert not deeds.check(tiny)
    stored = sum(len(deeds.images(tiny)) for tiny in both)
    assert stored == sum(len(spans) for spans in captures)


def _durations(captures: list[Span], upkeep: list[Span]) -> tuple[list[float], list[float]]:
    """Return how long captures took with upkeep on their repository all the time, and never."""
    beside, elsewhere = [], []
    for begin, end, number in captures:
        there = {n for first, last, n in upkeep if first < end and last > begin}
        if there == {number}:
            beside.append(end - begin)
        elif there and number not in there:
            elsewhere.append(end - begin)
    return beside, elsewhere


def _high(durations: list[float]) -> float:
    return statistics.quantiles(durations, n=20)[-1]
