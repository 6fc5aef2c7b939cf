"""A repository of 16 TiB without its content.

Indexes, maps and images are real and sealed: 131 million chunks in all. The million packs of data
exist in the listing only. Besides the machine that fills the repository there are images that
changed a part of it, and one that nobody wants any more, with content of its own.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from imager.layout.disk import Disk, DiskIdentity, Volume, VolumeRole
from imager.layout.firmware import Firmware, FirmwareKind
from imager.layout.machine import Machine
from imager.repository.backend.directory import DirectoryBackend
from imager.repository.backend.protocol import Entry
from imager.repository.configuration import Secrets
from imager.repository.crypto.recipient import RecipientKey
from imager.repository.header import NO_KIND, Header, Magic, PackKind
from imager.repository.image import ExtentsNote, Manifest, Summary, VolumeSummary
from imager.repository.index import ENTRY, Segment
from imager.repository.keyring import Credential
from imager.repository.pack import object_name
from imager.repository.repository import Repository, now
from imager.repository.session import Counters, Session
from imager.repository.volume_map import RUN, ZERO, Root, Runs
from imager.units import KIB, MIB

INDEXES: Final = 125
PACKS_EACH: Final = 8192
CHUNKS_EACH: Final = 128
CHUNK: Final = 128 * KIB
ROWS: Final = PACKS_EACH * CHUNKS_EACH
CHANGED_IMAGES: Final = 8
_VERSION: Final = 2
# A changed image differs in so many runs, all over one volume.
_CHANGED: Final = 2000


def indexes(scale: float) -> int:
    """Return how many indexes there are; the last one's packs are needed by the unwanted image only."""
    return max(2, round(INDEXES * scale))


def digest(pack: int) -> bytes:
    """Return what stands for the SHA-256 of a pack."""
    return hashlib.sha256(pack.to_bytes(8, "little")).digest()


def ids(number: int) -> np.ndarray:
    """Return the chunk ids of an index, in the order of storage."""
    noise = np.random.Generator(np.random.PCG64(number))
    return np.frombuffer(noise.bytes(ROWS * 32), dtype="V32")


class Listed(DirectoryBackend):
    """A directory with packs of data that exist in the listing only."""

    count = 0

    def list(self, prefix: str) -> Iterator[Entry]:
        if prefix == "packs/":
            for pack in range(self.count):
                yield Entry(object_name(digest(pack)), 17 * MIB, 1e9)
        yield from super().list(prefix)


def make(cache: Path, scale: float) -> Path:
    """Return a folder with the repository, a credential and the unwanted image's id."""
    folder = cache / f"v{_VERSION}-{indexes(scale)}"
    if folder.exists():
        return folder
    growing = folder.with_suffix(".new")
    shutil.rmtree(growing, ignore_errors=True)
    growing.mkdir(parents=True)
    held: list[Credential] = []

    def keep(repository: Repository, secrets: Secrets) -> None:
        held.append(repository.new_credential(secrets, "bench"))

    recipients = [("bench", RecipientKey.generate().recipient)]
    repository = Repository.create(str(growing / "repository"), recipients, keep)
    repository.publish(held[0])
    held[0].write(growing / "credential")
    unwanted = _images(repository, held[0], indexes(scale))
    (growing / "unwanted").write_text(unwanted, "ascii")
    keys = repository.credential_keys(held[0])
    header = Header(Magic.INDEX, NO_KIND, 0, os.urandom(16), keys.group, repository.id)
    for number in range(indexes(scale)):
        name, data = _segment(number).encode(header, keys.directory_key)
        repository.backend.put_new(name, [data])
    growing.rename(folder)
    return folder


def _segment(number: int) -> Segment:
    rows = np.empty(ROWS, dtype=ENTRY)
    rows["id"] = ids(number)
    rows["pack"] = np.arange(ROWS) // CHUNKS_EACH
    rows["offset"] = 1300 + np.arange(ROWS) % CHUNKS_EACH * CHUNK
    rows["length"] = rows["plain"] = CHUNK
    heads = np.ascontiguousarray(rows["id"]).view(">u8").reshape(-1, 4)[:, 0]
    packs = range(number * PACKS_EACH, (number + 1) * PACKS_EACH)
    return Segment(
        tuple((digest(pack), PackKind.DATA) for pack in packs),
        rows[np.argsort(heads.astype(np.uint64))],
    )


def _images(repository: Repository, credential: Credential, count: int) -> str:
    """Store the images; return the id of the unwanted one."""
    session = Session(repository, credential)
    roots = [_store_map(session, _volume(number)) for number in range(count - 1)]
    _finish(session, "server", roots)
    for image in range(CHANGED_IMAGES):
        session = Session(repository, credential)
        number = image * (count - 1) // CHANGED_IMAGES
        changed = _volume(number)
        changed["id"][:: ROWS // _CHANGED] = np.void(ZERO)
        roots = [*roots[:number], _store_map(session, changed), *roots[number + 1 :]]
        _finish(session, "server", roots)
    session = Session(repository, credential)
    return _finish(session, "old server", [_store_map(session, _volume(count - 1))])


def _store_map(session: Session, volume: Runs) -> Root:
    tree = session.new_map()
    tree.add(volume)
    return tree.finish()


def _volume(number: int) -> Runs:
    runs = np.empty(ROWS, dtype=RUN)
    runs["length"] = CHUNK
    runs["id"] = ids(number)
    return runs


def _finish(session: Session, name: str, roots: list[Root]) -> str:
    size = ROWS * CHUNK
    summaries = tuple(
        VolumeSummary(f"disk0/p{number}", size, size, root.id.hex(), root.level)
        for number, root in enumerate(roots)
    )
    volumes = tuple(
        Volume(volume.id, VolumeRole.WHOLE_DISK, number * size, size)
        for number, volume in enumerate(summaries)
    )
    disk = Disk("disk0", "/dev/vda", DiskIdentity(len(roots) * size, 512), None, volumes)
    firmware = Firmware(FirmwareKind.BIOS)
    machine = Machine("6b0e9e7e-0000-4000-8000-000000000001", name, "x86_64", firmware, (disk,))

    def summarise(written: tuple[str, ...], counters: Counters) -> Summary:
        return Summary(
            machine.id,
            name,
            now(),
            now(),
            "offline",
            len(roots) * size,
            counters.new_bytes,
            counters.stored_bytes,
            written,
            summaries,
        )

    notes = {volume.id: ExtentsNote("whole", "") for volume in volumes}
    return session.finish(summarise, Manifest(machine, notes, "remetal bench"))[0]
