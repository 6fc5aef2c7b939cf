"""Checking a repository: is every image that is listed complete, intact and what it says?

Three depths. Structure: every index, image, certificate and map is verified, and every chunk they
name is in a pack that is there and large enough. With `read_data`: every pack is read and its
bytes compared with its name, which needs no key that opens images. With a recovery key besides:
every chunk is opened and compared with its id, which also finds content that lies.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from imager.errors import ObjectDamaged, RemetalError
from imager.repository import image as image_format
from imager.repository import index as index_format
from imager.repository import pack as pack_format
from imager.repository.configuration import CONFIG_NAME, repository_id
from imager.repository.header import PackKind
from imager.repository.image import SealedImage
from imager.repository.index import Index, Segment
from imager.repository.keyring import GroupKeys
from imager.repository.repository import STATEMENTS, Problem, Repository
from imager.repository.retrieval import MapReader, OpenImage, Unlocked
from imager.repository.statement import Certificate
from imager.repository.volume_map import chunk_ids

_READERS: Final = 2

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong, and which images it touches.

    Attributes:
        name: of the object.
        message: what is wrong with it.
        images: ids of the images that need it.
        repairable: whether every image still restores bit-exact without it.
    """

    name: str
    message: str
    images: tuple[str, ...]
    repairable: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found.

    Attributes:
        images: how many images were looked at, readable or not.
        objects: how many objects were verified.
        read_bytes: how much was read of packs.
        opened_chunks: how many chunks were opened with the recovery key.
        findings: everything wrong; empty when all is well.
    """

    images: int
    objects: int
    read_bytes: int
    opened_chunks: int
    findings: tuple[Finding, ...]


@dataclass(slots=True)
class _Work:
    """Findings in the making."""

    images: list[SealedImage]
    needs: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    findings: list[Finding] = field(default_factory=list)
    damaged_packs: dict[str, RemetalError] = field(default_factory=dict)
    objects: int = 0
    read_bytes: int = 0
    opened_chunks: int = 0

    def add(
        self, name: str, error: RemetalError | str, images: Iterable[str], **more: bool
    ) -> None:
        message = error if isinstance(error, str) else error.message
        self.findings.append(Finding(name, message, tuple(sorted(images)), **more))

    def all_images(self) -> list[str]:
        return [image.id for image in self.images]


def data_size(repository: Repository) -> int:
    """Return how many bytes of packs a check with `read_data` will read."""
    return sum(entry.size for entry in repository.backend.list(pack_format.PREFIX))


def check(
    repository: Repository,
    keys: GroupKeys,
    advance: Advance,
    *,
    read_data: bool = False,
    unlocked: Unlocked | None = None,
) -> Report:
    """Check a repository; damage is reported, never raised.

    Args:
        repository: what to check.
        keys: of the group.
        advance: told of every byte of packs that was read.
        read_data: read every pack and compare its bytes with its name.
        unlocked: a recovery key; with it every chunk of every image is opened too.
    """
    images, problems = repository.images(keys)
    work = _Work(images, objects=len(images))
    for problem in problems:
        image_id = problem.name.removeprefix(image_format.PREFIX)
        work.add(problem.name, problem.error, [image_id])
    _check_configuration(repository, keys, work)
    _check_statements(repository, work)
    index = _check_indexes(repository, keys, work)
    _check_maps(repository, keys, index, work)
    _check_packs(repository, index, work, advance, read_data=read_data)
    if unlocked is not None:
        _open_everything(repository, unlocked, index, work)
    return Report(
        len(images) + len(problems),
        work.objects,
        work.read_bytes,
        work.opened_chunks,
        tuple(work.findings),
    )


def _check_configuration(repository: Repository, keys: GroupKeys, work: _Work) -> None:
    if repository_id(repository.backend.get(CONFIG_NAME)) == keys.repository:
        work.objects += 1
    else:
        work.add(CONFIG_NAME, "the configuration is not the one the key knows", work.all_images())


def _check_statements(repository: Repository, work: _Work) -> None:
    signed: defaultdict[str, list[str]] = defaultdict(list)
    for image in work.images:
        signed[hashlib.sha256(image.certificate.encoded).hexdigest()].append(image.id)
    for entry in repository.backend.list(STATEMENTS):
        name = entry.name.removeprefix(STATEMENTS)
        try:
            data = repository.backend.get(entry.name)
            if hashlib.sha256(data).hexdigest() != name:
                raise ObjectDamaged(f"{entry.name} has other bytes than were written")
            Certificate.decode(
                data, repository.id, repository.configuration.signing_key, entry.name
            )
            work.objects += 1
        except RemetalError as error:
            # Images carry their certificate themselves, so they stay trusted without it.
            work.add(entry.name, error, signed[name], repairable=True)


def _check_indexes(repository: Repository, keys: GroupKeys, work: _Work) -> Index:
    writers: defaultdict[str, list[str]] = defaultdict(list)
    for image in work.images:
        for digest in image.summary.indexes:
            writers[index_format.PREFIX + digest].append(image.id)
    missing = set(writers)
    for entry in repository.backend.list(index_format.PREFIX):
        missing.discard(entry.name)
        try:
            Segment.decode(
                repository.backend.get(entry.name), entry.name, keys.directory_key, repository.id
            )
            work.objects += 1
        except RemetalError as error:
            work.add(entry.name, error, writers[entry.name], repairable=True)
    for name in sorted(missing):
        work.add(name, "this index is missing", writers[name], repairable=True)
    return repository.load_index(keys)[0]


def _check_maps(repository: Repository, keys: GroupKeys, index: Index, work: _Work) -> None:
    damaged: dict[str, RemetalError] = {}

    def warn(problem: Problem) -> None:
        damaged[problem.name] = problem.error

    reader = MapReader(repository, keys, index, warn)
    for image in work.images:
        for volume in image.summary.volumes:
            try:
                found = reader.read(image.summary, volume.id)
            except RemetalError as error:
                work.add(f"map of {volume.id}", error, [image.id])
                continue
            for name in reader.packs_of_last_map:
                work.needs[name].add(image.id)
            missing = 0
            for identity in chunk_ids(found):
                places = index.locations_in(identity.tobytes(), PackKind.DATA)
                for place in places:
                    work.needs[index.pack_name(place)].add(image.id)
                missing += not places
            if missing:
                work.add(
                    f"map of {volume.id}", f"{missing} of its chunks are in no pack", [image.id]
                )
    work.damaged_packs.update(damaged)


def _check_packs(
    repository: Repository, index: Index, work: _Work, advance: Advance, *, read_data: bool
) -> None:
    sizes = {entry.name: entry.size for entry in repository.backend.list(pack_format.PREFIX)}
    needed = index.sizes_needed()
    for name in sorted(set(needed) | set(work.needs)):
        if name not in sizes:
            work.add(name, "this pack is missing", work.needs[name])
        elif sizes[name] < needed.get(name, 0):
            work.add(name, "this pack was cut off", work.needs[name])
    if read_data:
        _read_packs(repository, sizes, work, advance)
        return
    for name, problem in work.damaged_packs.items():
        work.add(name, problem, work.needs[name])
    work.objects += len(sizes) - len(work.damaged_packs)


def _read_packs(
    repository: Repository, sizes: dict[str, int], work: _Work, advance: Advance
) -> None:
    def verify(name: str) -> tuple[str, RemetalError | None]:
        try:
            data = repository.backend.get(name)
        except RemetalError as error:
            return name, error
        advance(sizes[name])
        if pack_format.object_name(hashlib.sha256(data).digest()) != name:
            return name, ObjectDamaged(f"{name} has other bytes than were written")
        return name, None

    with ThreadPoolExecutor(_READERS, thread_name_prefix="check") as pool:
        for name, problem in pool.map(verify, sorted(sizes)):
            work.read_bytes += sizes[name]
            if problem is None:
                work.objects += 1
            else:
                work.add(name, problem, work.needs[name])


def _open_everything(repository: Repository, unlocked: Unlocked, index: Index, work: _Work) -> None:
    known: set[bytes] = set()
    for image in work.images:
        try:
            opened = OpenImage(repository, image, unlocked, index, lambda _: None)
            fresh = _fresh_ids(opened, known)
        except RemetalError as error:
            work.add(image_format.PREFIX + image.id, error, [image.id])
            continue
        try:
            for identity, _ in opened.chunks(fresh):
                known.add(identity)
                work.opened_chunks += 1
        except RemetalError as error:
            work.add(image_format.PREFIX + image.id, error, [image.id])


def _fresh_ids(opened: OpenImage, known: set[bytes]) -> list[bytes]:
    found: set[bytes] = set()
    for volume in opened.summary.volumes:
        found.update(row.tobytes() for row in chunk_ids(opened.map(volume.id)))
    return sorted(found - known)
