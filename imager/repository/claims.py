"""Which ids a session has claimed: many, in little memory."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Final

import numpy as np

from imager.repository.chunk import ID
from imager.repository.ids import order
from imager.repository.scratch import Rows, scratch_file
from imager.repository.sorted_rows import SortedRows, merged_parts

# A set costs about 100 bytes for each.
_MOST_IN_MEMORY: Final = 1 << 18
_ROW: Final = np.dtype([("id", ID)])


class Claims:
    """A set of ids that only grows; for one thread.

    The newest are in memory. From a quarter of a million on they go into scratch files, sorted; two
    files of about the same size become one, so that few are asked.
    """

    def __init__(self) -> None:
        self._recent: set[bytes] = set()
        self._files: list[SortedRows] = []

    def claim(self, identities: Sequence[bytes]) -> list[bool]:
        """Return which ids were not claimed before, each once, and claim them.

        Raises:
            OutputError: there is no room for a scratch file.
        """
        spilled = self._spilled(identities)
        claimed = []
        for identity in identities:
            is_new = identity not in self._recent and identity not in spilled
            if is_new:
                self._recent.add(identity)
            claimed.append(is_new)
        if len(self._recent) >= _MOST_IN_MEMORY:
            self._spill()
        return claimed

    def _spilled(self, identities: Sequence[bytes]) -> set[bytes]:
        if not self._files or not identities:
            return set()
        ids = np.frombuffer(b"".join(identities), dtype=ID)
        held = np.zeros(len(ids), dtype=bool)
        for part in chain.from_iterable(file.rows_of(ids) for file in self._files):
            held[part.owners] = True
        return {identity for identity, is_held in zip(identities, held, strict=True) if is_held}

    def _spill(self) -> None:
        fresh = np.frombuffer(b"".join(self._recent), dtype=_ROW)
        joined = [SortedRows((fresh[order(fresh["id"])],), _ROW)]
        while self._files and len(self._files[-1]) < 2 * sum(map(len, joined)):
            joined.append(self._files.pop())
        self._files.append(SortedRows(_merged(joined), _ROW, scratch_file()))
        self._recent.clear()


def _merged(files: Iterable[SortedRows]) -> Iterator[Rows]:
    for rows in merged_parts((file.parts() for file in files), _ROW):
        yield rows[order(rows["id"])]
