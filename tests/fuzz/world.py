"""A repository with fixed keys: the same bytes mean the same in every process that fuzzes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from imager.errors import ObjectDamaged, ObjectMissing
from imager.repository.backend.protocol import Buffer, Entry
from imager.repository.configuration import Configuration, Secrets, new_configuration
from imager.repository.crypto.recipient import RecipientKey
from imager.repository.crypto.signing import Signer
from imager.repository.generations import Generation
from imager.repository.header import Header, Magic, StatementKind
from imager.repository.keyring import GroupKeys
from imager.repository.repository import Repository
from imager.repository.statement import Certificate, Signatory
from imager.repository.trust import Trust

TIME = "2026-11-24T12:00:00Z"
ID = bytes(range(16))
SESSION = b"\x11" * 16
GROUP = b"\x22" * 16
SESSION_KEY = b"\x33" * 32
KEY = RecipientKey(b"\x44" * 32)
CREDENTIAL = Signer(b"\x55" * 32)
SECRETS = Secrets(Signer(b"\x66" * 32), GROUP, b"\x77" * 32, (RecipientKey(b"\x88" * 32),))
KEYS = GroupKeys(ID, GROUP, SECRETS.group_secret)
OWN = Signatory(SECRETS.signer)
CONFIGURATION: Configuration = new_configuration(SECRETS, (("fuzz", KEY.recipient),), TIME)
TRUST = Trust(ID, (Generation.first(CONFIGURATION),))
CERTIFICATE = Certificate.issue(
    StatementKind.CREDENTIAL, SECRETS.signer, ID, GROUP, "web1", CREDENTIAL.public_key, TIME
)


@dataclass
class Memory:
    """A backend that keeps objects in memory."""

    objects: dict[str, bytes] = field(default_factory=dict)
    location: str = "memory"

    def put_new(self, name: str, parts: Sequence[Buffer], modified: float | None = None) -> bool:
        del modified
        fresh = name not in self.objects
        self.objects.setdefault(name, b"".join(parts))
        return fresh

    def get(self, name: str) -> bytes:
        try:
            return self.objects[name]
        except KeyError as error:
            raise ObjectMissing(name) from error

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        data = self.get(name)[offset : offset + length]
        if len(data) != length:
            raise ObjectDamaged(f"{name} ends too early")
        return data

    def list(self, prefix: str) -> Iterator[Entry]:
        for name in sorted(self.objects):
            if name.startswith(prefix):
                yield Entry(name, len(self.objects[name]), 1.7e9)

    def delete(self, name: str) -> None:
        self.objects.pop(name, None)

    def now(self) -> float:
        return 1.7e9

    def tidy(self) -> None:
        """Nothing is left behind in memory."""


def repository(objects: dict[str, bytes]) -> Repository:
    """Return a repository of these objects and the fixed configuration."""
    return Repository.of(Memory(objects), ID, CONFIGURATION)


def header(magic: Magic, kind: int = 0, envelope: int = 0) -> Header:
    return Header(magic, kind, envelope, SESSION, GROUP, ID)


def as_file(data: bytes) -> int:
    """Return a descriptor of a file in memory; to be closed."""
    descriptor = os.memfd_create("fuzz")
    os.pwrite(descriptor, data, 0)
    return descriptor
