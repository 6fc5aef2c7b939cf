"""With what the rescue system reaches stores: what lies on the medium, opened, and nothing else.

What a passphrase opens is kept in memory only (below /run), readable by root, until the machine is
switched off.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from imager.errors import SecretError
from imager.repository import ssh_key
from imager.repository.backend.place import Access, HostKey
from imager.repository.keyring import write_new
from imager.repository.store_keys import StoreKeys
from restore.medium import RUN, Medium

_FOLDER: Final = RUN / "stores"
_LARGEST: Final = 1 << 20


class StoreAccess:
    """What is shown to stores, and which of them are trusted.

    Args:
        medium: what the medium carries.
        folder: where opened keys lie; in memory.
    """

    def __init__(self, medium: Medium, folder: Path = _FOLDER) -> None:
        self._folder = folder
        self._on_medium = self._sealed = medium.store_keys
        self._known_hosts = medium.known_hosts or folder / "known_hosts"
        self._authorities = medium.authorities
        self._ssh_key: Path | None = None
        self._credentials: Path | None = None

    @property
    def is_locked(self) -> bool:
        """Whether keys lie on the medium that no passphrase has opened yet."""
        return self._sealed is not None

    @property
    def has_ssh_key(self) -> bool:
        """Whether there is a key to show over SSH."""
        return self._ssh_key is not None

    @property
    def has_credentials(self) -> bool:
        """Whether there are keys for an S3 store."""
        return self._credentials is not None

    def unlock(self, secret: str) -> None:
        """Open the keys on the medium.

        Raises:
            WrongPassphrase: the passphrase does not open them.
            SecretError: they can't be read.
        """
        if self._sealed is None:
            return
        try:
            data = self._sealed.read_bytes()
        except OSError as error:
            raise SecretError(f"{self._sealed} can't be read: {error.strerror}") from error
        keys = StoreKeys.unseal(data, secret)
        if keys.ssh_key is not None:
            self._ssh_key = self._keep("ssh-key", keys.ssh_key)
        if keys.credentials is not None:
            self._credentials = self._keep("credentials", keys.credentials)
        self._sealed = None

    def use_ssh_key(self, path: Path, ask: Callable[[], str] | None = None) -> None:
        """Show the private key in a file over SSH.

        Args:
            path: the file.
            ask: returns its passphrase, if it is under one; None refuses such a key.

        Raises:
            WrongPassphrase: the passphrase does not open it.
            SecretError: it can't be read, or nobody can be asked for its passphrase.
        """
        data = _read(path)
        if ssh_key.is_locked(data):
            if ask is None:
                raise SecretError(f"the private key {path} is under a passphrase of its own")
            data = ssh_key.unlocked(data, ask())
        self._ssh_key = self._keep("ssh-key", data)

    def use_credentials(self, path: Path) -> None:
        """Show the keys in a file to S3 stores.

        Raises:
            SecretError: it can't be read.
        """
        self._credentials = self._keep("credentials", _read(path))

    def use_known_hosts(self, path: Path) -> None:
        """Trust the host keys in a file, and no others."""
        self._known_hosts = path

    def use_authorities(self, path: Path) -> None:
        """Trust the certificates in a file, and no others."""
        self._authorities = path

    def forget(self) -> None:
        """Forget which keys were to be shown: a store does not take them."""
        self._ssh_key = self._credentials = None
        self._sealed = self._on_medium

    def access(self, confirm: Callable[[HostKey], bool] | None = None) -> Access:
        """Return what stores are reached with.

        Args:
            confirm: is asked about hosts that nobody vouches for; None refuses them.
        """
        return Access(
            self._ssh_key, self._known_hosts, self._credentials, self._authorities, confirm
        )

    def _keep(self, name: str, data: bytes) -> Path:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / name
        path.unlink(missing_ok=True)
        write_new(path, data)
        return path


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise SecretError(f"{path} can't be read: {error.strerror}") from error
    if len(data) > _LARGEST:
        raise SecretError(f"{path} is too large to be a key")
    return data
