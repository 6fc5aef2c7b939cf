"""Which blobs of which packs are needed by images, and which copy of each is the kept one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imager.errors import RemetalError
from imager.repository.header import PackKind
from imager.repository.image import PREFIX, SealedImage
from imager.repository.index import Index, among, numbered, unique_ids
from imager.repository.keyring import GroupKeys
from imager.repository.pack import Entries
from imager.repository.repository import Problem, Repository
from imager.repository.retrieval import MapReader
from imager.repository.volume_map import chunk_ids


@dataclass(frozen=True, slots=True)
class Usage:
    """How the packs of an index are used by a set of images.

    Attributes:
        live: per pack of the index, bytes of blobs that images need and whose kept copy is there.
        dead: per pack, bytes of all its other blobs.
        suspect: names of packs of maps that are damaged, where another copy served.
        problems: images whose maps can't be read; what they need is not counted, so nothing may
            be removed while there is one.
    """

    live: NDArray[np.uint64]
    dead: NDArray[np.uint64]
    suspect: frozenset[str]
    problems: tuple[Problem, ...]
    _entries: Entries
    _needed: NDArray[np.bool_]
    _kept: NDArray[np.bool_]

    def kept(self, pack: int) -> Entries:
        """Return the blobs of a pack that must stay (dtype `index.ENTRY`), by offset."""
        rows = self._entries[self._kept & (self._entries["pack"] == pack)]
        ordered: Entries = rows[np.argsort(rows["offset"], kind="stable")]
        return ordered

    def given_up(self, packs: Sequence[int]) -> Iterator[tuple[int, bytes, int]]:
        """Yield what is needed, lies in these packs, and is kept elsewhere.

        Yields:
            Number of the pack, id, and number of the pack whose copy is kept.
        """
        numbers = numbered(self._entries)
        keeper = np.zeros(int(numbers[-1]) + 1 if len(numbers) else 0, dtype=np.int64)
        keeper[numbers[self._kept]] = self._entries["pack"][self._kept]
        copies = self._needed & ~self._kept & np.isin(self._entries["pack"], packs)
        for row, number in zip(self._entries[copies], numbers[copies], strict=True):
            yield int(row["pack"]), row["id"].tobytes(), int(keeper[number])


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
    """
    problems: list[Problem] = []
    suspect: set[str] = set()
    reader = MapReader(repository, keys, index, lambda problem: suspect.add(problem.name))
    live = dict(_live_ids(reader, images, problems))
    entries = index.entries
    numbers = numbered(entries)
    kinds = np.array([kind for _, kind in index.packs], dtype=np.uint8)
    needed = np.zeros(len(entries), dtype=bool)
    kept = np.zeros(len(entries), dtype=bool)
    for kind, ids in live.items():
        rows = np.flatnonzero((kinds[entries["pack"]] == kind) & among(entries, ids))
        needed[rows] = True
        rows = rows[np.lexsort((-rank[entries["pack"][rows]], numbers[rows]))]
        first = np.ones(len(rows), dtype=bool)
        first[1:] = numbers[rows][1:] != numbers[rows][:-1]
        kept[rows[first]] = True
    count = len(index.packs)
    weights = entries["length"].astype(np.float64)
    stays = np.bincount(entries["pack"][kept], weights[kept], count)
    all_of_it = np.bincount(entries["pack"], weights, count)
    return Usage(
        stays.astype(np.uint64),
        (all_of_it - stays).astype(np.uint64),
        frozenset(suspect),
        tuple(problems),
        entries,
        needed,
        kept,
    )


def _live_ids(
    reader: MapReader, images: Sequence[SealedImage], problems: list[Problem]
) -> Iterator[tuple[PackKind, NDArray[np.void]]]:
    chunks = [np.empty(0, dtype="V32")]
    for image in images:
        for volume in image.summary.volumes:
            try:
                chunks.append(chunk_ids(reader.read(image.summary, volume.id)))
            except RemetalError as error:
                problems.append(Problem(PREFIX + image.id, error))
    yield PackKind.DATA, unique_ids(np.concatenate(chunks))
    yield PackKind.MAPS, unique_ids(np.array(sorted(reader.nodes), dtype="V32"))
