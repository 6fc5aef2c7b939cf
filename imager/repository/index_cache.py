"""What the index objects of a large repository say together, kept on this machine between runs.

It lies below `$XDG_CACHE_HOME/remetal` (else `~/.cache/remetal`) and can be lost or damaged at any
time: its hash is checked each time, and then it is made again. Index objects never change, so it
stays right while all it was made from is there; what was added since is merged into it.
"""

import contextlib
import itertools
import os
import secrets
import struct
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from blake3 import blake3

from imager.errors import OutputError
from imager.repository.chunk import ID
from imager.repository.header import PackKind
from imager.repository.index import ENTRY, PREFIX, Merged, Merger
from imager.repository.scratch import cache_folder
from imager.repository.sorted_rows import SortedRows
from imager.units import MIB

_MAGIC: Final = b"RMTLMRG1"
# Numbers of rows, indexes, packs and fences; then the hash of all before it.
_END: Final = struct.Struct("<QQQQ8s")
_HASH_SIZE: Final = 32
_READ: Final = 8 * MIB


@dataclass(frozen=True, slots=True)
class Cached:
    """What was found.

    Attributes:
        names: of the index objects it was made from.
        merged: what they say.
    """

    names: frozenset[str]
    merged: Merged


class IndexCache:
    """The cache of one group in one repository; several processes may use it at once.

    Args:
        repository: id.
        group: id.
    """

    def __init__(self, repository: bytes, group: bytes) -> None:
        self._name = f"index-{repository.hex()}-{group.hex()}"

    def load(self, names: AbstractSet[str]) -> Cached | None:
        """Return what is cached, if all index objects it was made from are among these."""
        try:
            path = cache_folder() / self._name
            file = path.open("rb")
        except (OSError, RuntimeError):
            return None
        try:
            return _read(file, names)
        except (OSError, ValueError, struct.error):
            with contextlib.suppress(OSError):
                path.unlink()
            return None

    def keep(self, merger: Merger, names: AbstractSet[str]) -> Merged:
        """Merge and keep the result; where it can't be kept, it is made all the same.

        Args:
            merger: large, of index objects alone.
            names: of all of them.

        Raises:
            OutputError: there is no room even for a scratch file.
        """
        try:
            folder = cache_folder()
            # It has no name before it is whole, so that nothing is left of it when this is killed.
            descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            file = os.fdopen(descriptor, "w+b")
            merged = merger.merge(file)
            _write_end(file, merged, names)
            _name(descriptor, folder / self._name)
        except (OSError, RuntimeError, OutputError):
            return merger.merge()
        return merged


def _name(descriptor: int, path: Path) -> None:
    """Give a file that has no name one, in place of what has it now."""
    fresh = path.with_name(f"{path.name}-{secrets.token_hex(8)}")
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Only with the number of a folder os.link follows the link that /proc has for the file.
        os.link(f"/proc/self/fd/{descriptor}", fresh.name, dst_dir_fd=folder)
        os.replace(fresh.name, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)


def _write_end(file: BinaryIO, merged: Merged, names: AbstractSet[str]) -> None:
    indexes = b"".join(bytes.fromhex(name.removeprefix(PREFIX)) for name in sorted(names))
    kinds = np.zeros(len(merged.digests), dtype=np.uint8)
    for kind, of_kind in merged.of_kind.items():
        kinds[of_kind] |= 1 << kind
    file.write(indexes + merged.digests.tobytes() + kinds.tobytes() + merged.rows.fences.tobytes())
    counts = len(merged.rows), len(names), len(merged.digests), len(merged.rows.fences)
    file.write(_END.pack(*counts, _MAGIC))
    file.flush()
    file.write(_hash(file, file.tell()))
    file.flush()


def _read(file: BinaryIO, names: AbstractSet[str]) -> Cached | None:
    size = os.fstat(file.fileno()).st_size
    place = size - _HASH_SIZE - _END.size
    rows, indexes, packs, fences, magic = _END.unpack(os.pread(file.fileno(), _END.size, place))
    sizes = rows * ENTRY.itemsize, indexes * ID.itemsize, packs * ID.itemsize, packs, fences * 8
    if magic != _MAGIC or sum(sizes) != place:
        raise ValueError("not as it was written")
    ends = itertools.accumulate(sizes)
    _, *parts = [(end - part, part) for part, end in zip(sizes, ends, strict=True)]
    hashes, digests, flags, heads = (os.pread(file.fileno(), part, start) for start, part in parts)
    made_from = frozenset(
        PREFIX + hashes[start : start + ID.itemsize].hex()
        for start in range(0, len(hashes), ID.itemsize)
    )
    if not made_from <= names:
        return None
    if _hash(file, size - _HASH_SIZE) != os.pread(file.fileno(), _HASH_SIZE, size - _HASH_SIZE):
        raise ValueError("not as it was written")
    kinds = np.frombuffer(flags, dtype=np.uint8)
    merged = Merged(
        np.frombuffer(digests, dtype=ID),
        np.zeros(packs, dtype=bool),
        {kind: kinds >> kind & 1 == 1 for kind in PackKind},
        SortedRows.found_in(file, rows, np.frombuffer(heads, dtype=np.uint64), ENTRY),
    )
    return Cached(made_from, merged)


def _hash(file: BinaryIO, size: int) -> bytes:
    digest = blake3(max_threads=blake3.AUTO)
    for start in range(0, size, _READ):
        digest.update(os.pread(file.fileno(), min(_READ, size - start), start))
    return digest.digest()
