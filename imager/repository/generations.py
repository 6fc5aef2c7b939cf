"""Generations: who can open images, from when on (FORMAT.md section 14).

The configuration is generation 1. Each later one is a statement, signed with the signing key of the
one before, and created only if absent: of two that are made at once, one wins. Nothing that lies in
the repository is sealed anew: recipients hold the opening keys of all images up to their generation.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from imager.errors import OBJECT_FAULTS, ObjectDamaged, ObjectMissing, RemetalError, UsageError
from imager.repository import names
from imager.repository import statement as statements
from imager.repository.backend.protocol import Backend
from imager.repository.configuration import (
    MOST_OPENING_KEYS,
    Configuration,
    RecipientEntry,
    Secrets,
    open_secrets,
)
from imager.repository.crypto.recipient import Recipient, RecipientKey
from imager.repository.crypto.signing import Signer, verify
from imager.repository.header import StatementKind
from imager.repository.statement import GenerationBody, Signatory

PREFIX: Final = names.GENERATIONS
FIRST: Final = 1
LEAST_DIGITS: Final = 4  # of an id that a person gives


@dataclass(frozen=True, slots=True)
class Generation:
    """Who can open images, and whose word counts, from one moment on.

    Attributes:
        body: what was said; for generation 1, what the configuration says.
        group: id of the group.
    """

    body: GenerationBody
    group: bytes

    @classmethod
    def first(cls, configuration: Configuration) -> "Generation":
        """Return generation 1, which is the configuration."""
        body = GenerationBody(
            FIRST,
            configuration.signing_key,
            configuration.opening_key,
            configuration.recipients,
            (),
            configuration.created,
            "",
            (),
        )
        return cls(body, bytes.fromhex(configuration.group))

    @property
    def number(self) -> int:
        """From 1."""
        return self.body.generation

    def open_secrets(self, key: RecipientKey) -> Secrets | None:
        """Return the secrets, if `key` is a recipient's; else None.

        Raises:
            ObjectDamaged: it is, but the bytes were changed.
        """
        body = self.body
        return open_secrets(body.recipients, body.signing_key, body.opening_key, self.group, key)

    def find(self, reference: str) -> RecipientEntry:
        """Return the recipient with a label, or whose id begins so.

        Raises:
            UsageError: none is meant, or more than one.
        """
        labelled = [entry for entry in self.body.recipients if entry.label == reference]
        found = labelled or [
            entry
            for entry in self.body.recipients
            if len(reference) >= LEAST_DIGITS and entry.id.startswith(reference.lower())
        ]
        if len(found) == 1:
            return found[0]
        raise UsageError(
            f"{len(found) or 'no'} recipients are called {reference!r}",
            hint="`remetal key list REPO` lists them; give a whole label, or at least four digits of an id.",
        )


def read(
    backend: Backend, repository: bytes, configuration: Configuration
) -> tuple[tuple[Generation, ...], tuple[RemetalError, ...]]:
    """Return the unbroken chain of generations, oldest first, and what lies beyond its end.

    When the next generation is there and is not believed, that is the only problem told.
    """
    chain = [Generation.first(configuration)]
    numbers = {entry.name for entry in backend.list(PREFIX)}
    while name_of(chain[-1].number + 1) in numbers:
        name = name_of(chain[-1].number + 1)
        try:
            chain.append(_decode(backend.get(name), repository, chain[-1], name))
        except OBJECT_FAULTS as error:
            error.hint = way_out(name)
            return tuple(chain), (error,)
        numbers.discard(name)
    beyond = sorted(numbers)
    problems = [
        ObjectMissing(f"{name} does not follow any generation", hint=way_out(name))
        for name in beyond
    ]
    return tuple(chain), tuple(problems)


def way_out(name: str) -> str:
    """Return what to do about an object that decides whose word counts, and is not believed."""
    return (
        "`remetal repair REPO` brings back what was damaged or lost; if nobody of yours wrote it, "
        f"remove {name} from the storage."
    )


def name_of(number: int) -> str:
    """Return the name of the object of a generation, from 2."""
    return f"{PREFIX}{number}"


def _decode(data: bytes, repository: bytes, before: Generation, name: str) -> Generation:
    found = statements.decode(data, repository, name)
    verify(before.body.signing_key, found.signature, found.signed, name)
    body = found.body
    if (
        not isinstance(body, GenerationBody)
        or body.generation != before.number + 1
        or not body.recipients
        or found.group != before.group
    ):
        raise ObjectDamaged(f"{name} is not the generation after {before.number}")
    return Generation(body, found.group)


def encode(body: GenerationBody, signer: Signer, repository: bytes, group: bytes) -> bytes:
    """Return the bytes of a generation; `signer` is that of the one before."""
    return statements.encode(StatementKind.GENERATION, body, Signatory(signer), repository, group)[
        1
    ]


def with_recipient(
    current: Generation, secrets: Secrets, label: str, recipient: Recipient, created: str
) -> GenerationBody:
    """Return a generation in which one more recipient can open every image, old and new.

    Raises:
        UsageError: it is a recipient already, or its label is taken.
    """
    body = current.body
    if any(entry.id == recipient.id.hex() for entry in body.recipients):
        raise UsageError(f"{label} is a recipient already", hint="Nothing was changed.")
    if any(entry.label == label for entry in body.recipients):
        raise UsageError(
            f"there is a recipient called {label} already",
            hint="Give the new key another name with --label; nothing was changed.",
        )
    return msgspec.structs.replace(
        body,
        generation=current.number + 1,
        recipients=(*body.recipients, secrets.seal(label, recipient)),
        created=created,
        reason=f"added {label}",
        revoked=tuple(each for each in body.revoked if each != recipient.id.hex()),
    )


def without_recipient(
    current: Generation,
    secrets: Secrets,
    removed: RecipientEntry,
    accepted: Sequence[str],
    created: str,
) -> GenerationBody:
    """Return a generation with new keys, which one recipient does not get.

    Args:
        current: the newest generation.
        secrets: its secrets.
        removed: who can't open images that are taken from then on.
        accepted: SHA-256 of all statements that are believed now, hex.
        created: RFC 3339 time.

    Raises:
        UsageError: nobody could open images then, or the keys were exchanged too often.
    """
    body = current.body
    left = tuple(entry for entry in body.recipients if entry.id != removed.id)
    if not left:
        raise UsageError(
            f"{removed.label} is the last recipient: nobody could open images then",
            hint="Add another recovery key first (`remetal key add`); nothing was changed.",
        )
    if len(secrets.opening_keys) >= MOST_OPENING_KEYS:
        raise UsageError("the keys of this repository were exchanged too often")
    opening = RecipientKey.generate()
    fresh = Secrets(
        Signer.generate(), secrets.group, secrets.group_secret, (opening, *secrets.opening_keys)
    )
    return GenerationBody(
        current.number + 1,
        fresh.signer.public_key,
        opening.recipient.public_key,
        tuple(fresh.seal(entry.label, Recipient(entry.public_key)) for entry in left),
        tuple(sorted(accepted)),
        created,
        f"removed {removed.label}",
        (*body.revoked, removed.id),
    )


def digest(data: bytes) -> str:
    """Return what `accepted` lists of a statement."""
    return hashlib.sha256(data).hexdigest()
