"""Volume maps: which chunk lies where, as a tree of shared nodes (FORMAT.md section 6)."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from imager.errors import ObjectDamaged
from imager.repository.chunk import FREE, ID, ZERO
from imager.repository.ids import unique_ids

RUN: Final = np.dtype([("length", "<u8"), ("id", ID)])
NODE_MAGIC: Final = b"RMAP"
NODE_HEADER_SIZE: Final = 8
LEAST_RUNS: Final = 256
MOST_RUNS: Final = 4096
_CUT_MODULUS: Final = 1024
MOST_LEVEL: Final = 8

Runs = NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Root:
    """The top of a map.

    Attributes:
        id: map id of the root node.
        level: its level; 0 when the root is the only node.
    """

    id: bytes
    level: int


def runs(pairs: list[tuple[int, bytes]]) -> Runs:
    """Return an array of dtype `RUN` from lengths and ids."""
    return np.array(pairs, dtype=RUN)


def are(ids: NDArray[np.void], identity: bytes) -> NDArray[np.bool_]:
    """Return which of the ids (dtype V32) equal one."""
    words = np.ascontiguousarray(ids).view("<u8").reshape(-1, 4)
    wanted = np.frombuffer(identity, dtype="<u8")
    equal: NDArray[np.bool_] = (words == wanted).all(axis=1)
    return equal


def are_chunks(volume_map: Runs) -> NDArray[np.bool_]:
    """Return which runs of a map are chunks, neither zero nor free."""
    ids = volume_map["id"]
    return ~(are(ids, ZERO) | are(ids, FREE))


def chunk_ids(volume_map: Runs) -> NDArray[np.void]:
    """Return the ids of the chunks of a map (dtype V32), each once, sorted."""
    return unique_ids(volume_map["id"][are_chunks(volume_map)])


def side_by_side(offsets: NDArray[Any], ends: NDArray[Any], most: int) -> Iterator[tuple[int, int]]:
    """Yield first and last (exclusive) of runs that lie side by side, of at most so many bytes.

    A longer one comes alone.

    Args:
        offsets: where runs begin, ascending; shape (n,), int64 or uint64, below 2^63.
        ends: first byte behind each; shape (n,).
        most: bytes.
    """
    starts, stops = offsets.astype(np.int64), ends.astype(np.int64)
    breaks = np.flatnonzero(starts[1:] != stops[:-1]) + 1
    for position, end in itertools.pairwise([0, *breaks.tolist(), len(starts)]):
        while position < end:
            limit = starts[position] + most
            fitting = int(np.searchsorted(stops[position:end], limit, side="right"))
            following = position + max(fitting, 1)
            yield position, following
            position = following  # noqa: PLW2901


class TreeWriter:
    """Stores a map as a tree of nodes while its runs come; holds some thousand runs.

    Args:
        store: takes a node's bytes, stores them unless they are there, returns their map id.
    """

    def __init__(self, store: Callable[[bytes], bytes]) -> None:
        self._store = store
        self._levels: list[_Level] = [_Level()]

    def add(self, volume_map: Runs) -> None:
        """Take the next runs (dtype `RUN`)."""
        self._add(0, volume_map)

    def finish(self) -> Root:
        """Store what is left, and return the root; at least one run must have come."""
        level = 0
        while True:
            current = self._levels[level]
            if len(rest := current.rest()):
                self._write(level, [rest])
            if current.nodes == 1:
                return Root(current.last, level)
            level += 1

    def _add(self, level: int, more: Runs) -> None:
        if level == len(self._levels):
            self._levels.append(_Level())
        self._write(level, self._levels[level].take(more))

    def _write(self, level: int, pieces: list[Runs]) -> None:
        current = self._levels[level]
        nodes = []
        for piece in pieces:
            node = NODE_MAGIC + bytes([level, 0, 0, 0]) + piece.tobytes()
            current.last = self._store(node)
            current.nodes += 1
            nodes.append((int(piece["length"].sum()), current.last))
        if nodes:
            self._add(level + 1, runs(nodes))


class _Level:
    """Runs of one level of a tree that are in no node yet.

    Attributes:
        nodes: how many were made.
        last: map id of the last of them.
    """

    def __init__(self) -> None:
        self.nodes = 0
        self.last = b""
        self._pending: list[Runs] = []
        self._count = 0

    def take(self, more: Runs) -> list[Runs]:
        """Return the nodes whose end is decided now."""
        self._pending.append(more)
        self._count += len(more)
        if self._count <= LEAST_RUNS:
            return []
        pieces = _split(self.rest())
        # Where the last one ends may be decided by what comes.
        self._pending = [pieces.pop()]
        self._count = len(self._pending[0])
        return pieces

    def rest(self) -> Runs:
        """Return the runs that are in no node."""
        return np.concatenate([np.empty(0, dtype=RUN), *self._pending], dtype=RUN)


def _split(current: Runs) -> list[Runs]:
    heads = np.ascontiguousarray(current["id"]).view("<u2").reshape(-1, 16)[:, 0]
    ends = np.flatnonzero(heads % _CUT_MODULUS == 0) + 1
    pieces = []
    start = 0
    while start < len(current):
        position = int(np.searchsorted(ends, start + LEAST_RUNS))
        end = int(ends[position]) if position < len(ends) else len(current)
        end = min(end, start + MOST_RUNS, len(current))
        pieces.append(current[start:end])
        start = end
    return pieces


def read_tree(root: Root, length: int, load: Callable[[bytes], bytes], what: str) -> Runs:
    """Return the map below a root, all of it in memory; see `read_parts`."""
    return np.concatenate(list(read_parts(root, length, load, what)))


def read_parts(
    root: Root, length: int, load: Callable[[bytes], bytes], what: str
) -> Iterator[Runs]:
    """Yield the map below a root in parts of at most `MOST_RUNS` runs, in the order of the volume.

    Args:
        root: from an image's summary.
        length: bytes of the volume; the map must cover exactly that.
        load: returns a node's bytes, verified, from its map id.
        what: the volume's name, for errors.

    Raises:
        ObjectDamaged: a node is malformed or the map does not cover the volume.
    """
    for _, part in read_parts_from(0, root, length, load, what):
        yield part


def read_parts_from(
    start: int, root: Root, length: int, load: Callable[[bytes], bytes], what: str
) -> Iterator[tuple[int, Runs]]:
    """Yield the parts of a map from that on which covers a byte, each with its place in the volume.

    What lies before is not loaded. See `read_parts` for the rest.

    Args:
        start: bytes from the start of the volume.
        root: as for `read_parts`, and so is the rest.
        length: of the volume.
        load: of a node.
        what: the volume's name.

    Raises:
        ObjectDamaged: as `read_parts`.
    """
    if not 0 <= root.level <= MOST_LEVEL:
        raise ObjectDamaged(f"the map of {what} has impossible depth {root.level}")
    return _read_node(root.id, root.level, range(length), start, load, what)


def _read_node(
    identity: bytes,
    level: int,
    covered: range,
    start: int,
    load: Callable[[bytes], bytes],
    what: str,
) -> Iterator[tuple[int, Runs]]:
    found = decode_node(load(identity), level, len(covered), what)
    if level == 0:
        yield covered.start, found
        return
    position = covered.start
    for child_length, child in zip(found["length"], found["id"], strict=True):
        below = range(position, position + int(child_length))
        position = below.stop
        if position > start:
            yield from _read_node(child.tobytes(), level - 1, below, start, load, what)


def decode_node(node: bytes, level: int, length: int, what: str) -> Runs:
    """Return the runs of a node (dtype `RUN`): at level 0 of the volume, else its children.

    Args:
        node: its bytes, verified.
        level: that it must have.
        length: bytes that its runs must cover.
        what: the volume's name, for errors.

    Raises:
        ObjectDamaged: it is malformed or covers something else.
    """
    body = len(node) - NODE_HEADER_SIZE
    if (
        node[:NODE_HEADER_SIZE] != NODE_MAGIC + bytes([level, 0, 0, 0])
        or body % RUN.itemsize
        or not 1 <= body // RUN.itemsize <= MOST_RUNS
    ):
        raise ObjectDamaged(f"a node in the map of {what} is malformed")
    found = np.frombuffer(node, dtype=RUN, offset=NODE_HEADER_SIZE)
    lengths = found["length"]
    # A sum of 64-bit lengths could overflow; halves of them can't.
    covered = (int((lengths >> 32).sum()) << 32) + int((lengths & 0xFFFFFFFF).sum())
    if not lengths.all() or covered != length:
        raise ObjectDamaged(f"the map of {what} does not cover it")
    return found
