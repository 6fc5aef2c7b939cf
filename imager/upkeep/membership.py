"""Who can open images and who may add them: adding and removing recipients, revoking credentials.

What takes something away is planned first: the plan says what will be, and is then carried out.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from imager.errors import (
    OBJECT_FAULTS,
    ObjectDamaged,
    ObjectMissing,
    OutputExists,
    UntrustedObject,
    UsageError,
)
from imager.repository import generations, statement
from imager.repository import image as image_format
from imager.repository.configuration import RecipientEntry
from imager.repository.crypto.recipient import Recipient
from imager.repository.crypto.signing import Signer
from imager.repository.header import StatementKind
from imager.repository.keyring import GroupKeys
from imager.repository.names import digest_of
from imager.repository.repository import Problem, Repository, now
from imager.repository.retrieval import Unlocked
from imager.repository.statement import (
    Certificate,
    CredentialBody,
    GenerationBody,
    RevocationBody,
    Signatory,
    Statement,
)

_FOLDERS = (statement.PREFIX, statement.REVOCATIONS, statement.REMOVALS)


@dataclass(frozen=True, slots=True)
class KnownCredential:
    """A credential, and what it did.

    Attributes:
        certificate: of it.
        images: names of the objects of believed images that it signed, oldest first.
        last: when the store took the newest of them, seconds since the epoch; None without any.
        revocation: what ended it, if anything did.
    """

    certificate: Certificate
    images: tuple[str, ...]
    last: float | None
    revocation: RevocationBody | None


@dataclass(frozen=True, slots=True)
class RemovalOfRecipient:
    """A recipient to be removed.

    Attributes:
        removed: who it is.
        images: how many images it opens for ever.
        body: the generation that will be.
        unlocked: a current recovery key.
    """

    removed: RecipientEntry
    images: int
    body: GenerationBody
    unlocked: Unlocked


@dataclass(frozen=True, slots=True)
class RevocationOfCredential:
    """A credential to be revoked.

    Attributes:
        credential: which.
        body: what will be said.
        statements: how many statements of each kind it signed that stay believed.
        unread: what can't be read; if the credential signed it, it is not believed any more.
        unlocked: a current recovery key.
    """

    credential: KnownCredential
    body: RevocationBody
    statements: Mapping[StatementKind, int]
    unread: tuple[Problem, ...]
    unlocked: Unlocked


def credentials(repository: Repository, keys: GroupKeys) -> list[KnownCredential]:
    """Return all credentials that the repository vouches for, or did until it revoked them."""
    images, _ = repository.images(keys)
    found: dict[bytes, Certificate] = {}
    for own in _read(repository)[0]:
        if isinstance(own.body, CredentialBody):
            certificate = Certificate.of(own, own.signed + own.signature)
            found[certificate.id] = certificate
        elif own.certificate:
            # One that was not published, because whoever made it was stopped, is in use all the same.
            certificate = repository.trust.certificate(own.certificate, own.name)
            found.setdefault(certificate.id, certificate)
    for image in images:
        found.setdefault(image.certificate.id, image.certificate)
    revocations = repository.trust.revocations
    listed = []
    for certificate in sorted(found.values(), key=lambda each: (each.created, each.name)):
        signed = [image for image in images if image.certificate.id == certificate.id]
        listed.append(
            KnownCredential(
                certificate,
                tuple(image_format.PREFIX + image.id for image in signed),
                signed[-1].modified if signed else None,
                revocations.get(certificate.id.hex()),
            )
        )
    return listed


def add_recipient(
    repository: Repository, unlocked: Unlocked, label: str, recipient: Recipient
) -> int:
    """Let one more recovery key open every image, old and new; return the new generation's number.

    Raises:
        UsageError: it can already, or its label is taken.
        OutputExists: somebody changed the recipients at the same time.
    """
    _check_whole(repository)
    body = generations.with_recipient(
        repository.trust.current, unlocked.secrets, label, recipient, now()
    )
    _write(repository, body, unlocked.secrets.signer)
    return body.generation


def plan_removal(repository: Repository, unlocked: Unlocked, reference: str) -> RemovalOfRecipient:
    """Plan to remove a recipient: new keys, which it does not get.

    Raises:
        UsageError: none is meant, or it is the last one.
        ObjectDamaged: what can't be read now would be disowned for ever.
    """
    _check_whole(repository)
    current = repository.trust.current
    removed = current.find(reference)
    images, problems = repository.images(unlocked.keys)
    said, unread = _read(repository)
    _refuse_unread((*_rotten(repository, problems), *unread))
    accepted = {generations.digest(image.certificate.encoded) for image in images}
    accepted |= {_relied_on(each) for each in said}
    body = generations.without_recipient(
        current, unlocked.secrets, removed, sorted(accepted), now()
    )
    return RemovalOfRecipient(removed, len(images), body, unlocked)


def remove_recipient(repository: Repository, plan: RemovalOfRecipient) -> tuple[str, ...]:
    """Carry a removal out, with all that was said since it was planned.

    Returns:
        Names of what was said too late to be listed, and is not believed any more. It can't be
        told from what the removed recipient may sign with the old key, so it is not accepted later.

    Raises:
        OutputExists: somebody changed the recipients at the same time.
        ObjectDamaged: as for `plan_removal`.
    """
    fresh = _anew(repository)
    _check_whole(fresh)
    if fresh.trust.current.number + 1 != plan.body.generation:
        raise _changed_meanwhile()
    body = plan_removal(fresh, plan.unlocked, plan.removed.id).body
    _write(fresh, body, plan.unlocked.secrets.signer)
    accepted = set(body.accepted)
    late = [each.name for each in _read(fresh)[0] if _relied_on(each) not in accepted]
    late += [
        image_format.PREFIX + image.id
        for image in fresh.images(plan.unlocked.keys)[0]
        if generations.digest(image.certificate.encoded) not in accepted
    ]
    return tuple(late)


def plan_revocation(
    repository: Repository, unlocked: Unlocked, reference: str, reason: str
) -> RevocationOfCredential:
    """Plan to revoke a credential: what it signed so far stays, nothing later counts.

    Objects that are not believed don't stop it: else whoever may create some could not be revoked.

    Raises:
        UsageError: none is meant, or several, or it is revoked already.
    """
    _check_next(repository)
    known = credentials(repository, unlocked.keys)
    open_ones = [each for each in known if each.revocation is None]
    found = [each for each in open_ones if each.certificate.name == reference] or [
        each
        for each in open_ones
        if len(reference) >= generations.LEAST_DIGITS
        and each.certificate.id.hex().startswith(reference.lower())
    ]
    if len(found) != 1:
        raise UsageError(
            f"{len(found) or 'no'} credentials that are not revoked are called {reference!r}",
            hint="`remetal key list REPO` lists them; give a whole name, or at least four digits of an id.",
        )
    certificate = found[0].certificate
    said, unread = _read(repository)
    own = [
        each
        for each in said
        if each.certificate
        and repository.trust.certificate(each.certificate, each.name).id == certificate.id
    ]
    problems = _rotten(repository, repository.images(unlocked.keys)[1])
    accepted = (*found[0].images, *(each.name for each in own))
    body = RevocationBody(certificate.id.hex(), certificate.name, reason, now(), accepted)
    kinds = Counter(each.kind for each in own)
    return RevocationOfCredential(found[0], body, kinds, (*problems, *unread), unlocked)


def revoke(repository: Repository, plan: RevocationOfCredential) -> RevocationOfCredential:
    """Revoke a credential; it counts for all who open the repository from then on.

    Returns:
        What was done: it accepts also what the credential signed since `plan` was made.

    Raises:
        UsageError: somebody revoked it meanwhile.
        OutputExists: somebody changed the repository's key meanwhile.
    """
    fresh = _anew(repository)
    if fresh.trust.signing_key != plan.unlocked.secrets.signer.public_key:
        raise _changed_meanwhile()
    done = plan_revocation(fresh, plan.unlocked, plan.body.credential, plan.body.reason)
    signatory = Signatory(plan.unlocked.secrets.signer)
    group = done.credential.certificate.group
    fresh.state(StatementKind.REVOCATION, done.body, signatory, group)
    return done


def _anew(repository: Repository) -> Repository:
    return Repository.of(repository.backend, repository.id, repository.configuration)


def _read(repository: Repository) -> tuple[list[Statement], list[Problem]]:
    """Return all statements that are believed, and those that can't be read now.

    What is intact and was signed by nobody who counts is neither.
    """
    said: list[Statement] = []
    problems: list[Problem] = []
    for folder in _FOLDERS:
        for entry in repository.backend.list(folder):
            try:
                said.append(repository.read_statement(entry.name))
            except OBJECT_FAULTS as error:
                problems.append(Problem(entry.name, error))
    return said, _rotten(repository, problems)


def _relied_on(said: Statement) -> str:
    """Return the digest of what the repository's own key signed: the certificate, or all of it."""
    return generations.digest(said.certificate or said.signed + said.signature)


