"""Random reads of a saved volume: any of its bytes, out of the image's chunks, when asked for.

Reading on in one direction fetches ahead, so that a slow repository is asked seldom; reads here and
there fetch little more than they need. Memory is bounded by `_CACHED` and `_AHEAD` for chunks and
some MiB of the map, whatever the size of the volume.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from imager.errors import ObjectDamaged, ObjectMissing
from imager.repository.volume_map import are_chunks
from imager.units import KIB, MIB
from restore.runs import Image

_CACHED: Final = 64 * MIB  # plaintext of chunks
_AHEAD: Final = 8 * MIB
_LEAST_AHEAD: Final = 256 * KIB
_PARTS: Final = 32  # of the map, of some thousand runs each


@dataclass(frozen=True, slots=True)
class _Piece:
    """A run of the map that is a chunk; `offset` is where it begins in the volume, both in bytes."""

    offset: int
    length: int
    identity: bytes


@dataclass(frozen=True, slots=True)
class _Part:
    """Runs of a map that lie side by side; all numbers are bytes of the volume.

    Attributes:
        start: first byte of the first.
        end: first byte behind the last.
        ends: first byte behind each run; shape (n,).
        chunks: places of those runs that are chunks; shape (m,).
        runs: dtype `RUN`; shape (n,).
    """

    start: int
    end: int
    ends: NDArray[np.int64]
    chunks: NDArray[np.intp]
    runs: NDArray[np.void]

    @classmethod
    def of(cls, start: int, runs: NDArray[np.void]) -> Self:
        """Take a part of a map as it is read."""
        ends = start + np.cumsum(runs["length"].astype(np.int64))
        return cls(start, int(ends[-1]), ends, np.flatnonzero(are_chunks(runs)), runs)

    def pieces(self, start: int, stop: int) -> Iterator[_Piece]:
        """Yield the chunks that have bytes between two places, in order."""
        first = int(np.searchsorted(self.ends, start, side="right"))
        for number in self.chunks[np.searchsorted(self.chunks, first) :].tolist():
            length = int(self.runs["length"][number])
            offset = int(self.ends[number]) - length
            if offset >= stop:
                return
            yield _Piece(offset, length, self.runs["id"][number].tobytes())


class SavedVolume:
    """A volume of an image as bytes at any place; free space reads as zeros. Safe from any thread.

    Args:
        image: the opened image.
        volume_id: of one of its volumes.

    Raises:
        ObjectMissing: the image has no such volume.
    """

    def __init__(self, image: Image, volume_id: str) -> None:
        sizes = {volume.id: volume.length for _, volume in image.machine.volumes()}
        if volume_id not in sizes:
            raise ObjectMissing(f"the image has no volume {volume_id}")
        self.size: int = sizes[volume_id]
        self._id = volume_id
        self._image = image
        self._parts: OrderedDict[int, _Part] = OrderedDict()
        self._map_lock = threading.Lock()
        self._chunks: OrderedDict[bytes, bytes] = OrderedDict()
        self._cached = 0
        self._cache_lock = threading.Lock()
        # Fetching is for one thread at a time: the others most often want what it brings.
        self._fetch_lock = threading.Lock()
        self._ahead = _LEAST_AHEAD
        self._fetched = range(0)

    def read(self, offset: int, length: int) -> bytearray:
        """Return bytes of the volume, every chunk checked against its id.

        Args:
            offset: bytes from the start of the volume.
            length: bytes; the range must lie in the volume.

        Raises:
            ObjectMissing, ObjectDamaged: the repository can't give what the image names.
            LinkError: it can't be reached.
        """
        if not 0 <= offset <= offset + length <= self.size:
            raise ValueError(f"no bytes {offset} to {offset + length} in {self._id}")
        found = bytearray(length)
        pieces = list(self._pieces(offset, offset + length))
        chunks = self._known(pieces)
        if len(chunks) < len({piece.identity for piece in pieces}):
            with self._fetch_lock:
                chunks |= self._known(pieces)
                if len(chunks) < len({piece.identity for piece in pieces}):
                    chunks |= self._fetch(offset, offset + length)
        for piece in pieces:
            plain = chunks[piece.identity]
            if len(plain) != piece.length:
                raise ObjectDamaged(
                    f"a chunk of {self._id} has {len(plain)} bytes where the image says "
                    f"{piece.length}"
                )
            start = max(offset - piece.offset, 0)
            stop = min(offset + length - piece.offset, piece.length)
            at = piece.offset + start - offset
            found[at : at + stop - start] = memoryview(plain)[start:stop]
        return found

    def _pieces(self, start: int, stop: int) -> Iterator[_Piece]:
        position = start
        while position < stop:
            part = self._part(position)
            yield from part.pieces(position, stop)
            position = part.end

    def _part(self, position: int) -> _Part:
        """Return the part of the map that covers a byte; those used last are kept."""
        with self._map_lock:
            for part in self._parts.values():
                if part.start <= position < part.end:
                    self._parts.move_to_end(part.start)
                    return part
            for start, runs in self._image.map_from(self._id, position):
                part = self._parts[start] = _Part.of(start, runs)
                if len(self._parts) > _PARTS:
                    self._parts.popitem(last=False)
                return part
        raise ObjectDamaged(f"the map of {self._id} does not cover byte {position}")

    def _known(self, pieces: Sequence[_Piece]) -> dict[bytes, bytes]:
        """Return those of the chunks that are cached."""
        found = {}
        with self._cache_lock:
            for piece in pieces:
                plain = self._chunks.get(piece.identity)
                if plain is not None:
                    self._chunks.move_to_end(piece.identity)
                    found[piece.identity] = plain
        return found

    def _fetch(self, start: int, stop: int) -> dict[bytes, bytes]:
        """Fetch what is not cached of a range, and ahead of it when reads go on from the last one."""
        is_onward = self._fetched.start <= start <= self._fetched.stop
        self._ahead = min(2 * self._ahead, _AHEAD) if is_onward else _LEAST_AHEAD
        until = min(stop + self._ahead, self.size)
        self._fetched = range(start, until)
        wanted = list(self._pieces(start, until))
        known = self._known(wanted)
        missing = list(dict.fromkeys(p.identity for p in wanted if p.identity not in known))
        brought = dict(self._image.chunks(missing))
        with self._cache_lock:
            for identity, plain in brought.items():
                self._cached += len(plain) - len(self._chunks.pop(identity, b""))
                self._chunks[identity] = plain
            while self._cached > _CACHED:
                self._cached -= len(self._chunks.popitem(last=False)[1])
        return known | brought
