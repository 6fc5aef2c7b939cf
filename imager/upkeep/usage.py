"""Which blobs of which packs are needed by images, and which copy of each is the kept one.

Memory: a byte for each row of the index and some tens for each pack, whatever images there are;
what they need is gathered in a scratch file and compared with the index part by part.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager.errors import OBJECT_FAULTS, ObjectDamaged
from imager.repository.header import PackKind
from imager.repository.ids import Ids, begins, heads
from imager.repository.image import PREFIX, SealedImage, VolumeSummary
from imager.repository.index import Index
from imager.repository.keyring import GroupKeys
from imager.repository.pack import Entries
from imager.repository.repository import Problem, Repository
from imager.repository.retrieval import MapReader
from imager.repository.scratch import Parted
from imager.repository.volume_map import MOST_LEVEL, are_chunks, decode_node

# First eight bytes of ids, so that their first byte decides the part.
_HEAD: Final = np.dtype(">u8")
# Parts by the first byte of the keeper's digest go up with its number.
_GIVEN_UP: Final = np.dtype(
    [("part", "u1"), ("keeper", "<u4"), ("pack", "<u4"), ("kind", "u1"), ("id", "V32")]
)
_NEEDED: Final = {PackKind.DATA: 1, PackKind.MAPS: 2}
_KEPT: Final = {PackKind.DATA: 4, PackKind.MAPS: 8}
_ANY_KEPT: Final = 12


@dataclass(frozen=True, slots=True)
class GivenUp:
    """Needed blobs whose kept copies lie in one pack, and other copies in packs that may go.

    Attributes:
        keeper: number of the pack that keeps them.
        kind: as what they are needed.
        packs: for each, the number of the pack that holds another copy.
        ids: of each.
    """

    keeper: int
    kind: PackKind
    packs: NDArray[np.uint32]
    ids: Ids


@dataclass(frozen=True, slots=True)
class Usage:
    """How the packs of an index are used by a set of images.

    Attributes:
        live: per pack of the index, bytes of blobs that images need and whose kept copy is there.
        dead: per pack, bytes of all its other blobs.
        kept: per pack, how many blobs are kept there.
        suspect: names of packs of maps that are damaged, where another copy served.
        problems: images whose maps can't be read; what they need is not counted, so nothing may
            be removed while there is one.
    """

    live: NDArray[np.uint64]
    dead: NDArray[np.uint64]
    kept: NDArray[np.int64]
    suspect: frozenset[str]
    problems: tuple[Problem, ...]
    _index: Index
    _marks: NDArray[np.uint8]

    def are_kept(self, pack: int, ids: Ids) -> NDArray[np.bool_]:
        """Return which of some ids (dtype V32) are kept in a pack."""
        named = np.zeros(len(ids), dtype=bool)
        for part in self._index.rows_of(ids):
            is_kept = self._marks[part.numbers] & _ANY_KEPT != 0
            named[part.owners[is_kept & (part.rows["pack"] == pack)]] = True
        return named

    def given_up(self, packs: Sequence[int]) -> Iterator[GivenUp]:
        """Yield what is needed, lies in these packs, and is kept elsewhere, keeper by keeper."""
        copies = Parted(_GIVEN_UP)
        going = np.zeros(len(self.live), dtype=bool)
        going[list(packs)] = True
        start = 0
        for rows in self._index.windows() if packs else ():
            marks = self._marks[start : start + len(rows)]
            start += len(rows)
            numbers = np.cumsum(begins(rows["id"])) - 1
            for kind in PackKind:
                is_kept = marks & _KEPT[kind] != 0
                lost = (marks & _NEEDED[kind] != 0) & ~is_kept & going[rows["pack"]]
                if lost.any():
                    keeper = np.zeros(int(numbers[-1]) + 1, dtype=np.uint32)
                    keeper[numbers[is_kept]] = rows["pack"][is_kept]
                    copies.add(self._copies(kind, rows[lost], keeper[numbers[lost]]))
        for _, part in copies.parts():
            ordered = part[np.lexsort((part["kind"], part["keeper"]))]
            keys = ordered["keeper"].astype(np.uint64) << 8 | ordered["kind"]
            for group in np.split(ordered, np.flatnonzero(keys[1:] != keys[:-1]) + 1):
                if len(group):
                    kind = PackKind(int(group["kind"][0]))
                    yield GivenUp(int(group["keeper"][0]), kind, group["pack"], group["id"])

    def _copies(
        self, kind: PackKind, rows: Entries, keepers: NDArray[np.uint32]
    ) -> NDArray[np.void]:
        found = np.empty(len(rows), dtype=_GIVEN_UP)
        found["part"] = self._index.digests[keepers].view(np.uint8).reshape(-1, 32)[:, 0]
        found["keeper"], found["pack"], found["kind"] = keepers, rows["pack"], kind
        found["id"] = rows["id"]
        return found


def measure(
    repository: Repository,
    keys: GroupKeys,
    index: Index,
    images: Sequence[SealedImage],
    rank: NDArray[np.int64],
) -> Usage:
    """Measure how packs are used.

    Exactly one copy of each id that an image needs is kept: the one in the pack of the highest
    rank. Two runs that see the same packs and give them the same order keep the same copies.

    Args:
        repository: where the maps lie.
        keys: of the group.
        index: of the repository.
        images: that must stay restorable.
        rank: per pack of the index; no two alike.

    Raises:
        OutputError: there is no room for a scratch file.
    """
    problems: list[Problem] = []
    suspect: set[str] = set()
    reader = MapReader(repository, keys, index, lambda problem: suspect.add(problem.name))
    walk = _Walk(reader)
    for image in images:
        for volume in image.summary.volumes:
            try:
                walk.volume(volume)
            except OBJECT_FAULTS as error:
                problems.append(Problem(PREFIX + image.id, error))
    needs = {PackKind.DATA: _Needs(walk.chunks), PackKind.MAPS: _Needs(walk.nodes())}
    count = len(index.digests)
    marks = np.zeros(len(index), dtype=np.uint8)
    live, dead = np.zeros(count, dtype=np.uint64), np.zeros(count, dtype=np.uint64)
    kept = np.zeros(count, dtype=np.int64)
    start = 0
    for rows in index.windows():
        own = marks[start : start + len(rows)]
        start += len(rows)
        beginnings, numbers = heads(rows["id"]), np.cumsum(begins(rows["id"]), dtype=np.int64)
        for kind in PackKind:
            at = np.flatnonzero(index.of_kind[kind][rows["pack"]] & needs[kind].among(beginnings))
            own[at] |= _NEEDED[kind]
            own[at[_best(numbers[at], rank[rows["pack"][at]])]] |= _KEPT[kind]
        stays = own & _ANY_KEPT != 0
        lengths = rows["length"].astype(np.uint64)
        np.add.at(live, rows["pack"][stays], lengths[stays])
        np.add.at(kept, rows["pack"][stays], 1)
        np.add.at(dead, rows["pack"][~stays], lengths[~stays])
    return Usage(live, dead, kept, frozenset(suspect), tuple(problems), index, marks)


def _best(numbers: NDArray[np.int64], ranks: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return of each run of equal numbers the place of the first highest rank."""
    if not len(numbers):
        return np.empty(0, dtype=np.intp)
    fresh = np.ones(len(numbers), dtype=bool)
    fresh[1:] = numbers[1:] != numbers[:-1]
    starts = np.flatnonzero(fresh)
    best = np.maximum.reduceat(ranks, starts)
    runs = np.cumsum(fresh) - 1
    places = np.flatnonzero(ranks == best[runs])
    return places[np.unique(runs[places], return_index=True)[1]]


