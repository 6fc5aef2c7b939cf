"""The directories of the packs that a session stored, until their indexes are written."""

import os
from collections.abc import Iterator
from typing import BinaryIO, Final

import numpy as np

from imager.repository.header import PackKind
from imager.repository.pack import ENTRY, Entries
from imager.repository.scratch import scratch_file, write

_MOST_IN_MEMORY: Final = 1 << 18  # rows; 12 MiB


class Directories:
    """Directories in the order in which they came; many lie in a scratch file. For one thread.

    They become indexes at the end only: a pack that an index names and no image needs is one that a
    prune lets go, however young.
    """

    def __init__(self) -> None:
        self._packs: list[tuple[bytes, PackKind, int]] = []
        self._recent: list[Entries] = []
        self._rows = 0
        self._file: BinaryIO | None = None

    def add(self, digest: bytes, kind: PackKind, entries: Entries) -> None:
        """Take a directory (dtype `pack.ENTRY`).

        Raises:
            OutputError: there is no room for a scratch file.
        """
        self._packs.append((digest, kind, len(entries)))
        self._recent.append(entries)
        self._rows += len(entries)
        if self._rows >= _MOST_IN_MEMORY:
            self._file = self._file or scratch_file()
            for rows in self._recent:
                write(self._file, rows)
            self._recent, self._rows = [], 0

    def digests(self) -> Iterator[bytes]:
        """Yield the SHA-256 of each pack."""
        return (digest for digest, _, _ in self._packs)

    def __iter__(self) -> Iterator[tuple[bytes, PackKind, Entries]]:
        """Yield digest, kind and directory of each pack."""
        place = 0
        end = self._file.tell() if self._file is not None else 0
        recent = iter(self._recent)
        for digest, kind, count in self._packs:
            if self._file is not None and place < end:
                size = count * ENTRY.itemsize
                data = os.pread(self._file.fileno(), size, place)
                yield digest, kind, np.frombuffer(data, dtype=ENTRY)
                place += size
            else:
                yield digest, kind, next(recent)
