"""Directories of a FAT filesystem: the first cluster of everything in them.

The table alone can't tell that the first cluster of a file was lost from it; its directory can.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager.extents.extents import UncertainMapError

_ENTRY: Final = np.dtype(
    [
        ("name", "S11"),
        ("attributes", "u1"),
        ("reserved", "V8"),
        ("high", "<u2"),
        ("time", "V4"),
        ("low", "<u2"),
        ("size", "<u4"),
    ]
)
_DELETED: Final = 0xE5
_LONG_NAME: Final = 0x0F  # attributes of a piece of a long name
_VOLUME_LABEL: Final = 0x08
_DIRECTORY: Final = 0x10
_DOT: Final = 0x2E  # "." and "..", which only lead back


def check_directories(
    root: bytes | int,
    entries: NDArray[np.uint32],
    end_of_chain: int,
    read_cluster: Callable[[int], bytes],
) -> None:
    """Follow all directories; every file and directory in them must begin in a used cluster.

    Args:
        root: the bytes of the root directory (FAT12, FAT16) or its first cluster (FAT32).
        entries: the table. Its links lead to used clusters, and no two to the same one.
        end_of_chain: entries from here on end a chain.
        read_cluster: returns the bytes of a cluster by its number.

    Raises:
        UncertainMapError: one does not, or the directories make no sense.
    """
    is_32 = isinstance(root, int)
    visited: set[int] = set()
    waiting: list[int] = []

    def chain(first: int) -> bytes:
        parts = []
        cluster = first
        while cluster < end_of_chain:
            if cluster in visited:
                raise UncertainMapError("a directory is reached on two ways")
            visited.add(cluster)
            parts.append(read_cluster(cluster))
            cluster = int(entries[cluster])
        return b"".join(parts)

    def take(content: bytes) -> None:
        found = np.frombuffer(content, dtype=_ENTRY, count=len(content) // _ENTRY.itemsize)
        initial = np.frombuffer(content, dtype=np.uint8)[:: _ENTRY.itemsize][: found.size]
        ended = np.flatnonzero(initial == 0)
        if ended.size:
            found, initial = found[: ended[0]], initial[: ended[0]]
        attributes = found["attributes"]
        kept = (
            (initial != _DELETED)
            & (initial != _DOT)
            & (attributes & _LONG_NAME != _LONG_NAME)
            & (attributes & _VOLUME_LABEL == 0)
        )
        first = found["low"].astype(np.int64)
        if is_32:
            first |= found["high"].astype(np.int64) << 16
        # An empty file has no cluster at all.
        occupied = first[kept & (first != 0)]
        if np.any((occupied < 2) | (occupied >= entries.size)):
            raise UncertainMapError("a directory leads to a cluster that does not exist")
        if np.any(entries[occupied] == 0):
            raise UncertainMapError("a directory leads to a cluster that the FAT says is free")
        waiting.extend(first[kept & (first != 0) & (attributes & _DIRECTORY != 0)].tolist())

    take(chain(root) if isinstance(root, int) else root)
    while waiting:
        take(chain(waiting.pop()))
