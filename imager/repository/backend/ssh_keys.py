"""The private keys that are shown over SSH, in the order in which ssh would show them."""

import binascii
import contextlib
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import paramiko

from imager.errors import StoreRefused
from imager.repository.backend.place import Access

_DEFAULTS: Final = ("id_ed25519", "id_ecdsa", "id_rsa")


class PrivateKeys:
    """The keys for one host. Nobody is asked for a passphrase twice.

    What is wrong with a key says nothing about an object, so it is a matter of the link.

    Args:
        access: which key to show, and who may be asked for its passphrase.
        identities: files that the user's configuration names for the host.

    Attributes:
        skipped: why keys that nobody named are not shown.
    """

    def __init__(self, access: Access, identities: Sequence[Path]) -> None:
        self._access = access
        self._identities = identities
        self._read: dict[Path, paramiko.PKey] = {}
        self.skipped: list[str] = []

    def __iter__(self) -> Iterator[paramiko.PKey]:
        """Yield the keys; files are read, and passphrases asked for, only when it is their turn.

        Raises:
            StoreRefused: the one key that was asked for can't be read.
        """
        self.skipped = []
        if self._access.ssh_key is not None:
            yield self._explicit(self._access.ssh_key)
            return
        files, agents = self.files, _of_agent()
        # A host bears few wrong keys: those that were named for it come first.
        named = [public for path in files if (public := _public(path)) is not None]
        yield from sorted(agents, key=lambda key: key.asbytes() not in named)
        for path in files:
            try:
                key = self._of_file(path)
            except StoreRefused as error:
                self.skipped.append(error.message)
                continue
            if all(key.asbytes() != other.asbytes() for other in agents):
                yield key

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the keys, in their order."""
        if self._access.ssh_key is not None:
            return (self._access.ssh_key,)
        named = self._identities or [Path("~/.ssh", name).expanduser() for name in _DEFAULTS]
        return tuple(path for path in named if path.is_file())

    def _explicit(self, path: Path) -> paramiko.PKey:
        try:
            return self._of_file(path)
        except _NoPassphrase:
            public = _public(path)
            for key in _of_agent():
                if key.asbytes() == public:
                    return key
            raise

    def _of_file(self, path: Path) -> paramiko.PKey:
        if path not in self._read:
            self._read[path] = self._decoded(path)
        return self._read[path]

    def _decoded(self, path: Path) -> paramiko.PKey:
        try:
            mode = path.stat().st_mode
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise StoreRefused(
                    f"others can read the key {path}",
                    hint=f"`chmod 600 {path}`, or make a new key.",
                )
            try:
                return paramiko.PKey.from_path(path)
            except (TypeError, paramiko.PasswordRequiredException):  # it is under a passphrase
                if self._access.ssh_passphrase is None:
                    raise _NoPassphrase(
                        f"the key {path} is under a passphrase and nobody can be asked for it",
                        hint="Add it to ssh-agent, or use a key without one that can only reach this "
                        "repository.",
                    ) from None
                return paramiko.PKey.from_path(path, self._access.ssh_passphrase(path).encode())
        except (paramiko.SSHException, TypeError, ValueError, OSError) as error:
            raise StoreRefused(f"the key {path} can't be read: {error}") from error


class _NoPassphrase(StoreRefused):
    pass


def _of_agent() -> Sequence[paramiko.PKey]:
    with contextlib.suppress(paramiko.SSHException, OSError):
        return tuple(paramiko.Agent().get_keys())
    return ()


def _public(path: Path) -> bytes | None:
    """Return the public half that lies beside a private key."""
    try:
        return binascii.a2b_base64(Path(f"{path}.pub").read_bytes().split()[1])
    except (OSError, ValueError, IndexError):
        return None
