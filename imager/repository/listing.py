"""The packs that a store lists, as arrays: a million of them in 50 MB."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from imager.repository.backend.protocol import Backend
from imager.repository.chunk import ID
from imager.repository.ids import NOWHERE, Ids, distinct, find
from imager.repository.names import digest_of
from imager.repository.pack import PREFIX


@dataclass(frozen=True, slots=True)
class PackListing:
    """What a store lists of packs; what has no pack's name is left out.

    Attributes:
        digests: from their names (dtype V32), sorted.
        sizes: bytes of each.
        modified: of each, seconds since the epoch by the store's clock.
    """

    digests: Ids
    sizes: NDArray[np.uint64]
    modified: NDArray[np.float64]

    @classmethod
    def read(cls, backend: Backend) -> Self:
        """List the packs of a store."""
        digests, sizes, modified = bytearray(), array("Q"), array("d")
        for entry in backend.list(PREFIX):
            digest = digest_of(entry.name)
            if digest is not None:
                digests += bytes.fromhex(digest)
                sizes.append(entry.size)
                modified.append(entry.modified)
        ordered, places = distinct(np.frombuffer(bytes(digests), dtype=ID))
        back = np.empty(len(ordered), dtype=np.intp)
        back[places] = np.arange(len(places))
        return cls(
            ordered,
            np.frombuffer(sizes, dtype=np.uint64)[back],
            np.frombuffer(modified, dtype=np.float64)[back],
        )

    def of(self, digests: Ids) -> Self:
        """Return what is listed of some packs, in their order; of what is not there, zeros."""
        places = find(digests, self.digests)
        if not len(self.digests):
            empty = np.zeros(len(digests))
            return type(self)(digests, empty.astype(np.uint64), empty)
        is_there = places != NOWHERE
        return type(self)(
            digests, np.where(is_there, self.sizes[places], 0), self.modified[places] * is_there
        )

    def has(self, digests: Ids) -> NDArray[np.bool_]:
        """Return which packs are listed."""
        found: NDArray[np.bool_] = find(digests, self.digests) != NOWHERE
        return found

    def absent(self, names: Iterable[str]) -> set[str]:
        """Return which packs, given by name, are not listed."""
        asked = list(names)
        digests = b"".join(bytes.fromhex(name[-2 * ID.itemsize :]) for name in asked)
        there = self.has(np.frombuffer(digests, dtype=ID))
        return {name for name, is_there in zip(asked, there, strict=True) if not is_there}
