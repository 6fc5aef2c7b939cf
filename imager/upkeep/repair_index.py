"""Indexes that were lost, made again from the directories of packs; needs the group's keys."""

import os
from collections.abc import Collection

from imager.errors import OBJECT_FAULTS
from imager.repository import index as index_format
from imager.repository import pack as pack_format
from imager.repository.header import ID_SIZE, NO_KIND, Header, Magic, PackKind
from imager.repository.index import MOST_ENTRIES, Segment
from imager.repository.keyring import GroupKeys
from imager.repository.pack import Entries, object_name
from imager.repository.repository import Repository


def packs_named(repository: Repository, keys: GroupKeys, index: str) -> frozenset[str]:
    """Return the packs that an index names; nothing if it can't be read."""
    try:
        data = repository.backend.get(index)
        segment = Segment.decode(data, index, keys.directory_key, repository.id)
    except OBJECT_FAULTS:
        return frozenset()
    return frozenset(object_name(digest) for digest, _ in segment.packs)


def is_useful(
    repository: Repository, keys: GroupKeys, index: str, removed: Collection[str]
) -> bool:
    """Whether a lost index has to come back.

    Prune replaces indexes and nothing says so. Whatever else is true, an index is needed only if
    it names a pack that no other index names, and that is there (so it is found without a look at
    every pack) or is lost (so that it is known to be). What was removed is neither.

    Args:
        repository: in which it is back.
        keys: of the group.
        index: its name.
        removed: packs that were removed on purpose.
    """
    there = {entry.name for entry in repository.backend.list(pack_format.PREFIX)}
    named: set[str] = set()
    for entry in repository.backend.list(index_format.PREFIX):
        if entry.name != index:
            named |= packs_named(repository, keys, entry.name)
    return any(
        pack in there or pack not in removed
        for pack in packs_named(repository, keys, index) - named
    )


def rebuild(repository: Repository, keys: GroupKeys) -> list[str]:
    """Write indexes of the packs that no index names, and return the names of the new ones.

    Packs whose directory is damaged are left out.
    """
    named: set[str] = set()
    for entry in repository.backend.list(index_format.PREFIX):
        named |= packs_named(repository, keys, entry.name)
    written: list[str] = []
    batch: list[tuple[bytes, PackKind, Entries]] = []
    for entry in list(repository.backend.list(pack_format.PREFIX)):
        try:
            digest = bytes.fromhex(entry.name.rpartition("/")[2])
            if entry.name in named or object_name(digest) != entry.name:
                continue
            kind, entries = pack_format.read_directory(
                repository.backend, entry.name, entry.size, keys.directory_key, repository.id
            )
        except (ValueError, *OBJECT_FAULTS):
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
