"""A repository in a directory.

Each object is written beside its place under a temporary name, flushed, linked to its name (which
fails if the name is there: nothing is ever overwritten), and the directory is flushed. Stopped at
any instant, the worst that is left is a temporary file, which the next writer removes when it is
a day old.

What the administrator of the filesystem has made immutable or append-only (`chattr +i`, `+a`, on an
object or on the folder it lies in) is locked until the attribute is lifted.
"""

import contextlib
import errno
import fcntl
import math
import os
import secrets
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from imager.errors import NoRoom, ObjectDamaged, ObjectLocked, ObjectMissing, OutputError
from imager.repository.backend.direct import DirectWriter
from imager.repository.backend.protocol import INCOMING, Buffer, Entry

_STALE_SECONDS: Final = 24 * 3600
_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# FS_IOC_GETFLAGS, FS_IMMUTABLE_FL and FS_APPEND_FL of linux/fs.h.
_GET_FLAGS: Final = 2 << 30 | struct.calcsize("l") << 16 | ord("f") << 8 | 1
_IMMUTABLE: Final = 0x10
_APPEND_ONLY: Final = 0x20
# What filesystems without such attributes say.
_NO_FLAGS: Final = {errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


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

    @property
    def folders(self) -> tuple[Path, ...]:
        """The directory."""
        return (self._root,)

    @property
    def lock_span(self) -> None:
        """None: a filesystem knows no locks that end by themselves."""
        return

    def put_new(self, name: str, parts: Sequence[Buffer], modified: float | None = None) -> bool:
        """Create an object; see `protocol.Backend.put_new`."""
        with self.begin(name) as incoming:
            if incoming.exists:
                return False
            incoming.write(parts)
            return incoming.finish(modified)

    @contextlib.contextmanager
    def begin(self, name: str) -> Iterator["Incoming"]:
        """Begin an object whose bytes come one after the other; without `finish` there is none.

        Raises:
            NoRoom, OutputError: as `put_new` says; whatever is done with it raises these.
        """
        try:
            incoming = Incoming(self._path(name), self._root / INCOMING, self._make_directory)
            try:
                yield incoming
            finally:
                incoming.close()
        except OSError as error:
            if error.errno in _FULL:
                raise NoRoom(f"no room left in the repository at {self._root}") from error
            raise OutputError(
                f"the repository at {self._root} does not take {name}: {error.strerror}",
                hint="Check that it can be written to and that its filesystem knows hard links.",
            ) from error

    def get(self, name: str) -> bytes:
        """Return an object whole; see `protocol.Backend.get`."""
        try:
            return self._path(name).read_bytes()
        except OSError as error:
            raise self._unreadable(name, error) from error

    def size(self, name: str) -> int:
        """Return the bytes of an object.

        Raises:
            ObjectMissing, ObjectDamaged: as `get` says.
        """
        try:
            return self._path(name).stat().st_size
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

    def pieces(self, name: str, offset: int, length: int, most: int) -> Iterator[memoryview]:
        """Yield a range in pieces of at most so many bytes, each to be used before the next.

        Raises:
            ObjectMissing, ObjectDamaged: as `get_range` says.
        """
        buffer = memoryview(bytearray(min(most, length)))
        try:
            with self._path(name).open("rb") as file:
                while length:
                    count = os.preadv(file.fileno(), [buffer[:length]], offset)
                    if not count:
                        raise ObjectDamaged(f"{name} ends {length} bytes too early")
                    yield buffer[:count]
                    offset, length = offset + count, length - count
        except OSError as error:
            raise self._unreadable(name, error) from error

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield objects; see `protocol.Backend.list`."""
        try:
            yield from self._walk(self._root / prefix)
        except OSError as error:
            raise ObjectDamaged(
                f"{prefix or 'the repository'} can't be listed in {self._root}: {error.strerror}"
            ) from error

    def delete(self, name: str) -> None:
        """Remove an object; see `protocol.Backend.delete`."""
        target = self._path(name)
        try:
            # Also a name that is gone already: who removed it may have been stopped before that was durable.
            target.unlink(missing_ok=True)
            if target.parent.is_dir():
                _flush_directory(target.parent)
        except OSError as error:
            if self.locked_until(name) is not None:
                raise ObjectLocked(
                    f"{name} in {self._root} is immutable or append-only and can't be removed",
                    hint="`chattr -i -a` on it and on its folder lifts that; then run this again.",
                ) from error
            raise OutputError(
                f"the repository at {self._root} does not let {name} go: {error.strerror}",
                hint="Check that it can be written to.",
            ) from error

    def locked_until(self, name: str, *, shortest: bool = False) -> float | None:
        """Return infinity for what is immutable; see `protocol.Backend.locked_until`."""
        del shortest
        target = self._path(name)
        try:
            is_kept = target.exists() and (_is_fixed(target) or _is_fixed(target.parent))
        except OSError as error:
            raise OutputError(
                f"the repository at {self._root} does not tell whether {name} may go: "
                f"{error.strerror}"
            ) from error
        return math.inf if is_kept else None

    def retain(self, name: str, until: float) -> None:
        """Do nothing; see `lock_span`."""

    def now(self) -> float:
        """Return the clock of the filesystem; see `protocol.Backend.now`."""
        probe = self._root / INCOMING / f"clock-{secrets.token_hex(8)}"
        try:
            self._make_directory(probe.parent)
            try:
                probe.touch(mode=0o600, exist_ok=False)
                return probe.stat().st_mtime
            finally:
                probe.unlink(missing_ok=True)
        except OSError as error:
            if error.errno in _FULL:
                raise NoRoom(f"no room left in the repository at {self._root}") from error
            raise OutputError(
                f"the repository at {self._root} does not tell its time: {error.strerror}",
                hint="Check that it can be written to.",
            ) from error

    def tidy(self) -> None:
        """Remove stale temporary files; see `protocol.Backend.tidy`."""
        incoming = self._root / INCOMING
        found = list(incoming.iterdir()) if incoming.is_dir() else []
        if not found:
            return
        oldest = self.now() - _STALE_SECONDS
        for path in found:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()

    def _walk(self, top: Path) -> Iterator[Entry]:
        if not top.is_dir():
            return
        for folder, folders, files in os.walk(top, onerror=_stop_unless_gone):
            folders.sort()
            for file in sorted(files):
                path = Path(folder, file)
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                # Not all that a filesystem takes for a name is text.
                name = os.fsencode(path.relative_to(self._root)).decode("utf-8", "backslashreplace")
                yield Entry(name, status.st_size, status.st_mtime)

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


class Incoming:
    """An object that is being written beside its place.

    Attributes:
        exists: whether the name is there already; then nothing is written.
    """

    def __init__(self, target: Path, folder: Path, make: Callable[[Path], None]) -> None:
        self._target = target
        self._temporary = folder / f"{target.name[:16]}-{secrets.token_hex(8)}"
        self._descriptor = -1
        self.exists = target.exists()
        if self.exists:
            # Who made it may have been stopped before its name was durable.
            _flush_directory(target.parent)
            return
        make(folder)
        make(target.parent)
        self._descriptor = os.open(
            self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
        )
        self._writer = DirectWriter(self._descriptor)

    def write(self, parts: Sequence[Buffer]) -> None:
        """Append bytes."""
        self._writer.write(parts)

    def finish(self, modified: float | None = None) -> bool:
        """Give the object its name, durably; whether it was not there."""
        self._writer.finish()
        if modified is not None:
            with contextlib.suppress(OSError):
                os.utime(self._descriptor, (modified, modified))
        os.fsync(self._descriptor)
        try:
            os.link(self._temporary, self._target)
        except FileExistsError:
            self.exists = True
        self.close()
        _flush_directory(self._target.parent)
        return not self.exists

    def close(self) -> None:
        """Leave nothing behind but what was finished."""
        if self._descriptor < 0:
            return
        self._writer.close()
        os.close(self._descriptor)
        self._descriptor = -1
        with contextlib.suppress(FileNotFoundError):
            self._temporary.unlink()


def _stop_unless_gone(error: OSError) -> None:
    """Let no listing be shorter than the store is: what seems not to be there may be removed."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _is_fixed(path: Path) -> bool:
    """Whether the filesystem lets nobody remove this, or anything from this directory."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # The kernel writes an int, whatever the number of the call says.
        answer = fcntl.ioctl(descriptor, _GET_FLAGS, bytes(struct.calcsize("l")))
    except OSError as error:
        if error.errno in _NO_FLAGS:
            return False
        raise
    finally:
        os.close(descriptor)
    (flags,) = struct.unpack_from("I", answer)
    return bool(flags & (_IMMUTABLE | _APPEND_ONLY))


def _flush_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
