"""Statements: what is said about a repository, signed (FORMAT.md section 11).

A statement is signed by the repository's own key, or by an upkeep credential whose certificate it
carries. Reading one here checks its form only; whether its signer may say such a thing is decided
by `imager.repository.trust`.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from imager.errors import ObjectDamaged, UnsupportedFormat
from imager.repository import names
from imager.repository.configuration import RecipientEntry
from imager.repository.crypto.signing import SIGNATURE_SIZE, Signer
from imager.repository.header import HEADER_SIZE, ID_SIZE, Header, Magic, StatementKind

PREFIX: Final = names.STATEMENTS
REMOVALS: Final = names.REMOVALS
REVOCATIONS: Final = names.REVOCATIONS
_LENGTH: Final = 4
LONGEST_QUARANTINE: Final = 1 << 32  # seconds


class CredentialBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A credential's public half; said by the repository's key only.

    Attributes:
        credential: sixteen bytes that name it, hex.
        name: what people call it.
        public_key: Ed25519, verifies what it signs.
        created: RFC 3339 time.
    """

    credential: str
    name: str
    public_key: bytes
    created: str


class HoldBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Images that must not be removed.

    Attributes:
        images: their ids, hex.
        reason: for people.
        until: RFC 3339 time after which it no longer holds; None for as long as it is not released.
        created: RFC 3339 time.
        certificate: of the upkeep credential that signed; empty for the repository's key.
    """

    images: tuple[str, ...]
    reason: str
    until: str | None
    created: str
    certificate: bytes = b""


class ReleaseBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Holds that hold no longer.

    Attributes:
        holds: SHA-256 of their statements, hex.
        created: RFC 3339 time.
        certificate: as in a hold.
    """

    holds: tuple[str, ...]
    created: str
    certificate: bytes = b""


class DrillBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a drill of an image went.

    Attributes:
        image: its id, hex.
        passed: whether the machine came back.
        seconds: from power-on of the medium to the machine being up.
        created: RFC 3339 time.
        certificate: as in a hold.
    """

    image: str
    passed: bool
    seconds: float
    created: str
    certificate: bytes = b""


class RemovalBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Objects that are condemned, or that are about to be removed.

    Attributes:
        images: ids of images, hex.
        packs: SHA-256 of packs, hex.
        quarantine: seconds from the moment the store took the statement; zero in REMOVED.
        created: RFC 3339 time.
        certificate: as in a hold.
    """

    images: tuple[str, ...]
    packs: tuple[str, ...]
    quarantine: int
    created: str
    certificate: bytes = b""


class RepackedBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Packs that hold copies of chunks out of packs that go.

    Attributes:
        packs: SHA-256 of the new packs, hex.
        created: RFC 3339 time.
        certificate: as in a hold.
    """

    packs: tuple[str, ...]
    created: str
    certificate: bytes = b""


class RevocationBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A credential whose word counts no longer; said by the repository's key only.

    Attributes:
        credential: sixteen bytes that name it, hex.
        name: what people call it.
        reason: for people.
        created: RFC 3339 time.
        accepted: names of the images and statements it signed that stay believed.
    """

    credential: str
    name: str
    reason: str
    created: str
    accepted: tuple[str, ...]


class GenerationBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who can open images from now on; said by the repository's key of the generation before.

    Attributes:
        generation: its number, from 2; the configuration is generation 1.
        signing_key: of the repository, Ed25519.
        opening_key: what captures seal images to.
        recipients: who can open images.
        accepted: SHA-256 of statements made with earlier signing keys that stay believed, hex.
        created: RFC 3339 time.
        reason: for people.
        revoked: ids of the recipients that are none any more, of this and all earlier generations.
    """

    generation: int
    signing_key: bytes
    opening_key: bytes
    recipients: tuple[RecipientEntry, ...]
    accepted: tuple[str, ...]
    created: str
    reason: str
    revoked: tuple[str, ...]


Body = (
    CredentialBody
    | HoldBody
    | ReleaseBody
    | DrillBody
    | RemovalBody
    | RepackedBody
    | RevocationBody
    | GenerationBody
)
BODIES: Final[Mapping[StatementKind, type[Body]]] = {
    StatementKind.CREDENTIAL: CredentialBody,
    StatementKind.UPKEEP: CredentialBody,
    StatementKind.HOLD: HoldBody,
    StatementKind.RELEASE: ReleaseBody,
    StatementKind.DRILL: DrillBody,
    StatementKind.REVOCATION: RevocationBody,
    StatementKind.GENERATION: GenerationBody,
    StatementKind.CONDEMNED: RemovalBody,
    StatementKind.REMOVED: RemovalBody,
    StatementKind.REPACKED: RepackedBody,
}


@dataclass(frozen=True, slots=True, repr=False)
class Signatory:
    """Who signs statements.

    Attributes:
        signer: the key.
        certificate: of an upkeep credential; empty when `signer` is the repository's own key.
    """

    signer: Signer
    certificate: bytes = b""


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement as it was read; its signature is not checked yet.

    Attributes:
        name: of the object.
        kind: what it says.
        group: id of the group it speaks of.
        body: what it says in detail.
        certificate: encoded, of the upkeep credential that signed; empty for the repository's key.
        signed: the bytes that are signed.
        signature: over them.
    """

    name: str
    kind: StatementKind
    group: bytes
    body: Body
    certificate: bytes
    signed: bytes
    signature: bytes


