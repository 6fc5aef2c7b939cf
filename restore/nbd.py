"""The transmission phase of NBD: serves bytes of this process as a block device, over a socket.

What comes before it, the negotiation, is not needed: the kernel gets the socket and the size from
`restore.nbd_device`. The protocol is that of the NetworkBlockDevice project, doc/proto.md, with
simple replies.
"""

import errno
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import IntEnum
from types import TracebackType
from typing import Final, Protocol, Self

from imager.units import MIB

MOST_LENGTH: Final = 32 * MIB  # of one request; the protocol's own advice
_READERS: Final = 4

_REQUEST: Final = struct.Struct(">IHHQQI")  # magic, flags, command, cookie, offset, length
_REQUEST_MAGIC: Final = 0x25609513
_REPLY: Final = struct.Struct(">IIQ")  # magic, error, cookie
_REPLY_MAGIC: Final = 0x67446698


class Command(IntEnum):
    """What is asked for; others are refused."""

    READ = 0
    WRITE = 1
    DISCONNECT = 2
    FLUSH = 3


class Content(Protocol):
    """What is served; for several threads."""

    @property
    def size(self) -> int:
        """Bytes."""

    def read(self, offset: int, length: int) -> bytearray:
        """Return bytes."""

    def write(self, offset: int, data: memoryview) -> None:
        """Take bytes, which are gone when it returns."""


class Server:
    """Answers the requests that come over a socket, in threads, until its end or the other's.

    Reads are answered in any order, several at once; writes one after the other. What a read or
    write raises becomes an I/O error for who asked; the first is kept as `failure`. Use as a context
    manager.

    Args:
        connection: a stream; it is closed at the end.
        content: what is served.
    """

    def __init__(self, connection: socket.socket, content: Content) -> None:
        self._connection = connection
        self._content = content
        self._sending = threading.Lock()
        self._failure: Exception | None = None
        self._readers = ThreadPoolExecutor(_READERS, "nbd-read")
        self._receiver = threading.Thread(target=self._receive_all, name="nbd", daemon=True)

    def __enter__(self) -> Self:
        self._receiver.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._receiver.join()
        self._readers.shutdown(cancel_futures=True)
        self._connection.close()

    @property
    def failure(self) -> Exception | None:
        """What the first read or write that failed raised."""
        return self._failure

    def _receive_all(self) -> None:
        # The other side may go at any time; who reads the device hears of it from the kernel.
        with suppress(OSError, EOFError):
            while self._answer(*_REQUEST.unpack(self._receive(_REQUEST.size))):
                pass
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _answer(
        self, magic: int, _flags: int, command: int, cookie: int, offset: int, length: int
    ) -> bool:
        """Answer a request, or let it be answered; return whether others may come."""
        # Whatever it is, where the next request begins can't be known.
        if magic != _REQUEST_MAGIC or (command == Command.WRITE and length > MOST_LENGTH):
            return False
        match command:
            case Command.READ if self._is_inside(offset, length):
                self._readers.submit(self._read, cookie, offset, length)
            case Command.WRITE:
                self._write(cookie, offset, memoryview(self._receive(length)))
            case Command.FLUSH:
                self._reply(cookie, 0)
            case Command.DISCONNECT:
                return False
            case _:
                self._reply(cookie, errno.EINVAL)
        return True

    def _is_inside(self, offset: int, length: int) -> bool:
        return length <= MOST_LENGTH and offset + length <= self._content.size

    def _read(self, cookie: int, offset: int, length: int) -> None:
        try:
            data = self._content.read(offset, length)
        except Exception as error:  # noqa: BLE001  who asked hears of it, and it is kept
            self._fail(cookie, error)
        else:
            self._reply(cookie, 0, data)

    def _write(self, cookie: int, offset: int, data: memoryview) -> None:
        if not self._is_inside(offset, len(data)):
            self._reply(cookie, errno.ENOSPC)
            return
        try:
            self._content.write(offset, data)
        except Exception as error:  # noqa: BLE001  who asked hears of it, and it is kept
            self._fail(cookie, error)
        else:
            self._reply(cookie, 0)

    def _fail(self, cookie: int, error: Exception) -> None:
        with self._sending:
            self._failure = self._failure or error
        self._reply(cookie, errno.EIO)

    def _reply(self, cookie: int, error: int, data: bytearray | None = None) -> None:
        with suppress(OSError), self._sending:
            self._connection.sendall(_REPLY.pack(_REPLY_MAGIC, error, cookie))
            if data is not None:
                self._connection.sendall(data)

    def _receive(self, length: int) -> bytearray:
        data = bytearray(length)
        view = memoryview(data)
        while view:
            count = self._connection.recv_into(view)
            if not count:
                raise EOFError
            view = view[count:]
        return data
