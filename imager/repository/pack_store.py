"""Stores packs behind whoever makes them, a few at a time, in bounded memory."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

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
        self._pool = ThreadPoolExecutor(_STORERS, thread_name_prefix="store")
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
        self._underway.append(self._pool.submit(self._store, builder))
        return is_behind

    def drain(self) -> None:
        """Wait until all packs are durable.

        Raises:
            NoRoom, OutputError: as for `add`.
        """
        while self._underway:
            self._take()

    def close(self) -> None:
        """Let go of what waits; what is underway ends first."""
        self._pool.shutdown(cancel_futures=True)

    def _take(self) -> None:
        self._stored(self._underway.popleft().result())

    def _store(self, builder: PackBuilder) -> FinishedPack:
        with self._stages.within("pack", builder.size):
            pack = builder.finish()
        with self._stages.within("store", pack.size):
            self._backend.put_new(pack.name, pack.parts)
        # What was sent is not needed any more, and may wait here for others before it.
        pack.parts.clear()
        return pack
