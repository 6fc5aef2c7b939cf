"""Packs: immutable objects of many sealed blobs (FORMAT.md section 7)."""

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager.errors import ObjectDamaged
from imager.repository import names
from imager.repository.backend.protocol import Backend
from imager.repository.chunk import CODEC_SHIFT, Codec
from imager.repository.crypto.sealing import open_once, seal_once
from imager.repository.header import HEADER_SIZE, Header, Magic, PackKind
from imager.units import MIB

TARGET_SIZE: Final = 16 * MIB
MOST_SIZE: Final = 64 * MIB
TRAILER: Final = struct.Struct("<II8s")
TRAILER_MAGIC: Final = b"RMTLPEND"
ENTRY: Final = np.dtype(
    [("id", "V32"), ("offset", "<u4"), ("length", "<u4"), ("plain", "<u4"), ("zero", "<u4")]
)
PREFIX: Final = names.PACKS
_LABEL: Final = "pack"

Entries = NDArray[np.void]


def object_name(digest: bytes) -> str:
    """Return the name of the pack with this SHA-256."""
    text = digest.hex()
    return f"{PREFIX}{text[:2]}/{text}"


@dataclass(frozen=True, slots=True)
class FinishedPack:
    """A pack ready to be stored.

    Attributes:
        digest: SHA-256 of the object.
        kind: what its blobs are.
        parts: the object's bytes, in pieces.
        entries: its directory, dtype `ENTRY`.
        size: bytes of the object.
    """

    digest: bytes
    kind: PackKind
    parts: list[bytes | bytearray]
    entries: Entries
    size: int

    @property
    def name(self) -> str:
        """The object's name."""
        return object_name(self.digest)


class PackBuilder:
    """Collects blobs until the pack is worth storing; for one thread.

    Args:
        header: of kind DATA with the envelope's length, or of kind MAPS.
        envelope: the sealed session key; empty for maps.
        directory_key: seals the directory.
    """

    def __init__(self, header: Header, envelope: bytes, directory_key: bytes) -> None:
        self._header = header.encode()
        self._kind = PackKind(header.kind)
        self._directory_key = directory_key
        self._parts: list[bytes | bytearray] = [self._header, envelope]
        self._rows: list[tuple[bytes, int, int, int, int]] = []
        self.size = HEADER_SIZE + len(envelope)

    @property
    def is_full(self) -> bool:
        """Whether it has reached the size that packs should have."""
        return self.size >= TARGET_SIZE

    def add(self, identity: bytes, blob: bytearray, plain_length: int, codec: Codec) -> None:
        """Append a blob."""
        packed = plain_length | codec << CODEC_SHIFT
        self._rows.append((identity, self.size, len(blob), packed, 0))
        self._parts.append(blob)
        self.size += len(blob)

    def finish(self) -> FinishedPack:
        """Seal the directory and return the whole object."""
        entries = np.array(self._rows, dtype=ENTRY)
        directory = seal_once(self._directory_key, _LABEL, self._header, entries.tobytes())
        self._parts += [
            directory,
            TRAILER.pack(len(directory), len(entries), TRAILER_MAGIC),
        ]
        digest = hashlib.sha256()
        for part in self._parts:
            digest.update(part)
        size = self.size + len(directory) + TRAILER.size
        return FinishedPack(digest.digest(), self._kind, self._parts, entries, size)


def read_directory(
    backend: Backend, name: str, size: int, directory_key: bytes, repository: bytes
) -> tuple[PackKind, Entries]:
    """Read a pack's directory from its end, without its blobs.

    Args:
        backend: where it lies.
        name: of the pack.
        size: of the pack in bytes, as the listing says.
        directory_key: of the group.
        repository: id the pack must carry.

    Raises:
        ObjectMissing: the pack is not there.
        ObjectDamaged: it is not as it was written.
    """
    if not HEADER_SIZE + TRAILER.size <= size <= MOST_SIZE + 16 * MIB:
        raise ObjectDamaged(f"{name} has an impossible size of {size} bytes")
    return _read_directory(
        lambda offset, length: backend.get_range(name, offset, length),
        name,
        size,
        directory_key,
        repository,
    )


def decode_directory(
    data: bytes, name: str, directory_key: bytes, repository: bytes
) -> tuple[PackKind, Entries]:
    """Return kind and directory of a pack that was read whole.

    Raises:
        ObjectDamaged: it is not as it was written.
    """
    if len(data) < HEADER_SIZE + TRAILER.size:
        raise ObjectDamaged(f"{name} has an impossible size of {len(data)} bytes")
    return _read_directory(
        lambda offset, length: data[offset : offset + length],
        name,
        len(data),
        directory_key,
        repository,
    )


def _read_directory(
    read: Callable[[int, int], bytes],
    name: str,
    size: int,
    directory_key: bytes,
    repository: bytes,
) -> tuple[PackKind, Entries]:
    raw_header = read(0, HEADER_SIZE)
    header = Header.decode(raw_header, Magic.PACK, repository, name)
    length, count, magic = TRAILER.unpack(read(size - TRAILER.size, TRAILER.size))
    end = size - TRAILER.size
    if magic != TRAILER_MAGIC or length > end - HEADER_SIZE:
        raise ObjectDamaged(f"{name} has a damaged end")
    sealed = read(end - length, length)
    text = open_once(directory_key, _LABEL, raw_header, sealed, f"the directory of {name}")
    if len(text) != count * ENTRY.itemsize:
        raise ObjectDamaged(f"the directory of {name} has the wrong length")
    try:
        kind = PackKind(header.kind)
    except ValueError as error:
        raise ObjectDamaged(f"{name} is of unknown kind {header.kind}") from error
    entries = np.frombuffer(text, dtype=ENTRY)
    if entries["zero"].any():
        raise ObjectDamaged(f"the directory of {name} has something where zeros must be")
    return kind, entries
