"""What lies behind seals: somebody with a credential chooses it and seals it properly."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from imager.layout import codec
from imager.layout.disk import Disk, DiskIdentity, Volume, VolumeRole
from imager.layout.firmware import Firmware, FirmwareKind
from imager.layout.machine import Machine
from imager.repository import chunk, image, index, pack
from imager.repository.chunk import Codec, Identifier, Opener, Sealer
from imager.repository.crypto import sealing
from imager.repository.header import HEADER_SIZE, Magic, PackKind
from imager.repository.image import ExtentsNote, Manifest, Summary, VolumeSummary
from imager.repository.index import Index, Segment
from imager.repository.pack import TRAILER, TRAILER_MAGIC
from imager.units import format_size
from tests.fuzz import world

MACHINE = Machine(
    "6b0e9e7e-0000-4000-8000-000000000001",
    "web1",
    "x86_64",
    Firmware(FirmwareKind.BIOS),
    (
        Disk(
            "disk0",
            "/dev/vda",
            DiskIdentity(1 << 20, 512),
            None,
            (Volume("disk0", VolumeRole.WHOLE_DISK, 0, 1 << 20),),
        ),
    ),
)
SUMMARY = Summary(
    "6b0e9e7e-0000-4000-8000-000000000001",
    "web1",
    world.TIME,
    world.TIME,
    "offline",
    1 << 20,
    1 << 20,
    1 << 20,
    ("ab" * 32,),
    (VolumeSummary("disk0", 1 << 20, 1 << 20, "cd" * 32, 1),),
)
MANIFEST = Manifest(MACHINE, {"disk0": ExtentsNote("whole", "")}, "remetal fuzz")
MANIFEST_KEY = b"\x99" * 32
CHUNK_KEY = b"\xaa" * 32
ID_KEY = b"\xbb" * 32
PLAIN = b"words " * 20


def index_body(body: bytes) -> None:
    raw = world.header(Magic.INDEX).encode()
    data = raw + sealing.seal_once(world.KEYS.directory_key, "index", raw, body)
    name = index.PREFIX + hashlib.sha256(data).hexdigest()
    segment = Segment.decode(data, name, world.KEYS.directory_key, world.ID)
    again = segment.encode(world.header(Magic.INDEX), world.KEYS.directory_key)[1]
    assert body == sealing.open_once(
        world.KEYS.directory_key, "index", raw, again[HEADER_SIZE:], "it"
    )
    _use(segment)


def directory(entries: bytes) -> None:
    """The first two bytes are the pack's kind and the number of entries that it claims."""
    kind, count, entries = entries[:1], entries[1:2], entries[2:]
    raw = world.header(Magic.PACK, kind[0] if kind else 0).encode()
    end = sealing.seal_once(world.KEYS.directory_key, "pack", raw, entries)
    trailer = TRAILER.pack(len(end), count[0] if count else 0, TRAILER_MAGIC)
    backend = world.Memory({"packs/it": raw + end + trailer})
    found, rows = pack.read_directory(
        backend,
        "packs/it",
        len(backend.objects["packs/it"]),
        world.KEYS.directory_key,
        world.ID,
    )
    assert rows.tobytes() == entries
    _use(Segment.collect([(bytes(32), found, rows)]))


def _use(segment: Segment) -> None:
    merged = Index([segment, segment])
    assert len(merged) <= len(segment.entries)
    merged.sizes_needed()
    merged.without({pack.object_name(digest) for digest, _ in segment.packs[:1]})
    for row in segment.entries[:4]:
        for place in merged.locations(row["id"].tobytes()):
            merged.pack_name(place)
    merged.absent(segment.entries["id"], PackKind.DATA)


def _image(parts: bytes) -> bytes:
    signed = world.header(Magic.IMAGE).encode() + parts
    return signed + world.CREDENTIAL.sign(signed)


def _parts(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)


def _sealed_image(summary: bytes, manifest: bytes) -> bytes:
    raw = world.header(Magic.IMAGE).encode()
    return _image(
        _parts(
            sealing.seal_once(world.KEYS.directory_key, "summary", raw, summary),
            sealing.seal_under_own_key(MANIFEST_KEY, raw, manifest),
            world.CERTIFICATE.encoded,
            b"",
        )
    )


def _read(data: bytes) -> image.SealedImage:
    identity = hashlib.sha256(data).hexdigest()
    return image.decode(data, identity, 0.0, world.TRUST, world.KEYS.directory_key)


