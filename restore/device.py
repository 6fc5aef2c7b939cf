"""An opened target: exact writes, zeros, flushes that stay ahead of memory, honest read-back.

All offsets and lengths are bytes on the target. Every failure names the target and the place.
"""

import errno
import fcntl
import mmap
import os
import struct
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from imager import process
from imager.direct_io import CANNOT_DIRECT, page_buffer
from imager.errors import TargetError, TargetInUse, VerificationFailed, WriteFailed
from imager.units import GIB, KIB, MIB
from restore.target import Target, TargetKind

_FLAGS: Final = os.O_RDWR | os.O_CLOEXEC

# Numbers of ioctls in <linux/fs.h>.
_BLKRRPART: Final = 0x125F
_BLKDISCARD: Final = 0x1277
_BLKZEROOUT: Final = 0x127F
_RANGE: Final = struct.Struct("=QQ")  # offset and length, as the last two take them

_ZEROS: Final = page_buffer(MIB)
# Below this, zeros through the page cache are cheaper than a command to the disk that waits.
_LEAST_ZEROOUT: Final = 4 * MIB
_MOST_AT_ONCE: Final = GIB  # of one discard or zero-out, so that a stop request is heard
_FLUSH_EVERY: Final = 128 * MIB
_MOST_PARTS: Final = 512  # below IOV_MAX everywhere
# Shorter ones would each wait for the disk; of those in its cache the kernel makes a few long ones.
_LEAST_DIRECT: Final = 256 * KIB
# Of a page that is written through the cache and past it at once, either half may be lost.
_DIRECT_UNIT: Final = max(mmap.PAGESIZE, 4 * KIB)


