"""What opens stores, under a passphrase: it lies so on a rescue medium, and never in clear.

The file is JSON. Its secret part is a JSON object, sealed as a recovery key is: Argon2id, then
AES-256-GCM (`crypto/passphrase.py`).
"""

from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from imager.errors import SecretError, UnsupportedFormat, WrongPassphrase
from imager.repository.crypto import passphrase
from imager.repository.crypto.passphrase import Stretching

_VERSION: Final = 1
_BOUND_TO: Final = b"remetal store keys 1"
_LARGEST: Final = 1 << 20


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal["remetal store keys"]
    version: int
    kdf: Stretching
    sealed: bytes


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ssh_key: bytes | None
    credentials: bytes | None


@dataclass(frozen=True, slots=True, repr=False)
class StoreKeys:
    """What is shown to stores.

    Attributes:
        ssh_key: a private key as OpenSSH writes it, without a passphrase; None for none.
        credentials: the file with the keys of an S3 store, as the AWS tools keep it; likewise.
    """

    ssh_key: bytes | None = None
    credentials: bytes | None = None

    def seal(self, secret: str) -> bytes:
        """Return the file that holds them under a passphrase."""
        stretching = passphrase.fresh()
        content = msgspec.json.encode(_Content(self.ssh_key, self.credentials))
        sealed = passphrase.seal(secret, stretching, _BOUND_TO, content)
        return msgspec.json.encode(_File("remetal store keys", _VERSION, stretching, sealed))

    @classmethod
    def unseal(cls, data: bytes, secret: str) -> "StoreKeys":
        """Return what a file holds.

        Raises:
            WrongPassphrase: the passphrase does not open it.
            SecretError: it is no such file.
            UnsupportedFormat: another version wrote it.
        """
        try:
            if len(data) > _LARGEST:
                raise SecretError("the file with the keys of stores is too large to be one")
            file = msgspec.json.decode(data, type=_File)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise SecretError(f"these are no keys of stores: {error}") from error
        if file.version != _VERSION:
            raise UnsupportedFormat(f"the keys of stores are of version {file.version}")
        try:
            content = passphrase.unseal(secret, file.kdf, _BOUND_TO, file.sealed)
        except WrongPassphrase as error:
            raise WrongPassphrase("the passphrase does not open the keys of the stores") from error
        try:
            opened = msgspec.json.decode(content, type=_Content)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise SecretError(f"these are no keys of stores: {error}") from error
        return cls(opened.ssh_key, opened.credentials)