def _rotten(repository: Repository, problems: Iterable[Problem]) -> list[Problem]:
    """Leave out what is no loss: what was removed, what nobody signed, what never was an object."""
    found = []
    for problem in problems:
        digest = digest_of(problem.name)
        if isinstance(problem.error, UntrustedObject) or digest is None:
            continue
        try:
            intact = hashlib.sha256(repository.backend.get(problem.name)).hexdigest() == digest
        except ObjectMissing:
            continue  # an upkeep that runs carried it out
        except OBJECT_FAULTS:
            intact = False
        if not (intact and isinstance(problem.error, ObjectDamaged)):
            found.append(problem)
    return found


def _refuse_unread(problems: Iterable[Problem]) -> None:
    names = ", ".join(problem.name for problem in problems)
    if names:
        raise ObjectDamaged(
            f"what can't be read now would be disowned for ever: {names}",
            hint="`remetal repair REPO` may bring it back. What it can't bring back, and what "
            "nobody of yours wrote, remove from the storage; nothing was changed.",
        )


def _check_next(repository: Repository) -> None:
    """Refuse when the next generation is there: what the current key signs may then not count."""
    name = generations.name_of(repository.trust.current.number + 1)
    if any(entry.name == name for entry in repository.backend.list(generations.PREFIX)):
        raise next(iter(repository.trust.problems), _changed_meanwhile())


def _check_whole(repository: Repository) -> None:
    for problem in repository.trust.problems:
        raise problem


def _write(repository: Repository, body: GenerationBody, signer: Signer) -> None:
    group = repository.trust.current.group
    data = generations.encode(body, signer, repository.id, group)
    if not repository.backend.put_new(generations.name_of(body.generation), [data]):
        raise _changed_meanwhile()


def _changed_meanwhile() -> OutputExists:
    return OutputExists(
        "somebody else changed the recipients of this repository at the same time",
        hint="Nothing of yours was changed; look at `remetal key list REPO` and try again.",
    )
