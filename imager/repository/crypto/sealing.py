"""Authenticated encryption: AES-256-GCM, and its form with a key for one use."""

import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from imager.errors import ObjectDamaged
from imager.repository.crypto.derive import derive

NONCE_SIZE: Final = 12
TAG_SIZE: Final = 16
SALT_SIZE: Final = 32
_ZERO_NONCE: Final = bytes(NONCE_SIZE)


def seal_once(key: bytes, label: str, aad: bytes, text: bytes) -> bytes:
    """Return `SEAL1(key, salt, label, aad, text)` under a fresh salt: salt, ciphertext and tag."""
    salt = os.urandom(SALT_SIZE)
    return salt + AESGCM(derive(key, salt, label)).encrypt(_ZERO_NONCE, text, aad)


def open_once(key: bytes, label: str, aad: bytes, sealed: bytes, what: str) -> bytes:
    """Return what `seal_once` sealed.

    Args:
        key: the long-lived key.
        label: what the text is, as given to `seal_once`.
        aad: bytes that were bound to it.
        sealed: salt, ciphertext and tag.
        what: the thing's name, for the error.

    Raises:
        ObjectDamaged: the bytes, the key or the bound bytes are not those it was sealed with.
    """
    if len(sealed) < SALT_SIZE + TAG_SIZE:
        raise ObjectDamaged(f"{what} is too short")
    return open_sealed(
        derive(key, sealed[:SALT_SIZE], label), _ZERO_NONCE, aad, sealed[SALT_SIZE:], what
    )


def seal_under_own_key(key: bytes, aad: bytes, text: bytes) -> bytes:
    """Seal the only text that is ever sealed under `key`, so that nonce zero is used once."""
    return AESGCM(key).encrypt(_ZERO_NONCE, text, aad)


def open_under_own_key(key: bytes, aad: bytes, sealed: bytes, what: str) -> bytes:
    """Return what `seal_under_own_key` sealed.

    Raises:
        ObjectDamaged: as `open_once`.
    """
    return open_sealed(key, _ZERO_NONCE, aad, sealed, what)


def open_sealed(key: bytes, nonce: bytes, aad: bytes, sealed: bytes, what: str) -> bytes:
    """Return the text of `SEAL(key, nonce, aad, text)`.

    Raises:
        ObjectDamaged: as `open_once`.
    """
    try:
        return AESGCM(key).decrypt(nonce, sealed, aad)
    except InvalidTag as error:
        raise ObjectDamaged(f"{what} does not open: its bytes were changed") from error
