"""Processes that can be held at a chosen moment of what they do."""

import multiprocessing
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Self

from imager.errors import RemetalError
from imager.repository.backend.directory import DirectoryBackend
from imager.repository.backend.protocol import Buffer
from imager.repository.repository import Repository
from tests.conftest import Tiny

_FORK: Final = multiprocessing.get_context("fork")
_PATIENCE: Final = 120  # seconds until a process that says nothing has failed


@dataclass(frozen=True, slots=True)
class Moment:
    """When a process waits: before the first call of a method for a name of some kind.

    Attributes:
        method: `put_new`, `get` or `delete`.
        prefix: of the name.
        call: how many such calls pass before.
    """

    method: str
    prefix: str
    call: int = 0


class HeldBackend(DirectoryBackend):
    """The directory backend; at a moment it tells the other end of a pipe, and waits."""

    def __init__(self, root: Path, moment: Moment, pipe: Connection) -> None:
        super().__init__(root)
        self._moment = moment
        self._pipe = pipe
        self._calls = 0
        # While one thread is held, the others are as well.
        self._lock = threading.Lock()

    def put_new(self, name: str, parts: Sequence[Buffer], modified: float | None = None) -> bool:
        self._meet("put_new", name)
        return super().put_new(name, parts, modified)

    def get(self, name: str) -> bytes:
        self._meet("get", name)
        return super().get(name)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        self._meet("get_range", name)
        return super().get_range(name, offset, length)

    def delete(self, name: str) -> None:
        self._meet("delete", name)
        super().delete(name)

    def _meet(self, method: str, name: str) -> None:
        if method == self._moment.method and name.startswith(self._moment.prefix):
            with self._lock:
                self._calls += 1
                if self._calls == self._moment.call + 1:
                    self._pipe.send(("waits", name))
                    self._pipe.recv()


@dataclass(frozen=True)
class HeldTiny(Tiny):
    """A repository that is opened on a backend which waits at a moment."""

    moment: Moment
    pipe: Any

    def open(self) -> Repository:
        backend = HeldBackend(self.path, self.moment, self.pipe)
        return replace(super().open(), backend=backend)


class Actor:
    """A forked process; use as a context manager.

    Args:
        work: what it does, given its end of a pipe; its errors are told, not raised.
    """

    def __init__(self, work: Callable[[Connection], object]) -> None:
        self._pipe, theirs = _FORK.Pipe()
        self._process = _FORK.Process(target=_act, args=(work, theirs))
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._pipe.close()

    def wait(self) -> tuple[str, Any]:
        """Return `waits` and a name, `done` and what it returned, or `failed` and an error's name."""
        assert self._pipe.poll(_PATIENCE), "the process says nothing"
        word, what = self._pipe.recv()
        return word, what

    def go_on(self) -> None:
        """Let it go on."""
        self._pipe.send(None)


def _act(work: Callable[[Connection], object], pipe: Connection) -> None:
    try:
        pipe.send(("done", work(pipe)))
    except RemetalError as error:
        pipe.send(("failed", f"{type(error).__name__}: {error.message}"))


@contextmanager
def held(tiny: Tiny, moment: Moment, work: Callable[[Tiny], object]) -> Iterator[Actor]:
    """Start work on a repository and return when it waits at the moment."""
    with Actor(
        lambda pipe: work(HeldTiny(tiny.path, tiny.key, tiny.credential, moment, pipe))
    ) as actor:
        word, what = actor.wait()
        assert word == "waits", (word, what)
        yield actor
