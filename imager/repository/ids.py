"""Arrays of ids and digests (dtype V32): sorted, numbered and looked up many at a time."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from imager.repository.chunk import ID, ID_SIZE

NOWHERE: Final = -1
_TEXT: Final = np.dtype(f"S{ID_SIZE}")

Ids = NDArray[np.void]


def words(ids: Ids) -> NDArray[np.uint64]:
    """Return ids as rows of four big-endian integers."""
    return np.ascontiguousarray(ids).view(">u8").reshape(-1, ID_SIZE // 8)


def heads(ids: Ids) -> NDArray[np.uint64]:
    """Return the first eight bytes of ids as native integers that sort as the bytes do."""
    return words(ids)[:, 0].astype(np.uint64)


def order(ids: Ids, *minor: NDArray[np.uint32]) -> NDArray[np.intp]:
    """Return the order that sorts ids as byte strings, and equal ones by minor keys."""
    first = heads(ids)
    found = np.argsort(first)
    # Hardly any two begin alike; only those are compared in full.
    is_same = first[found[1:]] == first[found[:-1]]
    is_tied = np.zeros(len(ids), dtype=bool)
    is_tied[1:] |= is_same
    is_tied[:-1] |= is_same
    tied = found[is_tied]
    columns: list[NDArray[Any]] = [key[tied] for key in reversed(minor)]
    columns += [words(ids[tied])[:, column].astype(np.uint64) for column in (3, 2, 1, 0)]
    found[is_tied] = tied[np.lexsort(columns)]
    return found


def is_sorted(ids: Ids) -> bool:
    """Whether ids are in the order of byte strings."""
    before, after = words(ids)[:-1], words(ids)[1:]
    differs = (before != after).argmax(axis=1)
    rows = np.arange(len(differs))
    return bool((before[rows, differs] <= after[rows, differs]).all())


def begins(ids: Ids) -> NDArray[np.bool_]:
    """Return which of sorted ids differ from the one before."""
    rows = words(ids)
    fresh = np.ones(len(rows), dtype=bool)
    fresh[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    return fresh


def unique_ids(ids: Ids) -> Ids:
    """Return each id of an array once, sorted."""
    if not len(ids):
        return np.empty(0, dtype=ID)
    ordered = ids[order(ids)]
    return ordered[begins(ordered)]


def distinct(ids: Ids) -> tuple[Ids, NDArray[np.intp]]:
    """Return each id of an array once, sorted, and for each of the array its place among those."""
    # Byte strings compare to their full width, zeros at the end included.
    texts, places = np.unique(_as_text(ids), return_inverse=True)
    return texts.view(ID), places


def find(ids: Ids, ordered: Ids) -> NDArray[np.intp]:
    """Return for each id its place among sorted ids, or NOWHERE."""
    if not len(ordered):
        return np.full(len(ids), NOWHERE, dtype=np.intp)
    wanted, there = _as_text(ids), _as_text(ordered)
    places = np.minimum(np.searchsorted(there, wanted), len(there) - 1)
    return np.where(there[places] == wanted, places, NOWHERE)


def _as_text(ids: Ids) -> NDArray[np.bytes_]:
    return np.ascontiguousarray(ids).view(_TEXT)
