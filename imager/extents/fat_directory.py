"""Directories of a FAT filesystem: the first cluster of everything in them.

The table alone can't tell that the first cluster of a file was lost from it; its directory can.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager.extents.extents import UncertainMapError

_ENTRY: Final = np.dtype(
    {
        "names": ["initial", "name", "attributes", "high", "low"],
        "formats": ["u1", "V11", "u1", "<u2", "<u2"],
        "offsets": [0, 0, 11, 20, 26],
        "itemsize": 32,
    }
)
_DELETED: Final = 0xE5
_LONG_NAME: Final = 0x0F  # attributes of a piece of a long name
_VOLUME_LABEL: Final = 0x08
_DIRECTORY: Final = 0x10
_OWN_NAME: Final = b".          "
_DOT: Final = 0x2E  # "." and "..", which only lead back


def check_directories(
    root: bytes | int,
    entries: NDArray[np.uint32],
    end_of_chain: int,
    read_cluster: Callable[[int], bytes],
) -> int:
    """Follow all directories; every file and directory in them must begin in a used cluster.

    A directory must begin with the entry "." that leads to itself: this also shows that clusters
    lie where they are thought to lie.

    Args:
        root: the bytes of the root directory (FAT12, FAT16) or its first cluster (FAT32).
        entries: the table. Its links lead to used clusters, and no two to the same one.
        end_of_chain: entries from here on end a chain.
        read_cluster: returns the bytes of a cluster by its number.

    Returns:
        How many directories there are below the root.

    Raises:
        UncertainMapError: something does not hold.
    """
    walk = _Walk(entries, end_of_chain, read_cluster, is_32=isinstance(root, int))
    walk.take(walk.chain(root) if isinstance(root, int) else root)
    count = 0
    while walk.waiting:
        first = walk.waiting.pop()
        content = walk.chain(first)
        own = walk.table(content)[:1]
        if own["name"].tobytes() != _OWN_NAME or walk.first_clusters(own)[0] != first:
            raise UncertainMapError("a directory does not begin with itself")
        walk.take(content)
        count += 1
    return count


class _Walk:
    """The way through the directories: what was visited, what waits."""

    def __init__(
        self,
        entries: NDArray[np.uint32],
        end_of_chain: int,
        read_cluster: Callable[[int], bytes],
        *,
        is_32: bool,
    ) -> None:
        self._entries = entries
        self._end_of_chain = end_of_chain
        self._read_cluster = read_cluster
        self._is_32 = is_32
        self._visited: set[int] = set()
        self.waiting: list[int] = []

    def chain(self, first: int) -> bytes:
        """Return the content of the directory whose first cluster this is."""
        parts = []
        cluster = first
        while cluster < self._end_of_chain:
            if cluster in self._visited:
                raise UncertainMapError("a directory is reached on two ways")
            self._visited.add(cluster)
            parts.append(self._read_cluster(cluster))
            cluster = int(self._entries[cluster])
        return b"".join(parts)

    def table(self, content: bytes) -> NDArray[np.void]:
        """Return the entries of a directory, up to the one that ends it."""
        found = np.frombuffer(content, dtype=_ENTRY, count=len(content) // _ENTRY.itemsize)
        ended = np.flatnonzero(found["initial"] == 0)
        return found[: ended[0]] if ended.size else found

    def first_clusters(self, found: NDArray[np.void]) -> NDArray[np.int64]:
        """Return the first cluster of each entry; 0 for an empty file."""
        first = found["low"].astype(np.int64)
        return first | found["high"].astype(np.int64) << 16 if self._is_32 else first

    def take(self, content: bytes) -> None:
        """Check the entries of a directory, and note the directories among them."""
        found = self.table(content)
        attributes = found["attributes"]
        first = self.first_clusters(found)
        kept = (
            (found["initial"] != _DELETED)
            & (found["initial"] != _DOT)
            & (attributes & _LONG_NAME != _LONG_NAME)
            & (attributes & _VOLUME_LABEL == 0)
            & (first != 0)
        )
        occupied = first[kept]
        if np.any((occupied < 2) | (occupied >= self._entries.size)):
            raise UncertainMapError("a directory leads to a cluster that does not exist")
        if np.any(self._entries[occupied] == 0):
            raise UncertainMapError("a directory leads to a cluster that the FAT says is free")
        self.waiting.extend(first[kept & (attributes & _DIRECTORY != 0)].tolist())
