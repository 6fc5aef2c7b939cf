"""The 64 bytes that begin every binary object (FORMAT.md section 5)."""

import struct
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final

from imager.errors import ObjectDamaged, UnsupportedFormat

FORMAT_VERSION: Final = 1
ID_HASH_BLAKE3: Final = 1
ID_SIZE: Final = 16
_LAYOUT: Final = struct.Struct("<8sHBBI16s16s16s")
HEADER_SIZE: Final = _LAYOUT.size


class Magic(Enum):
    """What an object is."""

    PACK = b"RMTLPACK"
    INDEX = b"RMTLINDX"
    IMAGE = b"RMTLIMAG"
    STATEMENT = b"RMTLSTMT"
    PARITY = b"RMTLPRTY"


class PackKind(IntEnum):
    """What a pack's blobs are, and so which key opens them."""

    DATA = 1
    MAPS = 2


class StatementKind(IntEnum):
    """What a statement says."""

    CREDENTIAL = 1
    UPKEEP = 2
    HOLD = 3
    RELEASE = 4
    DRILL = 5
    REVOCATION = 6
    GENERATION = 7
    CONDEMNED = 8
    REMOVED = 9
    REPACKED = 10


NO_KIND: Final = 0


@dataclass(frozen=True, slots=True)
class Header:
    """Header of a binary object.

    Attributes:
        magic: what it is.
        kind: `PackKind`, `StatementKind` or `NO_KIND`.
        envelope_length: bytes of the envelope that follows.
        session: id of the capture that wrote it (16 bytes).
        group: id of the group whose secret applies (16 bytes).
        repository: id of the repository (16 bytes).
    """

    magic: Magic
    kind: int
    envelope_length: int
    session: bytes
    group: bytes
    repository: bytes

    def encode(self) -> bytes:
        """Return the 64 bytes."""
        return _LAYOUT.pack(
            self.magic.value,
            FORMAT_VERSION,
            self.kind,
            ID_HASH_BLAKE3,
            self.envelope_length,
            self.session,
            self.group,
            self.repository,
        )

    @classmethod
    def decode(cls, data: bytes, magic: Magic, repository: bytes, what: str) -> "Header":
        """Read and check a header.

        Args:
            data: at least the first 64 bytes of the object.
            magic: what it must be.
            repository: the id it must carry.
            what: the object's name, for errors.

        Raises:
            ObjectDamaged: too short, not such an object, or of another repository.
            UnsupportedFormat: of another version.
        """
        if len(data) < HEADER_SIZE:
            raise ObjectDamaged(f"{what} is too short")
        found, version, kind, id_hash, envelope, session, group, owner = _LAYOUT.unpack_from(data)
        if found != magic.value:
            raise ObjectDamaged(f"{what} does not begin as {magic.name.lower()} objects do")
        if version != FORMAT_VERSION or id_hash != ID_HASH_BLAKE3:
            raise UnsupportedFormat(f"{what} has format version {version}, id hash {id_hash}")
        if owner != repository:
            raise ObjectDamaged(
                f"{what} belongs to repository {owner.hex()}, not to {repository.hex()}",
                hint="The configuration or the object was exchanged; use the right repository.",
            )
        return cls(magic, kind, envelope, session, group, owner)
