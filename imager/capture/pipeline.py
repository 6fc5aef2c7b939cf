"""From the extents of a volume to its map: read, cut, hash, look up, compress, seal, pack, store.

A worker takes a part of an extent and does all with it up to sealing, so that what it reads stays
in the caches of its processor until it is hashed; native code that releases the GIL does the work.
Only where cuts are is decided in turns, in the order of the disk. One more thread takes what is
done, in order, so that the map needs no sorting and is written while the volume is read; others
store packs (`pack_store`).

Every queue is bounded. In memory are a part for each worker, what at most `_MOST_PARTS` parts are
sealed to, and the packs that `pack_store` allows: below 512 MiB with any number of workers.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from imager.blockdev import DirectDisk
from imager.capture.base import Known, divide
from imager.capture.chunker import MOST_UNDECIDED, Piece, PieceKind
from imager.capture.reader import ExtentReader, Part, Reader
from imager.extents.extents import Extents
from imager.layout.disk import Volume
from imager.repository import pack_store
from imager.repository.chunk import FREE, ID, ZERO, Codec
from imager.repository.ids import words
from imager.repository.session import Session
from imager.repository.volume_map import (
    RUN,
    Root,
    Runs,
    TreeWriter,
    are,
    are_chunks,
    runs,
    side_by_side,
)
from imager.stages import Lane, Stages
from imager.thread_buffers import ThreadBuffers
from imager.units import MIB

# So many parts for each worker, that none waits while what is done before is taken.
_PARTS: Final = 2
_MOST_PARTS: Final = 12
# Each costs some hundred microseconds of Python, which should be lost in what native code takes;
# many workers would need too much memory for such large ones.
_PART: Final = 16 * MIB
_SMALL_PART: Final = 8 * MIB
_FEW_WORKERS: Final = 4
_SEGMENT: Final = MIB  # of what is known, read at once

Advance = Callable[[int], None]


def stages_of(workers: int) -> Stages:
    """Return what counts the time of a capture.

    Args:
        workers: threads that read, cut, hash, compress and seal.
    """
    work = ("read", "cut", "hash", "look up", "compress", "seal")
    return Stages((Lane("work", workers, work), pack_store.LANE))


@dataclass(frozen=True, slots=True)
class _Blob:
    """A new chunk, sealed."""

    identity: bytes
    blob: bytearray
    length: int
    codec: Codec


@dataclass(frozen=True, slots=True)
class _Done:
    """A part that was worked on.

    Attributes:
        offset: where the first of its runs begins, in the volume.
        runs: of its pieces, and of what is free between them.
        blobs: what of it is new.
    """

    offset: int
    runs: Runs
    blobs: list[_Blob]


class Pipeline:
    """Turns volumes into maps, adding what is new to a session; use as a context manager.

    Args:
        session: takes chunks and maps.
        workers: threads that read, cut, hash, compress and seal.
        stages: counts what all of it takes.
    """

    def __init__(self, session: Session, workers: int, stages: Stages | None = None) -> None:
        self._session = session
        self._stages = stages or stages_of(workers)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="work")
        self._part = _PART if workers <= _FEW_WORKERS else _SMALL_PART
        self._buffers = ThreadBuffers(MOST_UNDECIDED + self._part)
        self._most_parts = min(_PARTS * workers + 2, _MOST_PARTS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add_volume(
        self,
        descriptor: int,
        volume: Volume,
        extents: Extents,
        advance: Advance,
        base: Iterable[Runs] = (),
        direct: DirectDisk | None = None,
    ) -> tuple[Root, int]:
        """Read a volume's extents, store what is new, and the map; for one thread.

        Args:
            descriptor: of the disk, open for reading.
            volume: which part of it.
            extents: what of the volume is to be read.
            advance: told of every byte read.
            base: its map in an image before; see `base.divide`.
            direct: the disk, for reading past the page cache, if it can be.

        Returns:
            The root of the map, and how many bytes of the volume are chunks.

        Raises:
            SourceError: the disk can't be read.
            NoRoom: the repository is full.
        """
        line = RunLine(self._session.new_map())
        queue: deque[tuple[int, Future[_Done]]] = deque()
        reader = Reader(descriptor, volume.offset, self._part, direct)
        for size, work in self._work(reader, extents, base):
            queue.append((size, self._pool.submit(work)))
            if len(queue) >= self._most_parts:
                self._take(*queue.popleft(), line, advance)
        while queue:
            self._take(*queue.popleft(), line, advance)
        return line.finish(volume.length), line.used

    def _work(
        self, reader: Reader, extents: Extents, base: Iterable[Runs]
    ) -> Iterator[tuple[int, Callable[[], _Done]]]:
        """Yield what threads shall do, and about how many bytes."""
        for stretch in divide(extents.ranges, base, self._session.holders, self._part):
            if isinstance(stretch, Known):
                yield stretch.size, partial(self._compare, reader, stretch)
                continue
            extent = ExtentReader(reader, self._session.cut_key, self._stages)
            for number, part in enumerate(reader.parts(stretch.offset, stretch.length)):
                yield part.length, partial(self._process, extent, number, part)

    def _compare(self, reader: Reader, known: Known) -> _Done:
        """Read runs of the base; what is another one now is cut."""
        is_same = self._are_there(reader, known)
        self._session.rely_on(known.packs[is_same])
        offsets, ends = known.offsets.tolist(), known.ends.tolist()
        is_break = (known.offsets[1:] != known.ends[:-1]) | (is_same[1:] != is_same[:-1])
        breaks = (np.flatnonzero(is_break) + 1).tolist()
        position, found, blobs = offsets[0], [], list[_Blob]()
        for start, stop in zip([0, *breaks], [*breaks, len(offsets)], strict=True):
            offset, end = offsets[start], ends[stop - 1]
            if offset > position:
                found.append(runs([(offset - position, FREE)]))
            if is_same[start]:
                found.append(known.runs[start:stop])
            else:
                extent = ExtentReader(reader, self._session.cut_key, self._stages)
                cut = self._process(extent, 0, Part(offset, end - offset, False, True))
                found.append(cut.runs)
                blobs += cut.blobs
            position = end
        return _Done(offsets[0], np.concatenate(found), blobs)

    def _are_there(self, reader: Reader, known: Known) -> NDArray[np.bool_]:
        """Return which runs of the base are what they were; hashed while in the processor's cache."""
        buffer = self._buffers.of(_SEGMENT)
        identities: list[bytes] = []
        lengths = known.runs["length"].tolist()
        is_zero = are(known.runs["id"], ZERO).tolist()
        for start, stop in side_by_side(known.offsets, known.ends, _SEGMENT):
            views, position = [], 0
            for length in lengths[start:stop]:
                views.append(buffer[position : position + length])
                position += length
            with self._stages.within("read", position):
                reader.read(int(known.offsets[start]), buffer[:position])
            with self._stages.within("hash", position):
                for view, must_be_zero in zip(views, is_zero[start:stop], strict=True):
                    if must_be_zero and not np.frombuffer(view, np.uint8).max():
                        identities.append(ZERO)
                    else:
                        identities.append(self._session.identify(view))
        same: NDArray[np.bool_] = (
            words(np.frombuffer(b"".join(identities), ID)) == words(known.runs["id"])
        ).all(axis=1)
        return same

    def _process(self, extent: ExtentReader, number: int, part: Part) -> _Done:
        buffer = self._buffers.of(MOST_UNDECIDED + self._part)
        offset, data, pieces = extent.cut(number, part, buffer)
        chunks = [data[piece.start : piece.end] for piece in pieces if piece.kind is PieceKind.DATA]
        with self._stages.within("hash", sum(map(len, chunks))):
            identities = [self._session.identify(chunk) for chunk in chunks]
        with self._stages.within("look up"):
            claimed = self._session.claim(identities)
        new = [*itertools.compress(zip(identities, chunks, strict=True), claimed)]
        return _Done(
            offset,
            _runs_of(pieces, identities),
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

    def _take(self, size: int, future: Future[_Done], line: "RunLine", advance: Advance) -> None:
        done = future.result()
        for new in done.blobs:
            self._session.add(new.identity, new.blob, new.length, new.codec)
        line.fill_free(done.offset)
        line.extend(done.runs)
        advance(size)


def _runs_of(pieces: Sequence[Piece], identities: Sequence[bytes]) -> Runs:
    """Return the runs of pieces, given the ids of those that are chunks."""
    found = np.empty(len(pieces), dtype=RUN)
    found["length"] = [piece.end - piece.start for piece in pieces]
    is_chunk = np.fromiter((piece.kind is PieceKind.DATA for piece in pieces), np.bool_)
    found["id"][~is_chunk] = np.frombuffer(ZERO, ID)
    found["id"][is_chunk] = np.frombuffer(b"".join(identities), ID)
    return found


def _joined(some: Runs) -> Runs:
    """Return runs with neighbours joined that are both zero, or both free."""
    is_first = np.ones(len(some), np.bool_)
    is_first[1:] = are_chunks(some[1:]) | (some["id"][1:] != some["id"][:-1])
    if is_first.all():
        return some
    firsts = np.flatnonzero(is_first)
    found = some[firsts]
    found["length"] = np.add.reduceat(some["length"], firsts)
    return found


class RunLine:
    """A map in the making: runs in order, neighbours of the same kind joined.

    Args:
        tree: takes the runs.
    """

    def __init__(self, tree: TreeWriter) -> None:
        self._tree = tree
        self._end = 0
        self._open = runs([])
        self.used = 0

    def extend(self, more: Runs) -> None:
        """Take the next runs: chunks, zeros or free."""
        if not len(more):
            return
        lengths, is_chunk = more["length"], are_chunks(more)
        self._end += int(lengths.sum())
        self.used += int(lengths[is_chunk].sum())
        more = _joined(np.concatenate((self._open, more)))
        keep = len(more) - (not is_chunk[-1])
        self._open = more[keep:]
        if keep:
            self._tree.add(more[:keep])

    def fill_free(self, offset: int) -> None:
        """Say that nothing matters up to an offset in the volume."""
        if offset > self._end:
            self.extend(runs([(offset - self._end, FREE)]))

    def finish(self, length: int) -> Root:
        """Return the root of the map of a volume of so many bytes."""
        self.fill_free(length)
        if len(self._open):
            self._tree.add(self._open)
        return self._tree.finish()