def image_parts(parts: bytes) -> None:
    _read(_image(parts))


def summary_frame(frame: bytes) -> None:
    _read(_sealed_image(frame, b""))


def summary_text(text: bytes) -> None:
    found = _read(_sealed_image(zstandard.compress(text), b"")).summary
    assert msgspec.json.decode(msgspec.json.encode(found), type=Summary) == found
    format_size(found.used_bytes)
    format_size(found.stored_bytes)
    assert all(len(volume.map_root.id) == chunk.ID_SIZE for volume in found.volumes)


def manifest_text(text: bytes) -> None:
    found = _read(
        _sealed_image(zstandard.compress(codec.encode(SUMMARY)), zstandard.compress(text))
    )
    manifest = found.open_manifest(MANIFEST_KEY)
    assert codec.decode(codec.encode(manifest), Manifest, "it") == manifest


def layout(text: bytes) -> None:
    found = codec.decode(text, Machine, "it")
    assert codec.decode(codec.encode(found), Machine, "it") == found


def blob(data: bytes) -> None:
    """One byte says the codec, three the plain length; the rest is the body, sealed here."""
    length, kind, body = int.from_bytes(data[1:4], "little"), data[:1], data[4:]
    identifier = Identifier(ID_KEY)
    try:
        is_small = kind == b"\0" or 0 <= zstandard.frame_content_size(body) <= 1 << 20
        plain = body if kind == b"\0" else zstandard.decompress(body) if is_small else b""
    except zstandard.ZstdError:
        plain = b""
    identity = identifier.identify(plain)
    nonce = bytes(12)
    number = kind[0] if kind else 0
    aad = chunk._AAD.pack(identity, length, number)
    sealed_blob = nonce + AESGCM(CHUNK_KEY).encrypt(nonce, body, aad)
    assert Opener(CHUNK_KEY, identifier).open(identity, length, number, sealed_blob) == plain


def raw_blob(data: bytes) -> None:
    identity = Identifier(ID_KEY).identify(PLAIN)
    opener = Opener(CHUNK_KEY, Identifier(ID_KEY))
    assert opener.open(identity, len(PLAIN), Codec.ZSTD, data) == PLAIN


def an_image() -> bytes:
    """Return a valid image object."""
    return image.encode(
        world.header(Magic.IMAGE),
        b"",
        SUMMARY,
        MANIFEST,
        world.KEYS.directory_key,
        MANIFEST_KEY,
        world.CERTIFICATE.encoded,
        world.CREDENTIAL,
    )[1]


def targets() -> dict[str, tuple[Callable[[bytes], None], Sequence[bytes]]]:
    rows = np.zeros(3, dtype=pack.ENTRY)
    for number, row in enumerate(rows):
        row["id"] = bytes([number]) * 32
        row["offset"], row["length"], row["plain"] = 64 + 100 * number, 100, 4096
    segment = Segment.collect(
        [(b"\x01" * 32, PackKind.DATA, rows), (b"\x02" * 32, PackKind.MAPS, rows)]
    )
    raw = segment.encode(world.header(Magic.INDEX), world.KEYS.directory_key)[1]
    body = sealing.open_once(
        world.KEYS.directory_key, "index", raw[:HEADER_SIZE], raw[HEADER_SIZE:], "it"
    )
    size = len(PLAIN).to_bytes(3, "little")
    frame = zstandard.compress(PLAIN)
    raw = Sealer(CHUNK_KEY).seal(Identifier(ID_KEY).identify(PLAIN), len(PLAIN), frame, Codec.ZSTD)
    return {
        "index-body": (index_body, [body, bytes(8)]),
        "directory": (directory, [b"\x01\x03" + rows.tobytes(), b"\x02\x00"]),
        "image-parts": (image_parts, [an_image()[HEADER_SIZE:-64]]),
        "summary-frame": (summary_frame, [zstandard.compress(codec.encode(SUMMARY))]),
        "summary": (summary_text, [codec.encode(SUMMARY)]),
        "manifest": (manifest_text, [codec.encode(MANIFEST)]),
        "layout": (layout, [codec.encode(MACHINE)]),
        "blob": (blob, [b"\0" + size + PLAIN, b"\1" + size + frame]),
        "raw-blob": (raw_blob, [bytes(raw)]),
    }
