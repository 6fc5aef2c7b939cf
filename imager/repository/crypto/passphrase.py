"""Private keys under a passphrase: Argon2id, then AES-256-GCM."""

import os
import unicodedata
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from imager.errors import UnsupportedFormat, WrongPassphrase
from imager.repository.crypto.derive import KEY_SIZE
from imager.repository.crypto.sealing import NONCE_SIZE

# Above what a laptop does in a second, below what a rescue system of 1 GiB can spare.
_ITERATIONS: Final = 4
_LANES: Final = 4
_MEMORY_KIB: Final = 128 * 1024
_MOST_MEMORY_KIB: Final = 4 * 1024 * 1024
_MOST_WORK: Final = 64 * _ITERATIONS * _MEMORY_KIB  # a minute or two on a laptop
_SALT_SIZE: Final = 16


@dataclass(frozen=True, slots=True)
class Stretching:
    """The cost of one guess at a passphrase (Argon2id, RFC 9106).

    Attributes:
        salt: 16 random bytes.
        iterations: passes.
        lanes: degree of parallelism.
        memory_kib: memory in KiB.
    """

    salt: bytes
    iterations: int = _ITERATIONS
    lanes: int = _LANES
    memory_kib: int = _MEMORY_KIB

    def key(self, passphrase: str) -> bytes:
        """Return the key for a passphrase.

        Raises:
            UnsupportedFormat: the parameters are outside of what Argon2id or this machine takes.
        """
        if self.memory_kib > _MOST_MEMORY_KIB:
            raise UnsupportedFormat(f"the key asks for {self.memory_kib} KiB of memory to open")
        if self.iterations * self.memory_kib > _MOST_WORK:
            raise UnsupportedFormat(f"the key asks for {self.iterations} passes to open")
        try:
            stretch = Argon2id(
                salt=self.salt,
                length=KEY_SIZE,
                iterations=self.iterations,
                lanes=self.lanes,
                memory_cost=self.memory_kib,
            )
        except (ValueError, OverflowError) as error:
            raise UnsupportedFormat(f"the key's passphrase parameters are odd: {error}") from error
        return stretch.derive(unicodedata.normalize("NFC", passphrase).encode())


def fresh() -> Stretching:
    """Return today's parameters with a new salt."""
    return Stretching(os.urandom(_SALT_SIZE))


def seal(passphrase: str, stretching: Stretching, aad: bytes, text: bytes) -> bytes:
    """Return nonce, ciphertext and tag of `text` under `passphrase`."""
    nonce = os.urandom(NONCE_SIZE)
    return nonce + AESGCM(stretching.key(passphrase)).encrypt(nonce, text, aad)


def unseal(passphrase: str, stretching: Stretching, aad: bytes, sealed: bytes) -> bytes:
    """Return what `seal` sealed.

    Raises:
        WrongPassphrase: it does not open (a changed file can't be told from a wrong passphrase).
    """
    nonce, body = sealed[:NONCE_SIZE], sealed[NONCE_SIZE:]
    try:
        return AESGCM(stretching.key(passphrase)).decrypt(nonce, body, aad)
    except (InvalidTag, ValueError) as error:
        raise WrongPassphrase("the passphrase does not open this recovery key") from error
