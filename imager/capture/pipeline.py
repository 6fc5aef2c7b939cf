"""From the extents of a volume to its map: read, cut, hash, look up, compress, seal, pack, store.

One thread reads, cuts and arranges; others hash, compress and seal, in native code that releases
the GIL; others again store packs (`pack_store`). Batches are taken back in order, so that the map
needs no sorting and is written while the volume is read.

Every queue is bounded. In memory are at most `_MOST_BATCHES` batches (8 MiB each, and what they are
sealed to), and the packs that `pack_store` allows.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from imager.capture.chunker import PieceKind
from imager.capture.reader import Batch, Buffers, Reader
from imager.extents.extents import Extents
from imager.layout.disk import Volume
from imager.repository import pack_store
from imager.repository.chunk import FREE, ZERO, Codec
from imager.repository.session import Session
from imager.repository.volume_map import Root, TreeWriter, runs
from imager.stages import Lane, Stages

# So many batches for each worker, that none waits while the first thread is busy with one.
_BATCHES: Final = 2
_MOST_BATCHES: Final = 12

Advance = Callable[[int], None]


def stages_of(workers: int) -> Stages:
    """Return what counts the time of a capture.

    Args:
        workers: threads that hash, compress and seal.
    """
    return Stages(
        (
            Lane("read", 1, ("read", "cut")),
            Lane("work", workers, ("hash", "look up", "compress", "seal")),
            pack_store.LANE,
        )
    )


@dataclass(frozen=True, slots=True)
class _Blob:
    """A new chunk, sealed."""

    identity: bytes
    blob: bytearray
    length: int
    codec: Codec


@dataclass(frozen=True, slots=True)
class _Done:
    """A batch that was worked on.

    Attributes:
        runs: length and id of each of its pieces.
        blobs: what of it is new.
    """

    runs: list[tuple[int, bytes]]
    blobs: list[_Blob]


class Pipeline:
    """Turns volumes into maps, adding what is new to a session; use as a context manager.

    Args:
        session: takes chunks and maps.
        workers: threads that hash, compress and seal.
        stages: counts what all of it takes.
    """

    def __init__(self, session: Session, workers: int, stages: Stages | None = None) -> None:
        self._session = session
        self._stages = stages or stages_of(workers)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="work")
        self._buffers = Buffers()
        self._most_batches = min(_BATCHES * workers + 2, _MOST_BATCHES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add_volume(
        self, descriptor: int, volume: Volume, extents: Extents, advance: Advance
    ) -> tuple[Root, int]:
        """Read a volume's extents, store what is new, and the map; for one thread.

        Args:
            descriptor: of the disk, open for reading.
            volume: which part of it.
            extents: what of the volume is to be read.
            advance: told of every byte read.

        Returns:
            The root of the map, and how many bytes of the volume are chunks.

        Raises:
            SourceError: the disk can't be read.
            NoRoom: the repository is full.
        """
        line = _RunLine(self._session.new_map())
        queue: deque[tuple[Batch, Future[_Done]]] = deque()
        reader = Reader(
            descriptor, volume.offset, self._session.cut_key, self._buffers, self._stages
        )
        for offset, length in np.asarray(extents.ranges).tolist():
            for batch in reader.read_extent(offset, length):
                queue.append((batch, self._pool.submit(self._process, batch)))
                if len(queue) >= self._most_batches:
                    self._take(*queue.popleft(), line, advance)
        while queue:
            self._take(*queue.popleft(), line, advance)
        return line.finish(volume.length), line.used

    def _process(self, batch: Batch) -> _Done:
        chunks = [
            batch.buffer[piece.start : piece.end]
            for piece in batch.pieces
            if piece.kind is PieceKind.DATA
        ]
        with self._stages.within("hash", sum(map(len, chunks))):
            identities = [self._session.identify(chunk) for chunk in chunks]
        with self._stages.within("look up"):
            claimed = self._session.claim(identities)
        new = [
            (identity, chunk)
            for identity, chunk, is_new in zip(identities, chunks, claimed, strict=True)
            if is_new
        ]
        in_order = iter(identities)
        return _Done(
            [
                (
                    piece.end - piece.start,
                    next(in_order) if piece.kind is PieceKind.DATA else ZERO,
                )
                for piece in batch.pieces
            ],
            self._seal(new) if new else [],
        )

    def _seal(self, new: Sequence[tuple[bytes, memoryview]]) -> list[_Blob]:
        with self._stages.within("compress", sum(len(chunk) for _, chunk in new)):
            bodies = [self._session.compress(chunk) for _, chunk in new]
        with self._stages.within("seal", sum(len(body) for body, _ in bodies)):
            return [
                _Blob(
                    identity,
                    self._session.seal(identity, len(chunk), body, codec),
                    len(chunk),
                    codec,
                )
                for (identity, chunk), (body, codec) in zip(new, bodies, strict=True)
            ]

    def _take(
        self, batch: Batch, future: Future[_Done], line: "_RunLine", advance: Advance
    ) -> None:
        done = future.result()
        for new in done.blobs:
            self._session.add(new.identity, new.blob, new.length, new.codec)
        line.fill_free(batch.offset)
        line.extend(done.runs)
        advance(batch.size)
        self._buffers.give_back(batch.buffer)


class _RunLine:
    """A map in the making: runs in order, neighbours of the same kind joined.

    Args:
        tree: takes the runs.
    """

    def __init__(self, tree: TreeWriter) -> None:
        self._tree = tree
        self._end = 0
        self._open: tuple[int, bytes] | None = None
        self.used = 0

    def extend(self, pieces: Sequence[tuple[int, bytes]]) -> None:
        """Take the next pieces: chunks, zeros or free."""
        rows = []
        for length, identity in pieces:
            self._end += length
            if identity in {ZERO, FREE}:
                if self._open is not None and self._open[1] == identity:
                    self._open = (self._open[0] + length, identity)
                    continue
                rows += self._closed()
                self._open = (length, identity)
            else:
                rows += self._closed()
                rows.append((length, identity))
                self.used += length
        if rows:
            self._tree.add(runs(rows))

    def fill_free(self, offset: int) -> None:
        """Say that nothing matters up to an offset in the volume."""
        if offset > self._end:
            self.extend([(offset - self._end, FREE)])

    def finish(self, length: int) -> Root:
        """Return the root of the map of a volume of so many bytes."""
        self.fill_free(length)
        if rows := self._closed():
            self._tree.add(runs(rows))
        return self._tree.finish()

    def _closed(self) -> list[tuple[int, bytes]]:
        rows, self._open = [] if self._open is None else [self._open], None
        return rows