class OpenTarget:
    """A target that is open for writing, for this process alone as far as the kernel can tell.

    Long writes go past the page cache where the target can: through it they cost several times the
    CPU. What is left is flushed behind the writer, so that dirty memory stays below a few hundred
    MiB and a failing disk is noticed soon. Use as a context manager. Any thread may write and read;
    all else is for one.
    """

    def __init__(self, target: Target) -> None:
        """Open the target; a new file must have been made before (`make_file`).

        Raises:
            TargetInUse: someone mounted or claimed it since the plan was made.
            TargetError: it can't be opened, or is not of the planned size any more.
        """
        self._target = target
        self._is_device = target.kind is TargetKind.DEVICE
        self._fd = self._opened()
        self._direct: int | None = None
        self._reads_past_cache = False
        with suppress(OSError):  # some filesystems can't
            self._direct = os.open(target.path, _FLAGS | os.O_DIRECT)
        self._is_hole = target.kind is TargetKind.NEW_FILE
        self._noted = (0, 0)
        self._unflushed = 0
        self._lock = threading.Lock()
        self._flusher = ThreadPoolExecutor(1, thread_name_prefix="flush")
        self._flush: Future[None] | None = None
        try:
            self._check_and_lock()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def target(self) -> Target:
        """What is open here."""
        return self._target

    def _opened(self, *, exclusively: bool = True) -> int:
        exclusive = os.O_EXCL if self._is_device and exclusively else 0
        path = self._target.path
        try:
            return os.open(path, _FLAGS | exclusive)
        except OSError as error:
            kind = TargetInUse if self._is_device and error.errno == errno.EBUSY else TargetError
            raise kind(f"{path} can't be opened for writing: {error.strerror}") from error

    def _check_and_lock(self) -> None:
        size = os.lseek(self._fd, 0, os.SEEK_END)
        if size != self._target.size:
            raise TargetError(
                f"{self._target.path} has {size} bytes now, and had {self._target.size} when the "
                "plan was made"
            )
        # udev leaves a device alone while somebody holds this lock.
        with suppress(OSError):
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    @contextmanager
    def lend(self) -> Iterator[Path]:
        """Let the kernel's own drivers claim the target for a while; write and read nothing then.

        Yields:
            The device to use: the target, or a loop device with its file.

        Raises:
            TargetInUse: somebody else claimed it meanwhile.
            TargetError: it has another size afterwards.
            ProgramError: a file can't be attached.
        """
        self.flush()
        with ExitStack() as stack:
            device = self._target.path
            if self._is_device:
                self._exchange(self._opened(exclusively=False))
                stack.callback(lambda: self._exchange(self._opened()))
            else:
                sector = str(self._target.logical_sector)
                device = Path(
                    process.run(
                        "losetup", "--find", "--show", "--sector-size", sector, device
                    ).strip()
                )
                stack.callback(process.run, "losetup", "--detach", device)
            yield device
        # What others have written, this process may have cached as it was before.
        self.forget()

    def _exchange(self, descriptor: int) -> None:
        os.close(self._fd)
        self._fd = descriptor
        self._check_and_lock()

    def close(self) -> None:
        """Close it; what was not flushed is written by the kernel some time."""
        self._flusher.shutdown(cancel_futures=True)
        if self._direct is not None:
            os.close(self._direct)
        os.close(self._fd)

    def write(self, offset: int, *parts: bytes | memoryview) -> None:
        """Write all parts side by side, the first one at `offset`.

        Raises:
            WriteFailed: the target refused, now or for something written shortly before.
        """
        views = deque(memoryview(part) for part in parts)
        size = sum(map(len, views))
        position = 0
        try:
            if self._direct is not None and _can_be_direct(offset, size, views):
                position = self._write_views(self._direct, offset, views)
            cached = size - position
            self._write_views(self._fd, offset + position, views)
        except OSError as error:
            left = sum(map(len, views))
            raise self._failed(error, offset + size - left, left) from error
        # Whoever writes next waits here, too, when the disk does not keep up.
        with self._lock:
            self._unflushed += cached
            if self._unflushed >= _FLUSH_EVERY:
                self._flush_behind(offset)

    def _write_views(self, descriptor: int, offset: int, views: deque[memoryview]) -> int:
        """Write views, and take away what is written; return how many bytes that is.

        All, but where the target wants larger units past the cache, or can't write past it.
        """
        position = 0
        while views:
            try:
                count = os.pwritev(descriptor, list(islice(views, _MOST_PARTS)), offset + position)
            except OSError as error:
                if descriptor == self._fd or error.errno not in CANNOT_DIRECT:
                    raise
                break
            position += count
            while views and count >= len(views[0]):
                count -= len(views.popleft())
            if count:
                views[0] = views[0][count:]
        return position

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros that holds nothing of this restore but notes.

        In an emptied file it does already.

        Raises:
            WriteFailed: as for `write`.
        """
        if self._is_hole:
            start, end = max(offset, self._noted[0]), min(offset + length, self._noted[1])
            self._write_zeros(start, max(0, end - start))
            return
        while length:
            part = min(length, _MOST_AT_ONCE)
            if part < _LEAST_ZEROOUT or not self._range(_BLKZEROOUT, offset, part):
                self._write_zeros(offset, part)
            offset += part
            length -= part

    def keep_notes(self, start: int, end: int) -> None:
        """Let a range hold notes, until it is written or made zero."""
        self._noted = (start, end)

    def take_up(self) -> None:
        """Take over what an interrupted restore of the same content left, as the disk itself has it.

        A file that it emptied is still a hole where it wrote nothing.
        """
        self._is_hole = not self._is_device
        self.forget()

    def overwrite_with_zeros(self, offset: int, length: int) -> None:
        """Write zeros, also over what a file has held since it was emptied.

        Raises:
            WriteFailed: as for `write`.
        """
        self._write_zeros(offset, length)

    def discard(self, offset: int, length: int) -> tuple[str, ...]:
        """Tell a device that a range is not needed. What it reads as afterwards is not known.

        Returns:
            Why the device did not take it, if so; that does no harm.
        """
        while length:
            part = min(length, _MOST_AT_ONCE)
            if not self._range(_BLKDISCARD, offset, part):
                return (f"the disk did not take a discard at byte {offset}; that does no harm",)
            offset += part
            length -= part
        return ()

    def empty(self) -> None:
        """Make a file one hole of its size: all of it reads as zeros and takes no room.

        Raises:
            WriteFailed: the filesystem refused.
        """
        try:
            os.ftruncate(self._fd, 0)
            os.ftruncate(self._fd, self._target.size)
            self._is_hole = True
        except OSError as error:
            raise self._failed(error, 0, self._target.size) from error

    def flush(self) -> None:
        """Wait until everything written is on stable storage.

        Raises:
            WriteFailed: some of it could not be written.
        """
        self._wait_for_flush()
        self._unflushed = 0
        self._sync(self._target.size)

    def forget(self) -> None:
        """Drop what the kernel caches of the target, so that reading asks the disk itself.

        Where the target can be read past the cache, it is from now on.
        """
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        self._reads_past_cache = self._direct is not None

    def forget_what_is_stale(self) -> None:
        """Drop what may be cached from before: of a device, what others wrote to its partitions.

        What the kernel caches of a file is the file.
        """
        if self._is_device:
            self.forget()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes at `offset`. Safe from any thread.

        Args:
            offset: where to begin.
            buffer: for a read past the cache it must begin at a page.

        Raises:
            VerificationFailed: the target gives a read error, or ends before.
        """
        position = 0
        while position < len(buffer):
            try:
                count = self._pread(offset + position, buffer[position:])
            except OSError as error:
                raise VerificationFailed(
                    f"{self._target.path} ({self._target.disk}) can't be read back at byte "
                    f"{offset + position}: {error.strerror}"
                ) from error
            if not count:
                raise VerificationFailed(
                    f"{self._target.path} ({self._target.disk}) ends at byte {offset + position}"
                )
            position += count

    def sector(self, offset: int) -> bytes:
        """Return the logical sector at `offset`.

        Raises:
            VerificationFailed: as for `read_into`.
        """
        buffer = page_buffer(self._target.logical_sector)
        self.read_into(offset, buffer)
        return bytes(buffer)

    def _pread(self, offset: int, buffer: memoryview) -> int:
        sector = self._target.logical_sector
        past_cache = self._direct if self._reads_past_cache else None
        if past_cache is not None and not offset % sector and not len(buffer) % sector:
            try:
                return os.preadv(past_cache, [buffer], offset)
            except OSError as error:
                if error.errno not in CANNOT_DIRECT:  # larger units are wanted: through the cache
                    raise
        return os.preadv(self._fd, [buffer], offset)

    def reread_table(self) -> tuple[str, ...]:
        """Let the kernel read the partition table of a device anew.

        Returns:
            Why it did not, if so; that does no harm to what is on the disk.
        """
        try:
            fcntl.ioctl(self._fd, _BLKRRPART)
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.ENOTTY}:
                return ("the kernel keeps no partitions of this kind of device",)
            return (f"the kernel did not read the new table: {error.strerror}",)
        return ()

    def _range(self, request: int, offset: int, length: int) -> bool:
        """Ask a device for something on a range; False when it can't, or not at this place."""
        try:
            fcntl.ioctl(self._fd, request, _RANGE.pack(offset, length))
        except OSError:
            return False
        return True

    def _write_zeros(self, offset: int, length: int) -> None:
        zeros = memoryview(_ZEROS)
        while length:
            part = min(length, len(zeros))
            self.write(offset, zeros[:part])
            offset += part
            length -= part

    def _flush_behind(self, offset: int) -> None:
        """Start a flush, after the one before is done: at most two intervals are in memory."""
        self._wait_for_flush()
        self._unflushed = 0
        self._flush = self._flusher.submit(self._sync, offset)

    def _wait_for_flush(self) -> None:
        flush, self._flush = self._flush, None
        if flush is not None:
            flush.result()

    def _sync(self, offset: int) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise WriteFailed(
                f"{self._target.path} ({self._target.disk}) failed to store what was written, "
                f"last at byte {offset}: {error.strerror}"
            ) from error

    def _failed(self, error: OSError, offset: int, length: int) -> WriteFailed:
        return WriteFailed(
            f"writing {length} bytes at byte {offset} of {self._target.path} "
            f"({self._target.disk}) failed: {error.strerror}"
        )


def _can_be_direct(offset: int, size: int, views: Iterable[memoryview]) -> bool:
    return size >= _LEAST_DIRECT and not any(
        number % _DIRECT_UNIT for number in (offset, *map(len, views))
    )


def make_file(target: Target) -> None:
    """Make a new target file, sparse, readable by its owner only.

    Raises:
        TargetError: something of that name exists since the plan was made, or it can't be made.
    """
    try:
        fd = os.open(target.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise TargetError(f"{target.path} can't be made: {error.strerror}") from error
    try:
        os.ftruncate(fd, target.size)
    except OSError as error:
        target.path.unlink()
        raise WriteFailed(
            f"{target.path} can't be given {target.size} bytes: {error.strerror}"
        ) from error
    finally:
        os.close(fd)
