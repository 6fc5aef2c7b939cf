"""Signatures: Ed25519."""

from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from imager.errors import UntrustedObject

SIGNATURE_SIZE: Final = 64


@dataclass(frozen=True, slots=True, repr=False)
class Signer:
    """A private signing key of 32 bytes."""

    private: bytes

    @classmethod
    def generate(cls) -> "Signer":
        """Make a new key pair."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    @property
    def public_key(self) -> bytes:
        """The 32 bytes that verify what this signs."""
        return Ed25519PrivateKey.from_private_bytes(self.private).public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """Return the signature of 64 bytes."""
        return Ed25519PrivateKey.from_private_bytes(self.private).sign(message)


def verify(public_key: bytes, signature: bytes, message: bytes, what: str) -> None:
    """Check a signature.

    Raises:
        UntrustedObject: it was not made over this message with this key.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise UntrustedObject(f"the signature of {what} is not valid") from error