def folder(kind: StatementKind) -> str:
    """Return the prefix of the names of statements of a kind; generations are named by number."""
    if kind is StatementKind.REVOCATION:
        return REVOCATIONS
    removal = kind in {StatementKind.CONDEMNED, StatementKind.REMOVED}
    return REMOVALS if removal else PREFIX


def encode(
    kind: StatementKind, body: Body, signatory: Signatory, repository: bytes, group: bytes
) -> tuple[str, bytes]:
    """Return name and bytes of a statement.

    Raises:
        ObjectDamaged: nobody could read it.
    """
    _check(body, "the statement")
    if signatory.certificate:
        body = msgspec.structs.replace(body, certificate=signatory.certificate)
    text = msgspec.json.encode(body)
    header = Header(Magic.STATEMENT, kind, 0, bytes(ID_SIZE), group, repository)
    signed = header.encode() + len(text).to_bytes(_LENGTH, "little") + text
    data = signed + signatory.signer.sign(signed)
    return folder(kind) + hashlib.sha256(data).hexdigest(), data


def decode(data: bytes, repository: bytes, name: str) -> Statement:
    """Read a statement without checking who signed it.

    Raises:
        ObjectDamaged: it is not of this form.
        UnsupportedFormat: it says something this program does not know.
    """
    header = Header.decode(data, Magic.STATEMENT, repository, name)
    start = HEADER_SIZE + _LENGTH
    end = start + int.from_bytes(data[HEADER_SIZE:start], "little")
    if len(data) != end + SIGNATURE_SIZE:
        raise ObjectDamaged(f"{name} has the wrong length")
    known = {kind.value: kind for kind in BODIES}
    kind = known.get(header.kind)
    if kind is None or header.envelope_length:
        raise UnsupportedFormat(f"{name} is a statement of unknown kind {header.kind}")
    try:
        body = msgspec.json.decode(data[start:end], type=BODIES[kind])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ObjectDamaged(f"{name} can't be read: {error}") from error
    _check(body, name)
    certificate = getattr(body, "certificate", b"")
    return Statement(name, kind, header.group, body, certificate, data[:end], data[end:])


def _check(body: Body, name: str) -> None:
    """Refuse what is no id, and spans of time that can't be: readers rely on both."""
    named: list[str] = []
    for listed in ("images", "packs", "holds"):
        named += getattr(body, listed, ())
    if isinstance(body, DrillBody):
        named.append(body.image)
    if not all(names.is_digest(one) for one in named):
        raise ObjectDamaged(f"{name} names an object that can't be")
    if isinstance(body, RemovalBody) and not 0 <= body.quarantine <= LONGEST_QUARANTINE:
        raise ObjectDamaged(f"{name} has an impossible quarantine")


@dataclass(frozen=True, slots=True)
class Certificate:
    """A credential's public half, vouched for by the repository.

    Attributes:
        id: sixteen bytes that name the credential.
        kind: CREDENTIAL, which adds images, or UPKEEP, which prunes and holds.
        name: what people call it, usually the machine's name.
        public_key: verifies what the credential signs.
        created: RFC 3339 time.
        group: id of its group.
        encoded: the signed statement.
    """

    id: bytes
    kind: StatementKind
    name: str
    public_key: bytes
    created: str
    group: bytes
    encoded: bytes

    @classmethod
    def issue(
        cls,
        kind: StatementKind,
        signer: Signer,
        repository: bytes,
        group: bytes,
        name: str,
        public_key: bytes,
        now: str,
    ) -> "Certificate":
        """Vouch for a public key with the repository's signing key."""
        identity = os.urandom(ID_SIZE)
        body = CredentialBody(identity.hex(), name, public_key, now)
        _, data = encode(kind, body, Signatory(signer), repository, group)
        return cls(identity, kind, name, public_key, now, group, data)

    @classmethod
    def of(cls, statement: Statement, encoded: bytes) -> "Certificate":
        """Return the certificate that a verified statement is.

        Raises:
            ObjectDamaged: it is another kind of statement, or malformed.
        """
        body = statement.body
        try:
            if (
                isinstance(body, CredentialBody)
                and len(identity := bytes.fromhex(body.credential)) == ID_SIZE
            ):
                return cls(
                    identity,
                    statement.kind,
                    body.name,
                    body.public_key,
                    body.created,
                    statement.group,
                    encoded,
                )
        except ValueError:
            pass
        raise ObjectDamaged(f"{statement.name} is no certificate")
