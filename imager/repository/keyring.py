"""Keys outside the repository: recovery keys and credentials (FORMAT.md sections 4 and 12)."""

import errno
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

import msgspec

from imager.errors import (
    CredentialNeeded,
    NoRoom,
    ObjectDamaged,
    OutputError,
    OutputExists,
    RecoveryKeyNeeded,
    UnsupportedFormat,
    WrongKey,
)
from imager.repository.crypto import derive, passphrase
from imager.repository.crypto.recipient import SEED_SIZE, Recipient, RecipientKey
from imager.repository.crypto.signing import Signer
from imager.repository.header import FORMAT_VERSION

_LARGEST_KEY_FILE: Final = 1 << 20
_KEY_SIZE: Final = 32
_MAKE_FOLDER: Final = "Make the folder first, or give another place; nothing was written."
# What filesystems without hard links say.
_NO_LINKS: Final = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}


@dataclass(frozen=True, slots=True, repr=False)
class GroupKeys:
    """What everybody in a group derives from its secret.

    Attributes:
        repository: id of the repository.
        group: id of the group.
        secret: the group secret.
    """

    repository: bytes
    group: bytes
    secret: bytes

    @property
    def chunk_id_key(self) -> bytes:
        """Makes chunk ids from plaintext."""
        return derive.derive(self.secret, self.repository, derive.CHUNK_ID)

    @property
    def map_id_key(self) -> bytes:
        """Makes ids of map nodes."""
        return derive.derive(self.secret, self.repository, derive.MAP_ID)

    @property
    def cut_key(self) -> bytes:
        """Decides where chunks are cut."""
        return derive.derive(self.secret, self.repository, derive.CUT_POINTS)

    @property
    def directory_key(self) -> bytes:
        """Seals directories of packs, indexes and summaries."""
        return derive.derive(self.secret, self.repository, derive.DIRECTORY)

    def map_key(self, session: bytes) -> bytes:
        """Seals the map nodes of one capture."""
        return derive.derive(self.secret, session, derive.MAP)


