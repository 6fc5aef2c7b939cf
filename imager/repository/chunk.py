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
from imager.thread_buffers import ThreadBuffers
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
# What a thread needs to open blobs of whatever key.
_THREAD: Final = threading.local()
_FRAMES: Final = ThreadBuffers(MOST_PLAIN)


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

    def open(
        self, identity: bytes, plain_length: int, codec: int, blob: bytes | memoryview
    ) -> bytes:
        """Return the plaintext of a blob: exactly `plain_length` bytes whose id is `identity`.

        Raises:
            ObjectDamaged: anything is not as it was when it was sealed.
        """
        if plain_length > MOST_PLAIN:
            raise ObjectDamaged(f"chunk {identity.hex()[:16]} has an impossible length")
        plain = bytearray(plain_length)
        self.open_into(identity, codec, blob, memoryview(plain))
        return bytes(plain)

    def open_into(
        self, identity: bytes, codec: int, blob: bytes | memoryview, plain: memoryview
    ) -> None:
        """Put the plaintext of a blob, whose id is `identity`, into a buffer of exactly its size.

        Raises:
            ObjectDamaged: anything is not as it was when it was sealed; what the buffer holds is
                of no meaning then.
        """
        if codec not in {Codec.STORED, Codec.ZSTD}:
            raise ObjectDamaged(f"chunk {identity.hex()[:16]} has an unknown codec")
        sealed = memoryview(blob)
        body = plain if codec == Codec.STORED else _FRAMES.of(max(len(sealed) - BLOB_OVERHEAD, 0))
        try:
            self._aead.decrypt_into(
                bytes(sealed[:NONCE_SIZE]),
                sealed[NONCE_SIZE:],
                _AAD.pack(identity, len(plain), codec),
                body,
            )
        except (InvalidTag, ValueError) as error:
            raise ObjectDamaged(
                f"chunk {identity.hex()[:16]} does not open: its bytes were changed"
            ) from error
        length = len(plain) if codec == Codec.STORED else self._decompress(body, plain)
        if length != len(plain) or self._identifier.identify(plain) != identity:
            raise ObjectDamaged(
                f"chunk {identity.hex()[:16]} opens to other content than its id says",
                hint="Whoever wrote it claimed a false content; see Groups in SECURITY.md.",
            )

    @staticmethod
    def _decompress(frame: memoryview, plain: memoryview) -> int:
        """Decompress into a buffer; return how many bytes came, or -1 if there are more."""
        decompressor = getattr(_THREAD, "decompressor", None)
        if decompressor is None:
            decompressor = zstandard.ZstdDecompressor(max_window_size=8 * MIB)
            _THREAD.decompressor = decompressor
        try:
            if zstandard.frame_content_size(frame) != len(plain):
                return -1
            with decompressor.stream_reader(frame, read_size=max(len(frame), 1)) as reader:
                return int(reader.readinto(plain))
        except zstandard.ZstdError:
            return -1