class _Walk:
    """Gathers what maps name; what they share is read once.

    Attributes:
        chunks: first eight bytes of the ids of chunks, some more than once.
    """

    def __init__(self, reader: MapReader) -> None:
        self._reader = reader
        self._seen: set[bytes] = set()
        self.chunks = Parted(_HEAD)

    def volume(self, volume: VolumeSummary) -> None:
        """Gather what a volume needs.

        Raises:
            ObjectMissing: a node is nowhere.
            ObjectDamaged: one is damaged.
        """
        root = volume.map_root
        if not 0 <= root.level <= MOST_LEVEL:
            raise ObjectDamaged(f"the map of {volume.id} has impossible depth {root.level}")
        self._node(root.id, root.level, volume.length, volume.id)

    def nodes(self) -> Parted:
        """Return the first eight bytes of the ids of all nodes."""
        found = Parted(_HEAD)
        found.add(np.frombuffer(b"".join(key[:8] for key in self._seen), dtype=_HEAD))
        return found

    def _node(self, identity: bytes, level: int, length: int, what: str) -> None:
        key = identity + bytes([level]) + length.to_bytes(8, "little")
        if key in self._seen:
            return
        runs = decode_node(self._reader.load(identity), level, length, what)
        if level:
            for child_length, child in zip(runs["length"].tolist(), runs["id"], strict=True):
                self._node(child.tobytes(), level - 1, child_length, what)
        else:
            self.chunks.add(heads(runs["id"][are_chunks(runs)]).astype(_HEAD))
        # Only now: another image that needs what could not be read must hear of it, too.
        self._seen.add(key)


class _Needs:
    """Which ids are needed, asked in ascending order.

    Only the first eight bytes are compared: an id may be taken for needed that is not, never the
    other way round.
    """

    def __init__(self, needed: Parted) -> None:
        self._parts = needed.parts()
        self._first, self._heads = 0, np.empty(0, dtype=np.uint64)
        self._next = next(self._parts, None)

    def among(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return which of some ids, given by their first eight bytes in order, are needed."""
        if len(keys):
            self._forward(int(keys[0]), int(keys[-1]))
        if not len(self._heads):
            return np.zeros(len(keys), dtype=bool)
        places = np.minimum(np.searchsorted(self._heads, keys), len(self._heads) - 1)
        found: NDArray[np.bool_] = self._heads[places] == keys
        return found

    def _forward(self, low: int, high: int) -> None:
        self._heads = self._heads[np.searchsorted(self._heads, np.uint64(low)) :]
        while self._next is not None and self._next[0] << 56 <= high:
            fresh = np.unique(self._next[1].astype(np.uint64))
            self._heads = np.concatenate([self._heads, fresh])
            self._next = next(self._parts, None)
