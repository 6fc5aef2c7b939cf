"""Whose word counts: which certificates, and so which images and statements, are believed.

| signer               | may say                                                      |
|----------------------|--------------------------------------------------------------|
| the repository's key | everything                                                   |
| upkeep credential    | hold, release, drill, condemned, removed, repacked; of its group |
| capture credential   | images of its group, no statement                            |

"The repository's key" is the signing key of the current generation. What earlier ones signed counts
as far as the current generation lists it. What a revoked credential signed counts as far as its
revocation lists it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from imager.errors import OBJECT_FAULTS, ObjectDamaged, RemetalError, UntrustedObject
from imager.repository import generations
from imager.repository import statement as statements
from imager.repository.backend.protocol import Backend
from imager.repository.configuration import Configuration
from imager.repository.crypto.signing import verify
from imager.repository.generations import Generation
from imager.repository.header import StatementKind
from imager.repository.statement import REVOCATIONS, Certificate, RevocationBody, Statement

_UPKEEP_MAY_SAY: Final = frozenset(
    {
        StatementKind.HOLD,
        StatementKind.RELEASE,
        StatementKind.DRILL,
        StatementKind.CONDEMNED,
        StatementKind.REMOVED,
        StatementKind.REPACKED,
    }
)


@dataclass(frozen=True, slots=True)
class Trust:
    """What a repository vouches for, as it was when the repository was opened.

    Attributes:
        repository: id of the repository.
        generations: the unbroken chain, oldest first.
        revocations: by the credential's id, hex.
        problems: generations and revocations that are not believed, generations first. Reading goes on without them;
            a capture stops, because it might seal to somebody who was removed.
        accepted: SHA-256 of statements made with earlier signing keys that count, hex.
    """

    repository: bytes
    generations: tuple[Generation, ...]
    revocations: Mapping[str, RevocationBody] = field(default_factory=dict)
    problems: tuple[RemetalError, ...] = ()
    accepted: frozenset[str] = frozenset()

    @classmethod
    def read(cls, backend: Backend, repository: bytes, configuration: Configuration) -> "Trust":
        """Read generations and revocations."""
        chain, problems = generations.read(backend, repository, configuration)
        accepted = frozenset(chain[-1].body.accepted)
        bare = cls(repository, chain, accepted=accepted)
        found: dict[str, RevocationBody] = {}
        bad = list(problems)
        for entry in backend.list(REVOCATIONS):
            try:
                data = backend.get(entry.name)
                if hashlib.sha256(data).hexdigest() != entry.name.removeprefix(REVOCATIONS):
                    raise ObjectDamaged(f"{entry.name} has other bytes than were written")
                body = bare.statement(data, entry.name).body
            except OBJECT_FAULTS as error:
                error.hint = generations.way_out(entry.name)
                bad.append(error)
                continue
            if isinstance(body, RevocationBody):
                # Of two that were made at once, what both accept counts.
                other = found.get(body.credential)
                if other is not None:
                    both = tuple(name for name in body.accepted if name in set(other.accepted))
                    body = RevocationBody(
                        body.credential, body.name, body.reason, body.created, both
                    )
                found[body.credential] = body
        return cls(repository, chain, found, tuple(bad), accepted)

    @property
    def current(self) -> Generation:
        """The newest generation."""
        return self.generations[-1]

    @property
    def signing_key(self) -> bytes:
        """The repository's public key that signs statements now."""
        return self.current.body.signing_key

    def certificate(self, data: bytes, what: str) -> Certificate:
        """Read a certificate and check that the repository vouches for it, or did until it was revoked.

        Raises:
            ObjectDamaged: it is not of this form.
            UnsupportedFormat: it says something this program does not know.
            UntrustedObject: somebody else signed it.
        """
        found = statements.decode(data, self.repository, what)
        self._verify_own(found, data, what)
        return Certificate.of(found, data)

    def check_accepted(self, certificate: Certificate, name: str) -> None:
        """Refuse what a credential signed that was revoked, unless its revocation lists it.

        Args:
            certificate: of the credential.
            name: of the object that it signed; `credential` for what it does from now on.

        Raises:
            UntrustedObject: the credential was revoked, and this is not listed.
        """
        revocation = self.revocations.get(certificate.id.hex())
        if revocation is not None and name not in revocation.accepted:
            raise UntrustedObject(
                f"{name} was signed by the credential {certificate.name}, which was revoked on "
                f"{revocation.created} ({revocation.reason}); it was not there then",
                is_disowned=True,
            )

    def check_usable(self, certificate: Certificate) -> None:
        """Refuse a credential that was revoked.

        Raises:
            UntrustedObject: it was.
        """
        revocation = self.revocations.get(certificate.id.hex())
        if revocation is not None:
            raise UntrustedObject(
                f"the credential {certificate.name} was revoked on {revocation.created} "
                f"({revocation.reason})",
                hint="Make another one with `remetal key credential`.",
            )

    def statement(self, data: bytes, name: str) -> Statement:
        """Read a statement and check that its signer may say it.

        Raises:
            ObjectDamaged: it is not of this form.
            UnsupportedFormat: it says something this program does not know.
            UntrustedObject: its signer may not say it.
        """
        found = statements.decode(data, self.repository, name)
        if not found.certificate:
            self._verify_own(found, data, name)
            return found
        signer = self.certificate(found.certificate, f"the certificate in {name}")
        allowed = signer.kind is StatementKind.UPKEEP and signer.group == found.group
        if not allowed or found.kind not in _UPKEEP_MAY_SAY:
            raise UntrustedObject(f"{name} was signed by {signer.name}, who may not say that")
        verify(signer.public_key, found.signature, found.signed, name)
        self.check_accepted(signer, name)
        return found

    def _verify_own(self, found: Statement, data: bytes, what: str) -> None:
        if hashlib.sha256(data).hexdigest() not in self.accepted:
            verify(self.signing_key, found.signature, found.signed, what)
