"""The part of a check that needs a recovery key: is what each blob opens to what its id says?

Pack by pack, each once, whatever images need it. A pack whose bytes are those that were written, and
which holds a blob that does not open to what its id says, was written so: that is a lie, not rot.
"""

import threading

import numpy as np

from imager.errors import OBJECT_FAULTS, RecoveryKeyNeeded
from imager.repository import pack as pack_format
from imager.repository.chunk import CODEC_SHIFT, PLAIN_MASK
from imager.repository.header import Header, Magic
from imager.repository.index import Index
from imager.repository.pack import Entries
from imager.repository.repository import Repository
from imager.repository.retrieval import Unlocked, pack_opener
from imager.upkeep.check_ciphertext import Judge
from imager.upkeep.check_report import Bad, Fault


class Opening:
    """Opens every blob of the packs it is shown; safe from any thread.

    Attributes:
        chunks: how many blobs were opened and have the content that their id says.
        unopened: how many packs are of other groups, or of captures that this key can't open.

    Args:
        repository: where they lie.
        unlocked: a recovery key.
        index: of the repository; it must name the blobs as the packs themselves do.
        judge: compares bytes with names.
    """

    def __init__(
        self, repository: Repository, unlocked: Unlocked, index: Index, judge: Judge
    ) -> None:
        self._repository = repository
        self._unlocked = unlocked
        self._index = index
        self._judge = judge
        self._counts = np.zeros(len(index.digests), dtype=np.int64)
        for rows in index.windows():
            self._counts += np.bincount(rows["pack"], minlength=len(index.digests))
        self._lock = threading.Lock()
        self.chunks = 0
        self.unopened = 0

    def look(self, name: str, data: bytes) -> Bad | None:
        """Return what is wrong with an object, if anything."""
        bad = self._judge.look(name, data)
        if bad is not None or not name.startswith(pack_format.PREFIX):
            return bad
        header = Header.decode(data, Magic.PACK, self._judge.identity, name)
        if header.group != self._unlocked.keys.group:
            self._skip()
            return None
        try:
            return self._open_pack(name, header, data)
        except RecoveryKeyNeeded:
            self._skip()
            return None
        except OBJECT_FAULTS as error:
            # Its bytes are those that were written, so it was written like this.
            return Bad(name, error.message, Fault.LIE, session=header.session)

    def _skip(self) -> None:
        with self._lock:
            self.unopened += 1

    def _open_pack(self, name: str, header: Header, data: bytes) -> Bad | None:
        _, entries = pack_format.decode_directory(
            data, name, self._unlocked.keys.directory_key, self._judge.identity
        )
        opener = pack_opener(self._unlocked, header, data, name)
        view = memoryview(data)
        liars: dict[bytes, str] = {}
        for row in entries:
            identity, packed = row["id"].tobytes(), int(row["plain"])
            start = int(row["offset"])
            blob = view[start : start + int(row["length"])]
            try:
                opener.open(identity, packed & PLAIN_MASK, packed >> CODEC_SHIFT, blob)
            except OBJECT_FAULTS as error:
                liars[identity] = error.message
        with self._lock:
            self.chunks += len(entries) - len(liars)
        if liars:
            first = next(iter(liars.values()))
            message = f"{len(liars)} of its {len(entries)} blobs were written wrong: {first}"
            return Bad(name, message, Fault.LIE, frozenset(liars), header.session)
        return self._compare(name, entries)

    def _compare(self, name: str, entries: Entries) -> Bad | None:
        """Compare a pack's directory with the index; a pack that no index names is fine."""
        numbers = np.flatnonzero(self._index.are([name])).tolist()
        if not numbers:
            return None
        number = numbers[0]
        alike = 0
        for row in entries:
            wanted = (number, int(row["offset"]), int(row["length"]), int(row["plain"]))
            alike += any(
                (p.pack, p.offset, p.length, p.plain | p.codec << CODEC_SHIFT) == wanted
                for p in self._index.locations(row["id"].tobytes())
            )
        named = int(self._counts[number])
        if alike == named == len(entries):
            return None
        message = (
            f"an index names {named} blobs of this pack, its directory has {len(entries)}, "
            f"and {alike} of them are alike"
        )
        return Bad(name, message, Fault.LIE, frozenset())
