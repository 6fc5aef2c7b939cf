"""Stores packs behind whoever makes them, a few at a time, in bounded memory."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Final

from imager.repository.backend.behind import start
from imager.repository.backend.protocol import Backend
from imager.repository.pack import FinishedPack, PackBuilder
from imager.stages import Lane, Stages

# A store far away answers each put late: several are underway, while others are made.
_STORERS: Final = 3
# Packs that are underway or wait, 16 MiB each; an S3 client holds what it sends twice.
_MOST_UNDERWAY: Final = 5
LANE: Final = Lane("store", _STORERS, ("pack", "store"))


class PackStore:
    """Finishes and stores packs in threads of its own; for one thread.

    Args:
        backend: where to.
        stages: counts what it takes.
        stored: told of each pack that is durable, in the order in which they were given.
    """

    def __init__(
        self, backend: Backend, stages: Stages, stored: Callable[[FinishedPack], None]
    ) -> None:
        self._backend = backend
        self._stages = stages
        self._stored = stored
        self._storers = threading.Semaphore(_STORERS)
        self._is_over = threading.Event()
        self._failure: Exception | None = None
        self._underway: deque[Future[FinishedPack]] = deque()

    def add(self, builder: PackBuilder) -> bool:
        """Take a pack; waits while too many are underway.

        Returns:
            Whether it had to wait: the store is slower than whoever makes packs.

        Raises:
            NoRoom, OutputError: the store did not take this one or one before.
        """
        while self._underway and self._underway[0].done():
            self._take()
        is_behind = len(self._underway) >= _MOST_UNDERWAY
        if is_behind:
            self._take()
        self._underway.append(start(lambda: self._store(builder), "store"))
        return is_behind

    def drain(self) -> None:
        """Wait until all packs are durable.

        Raises:
            NoRoom, OutputError: as for `add`.
        """
        while self._underway:
            self._take()

    def close(self) -> None:
        """Let go of what waits, at once; what is underway may end or not, and is whole or not there."""
        self._is_over.set()

    def _take(self) -> None:
        try:
            self._stored(self._underway.popleft().result())
        except CancelledError as error:
            raise self._failure or error from None

    def _store(self, builder: PackBuilder) -> FinishedPack:
        with self._storers:
            # After a failure there is no image, and a store that is gone is waited for once.
            if self._is_over.is_set():
                raise CancelledError
            try:
                with self._stages.within("pack", builder.size):
                    pack = builder.finish()
                with self._stages.within("store", pack.size):
                    self._backend.put_new(pack.name, pack.parts)
            except Exception as error:
                self._failure = self._failure or error
                self._is_over.set()
                raise
        # What was sent is not needed any more, and may wait here for others before it.
        pack.parts.clear()
        return pack
