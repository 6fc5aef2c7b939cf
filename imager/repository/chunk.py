"""Chunks: their ids, and how one is sealed and opened (FORMAT.md sections 6 to 8)."""

import itertools
import struct
import threading
from enum import IntEnum
from typing import Final

import numpy as np
import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from imager.errors import ObjectDamaged
from imager.repository.crypto.sealing import NONCE_SIZE, TAG_SIZE
from imager.units import MIB

ID_SIZE: Final = 32
ZERO: Final = bytes(ID_SIZE)
FREE: Final = b"\xff" * ID_SIZE
BLOB_OVERHEAD: Final = NONCE_SIZE + TAG_SIZE
MOST_PLAIN: Final = MIB
CODEC_SHIFT: Final = 24
PLAIN_MASK: Final = (1 << CODEC_SHIFT) - 1

ID: Final = np.dtype("V32")

_AAD: Final = struct.Struct("<32sIB")
_NONCE: Final = struct.Struct("<4xQ")


class Codec(IntEnum):
    """How the body of a blob was made from its plaintext."""

    STORED = 0
    ZSTD = 1


class Identifier:
    """Makes ids from plaintext; safe from any thread.

    Args:
        key: a chunk id key or map id key.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def identify(self, data: bytes | bytearray | memoryview) -> bytes:
        """Return the id (32 bytes) of a plaintext."""
        return blake3(data, key=self._key).digest()


class Sealer:
    """Seals blobs under one key; safe from any thread.

    The nonce counts, so one key MUST be used by one Sealer only.

    Args:
        key: the chunk key or map key of a session.
    """

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)
        self._counter = itertools.count()

    def seal(
        self,
        identity: bytes,
        plain_length: int,
        body: bytes | bytearray | memoryview,
        codec: Codec,
    ) -> bytearray:
        """Return the blob of a plaintext (1 byte to 1 MiB), given what it was made to."""
        nonce = _NONCE.pack(next(self._counter))
        blob = bytearray(len(body) + BLOB_OVERHEAD)
        blob[:NONCE_SIZE] = nonce
        aad = _AAD.pack(identity, plain_length, codec)
        self._aead.encrypt_into(nonce, body, aad, memoryview(blob)[NONCE_SIZE:])
        return blob


class Opener:
    """Opens blobs of one key and checks their ids; safe from any thread.

    Args:
        key: the chunk key or map key of a session.
        identifier: makes the ids it checks against.
    """

    def __init__(self, key: bytes, identifier: Identifier) -> None:
        self._aead = AESGCM(key)
        self._identifier = identifier
        self._local = threading.local()

    def open(
        self, identity: bytes, plain_length: int, codec: int, blob: bytes | memoryview
    ) -> bytes:
        """Return the plaintext of a blob: exactly `plain_length` bytes whose id is `identity`.

        Raises:
            ObjectDamaged: anything is not as it was when it was sealed.
        """
        name = f"chunk {identity.hex()[:16]}"
        if plain_length > MOST_PLAIN or codec not in {Codec.STORED, Codec.ZSTD}:
            raise ObjectDamaged(f"{name} has an impossible length or codec")
        view = memoryview(blob)
        try:
            body = self._aead.decrypt(
                bytes(view[:NONCE_SIZE]),
                view[NONCE_SIZE:],
                _AAD.pack(identity, plain_length, codec),
            )
        except (InvalidTag, ValueError) as error:
            raise ObjectDamaged(f"{name} does not open: its bytes were changed") from error
        plain = body if codec == Codec.STORED else self._decompress(body, plain_length, name)
        if len(plain) != plain_length or self._identifier.identify(plain) != identity:
            raise ObjectDamaged(
                f"{name} opens to other content than its id says",
                hint="Whoever wrote it claimed a false content; see Groups in SECURITY.md.",
            )
        return plain

    def _decompress(self, frame: bytes, plain_length: int, name: str) -> bytes:
        decompressor = getattr(self._local, "decompressor", None)
        if decompressor is None:
            decompressor = zstandard.ZstdDecompressor(max_window_size=8 * MIB)
            self._local.decompressor = decompressor
        try:
            if zstandard.frame_content_size(frame) != plain_length:
                raise ObjectDamaged(f"{name} has a frame of another length")
            plain: bytes = decompressor.decompress(frame)
        except zstandard.ZstdError as error:
            raise ObjectDamaged(f"{name} does not decompress: {error}") from error
        return plain
