"""More rows than memory should hold, in a file without a name.

It lies below `$XDG_CACHE_HOME/remetal` (else `~/.cache/remetal`, else where temporary files go),
and nothing of it stays when the process ends.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from imager.errors import OutputError

# 48 MiB of an index; so many rows do not stay in memory.
MANY_ROWS: Final = 1 << 20
_PARTS: Final = 256

Rows = NDArray[Any]


def cache_folder() -> Path:
    """Return the folder for what can be lost at any time; it is made if need be.

    Raises:
        OSError: it can't be made.
        RuntimeError: nobody knows the home of this user.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "remetal"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    return home


def replace_file(path: Path, data: bytes) -> None:
    """Put a small file, readable by its owner only, in place of what was there: whole, or not at all.

    Raises:
        OSError: it can't be written.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        fresh = Path(file.name)
        try:
            file.write(data)
            file.flush()
            fresh.replace(path)
        except BaseException:
            fresh.unlink()
            raise


def scratch_file() -> BinaryIO:
    """Return a new file without a name.

    Raises:
        OutputError: there is no place for one.
    """
    try:
        return tempfile.TemporaryFile(dir=cache_folder())
    except (OSError, RuntimeError):
        pass
    try:
        return tempfile.TemporaryFile()
    except OSError as error:
        raise OutputError(f"there is no place for the index of the repository: {error}") from error


def write(file: BinaryIO, rows: Rows) -> None:
    """Append rows to a scratch file; `pread` finds them when this returns.

    Raises:
        OutputError: there is no room for them.
    """
    try:
        file.write(rows.data)
        file.flush()
    except OSError as error:
        raise OutputError(
            f"there is no room for the index of the repository: {error}",
            hint="It goes below $XDG_CACHE_HOME, else ~/.cache; make room there, or set it elsewhere.",
        ) from error


class Parted:
    """Rows of one type, read back in parts by their first byte; for one thread.

    Up to `MANY_ROWS` rows stay in memory and are one part. More lie in a scratch file, and a part
    is then about 1/256 of them, as first bytes of ids are.

    Args:
        dtype: of the rows; their order goes by their first byte.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._pieces: list[Rows] = []
        self._count = 0
        self._file: BinaryIO | None = None
        self._places: list[list[tuple[int, int]]] = [[] for _ in range(_PARTS)]

    @property
    def is_empty(self) -> bool:
        """Whether there are no rows."""
        return self._file is None and not self._count

    @property
    def is_spilled(self) -> bool:
        """Whether rows lie in a file."""
        return self._file is not None

    def add(self, rows: Rows) -> None:
        """Take rows in; they are not copied while they stay in memory.

        Raises:
            OutputError: there is no place for them.
        """
        self._pieces.append(rows)
        self._count += len(rows)
        if self._count >= MANY_ROWS:
            self._spill()

    def parts(self, *, split: bool = False) -> Iterator[tuple[int, Rows]]:
        """Yield the least first byte and the rows of each part, in the order of first bytes.

        Rows of a part are in no order. It can be asked for as often as needed.

        Args:
            split: whether rows in memory come in parts, too.
        """
        if self._file is None:
            if not split:
                yield 0, self._joined()
                return
            rows, counts = self._in_order()
            ends = np.cumsum(counts)
            for first in np.flatnonzero(counts).tolist():
                yield first, rows[ends[first] - counts[first] : ends[first]]
            return
        if self._pieces:
            self._spill()
        for first, places in enumerate(self._places):
            pieces = [
                np.frombuffer(os.pread(self._file.fileno(), length, start), dtype=self._dtype)
                for start, length in places
            ]
            if pieces:
                yield first, np.concatenate(pieces, dtype=self._dtype)

    def _joined(self) -> Rows:
        # Else numpy would turn integers into the byte order of the machine.
        return np.concatenate([np.empty(0, self._dtype), *self._pieces], dtype=self._dtype)

    def _in_order(self) -> tuple[Rows, NDArray[np.intp]]:
        """Return what is in memory by first bytes, and how many rows there are of each."""
        rows = self._joined()
        heads = rows.view(np.uint8).reshape(len(rows), self._dtype.itemsize)[:, 0]
        return rows[np.argsort(heads, kind="stable")], np.bincount(heads, minlength=_PARTS)

    def _spill(self) -> None:
        if self._file is None:
            self._file = scratch_file()
        rows, counts = self._in_order()
        start = self._file.tell()
        for places, count in zip(self._places, counts, strict=True):
            length = int(count) * self._dtype.itemsize
            if length:
                places.append((start, length))
            start += length
        write(self._file, rows)
        self._pieces, self._count = [], 0
