"""Statements: what the holder of a recovery key says, signed (FORMAT.md section 11)."""

import os
from dataclasses import dataclass

import msgspec

from imager.errors import ObjectDamaged, UnsupportedFormat
from imager.repository.crypto.signing import SIGNATURE_SIZE, Signer, verify
from imager.repository.header import HEADER_SIZE, ID_SIZE, Header, Magic, StatementKind


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    credential: str
    name: str
    public_key: bytes
    created: str


@dataclass(frozen=True, slots=True)
class Certificate:
    """A credential's public half, vouched for by the repository.

    Attributes:
        id: sixteen bytes that name the credential.
        name: what people call it, usually the machine's name.
        public_key: verifies what the credential signs.
        created: RFC 3339 time.
        group: id of its group.
        encoded: the signed statement.
    """

    id: bytes
    name: str
    public_key: bytes
    created: str
    group: bytes
    encoded: bytes

    @classmethod
    def issue(
        cls, signer: Signer, repository: bytes, group: bytes, name: str, public_key: bytes, now: str
    ) -> "Certificate":
        """Vouch for a public key with the repository's signing key."""
        identity = os.urandom(ID_SIZE)
        body = msgspec.json.encode(_Body(identity.hex(), name, public_key, now))
        header = Header(
            Magic.STATEMENT, StatementKind.CREDENTIAL, 0, bytes(ID_SIZE), group, repository
        )
        signed = header.encode() + len(body).to_bytes(4, "little") + body
        return cls(identity, name, public_key, now, group, signed + signer.sign(signed))

    @classmethod
    def decode(cls, data: bytes, repository: bytes, signing_key: bytes, what: str) -> "Certificate":
        """Read a certificate and check that the repository vouches for it.

        Raises:
            ObjectDamaged: it is not of this form.
            UnsupportedFormat: it says something this program does not know.
            UntrustedObject: somebody else signed it.
        """
        header = Header.decode(data, Magic.STATEMENT, repository, what)
        start = HEADER_SIZE + 4
        end = start + int.from_bytes(data[HEADER_SIZE:start], "little")
        if len(data) != end + SIGNATURE_SIZE:
            raise ObjectDamaged(f"{what} has the wrong length")
        verify(signing_key, data[end:], data[:end], what)
        if header.kind != StatementKind.CREDENTIAL or header.envelope_length:
            raise UnsupportedFormat(f"{what} is a statement of unknown kind {header.kind}")
        try:
            body = msgspec.json.decode(data[start:end], type=_Body)
            identity = bytes.fromhex(body.credential)
        except (msgspec.MsgspecError, ValueError) as error:
            raise ObjectDamaged(f"{what} can't be read: {error}") from error
        return cls(identity, body.name, body.public_key, body.created, header.group, data)
