"""Key derivation: every formula of FORMAT.md section 4."""

from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_SIZE: Final = 32
_PREFIX: Final = b"remetal/1 "

CHUNK_ID: Final = "chunk id"
MAP_ID: Final = "map id"
CUT_POINTS: Final = "cut points"
DIRECTORY: Final = "directory"
MAP: Final = "map"
CHUNK: Final = "chunk"
MANIFEST: Final = "manifest"


def context(label: str) -> bytes:
    """Return the domain separation of a label, as HKDF and HPKE take it in `info`."""
    return _PREFIX + label.encode("ascii")


def derive(secret: bytes, salt: bytes, label: str) -> bytes:
    """Return `HKDF(secret, salt, label)`: 32 bytes.

    Source: FORMAT.md section 1; RFC 5869.
    """
    return HKDF(algorithm=SHA256(), length=KEY_SIZE, salt=salt, info=context(label)).derive(secret)
