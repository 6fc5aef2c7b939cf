"""Bodies of statements, signed properly: the holder of an upkeep credential chooses most of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from imager.repository import generations
from imager.repository import statement as statements
from imager.repository.crypto.recipient import Recipient
from imager.repository.header import Header, Magic, StatementKind
from imager.repository.removals import read_removals
from imager.repository.statement import Certificate
from imager.repository.trust import Trust
from tests.fuzz import world


def _signed(kind: int, text: bytes) -> bytes:
    header = Header(Magic.STATEMENT, kind, 0, bytes(16), world.GROUP, world.ID)
    signed = header.encode() + len(text).to_bytes(4, "little") + text
    return signed + world.SECRETS.signer.sign(signed)


def body(data: bytes) -> None:
    """The first byte is the kind."""
    kind, text = (data[0], data[1:]) if data else (0, b"")
    encoded = _signed(kind, text)
    found = world.TRUST.statement(encoded, "it")
    name, again = statements.encode(found.kind, found.body, world.OWN, world.ID, world.GROUP)
    assert statements.decode(again, world.ID, name).body == found.body
    if found.kind in {StatementKind.CREDENTIAL, StatementKind.UPKEEP}:
        Certificate.of(found, encoded)


def in_repository(data: bytes) -> None:
    """As `body`, but stored: nothing that reads all statements may stumble over one."""
    kind, text = (data[0], data[1:]) if data else (0, b"")
    encoded = _signed(kind, text)
    for prefix in (statements.PREFIX, statements.REMOVALS, statements.REVOCATIONS):
        name = prefix + generations.digest(encoded)
        repository = world.repository({name: encoded})
        removals = read_removals(repository)
        removals.doubtful_packs(0.0)
        removals.doubtful_packs(1.7e9)


def generation(text: bytes) -> None:
    backend = world.Memory({generations.name_of(2): _signed(StatementKind.GENERATION, text)})
    trust = Trust.read(backend, world.ID, world.CONFIGURATION)
    current = trust.current
    current.open_secrets(world.KEY)
    for entry in current.body.recipients:
        Recipient(entry.public_key)
    Recipient(current.body.opening_key)


def targets() -> dict[str, tuple[Callable[[bytes], None], Sequence[bytes]]]:
    images, packs = ("ab" * 32,), ("cd" * 32,)
    bodies: dict[StatementKind, statements.Body] = {
        StatementKind.CREDENTIAL: statements.CredentialBody(
            "ab" * 16, "web1", world.CREDENTIAL.public_key, world.TIME
        ),
        StatementKind.HOLD: statements.HoldBody(images, "court case 12", None, world.TIME),
        StatementKind.RELEASE: statements.ReleaseBody(packs, world.TIME),
        StatementKind.DRILL: statements.DrillBody(images[0], True, 120.5, world.TIME),
        StatementKind.REVOCATION: statements.RevocationBody(
            world.CERTIFICATE.id.hex(), "web1", "stolen", world.TIME, ("images/" + images[0],)
        ),
        StatementKind.CONDEMNED: statements.RemovalBody(images, packs, 604_800, world.TIME),
        StatementKind.REMOVED: statements.RemovalBody(images, packs, 0, world.TIME),
        StatementKind.REPACKED: statements.RepackedBody(packs, world.TIME),
    }
    bodies[StatementKind.UPKEEP] = bodies[StatementKind.CREDENTIAL]
    seeds = [bytes([kind]) + msgspec.json.encode(value) for kind, value in bodies.items()]
    second = generations.with_recipient(
        world.TRUST.current,
        world.SECRETS,
        "two",
        world.SECRETS.opening_keys[0].recipient,
        world.TIME,
    )
    return {
        "statement-body": (body, seeds),
        "statement-stored": (in_repository, seeds),
        "generation": (generation, [msgspec.json.encode(second)]),
    }
