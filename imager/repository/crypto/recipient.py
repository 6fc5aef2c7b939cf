"""Recipients: hybrid ML-KEM-768 + X25519 key pairs and HPKE to them.

Health records stay sensitive longer than today's curves, so a text sealed here stays closed as
long as either of the two parts holds. The private half is the seed of X-Wing
(draft-connolly-cfrg-xwing-kem): 32 bytes, from which both parts are expanded.
"""

import hashlib
import os
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from imager.errors import ObjectDamaged, UnsupportedFormat

ID_SIZE: Final = 16
PUBLIC_SIZE: Final = 1184 + 32
SEED_SIZE: Final = 32
_KEM_SEED: Final = 64
_EXPANDED: Final = _KEM_SEED + 32
OVERHEAD: Final = 1120 + 16

_SUITE: Final = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


@dataclass(frozen=True, slots=True)
class Recipient:
    """The public half: who can open what is sealed to it.

    Attributes:
        public_key: 1216 bytes, as FORMAT.md section 3 lays them out.
    """

    public_key: bytes

    def __post_init__(self) -> None:
        if len(self.public_key) != PUBLIC_SIZE:
            raise UnsupportedFormat(
                f"a recovery public key has {PUBLIC_SIZE} bytes, not {len(self.public_key)}"
            )

    @property
    def id(self) -> bytes:
        """Sixteen bytes that name this key."""
        return hashlib.sha256(self.public_key).digest()[:ID_SIZE]

    def seal(self, info: bytes, text: bytes) -> bytes:
        """Return `HPKE(public_key, info, text)`: `len(text) + OVERHEAD` bytes.

        Raises:
            UnsupportedFormat: the bytes are no such public key.
        """
        try:
            key = MLKEM768X25519PublicKey(
                mlkem.MLKEM768PublicKey.from_public_bytes(self.public_key[:1184]),
                x25519.X25519PublicKey.from_public_bytes(self.public_key[1184:]),
            )
        except ValueError as error:
            raise UnsupportedFormat("the recovery public key is malformed") from error
        return _SUITE.encrypt(text, key, info=info)


@dataclass(frozen=True, slots=True, repr=False)
class RecipientKey:
    """The private half.

    Attributes:
        seed: 32 bytes; `SHAKE256(seed, 96)` is the ML-KEM-768 seed (64) and X25519 private key (32).
    """

    seed: bytes

    @classmethod
    def generate(cls) -> "RecipientKey":
        """Make a new key pair."""
        return cls(os.urandom(SEED_SIZE))

    def _parts(self) -> tuple[mlkem.MLKEM768PrivateKey, x25519.X25519PrivateKey]:
        if len(self.seed) != SEED_SIZE:
            raise UnsupportedFormat("the recovery key has the wrong size")
        expanded = hashlib.shake_256(self.seed).digest(_EXPANDED)
        return (
            mlkem.MLKEM768PrivateKey.from_seed_bytes(expanded[:_KEM_SEED]),
            x25519.X25519PrivateKey.from_private_bytes(expanded[_KEM_SEED:]),
        )

    @property
    def recipient(self) -> Recipient:
        """The public half."""
        kem, curve = self._parts()
        return Recipient(
            kem.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()
        )

    def open(self, info: bytes, sealed: bytes, what: str) -> bytes:
        """Return the text that was sealed to this key.

        Raises:
            ObjectDamaged: the bytes, the key or `info` are not those it was sealed with.
        """
        kem, curve = self._parts()
        try:
            return _SUITE.decrypt(sealed, MLKEM768X25519PrivateKey(kem, curve), info=info)
        except (InvalidTag, ValueError) as error:
            raise ObjectDamaged(f"{what} does not open: its bytes were changed") from error
