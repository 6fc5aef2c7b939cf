"""Every file of a mounted filesystem with its metadata, as hashes; runs in the guest.

The guest may have no help from its processor: what is done per file is kept small.
"""

import fcntl
import hashlib
import os
import stat
import sys
import threading
from collections.abc import Iterator
from typing import Any

WORKERS = os.cpu_count() or 1
BLOCK = 1 << 18
SUBVOLUME = 256  # inode of the top of every btrfs subvolume, which has a device number of its own

FS_IOC_GETFLAGS = 0x80086601
# Flags a person sets (immutable, append-only, no dump, no atime); the others are ext4's own.
FLAGS = 0x10 | 0x20 | 0x40 | 0x80

Json = dict[str, Any]


class Tree:
    """Every file of one mounted filesystem, with all that a restore must bring back.

    Args:
        root: the mountpoint.
        volatile: paths that change by themselves; nothing at or below them counts.
        kind: of the filesystem. The root of an exFAT has no time: Linux makes one up at each mount.
    """

    def __init__(self, root: str, volatile: set[str], kind: str = "") -> None:
        self.root = root
        self.timeless = root if kind == "exfat" else None
        self.volatile = volatile
        self.device = os.lstat(root).st_dev
        self.entries: list[tuple[str, os.stat_result]] = []
        self.links: dict[tuple[int, int], str] = {}
        self._walk(root)
        self.entries.sort(key=lambda entry: os.fsencode(entry[0]))
        for path, found in self.entries:
            if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
                self.links.setdefault((found.st_dev, found.st_ino), path)  # the group's first name
        self.digests: dict[str, str] = {}

    def _walk(self, root: str) -> None:
        waiting = [(root, self.device)]
        while waiting:
            path, device = waiting.pop()
            if path in self.volatile:
                continue
            self.entries.append((path, os.lstat(path)))
            with os.scandir(path) as entries:
                for entry in entries:
                    found = entry.stat(follow_symlinks=False)
                    if found.st_dev != device and found.st_ino != SUBVOLUME:
                        continue
                    if stat.S_ISDIR(found.st_mode):
                        waiting.append((entry.path, found.st_dev))
                    elif entry.path not in self.volatile:
                        self.entries.append((entry.path, found))

    def hash(self) -> None:
        """Hash all entries, on every processor; hashlib and reads let other threads run."""
        # The largest first, so that no thread ends with a big file alone.
        order = sorted(self.entries, key=lambda entry: entry[1].st_size, reverse=True)
        source = iter(order)
        lock = threading.Lock()

        def work() -> None:
            buffer = memoryview(bytearray(BLOCK))
            while True:
                with lock:
                    entry = next(source, None)
                if entry is None:
                    return
                self.digests[entry[0]] = self._digest(*entry, buffer)

        threads = [threading.Thread(target=work) for _ in range(WORKERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _digest(self, path: str, found: os.stat_result, buffer: memoryview) -> str:
        """Return "metadata content" of one entry."""
        names = os.listxattr(path, follow_symlinks=False)
        attributes = [(n, os.getxattr(path, n, follow_symlinks=False)) for n in sorted(names)]
        time = found.st_mtime_ns if path != self.timeless else None
        meta: list[Any] = [found.st_mode, found.st_uid, found.st_gid, time, attributes]
        content = ""
        if stat.S_ISREG(found.st_mode):
            meta += (found.st_size, found.st_nlink, self.links.get((found.st_dev, found.st_ino)))
            # Hard links are one file: its content is read under its first name.
            if self.links.get((found.st_dev, found.st_ino), path) == path:
                content = self._content(path, found, buffer, meta)
        elif stat.S_ISLNK(found.st_mode):
            meta.append(os.readlink(path))  # noqa: PTH115 - thousands, Path is slow
        elif stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
            meta.append(found.st_rdev)
        return f"{digest(repr(meta).encode())} {content}"

    def _content(
        self, path: str, found: os.stat_result, buffer: memoryview, meta: list[Any]
    ) -> str:
        """Return the hash of a file's data, and add its flags and holes to `meta`."""
        hasher = hashlib.md5(usedforsecurity=False)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOATIME)
        try:
            meta.append(flags(descriptor))
            ranges = [(0, found.st_size)]
            if found.st_size > found.st_blocks * 512:
                ranges = list(data_ranges(descriptor, found.st_size))
                meta.append(ranges)  # a restore that fills holes shows
            for start, end in ranges:
                position = start
                while position < end and (count := os.preadv(descriptor, [buffer], position)):
                    hasher.update(buffer[: min(count, end - position)])
                    position += count
        finally:
            os.close(descriptor)
        return hasher.hexdigest()[:16]

    def facts(self) -> Json:
        """Return one hash per directory below the root, so that a difference names where."""
        tops: dict[str, Any] = {}
        for path, _ in self.entries:
            relative = path.removeprefix(self.root).strip("/").split("/")
            depth = 2 if relative[0] in {"usr", "var"} else 1
            top = "/".join(relative[:depth])
            hasher = tops.setdefault(top, hashlib.md5(usedforsecurity=False))
            hasher.update(os.fsencode(path) + b"\0" + self.digests[path].encode() + b"\0")
        return {
            "files": len(self.entries),
            "bytes": sum(found.st_size for _, found in self.entries if stat.S_ISREG(found.st_mode)),
            "hashes": {top or ".": hasher.hexdigest()[:16] for top, hasher in sorted(tops.items())},
        }


def digest(data: bytes) -> str:
    """Return a hash that is long enough to see a difference; nobody here is an adversary.

    Without the processor's own instructions, as under TCG, MD5 is the fastest by far: 238 MB/s,
    SHA-512 128, SHA-1 65, SHA-256 44, BLAKE2b 40.
    """
    return hashlib.md5(data, usedforsecurity=False).hexdigest()[:16]


def abridged(hashes: str) -> str:
    """Shorten "metadata content": the port is slow, and a manifest only says where to look."""
    return " ".join(each[:8] for each in hashes.split())


def flags(descriptor: int) -> int:
    """Return the inode flags a person can set; 0 where the filesystem has none."""
    word = bytearray(8)
    try:
        fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, word)
    except OSError:
        return 0
    return int.from_bytes(word[:4], sys.byteorder) & FLAGS


def data_ranges(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of what is no hole in a sparse file."""
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError:
            break  # only holes are left
        position = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, position
