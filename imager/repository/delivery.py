"""Delivery: many chunks out of their packs, in threads, as fast as they come.

Packs are fetched in spans, several at once, and opened in the order in which they arrive, so that
a slow one holds up no other. A thread that opens puts chunks side by side into a buffer that it
uses again and again, and hands that on: put into fresh memory, they cost up to half as much again.

Memory is bounded by `_AHEAD` for spans that are fetched or wait to be opened, and five MiB for each
thread that opens. The name of a pack, its SHA-256, is not checked here: what is delivered was
authenticated and has its id, and what else lies in the pack matters to `check`, not here.
"""

import itertools
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from imager.errors import OBJECT_FAULTS, ObjectDamaged, ObjectMissing, RemetalError
from imager.repository.backend.protocol import Backend
from imager.repository.chunk import CODEC_SHIFT, MOST_PLAIN, PLAIN_MASK
from imager.repository.header import HEADER_SIZE, Header, Magic, PackKind
from imager.repository.ids import Ids
from imager.repository.index import Index
from imager.repository.pack import Entries
from imager.repository.repository import Problem
from imager.stages import Lane, Stages
from imager.thread_buffers import ThreadBuffers
from imager.units import KIB, MIB

_AHEAD: Final = 96 * MIB
_SPAN: Final = 8 * MIB  # fetched at once
# A request costs about what so many bytes cost; where less lies between two blobs, it comes along.
_GAP: Final = 256 * KIB
_BATCH: Final = 4 * MIB  # of plaintext; less would be written in short runs
_FETCHERS: Final = 8
_LOCAL_FETCHERS: Final = 3  # more would only make a disk seek
_MOST_OPENERS: Final = 8
_MOST_ENVELOPE: Final = MIB

FETCH: Final = "fetch"
OPEN: Final = "open"


class Opens(Protocol):
    """What opens the blobs of a session; it is made where the keys are, and only given to this."""

    def open(
        self, identity: bytes, plain_length: int, codec: int, blob: bytes | memoryview
    ) -> bytes:
        """Return a plaintext, checked against its id."""

    def open_into(
        self, identity: bytes, codec: int, blob: bytes | memoryview, plain: memoryview
    ) -> None:
        """Put a plaintext, checked against its id, into a buffer of its size."""


MakeOpener = Callable[[Header, bytes, str], Opens]
Report = Callable[[int], None]
Take = Callable[[Sequence[int], Sequence[memoryview], Report], None]
"""Takes chunks: their places among the ids that were asked for, their plaintexts, and what it must
call, often, with the bytes it has moved. Called from several threads. The plaintexts are gone when it
returns."""
Warn = Callable[[Problem], None]

# What opens the blobs of a span, and its bytes; or why there are none.
_Blobs = tuple[Opens, memoryview] | RemetalError


def opening_threads() -> int:
    """Return how many threads open chunks at once: while one waits for what takes them, another works."""
    return min(len(os.sched_getaffinity(0)) + 1, _MOST_OPENERS)


def fetching_threads(backend: Backend) -> int:
    """Return how many requests are made at once."""
    return _LOCAL_FETCHERS if backend.folders else _FETCHERS


def lanes(backend: Backend, taking: Sequence[str]) -> tuple[Lane, Lane]:
    """Return the lanes of a delivery.

    Args:
        backend: where the packs lie.
        taking: names of the stages that chunks go through where they are taken.
    """
    return (
        Lane("fetch", fetching_threads(backend), (FETCH,)),
        Lane("open and take", opening_threads(), (OPEN, *taking)),
    )


@dataclass(frozen=True, slots=True)
class _Span:
    """Bytes of one pack that are fetched at once.

    Attributes:
        name: of the pack.
        start: first byte in the pack.
        size: bytes.
        rows: what is wanted from them, in their order, dtype `index.ENTRY`.
        numbers: for each row, which of the ids it is.
    """

    name: str
    start: int
    size: int
    rows: Entries
    numbers: NDArray[np.intp]


class _Stopped(Exception):
    """The delivery has ended early."""


@dataclass(slots=True)
class _Run:
    """What the threads of one delivery share.

    Attributes:
        ids: that were asked for.
        take: takes what was opened.
        stages: counts.
        events: bytes moved, spans that are done, errors that end all.
        stopped: set when it ends early.
    """

    ids: Ids
    take: Take
    stages: Stages
    events: "queue.SimpleQueue[int | _Span | BaseException]"
    stopped: threading.Event

    def report(self, size: int) -> None:
        """Tell how many bytes were moved; ends the thread if its work is not wanted any more."""
        if self.stopped.is_set():
            raise _Stopped
        self.events.put(size)


