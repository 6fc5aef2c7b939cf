"""Files outside the repository: recovery keys, recipients, credentials, and sealed secrets."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from imager.repository import shares, ssh_key
from imager.repository import store_keys as store_keys_module
from imager.repository.configuration import RecipientEntry, Secrets, _secrets_info, open_secrets
from imager.repository.crypto import passphrase
from imager.repository.keyring import Credential, LockedRecoveryKey, NamedRecipient
from imager.repository.store_keys import StoreKeys
from tests.fuzz import world

_Found = TypeVar("_Found")
_KEYS = b'{"ssh_key":"AAAA","credentials":null}'
_STRETCHING = passphrase.Stretching(bytes(16), 1, 1, 8)
_CHEAP = 1 << 10  # KiB of memory times passes


def recovery_key(data: bytes) -> None:
    locked = _from_file(data, LockedRecoveryKey.read)
    cost = locked.stretching
    if cost.memory_kib * cost.iterations <= _CHEAP or not _is_reasonable(cost):
        locked.unlock("fuzz").recipient  # noqa: B018  derives the public key


def _is_reasonable(cost: passphrase.Stretching) -> bool:
    return 0 < cost.iterations * cost.memory_kib <= 1 << 25 and cost.memory_kib <= 1 << 22


def recipient(data: bytes) -> None:
    found = _from_file(data, NamedRecipient.read)
    found.recipient.seal(b"info", b"text")


def credential(data: bytes) -> None:
    found = _from_file(data, Credential.read)
    found.signer.sign(b"message")
    world.TRUST.certificate(found.certificate, "it")


def pages(data: bytes) -> None:
    """Recovery pages as they were typed; two of three are needed."""
    assert shares.read_pages(data.decode("utf-8", "replace")).key() == world.KEY


def secrets(data: bytes) -> None:
    """Secrets that a holder of a recovery key sealed."""
    public = world.CONFIGURATION.signing_key, world.CONFIGURATION.opening_key
    sealed = world.KEY.recipient.seal(_secrets_info(world.GROUP, *public), data)
    entry = RecipientEntry(
        world.KEY.recipient.id.hex(), "it", world.KEY.recipient.public_key, sealed
    )
    found = open_secrets((entry,), *public, world.GROUP, world.KEY)
    assert found is not None
    assert Secrets.decode(found.encode()) == found


def store_keys(data: bytes) -> None:
    """The file with the keys of stores, as it lies on a medium."""
    found = re.search(rb'"iterations":(\d+).*"memory_kib":(\d+)', data)
    cost = int(found[1]) * int(found[2]) if found else 0
    if cost <= _CHEAP or cost > 1 << 25:
        StoreKeys.unseal(data, "fuzz")


def store_keys_content(data: bytes) -> None:
    """What is in it, from somebody who knows the passphrase."""
    StoreKeys.unseal(_sealed_keys(data), "fuzz")


def private_key(data: bytes) -> None:
    """A private key for SSH, as it lies on a stick."""
    if ssh_key.is_locked(data):
        ssh_key.unlocked(data, "fuzz")


def _private_key() -> bytes:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def _from_file(data: bytes, read: Callable[[Path], _Found]) -> _Found:
    descriptor = world.as_file(data)
    try:
        return read(Path(f"/proc/self/fd/{descriptor}"))
    finally:
        os.close(descriptor)


def _files() -> tuple[bytes, bytes, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("key", "recipient", "credential")]
        cheap = _STRETCHING
        public = world.KEY.recipient
        sealed = passphrase.seal("fuzz", cheap, public.public_key, world.KEY.seed)
        LockedRecoveryKey("fuzz", public, world.ID, cheap, sealed).write(paths[0])
        NamedRecipient("fuzz", public).write(paths[1])
        Credential(
            world.ID, world.SECRETS.group_secret, world.CREDENTIAL, world.CERTIFICATE.encoded
        ).write(paths[2])
        key, named, held = (path.read_bytes() for path in paths)
        return key, named, held


def _sealed_keys(content: bytes) -> bytes:
    sealed = passphrase.seal("fuzz", _STRETCHING, store_keys_module._BOUND_TO, content)
    return msgspec.json.encode(
        store_keys_module._File("remetal store keys", 1, _STRETCHING, sealed)
    )


def targets() -> dict[str, tuple[Callable[[bytes], None], Sequence[bytes]]]:
    key, named, held = _files()
    split = shares.split(world.KEY, 2, 3)[:2]
    return {
        "recovery-key": (recovery_key, [key]),
        "recipient": (recipient, [named, key]),
        "credential": (credential, [held]),
        "pages": (pages, ["\n\n".join(" ".join(page.words) for page in split).encode()]),
        "secrets": (secrets, [world.SECRETS.encode()]),
        "store-keys": (store_keys, [_sealed_keys(_KEYS)]),
        "store-keys-content": (store_keys_content, [_KEYS]),
        "private-key": (private_key, [_private_key()]),
    }
