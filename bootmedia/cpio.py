"""The archive format the kernel unpacks as its first root: cpio, "new ASCII" (newc).

Written here because it must come from a tar and from memory, as root's files without being root,
in the same bytes every time.
"""

import stat
from typing import Final, Protocol

_ALIGNMENT: Final = 4
_TRAILER: Final = "TRAILER!!!"


class Sink(Protocol):
    """Whatever takes bytes in order."""

    def write(self, data: bytes, /) -> object:
        """Take all of `data`."""


def _padding(size: int) -> bytes:
    return bytes(-size % _ALIGNMENT)


class CpioWriter:
    """Writes one archive; entries come in the caller's order, folders before what is in them.

    Args:
        sink: receives the archive.
        mtime: the time of every entry, in seconds since 1970, so that equal content gives equal
            bytes.
    """

    def __init__(self, sink: Sink, mtime: int) -> None:
        self._sink = sink
        self._mtime = mtime
        self._inode = 0

    def add(
        self,
        name: str,
        mode: int,
        data: bytes = b"",
        *,
        owner: int = 0,
        group: int = 0,
        device: tuple[int, int] = (0, 0),
    ) -> None:
        """Add an entry.

        Args:
            name: path without a leading slash.
            mode: type and permissions, as in `st_mode`.
            data: content of a file, target of a symbolic link.
            owner: user id.
            group: group id.
            device: major and minor number of a device node.
        """
        self._inode += 1
        self._entry(name, mode, data, owner, group, device)

    def folder(self, name: str, mode: int = 0o755) -> None:
        """Add a folder."""
        self.add(name, stat.S_IFDIR | mode)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """Add a file with its content."""
        self.add(name, stat.S_IFREG | mode, data)

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self.add(name, stat.S_IFLNK | 0o777, target.encode())

    def close(self) -> None:
        """End the archive; the sink stays open."""
        self._inode = 0
        self._entry(_TRAILER, 0, b"", 0, 0, (0, 0))

    def _entry(
        self, name: str, mode: int, data: bytes, owner: int, group: int, device: tuple[int, int]
    ) -> None:
        path = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = [self._inode, mode, owner, group, links, self._mtime, len(data)]
        fields += [0, 0, *device, len(path), 0]
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
        self._sink.write(head + _padding(len(head)))
        self._sink.write(data)
        self._sink.write(_padding(len(data)))
