"""Writes index objects of bounded size from the directories of packs, or from older indexes."""

from imager.repository.header import NO_KIND, Header, Magic, PackKind
from imager.repository.index import MOST_ENTRIES, Segment
from imager.repository.keyring import GroupKeys
from imager.repository.pack import Entries
from imager.repository.repository import Repository


class IndexWriter:
    """Collects what packs hold and stores it as index objects; for one thread.

    Args:
        repository: where to.
        keys: of the group.
        session: of the capture, or any that is new, for upkeep.

    Attributes:
        names: of the indexes written so far, which are durable.
        stored_bytes: their size.
    """

    def __init__(self, repository: Repository, keys: GroupKeys, session: bytes) -> None:
        self._repository = repository
        self._keys = keys
        self._header = Header(Magic.INDEX, NO_KIND, 0, session, keys.group, repository.id)
        self._directories: list[tuple[bytes, PackKind, Entries]] = []
        self._rows = 0
        self.names: list[str] = []
        self.stored_bytes = 0

    def add(self, digest: bytes, kind: PackKind, directory: Entries) -> None:
        """Take the directory of a pack in (dtype `pack.ENTRY` or `index.ENTRY`).

        Raises:
            NoRoom: the repository is full.
        """
        if self._directories and self._rows + len(directory) > MOST_ENTRIES:
            self.flush()
        self._directories.append((digest, kind, directory))
        self._rows += len(directory)

    def flush(self) -> None:
        """Store what was collected, durably.

        Raises:
            NoRoom: the repository is full.
        """
        if not self._directories:
            return
        segment = Segment.collect(self._directories)
        name, data = segment.encode(self._header, self._keys.directory_key)
        self._repository.backend.put_new(name, [data])
        self.names.append(name)
        self.stored_bytes += len(data)
        self._directories, self._rows = [], 0