class Delivery:
    """Delivers chunks of one repository; safe from any thread.

    Args:
        backend: where the packs lie.
        repository: its id.
        index: says where chunks lie.
        make_opener: makes what opens the blobs of a session, from a header, its envelope and the
            pack's name.
        warn: told, once for each pack, of damage that did not keep chunks from being delivered.
    """

    def __init__(
        self,
        backend: Backend,
        repository: bytes,
        index: Index,
        make_opener: MakeOpener,
        warn: Warn,
    ) -> None:
        self._backend = backend
        self._repository = repository
        self._index = index
        self._make_opener = make_opener
        self._warn = warn
        self._openers: dict[bytes, Opens] = {}
        self._warned: set[str] = set()
        self._whole: tuple[str, memoryview] = "", memoryview(b"")
        self._lock = threading.Lock()
        self._buffers = ThreadBuffers(_BATCH)

    def deliver(self, ids: Ids, take: Take, done: Report, stages: Stages) -> None:
        """Hand every chunk to `take`, once; when this ends, also by an error, no thread runs on.

        Args:
            ids: of the chunks (dtype V32), each once, best in the order in which they are used.
            take: takes them, in threads; whatever it raises ends the delivery.
            done: called in this thread with the bytes that `take` reports.
            stages: counts, and has the lanes that `lanes` returns.

        Raises:
            ObjectMissing: a chunk is nowhere.
            ObjectDamaged: a chunk is damaged and there is no intact copy.
        """
        waiting = deque(self._spans(ids))
        run = _Run(ids, take, stages, queue.SimpleQueue(), threading.Event())
        room, running = _AHEAD, 0
        with (
            ThreadPoolExecutor(opening_threads(), "open") as openers,
            ThreadPoolExecutor(fetching_threads(self._backend), "fetch") as fetchers,
        ):
            try:
                while waiting or running:
                    while waiting and (waiting[0].size <= room or not running):
                        span = waiting.popleft()
                        room, running = room - span.size, running + 1
                        fetchers.submit(self._fetch, span, run, openers)
                    event = run.events.get()
                    if isinstance(event, int):
                        done(event)
                    elif isinstance(event, _Span):
                        room, running = room + event.size, running - 1
                    else:
                        raise event
            finally:
                run.stopped.set()
                fetchers.shutdown(cancel_futures=True)
                openers.shutdown(cancel_futures=True)

    def _spans(self, ids: Ids) -> Iterator[_Span]:
        """Yield what must be fetched, in the order in which the ids came, and of packs."""
        numbers, rows = self._chosen(ids)
        earliest = np.full(len(self._index.digests), len(ids))
        np.minimum.at(earliest, rows["pack"], numbers)
        order = np.lexsort((rows["offset"], earliest[rows["pack"]]))
        numbers, rows = numbers[order], rows[order]
        packs, starts = rows["pack"], rows["offset"].astype(np.int64)
        ends = starts + rows["length"]
        is_apart = (packs[1:] != packs[:-1]) | (starts[1:] - ends[:-1] > _GAP)
        breaks = np.flatnonzero(is_apart) + 1
        for first, stop in itertools.pairwise([0, *breaks.tolist(), len(rows)]):
            position = first
            while position < stop:
                # The header lies at the front and is needed as well.
                start = int(starts[position])
                start = 0 if start <= _GAP else start
                fitting = int(np.searchsorted(ends[position:stop], start + _SPAN, side="right"))
                after = position + max(fitting, 1)
                yield _Span(
                    self._index.name(int(packs[position])),
                    start,
                    int(ends[position:after].max()) - start,
                    rows[position:after],
                    numbers[position:after],
                )
                position = after

    def _chosen(self, ids: Ids) -> tuple[NDArray[np.intp], Entries]:
        """Return one copy of each id, from few packs: which id, and its row."""
        found = []
        for part in self._index.rows_of(ids):
            right = self._index.of_kind[PackKind.DATA][part.rows["pack"]]
            # What an index claims beyond what any blob may have is a lie.
            right &= part.rows["plain"] & PLAIN_MASK <= MOST_PLAIN
            right &= part.rows["length"] <= 2 * MOST_PLAIN
            found.append((part.owners[right], part.rows[right]))
        is_absent = np.ones(len(ids), dtype=bool)
        for owners, _ in found:
            is_absent[owners] = False
        for row in ids[is_absent][:1]:
            raise ObjectMissing(f"chunk {row.tobytes().hex()[:16]} is nowhere")
        owners = np.concatenate([owners for owners, _ in found])
        rows = np.concatenate([rows for _, rows in found])
        holdings = np.bincount(rows["pack"], minlength=len(self._index.digests))
        order = np.lexsort((rows["pack"], -holdings[rows["pack"]], owners))
        owners = owners[order]
        is_first = np.ones(len(owners), dtype=bool)
        is_first[1:] = owners[1:] != owners[:-1]
        return owners[is_first], rows[order[is_first]]

    def _fetch(self, span: _Span, run: _Run, openers: ThreadPoolExecutor) -> None:
        """Fetch a span, then let it be opened; for a thread."""
        try:
            with run.stages.within(FETCH, span.size):
                blobs = self._blobs(span)
            if not run.stopped.is_set():
                openers.submit(self._open, span, blobs, run)
        except BaseException as error:  # noqa: BLE001  the thread that waits raises it
            run.events.put(error)

    def _blobs(self, span: _Span) -> _Blobs:
        try:
            return self._intact_blobs(span)
        except OBJECT_FAULTS as error:
            return error

    def _intact_blobs(self, span: _Span) -> tuple[Opens, memoryview]:
        data = memoryview(self._backend.get_range(span.name, span.start, span.size))
        if span.start == 0:
            return self._opener(span.name, lambda offset, size: data[offset : offset + size]), data

        def read(offset: int, size: int) -> bytes:
            return self._backend.get_range(span.name, offset, size)

        return self._opener(span.name, read), data

    def _opener(self, name: str, read: Callable[[int, int], bytes | memoryview]) -> Opens:
        """Return what opens the blobs of a pack, of which some bytes can be read."""
        raw = bytes(read(0, HEADER_SIZE))
        header = Header.decode(raw, Magic.PACK, self._repository, name)
        opener = self._openers.get(header.session)
        if opener is None:
            if header.envelope_length > _MOST_ENVELOPE:
                raise ObjectDamaged(f"{name} has an impossible envelope")
            envelope = bytes(read(HEADER_SIZE, header.envelope_length))
            opener = self._openers[header.session] = self._make_opener(header, envelope, name)
        return opener

    def _open(self, span: _Span, blobs: _Blobs, run: _Run) -> None:
        """Open what is wanted from a span, and hand it on; for a thread."""
        try:
            numbers = span.numbers.tolist()
            wanted = _wanted(span, run.ids)
            for first, stop in _batches([each.plain for each in wanted]):
                batch = wanted[first:stop]
                with run.stages.within(OPEN, sum(each.plain for each in batch)):
                    opened = self._opened(span.name, blobs, batch)
                run.take(numbers[first:stop], opened, run.report)
        except _Stopped:
            return
        except BaseException as error:  # noqa: BLE001  the thread that waits raises it
            run.events.put(error)
        else:
            run.events.put(span)

    def _opened(
        self,
        name: str,
        blobs: _Blobs,
        batch: Sequence["_Blob"],
    ) -> list[memoryview]:
        """Return plaintexts, in this thread's own buffer, which is written over the next time."""
        buffer, position = self._buffers.of(_BATCH), 0
        opened = []
        for blob in batch:
            view = buffer[position : position + blob.plain]
            position += blob.plain
            try:
                if isinstance(blobs, RemetalError):
                    raise blobs
                opener, data = blobs
                sealed = data[blob.offset : blob.offset + blob.length]
                opener.open_into(blob.identity, blob.codec, sealed, view)
            except OBJECT_FAULTS as error:
                view = self._from_elsewhere(blob.identity, name, error)
            opened.append(view)
        return opened

    def _from_elsewhere(self, identity: bytes, name: str, first: RemetalError) -> memoryview:
        """Return a chunk that did not come well from a pack: once more from there, or from others.

        A pack that is asked for whole comes, in a mirror, from the first site that has it intact.

        Raises:
            RemetalError: no place has it; what went wrong the first time.
        """
        places = self._index.locations_in(identity, PackKind.DATA)
        for place in sorted(places, key=lambda place: self._index.pack_name(place) != name):
            try:
                opener, data = self._whole_pack(self._index.pack_name(place))
                sealed = data[place.offset : place.offset + place.length]
                plain = memoryview(opener.open(identity, place.plain, place.codec, sealed))
            except OBJECT_FAULTS:
                continue
            with self._lock:
                is_news = name not in self._warned
                self._warned.add(name)
            if is_news:
                self._warn(Problem(name, first))
            return plain
        raise first

    def _whole_pack(self, name: str) -> tuple[Opens, memoryview]:
        """Return a pack; of a damaged one usually many chunks are wanted one after the other."""
        with self._lock:
            known, data = self._whole
            if known != name:
                data = memoryview(self._backend.get(name))
                self._whole = name, data
        return self._opener(name, lambda offset, size: data[offset : offset + size]), data


@dataclass(frozen=True, slots=True)
class _Blob:
    """A blob in the bytes of a span.

    Attributes:
        identity: its id.
        offset: from the start of the span.
        length: bytes.
        plain: bytes of its plaintext.
        codec: of its body.
    """

    identity: bytes
    offset: int
    length: int
    plain: int
    codec: int


def _wanted(span: _Span, ids: Ids) -> list[_Blob]:
    packed = span.rows["plain"]
    names = ids[span.numbers].tobytes()
    return [
        _Blob(names[32 * number : 32 * number + 32], *fields)
        for number, fields in enumerate(
            zip(
                (span.rows["offset"] - np.uint32(span.start)).tolist(),
                span.rows["length"].tolist(),
                (packed & PLAIN_MASK).tolist(),
                (packed >> CODEC_SHIFT).tolist(),
                strict=True,
            )
        )
    ]


def _batches(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield ranges of chunks that fit into one buffer."""
    first, filled = 0, 0
    for number, size in enumerate(sizes):
        if filled + size > _BATCH:
            yield first, number
            first, filled = number, 0
        filled += size
    if first < len(sizes):
        yield first, len(sizes)
