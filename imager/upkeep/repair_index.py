"""Indexes that were lost, made again from the directories of packs; needs the group's keys."""

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from imager.errors import RemetalError
from imager.repository import index as index_format
from imager.repository import pack as pack_format
from imager.repository.header import ID_SIZE, NO_KIND, Header, Magic, PackKind
from imager.repository.index import MOST_ENTRIES, Segment
from imager.repository.keyring import GroupKeys
from imager.repository.pack import Entries
from imager.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class IndexState:
    """What the indexes say.

    Attributes:
        is_lost: there are packs, and no index at all.
        needs_rebuild: an index that an image's capture wrote is gone, or all are, and packs are
            named by none.
        lost_packs: names of packs that an index names and that are not there.
    """

    is_lost: bool
    needs_rebuild: bool
    lost_packs: tuple[str, ...]


def look(
    repository: Repository, keys: GroupKeys, intact: Collection[str], coming: Collection[str]
) -> IndexState:
    """Look at the indexes.

    Args:
        repository: of which the configuration verifies.
        keys: of the group.
        intact: names of the objects that verify.
        coming: names of those that will be brought back.
    """
    listed = _listed(repository, keys)
    packs = {entry.name for entry in repository.backend.list(pack_format.PREFIX)}
    named = {pack_format.object_name(digest) for digest in listed}
    there = {name for name in (*intact, *coming) if name.startswith(index_format.PREFIX)}
    images, _ = repository.images(keys)
    wanted = {index_format.PREFIX + digest for image in images for digest in image.summary.indexes}
    unnamed = packs - named
    is_lost = bool(packs) and not there
    gone = bool(unnamed) and not wanted <= there and not _any_index(coming)
    return IndexState(is_lost, is_lost or gone, tuple(sorted(named - packs)))


def without_keys(names: Iterable[str]) -> IndexState:
    """Return the state of a repository without any intact index, as it looks without keys."""
    packs = any(name.startswith(pack_format.PREFIX) for name in names)
    return IndexState(packs, False, ())


def rebuild(repository: Repository, keys: GroupKeys) -> list[str]:
    """Write indexes of the packs that no index names, and return the names of the new ones.

    Packs whose directory is damaged are left out.
    """
    listed = _listed(repository, keys)
    written: list[str] = []
    batch: list[tuple[bytes, PackKind, Entries]] = []
    for entry in list(repository.backend.list(pack_format.PREFIX)):
        try:
            digest = bytes.fromhex(entry.name.rpartition("/")[2])
            if digest in listed or pack_format.object_name(digest) != entry.name:
                continue
            kind, entries = pack_format.read_directory(
                repository.backend, entry.name, entry.size, keys.directory_key, repository.id
            )
        except (ValueError, RemetalError):
            continue
        if sum(len(rows) for _, _, rows in batch) + len(entries) > MOST_ENTRIES:
            written.append(_write(repository, keys, batch))
            batch = []
        batch.append((digest, kind, entries))
    if batch:
        written.append(_write(repository, keys, batch))
    return written


def _write(
    repository: Repository, keys: GroupKeys, batch: list[tuple[bytes, PackKind, Entries]]
) -> str:
    header = Header(Magic.INDEX, NO_KIND, 0, os.urandom(ID_SIZE), keys.group, repository.id)
    name, data = Segment.collect(batch).encode(header, keys.directory_key)
    repository.backend.put_new(name, [data])
    return name


def _any_index(names: Iterable[str]) -> bool:
    return any(name.startswith(index_format.PREFIX) for name in names)


def _listed(repository: Repository, keys: GroupKeys) -> set[bytes]:
    listed: set[bytes] = set()
    for entry in repository.backend.list(index_format.PREFIX):
        try:
            data = repository.backend.get(entry.name)
            segment = Segment.decode(data, entry.name, keys.directory_key, repository.id)
        except RemetalError:
            continue
        listed |= {digest for digest, _ in segment.packs}
    return listed
