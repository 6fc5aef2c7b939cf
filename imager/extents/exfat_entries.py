"""Directory entries of exFAT: what in a directory owns clusters."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager.extents.extents import UncertainMapError

_ENTRY: Final = np.dtype(
    {
        "names": ["type", "flags", "checksum", "attributes", "valid", "first", "size"],
        "formats": ["u1", "u1", "<u2", "<u2", "<u8", "<u4", "<u8"],
        "offsets": [0, 1, 2, 4, 8, 20, 24],
        "itemsize": 32,
    }
)
_IN_USE: Final = 0x80
_SECONDARY: Final = 0x40
_BITMAP, _UPCASE, _LABEL, _FILE, _GUID = 0x81, 0x82, 0x83, 0x85, 0xA0
_STREAM, _NAME, _VENDOR, _VENDOR_ALLOCATION = 0xC0, 0xC1, 0xE0, 0xE1
_PRIMARY: Final = (_BITMAP, _UPCASE, _LABEL, _FILE, _GUID)
_KNOWN: Final = (*_PRIMARY, _STREAM, _NAME, _VENDOR, _VENDOR_ALLOCATION)
_DIRECTORY: Final = 0x10
_MAY_OWN: Final = 0x1
_CONTIGUOUS: Final = 0x2
_FEWEST_SECONDARY: Final = 2


class Kind(StrEnum):
    """What owns clusters."""

    BITMAP = "bitmap"
    UPCASE = "upcase table"
    DIRECTORY = "directory"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class Allocation:
    """Clusters that something in a directory owns.

    Attributes:
        kind: what it is.
        first: its first cluster, 0 for none.
        size: bytes; None when only the chain tells.
        is_chain: the FAT tells what follows; else all clusters follow each other.
    """

    kind: Kind
    first: int
    size: int | None
    is_chain: bool


def parse_directory(content: bytes) -> Iterator[Allocation]:
    """Yield what the entries of a directory own.

    Raises:
        UncertainMapError: an entry is of an unknown kind, out of place, or has a wrong checksum.
    """
    entries = np.frombuffer(content, dtype=_ENTRY)
    ended = np.flatnonzero(entries["type"] == 0)
    entries = entries[: ended[0]] if ended.size else entries
    live = np.flatnonzero(entries["type"] & _IN_USE)
    kinds = entries["type"][live]
    if not np.isin(kinds, _KNOWN).all():
        raise UncertainMapError("a directory holds an entry of an unknown kind")
    if np.any((kinds == _BITMAP) & (entries["flags"][live] & 1 != 0)):
        raise UncertainMapError("it has a second allocation bitmap (TexFAT)")
    places = live[kinds == _FILE]
    _check_sets(entries, places)
    _check_order(entries, places)
    for place in live[(kinds == _BITMAP) | (kinds == _UPCASE)]:
        entry = entries[place]
        kind = Kind.BITMAP if entry["type"] == _BITMAP else Kind.UPCASE
        yield Allocation(kind, int(entry["first"]), int(entry["size"]), is_chain=True)
    owner = places[np.searchsorted(places, live, side="right") - 1] if places.size else live
    owns = np.flatnonzero((kinds == _STREAM) | (kinds == _VENDOR_ALLOCATION))
    attributes = entries["attributes"][owner[owns]]
    streams = entries[live[owns]]
    is_folder = (attributes & _DIRECTORY != 0) & (streams["type"] == _STREAM)
    if np.any((streams["flags"] & _MAY_OWN == 0) & (streams["first"] != 0)):
        raise UncertainMapError("a file owns clusters and says that it has none")
    may_own = streams["flags"] & _MAY_OWN != 0
    rows = zip(
        is_folder[may_own].tolist(),
        streams["first"][may_own].tolist(),
        streams["size"][may_own].tolist(),
        (streams["flags"][may_own] & _CONTIGUOUS == 0).tolist(),
        strict=True,
    )
    for folder, first, size, is_chain in rows:
        yield Allocation(Kind.DIRECTORY if folder else Kind.FILE, first, size, is_chain)


def _check_order(entries: NDArray[np.void], places: NDArray[np.intp]) -> None:
    """Each file has its secondary entries right behind it, the first of them a stream."""
    counts = entries["flags"][places].astype(np.int64)
    belongs = np.zeros(entries.size + 1, dtype=np.int64)
    np.add.at(belongs, places + 1, 1)
    np.add.at(belongs, places + 1 + counts, -1)
    inside = np.cumsum(belongs)[:-1]
    is_secondary = (entries["type"] & (_IN_USE | _SECONDARY)) == (_IN_USE | _SECONDARY)
    if (
        not np.array_equal(is_secondary, inside == 1)
        or np.any(inside > 1)
        or np.any(entries["type"][places + 1] != _STREAM)
        or np.count_nonzero(entries["type"] == _STREAM) != places.size
    ):
        raise UncertainMapError("the entries of a directory are out of order")


def _check_sets(entries: NDArray[np.void], places: NDArray[np.intp]) -> None:
    """Compare the checksum of each file's set of entries."""
    counts = entries["flags"][places].astype(np.int64)
    if np.any(counts < _FEWEST_SECONDARY) or np.any(places + counts >= entries.size):
        raise UncertainMapError("the entries of a directory are out of order")
    flat = entries.view(np.uint8)
    size = _ENTRY.itemsize
    total = np.zeros(places.size, dtype=np.uint16)
    longest = int(counts.max(initial=-1)) + 1
    for index in range(longest * size):
        if index in {2, 3}:  # the checksum itself
            continue
        going = np.flatnonzero(index < (counts + 1) * size)
        turned = total[going] >> 1 | total[going] << 15
        total[going] = turned + flat[places[going] * size + index]
    if np.any(total != entries["checksum"][places]):
        raise UncertainMapError("a directory entry has a wrong checksum")
