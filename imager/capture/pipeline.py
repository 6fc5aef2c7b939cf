"""From the extents of a volume to its map: read and cut, identify, compress, seal, store.

One thread reads, cuts and stores; the others hash, compress and seal, in native code that
releases the GIL. Batches are taken back in order, so the map needs no sorting, and at most
`_IN_FLIGHT` of them (4 MiB each, plus what they seal to) are in memory.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Self

import numpy as np

from imager.capture.chunker import PieceKind
from imager.capture.reader import Batch, read_extent
from imager.extents.extents import Extents
from imager.layout.disk import Volume
from imager.repository.chunk import FREE, ZERO, Codec
from imager.repository.session import Session
from imager.repository.volume_map import Runs, runs

_IN_FLIGHT: Final = 12

Advance = Callable[[int], None]
_Sealed = tuple[bytes, int, bytearray | None, Codec]


class Pipeline:
    """Turns volumes into maps, adding what is new to a session; use as a context manager.

    Args:
        session: takes chunks and maps.
        workers: threads that hash, compress and seal.
    """

    def __init__(self, session: Session, workers: int) -> None:
        self._session = session
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="seal")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def volume_map(
        self, descriptor: int, volume: Volume, extents: Extents, advance: Advance
    ) -> tuple[Runs, int]:
        """Read a volume's extents and return its map, and how many of its bytes are chunks.

        Args:
            descriptor: of the disk, open for reading.
            volume: which part of it.
            extents: what of the volume is to be read.
            advance: told of every byte read.

        Raises:
            SourceError: the disk can't be read.
            NoRoom: the repository is full.
        """
        line = _RunLine()
        queue: deque[tuple[Batch, Future[list[_Sealed]]]] = deque()
        for batch in self._read(descriptor, volume, extents):
            queue.append((batch, self._pool.submit(self._process, batch)))
            if len(queue) >= _IN_FLIGHT:
                self._take(queue.popleft(), line, advance)
        while queue:
            self._take(queue.popleft(), line, advance)
        line.fill_free(volume.length)
        return runs(line.pairs), line.used

    def _read(self, descriptor: int, volume: Volume, extents: Extents) -> Iterator[Batch]:
        cut_key = self._session.cut_key
        for offset, length in np.asarray(extents.ranges).tolist():
            yield from read_extent(descriptor, volume.offset, offset, length, cut_key)

    def _process(self, batch: Batch) -> list[_Sealed]:
        session = self._session
        identities = [
            ZERO
            if piece.kind is PieceKind.ZERO
            else session.identify(batch.data[piece.start : piece.end])
            for piece in batch.pieces
        ]
        claims = iter(session.claim([identity for identity in identities if identity != ZERO]))
        sealed: list[_Sealed] = []
        for piece, identity in zip(batch.pieces, identities, strict=True):
            length = piece.end - piece.start
            if identity != ZERO and next(claims):
                blob, codec = session.seal(identity, batch.data[piece.start : piece.end])
                sealed.append((identity, length, blob, codec))
            else:
                sealed.append((identity, length, None, Codec.STORED))
        return sealed

    def _take(
        self, item: tuple[Batch, Future[list[_Sealed]]], line: "_RunLine", advance: Advance
    ) -> None:
        batch, future = item
        line.fill_free(batch.offset)
        for identity, length, blob, codec in future.result():
            if blob is not None:
                self._session.add(identity, blob, length, codec)
            line.append(length, identity)
        advance(len(batch.data))


class _RunLine:
    """A map in the making: runs in order, neighbours of the same kind joined."""

    def __init__(self) -> None:
        self.pairs: list[tuple[int, bytes]] = []
        self.used = 0
        self._end = 0

    def append(self, length: int, identity: bytes) -> None:
        self._end += length
        joinable = identity in {ZERO, FREE}
        self.used += 0 if joinable else length
        if joinable and self.pairs and self.pairs[-1][1] == identity:
            length += self.pairs.pop()[0]
        self.pairs.append((length, identity))

    def fill_free(self, offset: int) -> None:
        if offset > self._end:
            self.append(offset - self._end, FREE)
