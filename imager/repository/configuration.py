"""The repository's configuration: the root of trust (FORMAT.md section 3)."""

import hashlib
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from imager.errors import NotARepository, ObjectDamaged, UnsupportedFormat
from imager.repository import names
from imager.repository.crypto.derive import context
from imager.repository.crypto.recipient import SEED_SIZE, Recipient, RecipientKey
from imager.repository.crypto.signing import Signer
from imager.repository.header import FORMAT_VERSION, ID_SIZE

CONFIG_NAME: Final = names.CONFIG
_FIXED_SECRETS: Final = 32 + ID_SIZE + 32 + 1
MOST_OPENING_KEYS: Final = 255
_SECRETS_LABEL: Final = "repository secrets"


@dataclass(frozen=True, slots=True, repr=False)
class Secrets:
    """What recovery keys hold of a repository.

    Attributes:
        signer: signs statements.
        group: id of the group.
        group_secret: 32 bytes.
        opening_keys: what images are sealed to, the newest first; one for each rotation.
    """

    signer: Signer
    group: bytes
    group_secret: bytes
    opening_keys: tuple[RecipientKey, ...]

    def encode(self) -> bytes:
        """Return the bytes that are sealed to each recipient."""
        seeds = b"".join(key.seed for key in self.opening_keys)
        count = bytes([len(self.opening_keys)])
        return self.signer.private + self.group + self.group_secret + count + seeds

    @classmethod
    def decode(cls, data: bytes) -> "Secrets":
        """Read what `encode` wrote.

        Raises:
            ObjectDamaged: of the wrong size.
        """
        seeds = data[_FIXED_SECRETS:]
        if len(data) <= _FIXED_SECRETS or len(seeds) != data[_FIXED_SECRETS - 1] * SEED_SIZE:
            raise ObjectDamaged("the secrets of the repository have the wrong size")
        keys = (RecipientKey(seeds[at : at + SEED_SIZE]) for at in range(0, len(seeds), SEED_SIZE))
        return cls(Signer(data[:32]), data[32:48], data[48:80], tuple(keys))

    def seal(self, label: str, recipient: Recipient) -> "RecipientEntry":
        """Return the entry that lets a recipient have these secrets."""
        public = self.opening_keys[0].recipient.public_key
        info = _secrets_info(self.group, self.signer.public_key, public)
        sealed = recipient.seal(info, self.encode())
        return RecipientEntry(recipient.id.hex(), label, recipient.public_key, sealed)


class RecipientEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One recipient in the configuration."""

    id: str
    label: str
    public_key: bytes
    secrets: bytes


class Configuration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The document `config`."""

    format: Literal["remetal repository"]
    version: int
    created: str
    signing_key: bytes
    opening_key: bytes
    group: str
    recipients: tuple[RecipientEntry, ...]

    def encode(self) -> bytes:
        """Return the bytes of the object."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @staticmethod
    def decode(data: bytes, location: str) -> "Configuration":
        """Read a configuration.

        Raises:
            NotARepository: this is something else.
            UnsupportedFormat: of a version this program can't read.
        """
        try:
            document = msgspec.json.decode(data, type=Configuration)
            bytes.fromhex(document.group)
        except (msgspec.MsgspecError, ValueError) as error:
            raise NotARepository(
                f"the file `config` at {location} is damaged or not remetal's ({error})",
                hint="A copy of `config` that was kept with a recovery key serves as well. If there is no "
                "repository, check the path, or make one with `remetal init REPO`.",
            ) from error
        if document.version != FORMAT_VERSION:
            raise UnsupportedFormat(
                f"the repository at {location} has format version {document.version}",
                hint="Use the version of remetal that wrote it. If it was this one, `config` is "
                "damaged; a copy that was kept with a recovery key serves as well.",
            )
        return document


def open_secrets(
    recipients: tuple[RecipientEntry, ...],
    signing_key: bytes,
    opening_key: bytes,
    group: bytes,
    key: RecipientKey,
) -> Secrets | None:
    """Return the secrets, if `key` is a recipient's; else None.

    Raises:
        ObjectDamaged: it is, but the bytes were changed, or are of other keys than the public ones.
    """
    wanted = key.recipient.id.hex()
    for entry in recipients:
        if entry.id == wanted:
            info = _secrets_info(group, signing_key, opening_key)
            secrets = Secrets.decode(key.open(info, entry.secrets, "the repository's secrets"))
            public = secrets.opening_keys[0].recipient.public_key
            if (secrets.signer.public_key, public, secrets.group) != (
                signing_key,
                opening_key,
                group,
            ):
                raise ObjectDamaged("the repository's secrets are not those of its public keys")
            return secrets
    return None


def repository_id(config: bytes) -> bytes:
    """Return the id of the repository whose configuration has these bytes."""
    return hashlib.sha256(config).digest()[:ID_SIZE]


def new_configuration(
    secrets: Secrets, recipients: tuple[tuple[str, Recipient], ...], created: str
) -> Configuration:
    """Return the configuration of a new repository.

    Args:
        secrets: fresh secrets.
        recipients: label and public key of each who can open images.
        created: RFC 3339 time in UTC.
    """
    return Configuration(
        format="remetal repository",
        version=FORMAT_VERSION,
        created=created,
        signing_key=secrets.signer.public_key,
        opening_key=secrets.opening_keys[0].recipient.public_key,
        group=secrets.group.hex(),
        recipients=tuple(secrets.seal(label, recipient) for label, recipient in recipients),
    )


def _secrets_info(group: bytes, signing_key: bytes, opening_key: bytes) -> bytes:
    return context(_SECRETS_LABEL) + group + signing_key + opening_key
