"""Private keys as OpenSSH writes them: whether a passphrase is on one, and taking it off."""

from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_ssh_private_key,
)

from imager.errors import SecretError, WrongPassphrase

_HINT: Final = "`ssh-keygen -t ed25519` makes one; `ssh-keygen -p` turns older forms into this one."


def is_locked(data: bytes) -> bool:
    """Return whether a private key is under a passphrase.

    Raises:
        SecretError: it is no private key in OpenSSH's form.
    """
    try:
        load_ssh_private_key(data, None)
    except TypeError:  # what the library says when a passphrase is needed
        return True
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SecretError(f"it is no private key in OpenSSH's form: {error}", hint=_HINT) from error
    return False


def unlocked(data: bytes, secret: str) -> bytes:
    """Return a private key without the passphrase it is under.

    Raises:
        WrongPassphrase: the passphrase does not open it.
    """
    try:
        key = load_ssh_private_key(data, secret.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise WrongPassphrase("the passphrase does not open the private key") from error
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
