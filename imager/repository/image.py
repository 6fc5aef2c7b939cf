"""Images as objects: summary for the group, manifest for recovery keys, signed (FORMAT.md section 10)."""

import hashlib
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec
import zstandard

from imager.errors import ObjectDamaged, UnsupportedFormat, UntrustedObject
from imager.layout import codec
from imager.layout.machine import Machine
from imager.repository import names
from imager.repository.chunk import ID_SIZE as MAP_ID_SIZE
from imager.repository.crypto import sealing
from imager.repository.crypto.signing import SIGNATURE_SIZE, Signer, verify
from imager.repository.header import HEADER_SIZE, NO_KIND, Header, Magic, StatementKind
from imager.repository.statement import Certificate
from imager.repository.trust import Trust
from imager.repository.volume_map import Root
from imager.units import MIB

PREFIX: Final = names.IMAGES
PARTS: Final = 4
_SUMMARY_LABEL: Final = "summary"
_MOST_DOCUMENT: Final = 64 * MIB
_MOST_BYTES: Final = 1 << 63

_Document = TypeVar("_Document", bound=msgspec.Struct)


class VolumeSummary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What everybody in the group may know of a volume.

    Attributes:
        id: as in the layout.
        length: bytes.
        used: bytes that chunks cover.
        root: map id of the root node, hex.
        level: of the root node.
    """

    id: str
    length: int
    used: int
    root: str
    level: int

    @property
    def map_root(self) -> Root:
        """The top of its map."""
        return Root(bytes.fromhex(self.root), self.level)


class Summary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What everybody in the group may know of an image.

    Attributes:
        machine_id: of the layout.
        machine_name: of the layout.
        started: RFC 3339 by the machine's clock.
        finished: likewise.
        source: how the frozen source was made.
        used_bytes: bytes of all volumes that chunks cover.
        new_bytes: plaintext bytes of chunks that were not there before.
        stored_bytes: bytes this capture added to the repository before the image itself.
        indexes: SHA-256 of the index objects it wrote, hex.
        volumes: in the order of the layout.
    """

    machine_id: str
    machine_name: str
    started: str
    finished: str
    source: str
    used_bytes: int
    new_bytes: int
    stored_bytes: int
    indexes: tuple[str, ...]
    volumes: tuple[VolumeSummary, ...]


class ExtentsNote(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How it was known which bytes of a volume matter.

    Attributes:
        method: such as "ext4 block bitmap", or "whole".
        reason: why it was read whole although it looked like a known filesystem; else empty.
    """

    method: str
    reason: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What only recovery keys open.

    Attributes:
        machine: the layout.
        extents: by volume id.
        tool: name and version of the program that wrote the image.
    """

    machine: Machine
    extents: dict[str, ExtentsNote]
    tool: str


@dataclass(frozen=True, slots=True)
class SealedImage:
    """An image object whose signature was checked, and whose summary was opened.

    Attributes:
        id: SHA-256 of the object, hex.
        header: its header.
        envelope: holds the session key.
        summary: opened with the group secret.
        certificate: of the credential that signed it.
        modified: when the store says it was made, seconds since the epoch.
        sealed_manifest: for `open_manifest`.
    """

    id: str
    header: Header
    envelope: bytes
    summary: Summary
    certificate: Certificate
    modified: float
    sealed_manifest: bytes

    def open_manifest(self, manifest_key: bytes) -> Manifest:
        """Open the part that only recovery keys reach.

        Raises:
            ObjectDamaged: it does not open, or is not a manifest.
            UnsupportedFormat: it holds something this program does not know.
        """
        what = f"the manifest of image {self.id[:12]}"
        packed = sealing.open_under_own_key(
            manifest_key, self.header.encode(), self.sealed_manifest, what
        )
        return _unpack(packed, Manifest, what)


def encode(
    header: Header,
    envelope: bytes,
    summary: Summary,
    manifest: Manifest,
    directory_key: bytes,
    manifest_key: bytes,
    certificate: bytes,
    signer: Signer,
) -> tuple[str, bytes]:
    """Return id (hex) and bytes of a new image object."""
    raw = header.encode()
    parts = (
        sealing.seal_once(directory_key, _SUMMARY_LABEL, raw, _pack(summary)),
        sealing.seal_under_own_key(manifest_key, raw, _pack(manifest)),
        certificate,
        b"",
    )
    signed = raw + envelope + b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    data = signed + signer.sign(signed)
    return hashlib.sha256(data).hexdigest(), data


def decode(
    data: bytes,
    image_id: str,
    modified: float,
    trust: Trust,
    directory_key: bytes,
) -> SealedImage:
    """Read an image object and check everything that can be checked without a recovery key.

    Raises:
        ObjectDamaged: its bytes are not those that were written, or of another repository.
        UntrustedObject: it is intact, but no credential of this repository signed it.
        UnsupportedFormat: it is of another version.
    """
    what = f"image {image_id[:12]}"
    if hashlib.sha256(data).hexdigest() != image_id:
        raise ObjectDamaged(f"{what} has other bytes than were written")
    header = Header.decode(data, Magic.IMAGE, trust.repository, what)
    if header.kind != NO_KIND:
        raise UnsupportedFormat(f"{what} is of unknown kind {header.kind}")
    position = HEADER_SIZE + header.envelope_length
    envelope = data[HEADER_SIZE:position]
    parts = []
    for _ in range(PARTS):
        length = int.from_bytes(data[position : position + 4], "little")
        parts.append(data[position + 4 : position + 4 + length])
        position += 4 + length
    if position + SIGNATURE_SIZE != len(data) or parts[3]:
        raise ObjectDamaged(f"{what} has the wrong length")
    certificate = trust.certificate(parts[2], f"the certificate of {what}")
    if certificate.kind is not StatementKind.CREDENTIAL:
        raise UntrustedObject(f"{what} was signed by {certificate.name}, who may not add images")
    if certificate.group != header.group:
        raise UntrustedObject(f"{what} was signed by a credential of another group")
    verify(certificate.public_key, data[position:], data[:position], what)
    trust.check_accepted(certificate, PREFIX + image_id)
    summary = sealing.open_once(
        directory_key, _SUMMARY_LABEL, data[:HEADER_SIZE], parts[0], f"the summary of {what}"
    )
    return SealedImage(
        image_id,
        header,
        envelope,
        _check_roots(_unpack(summary, Summary, f"the summary of {what}"), what),
        certificate,
        modified,
        parts[1],
    )


def _check_roots(summary: Summary, what: str) -> Summary:
    sizes = (summary.used_bytes, summary.new_bytes, summary.stored_bytes)
    if not all(0 <= size <= _MOST_BYTES for size in sizes):
        raise ObjectDamaged(f"the summary of {what} has impossible sizes")
    for volume in summary.volumes:
        try:
            size = len(bytes.fromhex(volume.root))
        except ValueError:
            size = 0
        if size != MAP_ID_SIZE or not 0 < volume.length <= _MOST_BYTES:
            raise ObjectDamaged(f"the summary of {what} is malformed")
    return summary


def _pack(document: msgspec.Struct) -> bytes:
    return zstandard.compress(codec.encode(document))


def _unpack(packed: bytes, kind: type[_Document], what: str) -> _Document:
    try:
        if not 0 <= zstandard.frame_content_size(packed) <= _MOST_DOCUMENT:
            raise ObjectDamaged(f"{what} is impossibly large")
        text = zstandard.decompress(packed)
    except zstandard.ZstdError as error:
        raise ObjectDamaged(f"{what} does not decompress: {error}") from error
    return codec.decode(text, kind, what)
