"""Work that is done in several processes at a time: drills beside each other.

A lane is a process: a drill starts programs that live no longer than the thread that started them
(see `qemu`), and is stopped by an exception in the main thread. It has processors of its own as long
as there are enough, since virtual machines that take turns on one waste most of it.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, Final, TypeVar

from imager.errors import DrillError, RemetalError

Item = TypeVar("Item")
Answer = TypeVar("Answer")

# The work is closures over what the caller holds; a forked process has all of it.
_PROCESSES: Final = multiprocessing.get_context("fork")


def in_lanes(
    work: Callable[[Item], Answer], items: Sequence[Item], number: int
) -> Iterator[tuple[int, Answer]]:
    """Do some work for each item, in up to so many processes at a time, and yield what is done.

    Items are begun in their order, and yielded as they end. When the iterator is closed, or this
    process ends in whatever way, the lanes are interrupted as by Ctrl-C, and clean up.

    Args:
        work: is called in a process of its own; its answer is pickled.
        items: what it is called with.
        number: of lanes; with one the work is done in this process.

    Yields:
        The position of an item, and the answer for it.

    Raises:
        RemetalError: the work raised it; those that run beside are interrupted.
        DrillError: a lane ended without an answer.
    """
    if number == 1:
        for position, item in enumerate(items):
            yield position, work(item)
        return
    waiting = deque(enumerate(items))
    busy: dict[Connection, int] = {}
    with _lanes(work, min(number, len(items))) as lanes:
        for lane in lanes:
            busy[lane], item = waiting.popleft()
            lane.send(item)
        while busy:
            for lane in [each for each in wait(list(busy)) if isinstance(each, Connection)]:
                position = busy.pop(lane)
                answer = _receive(lane)
                if waiting:
                    busy[lane], item = waiting.popleft()
                    lane.send(item)
                yield position, answer


def _receive(lane: Connection) -> Any:
    try:
        answer, error = lane.recv()
    except EOFError as gone:
        raise DrillError("a process that ran drills ended before its drill did") from gone
    if error is None:
        return answer
    kind, args, fields = error
    raised = kind.__new__(kind, *args)
    raised.__dict__.update(fields)
    raise raised


@contextmanager
def _lanes(work: Callable[[Any], Any], number: int) -> Iterator[list[Connection]]:
    processes = []
    ends: list[Connection] = []
    try:
        for share in _shares(number):
            ours, theirs = _PROCESSES.Pipe()
            process = _PROCESSES.Process(target=_lane, args=(work, theirs, [*ends, ours], share))
            process.start()
            processes.append(process)
            theirs.close()
            ends.append(ours)
        yield ends
    finally:
        for process in processes:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGINT)
        for end in ends:
            end.close()  # a lane that waits for work ends by this
        for process in processes:
            process.join()


def _shares(number: int) -> list[list[int]]:
    """Return the processors of each lane; several lanes share one where there are too few."""
    all_of_them = sorted(os.sched_getaffinity(0))
    return [all_of_them[lane % len(all_of_them) :: number] for lane in range(number)]


def _lane(
    work: Callable[[Any], Any], end: Connection, foreign: Sequence[Connection], share: Sequence[int]
) -> None:
    """Work for one item after the other, until nobody is there any more."""
    os.sched_setaffinity(0, share)
    os.setpgid(0, 0)  # Ctrl-C reaches the parent, which passes it on, once
    # A shell lets what it starts in the background ignore it; a lane is always stopped by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for each in foreign:
        each.close()
    threading.Thread(target=_follow_parent, daemon=True).start()
    try:
        while True:
            item = end.recv()
            try:
                end.send((work(item), None))
            except RemetalError as error:
                # In parts: pickle would call its class with what the message was made of.
                end.send((None, (type(error), error.args, error.__dict__)))
    except (KeyboardInterrupt, EOFError):
        return


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101  a lane has one
    parent.join()
    os.kill(os.getpid(), signal.SIGINT)
