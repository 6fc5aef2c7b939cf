"""Which chunks the maps of images name, looked up in batches; each shared node is read once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager.errors import OBJECT_FAULTS, ObjectDamaged, RemetalError
from imager.repository.ids import heads
from imager.repository.image import VolumeSummary
from imager.repository.index import Index
from imager.repository.volume_map import MOST_LEVEL, Runs, are_chunks, chunk_ids, decode_node

_NOTHING: Final[frozenset[str]] = frozenset()

Ids = frozenset[bytes] | None


@dataclass(frozen=True, slots=True)
class Copies:
    """Where a watched blob lies.

    Attributes:
        packs: watched packs that hold a copy.
        alone: the same, if all its copies lie in packs of the same class; else nothing.
    """

    packs: frozenset[str]
    alone: frozenset[str]


class Watched:
    """The blobs of some packs, to be recognised in maps.

    Args:
        index: of the repository.
        classes: sets of packs; of each the blobs that count, or None for all.
    """

    def __init__(self, index: Index, *classes: Mapping[str, Ids]) -> None:
        self._copies: dict[bytes, Copies] = {}
        for packs in classes:
            for identity, names in _blobs_of(index, packs).items():
                everywhere = {index.pack_name(place) for place in index.locations(identity)}
                held = self._copies.get(identity, Copies(_NOTHING, _NOTHING))
                alone = frozenset(names) if everywhere <= names else _NOTHING
                self._copies[identity] = Copies(held.packs | names, held.alone | alone)
        self._keys = np.sort(heads(np.array(list(self._copies), dtype="V32")))

    def of(self, identity: bytes) -> Copies | None:
        """Return where a blob lies; None if no watched pack holds it."""
        return self._copies.get(identity)

    def among(self, ids: NDArray[np.void]) -> list[Copies]:
        """Return where the watched ones of many blobs (dtype V32) lie."""
        if not len(self._keys):
            return []
        keys = heads(ids)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        hits = ids[self._keys[places] == keys]
        return [copies for row in hits if (copies := self.of(row.tobytes())) is not None]


def _blobs_of(index: Index, packs: Mapping[str, Ids]) -> dict[bytes, set[str]]:
    """Return every blob of these packs with the packs that hold it, a part of the index at a time."""
    named = index.are(packs)
    names = {pack: index.name(pack) for pack in np.flatnonzero(named).tolist()}
    found: dict[bytes, set[str]] = {}
    for rows in index.windows() if names else ():
        for row in rows[named[rows["pack"]]]:
            identity = row["id"].tobytes()
            name = names[int(row["pack"])]
            only = packs[name]
            if only is None or identity in only:
                found.setdefault(identity, set()).add(name)
    return found


@dataclass(frozen=True, slots=True)
class Below:
    """What lies below a node of a map.

    Attributes:
        missing: whether a chunk is in no pack.
        packs: watched packs that hold something of it.
        alone: those without which it can't be had.
        error: why a node can't be read; None when all can.
    """

    missing: bool
    packs: frozenset[str]
    alone: frozenset[str]
    error: RemetalError | None


class MapWalk:
    """Walks the maps of many images; what they share is looked at once.

    Memory: about 300 bytes for each distinct node, so some 100 MB for 130 million chunks.

    Args:
        load: returns the bytes of a node, verified, from its map id.
        index: of the repository.
        watched: what is to be recognised.
    """

    def __init__(self, load: Callable[[bytes], bytes], index: Index, watched: Watched) -> None:
        self._load = load
        self._index = index
        self._watched = watched
        self._known: dict[tuple[bytes, int, int], Below] = {}

    def volume(self, volume: VolumeSummary) -> Below:
        """Return what lies below the root of a volume's map."""
        root = volume.map_root
        if not 0 <= root.level <= MOST_LEVEL:
            error = ObjectDamaged(f"the map of {volume.id} has impossible depth {root.level}")
            return Below(missing=False, packs=_NOTHING, alone=_NOTHING, error=error)
        return self._node(root.id, root.level, volume.length, volume.id)

    def _node(self, identity: bytes, level: int, length: int, what: str) -> Below:
        key = (identity, level, length)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._read(identity, level, length, what)
        return found

    def _read(self, identity: bytes, level: int, length: int, what: str) -> Below:
        own = self._watched.of(identity)
        packs = set(own.packs) if own else set()
        alone = set(own.alone) if own else set()
        missing = False
        error: RemetalError | None = None
        try:
            runs = decode_node(self._load(identity), level, length, what)
        except OBJECT_FAULTS as problem:
            return Below(
                missing=False, packs=frozenset(packs), alone=frozenset(alone), error=problem
            )
        if level == 0:
            missing = self._look_up(runs, packs, alone)
        else:
            for child_length, child in zip(runs["length"], runs["id"], strict=True):
                below = self._node(child.tobytes(), level - 1, int(child_length), what)
                packs |= below.packs
                alone |= below.alone
                missing |= below.missing
                error = error or below.error
        return Below(missing, frozenset(packs) or _NOTHING, frozenset(alone) or _NOTHING, error)

    def _look_up(self, runs: Runs, packs: set[str], alone: set[str]) -> bool:
        if not are_chunks(runs).any():
            return False
        ids = chunk_ids(runs)
        for copies in self._watched.among(ids):
            packs |= copies.packs
            alone |= copies.alone
        return bool(self._index.absent(ids))
