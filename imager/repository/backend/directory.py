"""A repository in a directory.

Each object is written beside its place under a temporary name, flushed, linked to its name (which
fails if the name is there: nothing is ever overwritten), and the directory is flushed. Stopped at
any instant, the worst that is left is a temporary file, which the next writer removes when it is
a day old.
"""

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from imager.errors import NoRoom, ObjectDamaged, ObjectMissing, OutputError
from imager.repository.backend.protocol import Buffer, Entry

_INCOMING: Final = "incoming"
_STALE_SECONDS: Final = 24 * 3600
_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MOST_PARTS: Final = 512  # below IOV_MAX everywhere


class DirectoryBackend:
    """Objects as files below one directory; see `protocol.Backend` for the guarantees.

    Args:
        root: the directory; it need not exist before the first `put_new`.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    @property
    def location(self) -> str:
        """The directory."""
        return str(self._root)

    def put_new(self, name: str, parts: Sequence[Buffer]) -> bool:
        """Create an object; see `protocol.Backend.put_new`."""
        target = self._path(name)
        if target.exists():
            return False
        incoming = self._root / _INCOMING
        temporary = incoming / f"{target.name[:16]}-{secrets.token_hex(8)}"
        try:
            self._make_directory(incoming)
            self._make_directory(target.parent)
            try:
                _write_durably(temporary, parts)
                os.link(temporary, target)
            except FileExistsError:
                return False
            finally:
                with contextlib.suppress(FileNotFoundError):
                    temporary.unlink()
            _flush_directory(target.parent)
        except OSError as error:
            if error.errno in _FULL:
                raise NoRoom(f"no room left in the repository at {self._root}") from error
            raise OutputError(
                f"the repository at {self._root} does not take {name}: {error.strerror}",
                hint="Check that it can be written to and that its filesystem knows hard links.",
            ) from error
        return True

    def get(self, name: str) -> bytes:
        """Return an object whole; see `protocol.Backend.get`."""
        try:
            return self._path(name).read_bytes()
        except OSError as error:
            raise self._unreadable(name, error) from error

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Return a range of an object; see `protocol.Backend.get_range`."""
        try:
            with self._path(name).open("rb") as file:
                data = os.pread(file.fileno(), length, offset)
        except OSError as error:
            raise self._unreadable(name, error) from error
        if len(data) != length:
            raise ObjectDamaged(f"{name} ends {length - len(data)} bytes too early")
        return data

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield objects; see `protocol.Backend.list`."""
        top = self._root / prefix
        if not top.is_dir():
            return
        for folder, folders, files in os.walk(top):
            folders.sort()
            for file in sorted(files):
                path = Path(folder, file)
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                name = path.relative_to(self._root).as_posix()
                yield Entry(name, status.st_size, status.st_mtime)

    def tidy(self) -> None:
        """Remove stale temporary files; see `protocol.Backend.tidy`."""
        oldest = time.time() - _STALE_SECONDS
        with contextlib.suppress(FileNotFoundError):
            for path in (self._root / _INCOMING).iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_mtime < oldest:
                        path.unlink()

    def _path(self, name: str) -> Path:
        if name.startswith("/") or ".." in name.split("/"):
            raise ObjectMissing(f"{name!r} is no name of an object")
        return self._root / name

    def _make_directory(self, folder: Path) -> None:
        if folder.is_dir():
            return
        if folder != self._root:
            self._make_directory(folder.parent if self._root in folder.parents else self._root)
        folder.mkdir(mode=0o700, exist_ok=True, parents=folder == self._root)
        _flush_directory(folder.parent)

    def _unreadable(self, name: str, error: OSError) -> ObjectMissing | ObjectDamaged:
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            return ObjectMissing(f"{name} is missing in the repository at {self._root}")
        return ObjectDamaged(f"{name} can't be read in {self._root}: {error.strerror}")


def _write_durably(path: Path, parts: Sequence[Buffer]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for first in range(0, len(parts), _MOST_PARTS):
            _write_all(descriptor, parts[first : first + _MOST_PARTS])
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, parts: Sequence[Buffer]) -> None:
    left = [memoryview(part) for part in parts if len(part)]
    while left:
        written = os.writev(descriptor, left)
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if written:
            left[0] = left[0][written:]


def _flush_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
