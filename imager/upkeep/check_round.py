"""Rounds: reading a large repository over many runs, each with a budget of time.

A round goes through the objects in the order of their names, so it covers every object that was there
when it began. Where it stopped is remembered in a local file that can be lost at any time: then a
new round begins, and a file that can't be read is said to be lost. Objects found damaged are looked at again, until they verify or are gone: first of all, in turn,
for a quarter of the budget at most, so that the round goes on however many they are.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from imager.errors import OBJECT_FAULTS, ObjectMissing
from imager.repository.backend.protocol import Backend, Entry
from imager.repository.repository import now
from imager.repository.scratch import replace_file
from imager.upkeep.check_report import Bad, Depth, Progress

# Memory: an object for each reader and one that waits; packs are at most 64 MiB, parity 128 MiB.
_READERS: Final = min(8, len(os.sched_getaffinity(0)))
_IN_FLIGHT: Final = _READERS + 1
# What part of a budget goes to objects that were damaged, as long as others wait.
_AGAIN: Final = 0.25

Advance = Callable[[int], None]
Look = Callable[[str, bytes], Bad | None]


class _Remembered(msgspec.Struct, forbid_unknown_fields=True):
    """Where a round stopped.

    Attributes:
        number: of the round.
        began: RFC 3339 time.
        position: every object up to this name was seen; None when the round is complete.
        damaged: objects that did not verify when they were last read; what was not read for the
            longest time comes first.
    """

    number: int
    began: str
    position: str | None
    damaged: list[str]


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a run may take, and where the round is remembered.

    Attributes:
        seconds: after which no further object is begun; those that are being read are finished.
        memory: the local file.
        clock: monotonic, in seconds.
    """

    seconds: float
    memory: Path
    clock: Callable[[], float] = time.monotonic


@dataclass(slots=True)
class Walked:
    """What one run has seen.

    Attributes:
        bad: what does not verify, by name.
        objects: how many verify.
        read_bytes: how much was read.
        position: the last object that was begun, in the order of names; empty for none.
        is_complete: whether nothing was left.
    """

    bad: dict[str, Bad] = field(default_factory=dict)
    objects: int = 0
    read_bytes: int = 0
    position: str = ""
    is_complete: bool = True

    def add(self, entry: Entry, result: Future[Bad | None]) -> None:
        """Count an object that was looked at; one that vanished is passed over."""
        try:
            bad = result.result()
        except ObjectMissing:
            return
        self.read_bytes += entry.size
        if bad is None:
            self.objects += 1
        else:
            self.bad[entry.name] = bad


def memory_path(repository: bytes) -> Path:
    """Return where the rounds of a repository are remembered."""
    base = os.environ.get("XDG_STATE_HOME")
    state = Path(base) if base else Path.home() / ".local" / "state"
    return state / "remetal" / repository.hex() / "check.json"


def walk(
    backend: Backend,
    entries: Sequence[Entry],
    look: Look,
    advance: Advance,
    is_over: Callable[[], bool] = lambda: False,
) -> Walked:
    """Read objects whole, in parallel, and look at each.

    The first object is read in any case. What vanishes meanwhile is passed over.

    Args:
        backend: where they lie.
        entries: what to read, in this order.
        look: says what is wrong with the bytes of an object; called from several threads.
        advance: told of every byte that was read.
        is_over: whether no further object shall be begun.
    """
    walked = Walked()
    queue: deque[tuple[Entry, Future[Bad | None]]] = deque()

    def verify(entry: Entry) -> Bad | None:
        try:
            data = backend.get(entry.name)
        except ObjectMissing:
            raise
        except OBJECT_FAULTS as error:
            return Bad(entry.name, error.message)
        advance(len(data))
        return look(entry.name, data)

    with ThreadPoolExecutor(_READERS, thread_name_prefix="check") as pool:
        for entry in entries:
            while len(queue) >= _IN_FLIGHT:
                walked.add(*queue.popleft())
            if walked.position and is_over():
                walked.is_complete = False
                break
            walked.position = entry.name
            queue.append((entry, pool.submit(verify, entry)))
        while queue:
            walked.add(*queue.popleft())
    return walked


def walk_round(
    backend: Backend,
    entries: Sequence[Entry],
    look: Look,
    advance: Advance,
    depth: Depth,
    budget: Budget,
) -> tuple[Walked, Progress]:
    """Go on with the round of a depth where the last run stopped, for as long as the budget says.

    Args:
        backend: where the objects lie.
        entries: all of them, sorted by name.
        look: as for `walk`.
        advance: told of every byte that was read.
        depth: what `look` does; each has its own round.
        budget: of time.
    """
    start = budget.clock()

    def is_over(part: float = 1.0) -> bool:
        return budget.clock() - start >= part * budget.seconds

    rounds, is_lost = _recall(budget.memory)
    last = rounds.get(depth.value)
    if last is None:
        current = _Remembered(1, now(), "", [])
    elif last.position is None:
        current = _Remembered(last.number + 1, now(), "", last.damaged)
    else:
        current = last
    position = current.position or ""
    there = {entry.name: entry for entry in entries}
    suspects = [there[name] for name in current.damaged if name in there]
    again = walk(backend, suspects, look, advance, lambda: is_over(_AGAIN))
    waiting = _after(suspects, again.position)
    # A suspect that lies past the position is met again in any case.
    ahead = [e for e in entries if e.name > position and e.name not in set(current.damaged)]
    walked = walk(backend, ahead, look, advance, is_over)
    position = max(position, walked.position)
    pace = walked.read_bytes
    seen = [again, walked]
    if walked.is_complete and waiting and not is_over():
        seen.append(walk(backend, waiting, look, advance, is_over))
        waiting = _after(waiting, seen[-1].position)
    bad = {e.name: Bad(e.name, f"{e.name} was damaged when it was last read") for e in waiting}
    for part in seen:
        bad |= part.bad
    done = sum(entry.size for entry in entries if entry.name <= position)
    total = sum(entry.size for entry in entries)
    current.position = None if walked.is_complete else position
    current.damaged = list(bad)
    rounds[depth.value] = current
    remembered = _remember(budget.memory, rounds)
    left = 0 if walked.is_complete else max(1, -(-(total - done) // max(pace, 1)))
    progress = Progress(current.number, current.began, done, total, left, remembered, is_lost)
    objects = sum(part.objects for part in seen)
    read_bytes = sum(part.read_bytes for part in seen)
    return Walked(bad, objects, read_bytes, position, walked.is_complete), progress


def _after(entries: Sequence[Entry], position: str) -> list[Entry]:
    """Return what comes after the entry of that name, in the order given; all if there is none."""
    names = [entry.name for entry in entries]
    return list(entries[names.index(position) + 1 :] if position in names else entries)


def _recall(path: Path) -> tuple[dict[str, _Remembered], bool]:
    """Return the rounds, by depth, and whether there was something that can't be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, _Remembered]), False
    except FileNotFoundError:
        return {}, False
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError):
        return {}, True


def _remember(path: Path, rounds: dict[str, _Remembered]) -> bool:
    """Replace the file at once; whether that worked."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, msgspec.json.encode(rounds))
    except OSError:
        return False
    return True
