"""Bytes as the store gives them: anybody who can write there chooses them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from imager.repository import envelope, image, pack, parity_object
from imager.repository import statement as statements
from imager.repository.chunk import FREE, ZERO
from imager.repository.configuration import Configuration
from imager.repository.crypto.recipient import Recipient
from imager.repository.generations import Generation
from imager.repository.header import HEADER_SIZE, Header, Magic, PackKind
from imager.repository.index import Segment
from imager.repository.pack import PackBuilder
from imager.repository.statement import CredentialBody
from imager.repository.volume_map import NODE_MAGIC, Root, read_tree, runs
from tests.fuzz import sealed, world

Targets = dict[str, tuple[Callable[[bytes], None], Sequence[bytes]]]
VOLUME = 1 << 20


def header(data: bytes) -> None:
    for magic in Magic:
        if data[:8] == magic.value:
            assert Header.decode(data, magic, world.ID, "it").encode() == data[:HEADER_SIZE]


def configuration(data: bytes) -> None:
    found = Configuration.decode(data, "here")
    assert Configuration.decode(found.encode(), "here") == found
    generation = Generation.first(found)
    for entry in found.recipients:
        Recipient(entry.public_key)
    generation.open_secrets(world.KEY)


def statement(data: bytes) -> None:
    statements.decode(data, world.ID, "it")
    world.TRUST.statement(data, "it")


def index(data: bytes) -> None:
    name = "indexes/" + hashlib.sha256(data).hexdigest()
    Segment.decode(data, name, world.KEYS.directory_key, world.ID)


def pack_object(data: bytes) -> None:
    backend = world.Memory({"packs/it": data})
    pack.read_directory(backend, "packs/it", len(data), world.KEYS.directory_key, world.ID)


def image_object(data: bytes) -> None:
    identity = hashlib.sha256(data).hexdigest()
    image.decode(data, identity, 0.0, world.TRUST, world.KEYS.directory_key)


def an_envelope(data: bytes) -> None:
    opening = world.SECRETS.opening_keys[0]
    found = envelope.open_envelope(
        {opening.recipient.id: opening}, data, world.ID, world.SESSION, "it"
    )
    assert found == world.SESSION_KEY


def parity(data: bytes) -> None:
    _, length, _ = parity_object.decode_prologue(data, world.ID, "it")
    start = parity_object.TABLE_START
    raw = data[start : start + length]
    if len(raw) < length:
        return
    # The id is a plain hash: whoever writes the table writes the id.
    table = parity_object.decode_table(raw, hashlib.sha256(raw).digest(), "it")
    checks = data[table.checks_start : table.share_start]
    split = table.split_checks(checks, "it")
    again = parity_object.make_table(table.members, table.shares, checks)
    assert again == table
    for number, rows in enumerate(split.of):
        split.holds(number, len(rows), data[:100])


def volume_map(data: bytes) -> None:
    """Nodes, each behind its length (16 bits); the first byte of an id says which is meant."""
    nodes = []
    while data and len(nodes) < 256:
        size = int.from_bytes(data[:2], "little")
        nodes.append(data[2 : 2 + size])
        data = data[2 + size :]

    def load(identity: bytes) -> bytes:
        return nodes[identity[0]] if identity[0] < len(nodes) else b""

    level = nodes[0][4] if nodes and len(nodes[0]) > 4 else 0
    found = read_tree(Root(bytes(32), level), VOLUME, load, "it")
    assert int(found["length"].sum()) == VOLUME


def _node(level: int, *pairs: tuple[int, bytes]) -> bytes:
    node = NODE_MAGIC + bytes([level, 0, 0, 0]) + runs(list(pairs)).tobytes()
    return len(node).to_bytes(2, "little") + node


def _pack() -> bytes:
    builder = PackBuilder(world.header(Magic.PACK, PackKind.MAPS), b"", world.KEYS.directory_key)
    return b"".join(builder.finish().parts)


def _index() -> bytes:
    digest = bytes(range(32))
    empty = np.zeros(1, dtype=pack.ENTRY)
    segment = Segment.collect([(digest, PackKind.DATA, empty)])
    return segment.encode(world.header(Magic.INDEX), world.KEYS.directory_key)[1]


def _parity() -> bytes:
    members = [
        parity_object.Member("config", 100, bytes(range(32))),
        parity_object.Member("images/" + "ab" * 32, 70_000, b"\xab" * 32),
    ]
    checks = bytes(16 * (1 + 2 + 2))
    table = parity_object.make_table(members, 1, checks)
    return parity_object.encode_prefix(world.ID, table, 0, checks)


def targets() -> Targets:
    own = (world.SECRETS.opening_keys[0].recipient,)
    leaf = ((VOLUME // 2, bytes(range(32))), (VOLUME // 2, ZERO))
    half = ((VOLUME // 4, FREE), (VOLUME // 4, b"\x07" * 32))
    body = CredentialBody("ab" * 16, "web1", world.CREDENTIAL.public_key, world.TIME)
    return {
        "header": (header, [world.header(magic).encode() for magic in Magic]),
        "configuration": (configuration, [world.CONFIGURATION.encode()]),
        "statement": (
            statement,
            [
                world.CERTIFICATE.encoded,
                statements.encode(
                    statements.StatementKind.UPKEEP, body, world.OWN, world.ID, world.GROUP
                )[1],
            ],
        ),
        "index": (index, [_index()]),
        "pack": (pack_object, [_pack()]),
        "image": (image_object, [sealed.an_image()]),
        "envelope": (
            an_envelope,
            [envelope.seal(own, world.ID, world.SESSION, world.SESSION_KEY)],
        ),
        "parity": (parity, [_parity()]),
        "volume-map": (
            volume_map,
            [
                _node(0, *leaf),
                _node(1, (VOLUME // 2, b"\x01" * 32), (VOLUME // 2, b"\x01" * 32))
                + _node(0, *half),
            ],
        ),
    }