class _Stretching(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Literal["argon2id"]
    salt: bytes
    iterations: int
    lanes: int
    memory_kib: int


class _RecoveryFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal["remetal recovery key"]
    version: int
    label: str
    public_key: bytes
    repository: str | None
    kdf: _Stretching
    sealed: bytes


class _RecipientFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal["remetal recipient"]
    version: int
    label: str
    public_key: bytes


class _CredentialFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal["remetal credential"]
    version: int
    repository: str
    group_secret: bytes
    signing_key: bytes
    certificate: bytes


@dataclass(frozen=True, slots=True)
class NamedRecipient:
    """The public half of a recovery key, as it is handed to whoever makes a repository.

    Attributes:
        label: what people call the key.
        recipient: the public half.
    """

    label: str
    recipient: Recipient

    def write(self, path: Path) -> None:
        """Write the file; nothing in it is secret.

        Raises:
            OutputExists: it is there already.
        """
        _write_secret(
            path,
            _RecipientFile(
                format="remetal recipient",
                version=FORMAT_VERSION,
                label=self.label,
                public_key=self.recipient.public_key,
            ),
        )

    @classmethod
    def read(cls, path: Path) -> "NamedRecipient":
        """Read the file, or the public part of a recovery key's file.

        Raises:
            RecoveryKeyNeeded: there is no such file, or it is neither.
            UnsupportedFormat: written by another version.
        """
        try:
            document = _read_secret(path, _RecipientFile)
        except OSError as error:
            raise RecoveryKeyNeeded(f"{path} can't be read: {error.strerror}") from error
        except ObjectDamaged:
            locked = LockedRecoveryKey.read(path)
            return cls(locked.label, locked.recipient)
        return cls(document.label, Recipient(document.public_key))


@dataclass(frozen=True, slots=True, repr=False)
class LockedRecoveryKey:
    """A recovery key as it lies in its file, under its passphrase.

    Attributes:
        label: what people call it.
        recipient: the public half.
        repository: id of the repository it was made for; None when made before any.
        stretching: the cost of the passphrase.
        sealed: the private half.
    """

    label: str
    recipient: Recipient
    repository: bytes | None
    stretching: passphrase.Stretching
    sealed: bytes

    @classmethod
    def lock(
        cls, key: RecipientKey, secret: str, label: str, repository: bytes | None
    ) -> "LockedRecoveryKey":
        """Put a private key under a passphrase."""
        stretching = passphrase.fresh()
        recipient = key.recipient
        sealed = passphrase.seal(secret, stretching, recipient.public_key, key.seed)
        return cls(label, recipient, repository, stretching, sealed)

    def unlock(self, secret: str) -> RecipientKey:
        """Return the private key.

        Raises:
            WrongPassphrase: the passphrase does not open it.
        """
        seed = passphrase.unseal(secret, self.stretching, self.recipient.public_key, self.sealed)
        if len(seed) != SEED_SIZE:
            raise UnsupportedFormat("the recovery key has the wrong size")
        return RecipientKey(seed)

    def write(self, path: Path) -> None:
        """Write the file, readable by its owner only.

        Raises:
            OutputExists: it is there already; a key is never overwritten.
        """
        document = _RecoveryFile(
            format="remetal recovery key",
            version=FORMAT_VERSION,
            label=self.label,
            public_key=self.recipient.public_key,
            repository=self.repository.hex() if self.repository else None,
            kdf=_Stretching(
                "argon2id",
                self.stretching.salt,
                self.stretching.iterations,
                self.stretching.lanes,
                self.stretching.memory_kib,
            ),
            sealed=self.sealed,
        )
        _write_secret(path, document)

    def write_with_public(self, path: Path) -> Path:
        """Write the file and its public part beside it, or neither, and return the latter's path.

        Raises:
            OutputExists, OutputError: as for `write_new`.
        """
        public = public_path(path)
        self.write(path)
        try:
            NamedRecipient(self.label, self.recipient).write(public)
        except BaseException:
            path.unlink()
            raise
        return public

    @classmethod
    def read(cls, path: Path) -> "LockedRecoveryKey":
        """Read the file.

        Raises:
            RecoveryKeyNeeded: there is no such file, or it is none.
            UnsupportedFormat: written by another version.
        """
        try:
            document = _read_secret(path, _RecoveryFile)
        except (OSError, ObjectDamaged) as error:
            raise RecoveryKeyNeeded(
                f"no recovery key could be read from {path}: {error}"
            ) from error
        kdf = document.kdf
        return cls(
            document.label,
            Recipient(document.public_key),
            bytes.fromhex(document.repository) if document.repository else None,
            passphrase.Stretching(kdf.salt, kdf.iterations, kdf.lanes, kdf.memory_kib),
            document.sealed,
        )


@dataclass(frozen=True, slots=True, repr=False)
class Credential:
    """What a captured machine holds: it adds images and compares content; it opens nothing.

    Attributes:
        repository: id of the repository.
        group_secret: the secret of its group.
        signer: signs the images it adds.
        certificate: the repository's statement about `signer`, encoded.
    """

    repository: bytes
    group_secret: bytes
    signer: Signer
    certificate: bytes

    def write(self, path: Path) -> None:
        """Write the file, readable by its owner only.

        Raises:
            OutputExists: it is there already.
        """
        document = _CredentialFile(
            format="remetal credential",
            version=FORMAT_VERSION,
            repository=self.repository.hex(),
            group_secret=self.group_secret,
            signing_key=self.signer.private,
            certificate=self.certificate,
        )
        _write_secret(path, document)

    @classmethod
    def read(cls, path: Path) -> "Credential":
        """Read the file.

        Raises:
            CredentialNeeded: there is no such file, or it is none.
            UnsupportedFormat: written by another version.
        """
        try:
            document = _read_secret(path, _CredentialFile)
        except (OSError, ObjectDamaged) as error:
            raise CredentialNeeded(f"no credential could be read from {path}: {error}") from error
        if len(document.signing_key) != _KEY_SIZE or len(document.group_secret) != _KEY_SIZE:
            raise CredentialNeeded(f"the keys in the credential {path} have the wrong size")
        return cls(
            bytes.fromhex(document.repository),
            document.group_secret,
            Signer(document.signing_key),
            document.certificate,
        )


def public_path(path: Path) -> Path:
    """Return where the public part of a recovery key's file lies."""
    return path.with_name(path.name + ".pub")


def check_owner(key_repository: bytes | None, repository: bytes, what: str) -> None:
    """Refuse a key of another repository.

    Raises:
        WrongKey: it carries another id.
    """
    if key_repository is not None and key_repository != repository:
        raise WrongKey(
            f"{what} belongs to repository {key_repository.hex()}, and this is {repository.hex()}",
            hint="Use the key made for this repository. If it is the right one, the file `config` "
            "of the repository was changed, and every image in it is touched: `remetal repair REPO` brings it "
            "back from parity or from another copy.",
        )


_Document = TypeVar("_Document", _RecoveryFile, _RecipientFile, _CredentialFile)


def check_new(path: Path) -> None:
    """Refuse a place where no new file can be, before anything is asked or made.

    Raises:
        OutputExists: something is there, be it a symbolic link that leads nowhere.
        OutputError: its folder is not there, or can't be written to.
    """
    if os.path.lexists(path):
        raise _exists(path)
    if not path.parent.is_dir():
        raise OutputError(f"there is no folder {path.parent} for {path.name}", hint=_MAKE_FOLDER)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"the folder {path.parent} can't be written to", hint=_MAKE_FOLDER)


def write_new(path: Path, data: bytes) -> None:
    """Write a new file, readable by its owner only: whole and durable, or not at all.

    Raises:
        OutputExists: it is there already; nothing is ever overwritten.
        NoRoom: the filesystem is full.
        OutputError: it can't be written there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        try:
            _write_durably(temporary, data)
            os.link(temporary, path, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # FAT knows no links; there a stop in the middle may leave a file cut off.
            _write_durably(path, data)
        finally:
            temporary.unlink(missing_ok=True)
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> OutputError:
    """Return what it means to a person that a place could not be written to."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return NoRoom(f"no room left for {path}")
    return OutputError(f"{path} can't be written: {error.strerror}", hint=_MAKE_FOLDER)


def _exists(path: Path) -> OutputExists:
    return OutputExists(f"{path} is there already, and keys are never overwritten")


def _write_durably(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123  a descriptor, not a path
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _write_secret(path: Path, document: msgspec.Struct) -> None:
    write_new(path, msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


def _read_secret(path: Path, kind: type[_Document]) -> _Document:
    if path.stat().st_size > _LARGEST_KEY_FILE:
        raise ObjectDamaged("the file is too large to be one")
    try:
        document = msgspec.json.decode(path.read_bytes(), type=kind)
        bytes.fromhex(getattr(document, "repository", None) or "")
    except (msgspec.MsgspecError, ValueError) as error:
        raise ObjectDamaged(f"the file is damaged or something else ({error})") from error
    if document.version != FORMAT_VERSION:
        raise UnsupportedFormat(f"{path} was written by another version of remetal")
    return document
