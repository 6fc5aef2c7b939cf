"""A store that is sent to and read from no faster than is allowed."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imager.repository.backend.protocol import Backend, Buffer, Entry


@dataclass(slots=True)
class Line:
    """A line of a certain width, for any number of threads.

    Attributes:
        rate: bytes per second, kept on average; one object may pass at once.
    """

    rate: float
    _free: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, size: int) -> None:
        """Wait until so many bytes may pass."""
        with self._lock:
            now = time.monotonic()
            begin = max(now, self._free)
            self._free = begin + size / self.rate
        if begin > now:
            time.sleep(begin - now)


class Limited:
    """See `protocol.Backend` for the guarantees.

    What is read is counted after it came, since its size is not known before.

    Args:
        backend: the store.
        upload: what is sent to it passes here; None for no limit.
        download: what comes from it; None for no limit.
    """

    def __init__(self, backend: Backend, upload: Line | None, download: Line | None) -> None:
        self._backend = backend
        self._upload = upload
        self._download = download

    @property
    def location(self) -> str:
        """That of the store."""
        return self._backend.location

    @property
    def folders(self) -> tuple[Path, ...]:
        """Those of the store."""
        return self._backend.folders

    @property
    def lock_span(self) -> float | None:
        """That of the store."""
        return self._backend.lock_span

    def put_new(self, name: str, parts: Sequence[Buffer], modified: float | None = None) -> bool:
        """Create an object; see `protocol.Backend.put_new`."""
        if self._upload is not None:
            self._upload.take(sum(len(part) for part in parts))
        return self._backend.put_new(name, parts, modified)

    def get(self, name: str) -> bytes:
        """Return an object whole; see `protocol.Backend.get`."""
        return self._came(self._backend.get(name))

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Return a range of an object; see `protocol.Backend.get_range`."""
        return self._came(self._backend.get_range(name, offset, length))

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield objects; see `protocol.Backend.list`."""
        return self._backend.list(prefix)

    def delete(self, name: str) -> None:
        """Remove an object; see `protocol.Backend.delete`."""
        self._backend.delete(name)

    def locked_until(self, name: str, *, shortest: bool = False) -> float | None:
        """Return until when the store keeps an object; see `protocol.Backend.locked_until`."""
        return self._backend.locked_until(name, shortest=shortest)

    def retain(self, name: str, until: float) -> None:
        """Let the store keep an object; see `protocol.Backend.retain`."""
        self._backend.retain(name, until)

    def now(self) -> float:
        """Return the store's clock; see `protocol.Backend.now`."""
        return self._backend.now()

    def tidy(self) -> None:
        """Remove stale temporary files; see `protocol.Backend.tidy`."""
        self._backend.tidy()

    def _came(self, data: bytes) -> bytes:
        if self._download is not None:
            self._download.take(len(data))
        return data
