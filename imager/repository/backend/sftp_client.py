"""The SFTP protocol, version 3, on a channel; as much of it as objects need, with requests in flight.

paramiko's own client waits for each answer, or drops those of pipelined writes unread, so that a
write which failed goes unnoticed. Source: draft-ietf-secsh-filexfer-02 and OpenSSH's PROTOCOL.
"""

import contextlib
import stat
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

import paramiko

from imager.errors import MalformedAnswer
from imager.repository.backend.protocol import Buffer

FSYNC: Final = "fsync@openssh.com"
HARDLINK: Final = "hardlink@openssh.com"
_LIMITS: Final = "limits@openssh.com"
_STATVFS: Final = "statvfs@openssh.com"
_VERSION: Final = 3
_MOST_PACKET: Final = 1 << 20
_SAFE_DATA: Final = 1 << 15  # what every server takes
_MOST_DATA: Final = 1 << 17  # more gains nothing
_IN_FLIGHT: Final = 2 << 20  # bytes asked for or sent and not answered


class _Packet(IntEnum):
    INIT = 1
    VERSION = 2
    OPEN = 3
    CLOSE = 4
    READ = 5
    WRITE = 6
    FSTAT = 8
    FSETSTAT = 10
    OPENDIR = 11
    READDIR = 12
    REMOVE = 13
    MKDIR = 14
    STAT = 17
    RENAME = 18
    STATUS = 101
    HANDLE = 102
    DATA = 103
    NAME = 104
    ATTRS = 105
    EXTENDED = 200
    EXTENDED_REPLY = 201


class Status(IntEnum):
    """What a server says about a request."""

    OK = 0
    EOF = 1
    NO_SUCH_FILE = 2
    PERMISSION_DENIED = 3
    FAILURE = 4
    UNSUPPORTED = 8


class Open(IntFlag):
    """How a file is opened."""

    READ = 1
    WRITE = 2
    CREATE = 8
    EXCLUSIVE = 32


class SftpFailure(Exception):
    """What a server could not do.

    Args:
        status: why, as far as it says; numbers that are not listed count as FAILURE.
        message: its words.
    """

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class Attributes:
    """What is known of a file.

    Attributes:
        size: bytes.
        modified: seconds since the epoch, whole ones.
        is_folder: whether it is a directory.
    """

    size: int
    modified: int
    is_folder: bool


class SftpClient:
    """One session; for one thread at a time.

    Args:
        channel: fresh; its subsystem is started here.

    Raises:
        paramiko.SSHException, EOFError, OSError: the link broke; of every method.
        MalformedAnswer: what comes is no SFTP; of every method.
        SftpFailure: the server can't do it; of every method.
    """

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel
        self._next = 0
        self._asked: set[int] = set()  # and not answered yet
        self._answers: dict[int, tuple[int, memoryview]] = {}
        self._unwanted: set[int] = set()  # requests whose answers nobody waits for any more
        channel.invoke_subsystem("sftp")
        self._send(_Packet.INIT, struct.pack(">I", _VERSION))
        kind, body = self._receive()
        if kind != _Packet.VERSION:
            raise MalformedAnswer("the server answers with something other than SFTP")
        self._extensions = frozenset(_pairs(_Reader(body[4:])))
        self._most = min(self._limit(), _MOST_DATA)

    @property
    def is_closed(self) -> bool:
        """Whether the other side is gone."""
        return bool(self._channel.closed or self._channel.eof_received)

    def offers(self, extension: str) -> bool:
        """Whether the server knows an extension."""
        return extension in self._extensions

    def open(self, path: str, how: Open) -> bytes:
        """Open a file and return its handle."""
        attributes = struct.pack(">II", 4, 0o600) if how & Open.CREATE else struct.pack(">I", 0)
        return self._handle(_Packet.OPEN, _text(path) + struct.pack(">I", how) + attributes)

    @contextlib.contextmanager
    def opened(self, path: str, how: Open) -> Iterator[bytes]:
        """Yield the handle of a file that is closed afterwards, unless the link broke."""
        handle = self.open(path, how)
        try:
            yield handle
        except SftpFailure:
            with contextlib.suppress(SftpFailure):
                self.close_file(handle)
            raise
        self.close_file(handle)

    def close_file(self, handle: bytes) -> None:
        """Close a file or a directory."""
        self._done(_Packet.CLOSE, _string(handle))

    def write(self, handle: bytes, offset: int, parts: Sequence[Buffer]) -> None:
        """Write bytes from an offset on; each answer is looked at."""
        waiting: deque[int] = deque()
        most = max(1, _IN_FLIGHT // self._most)
        try:
            for part in parts:
                view = memoryview(part).cast("B")
                for start in range(0, len(view), self._most):
                    data = view[start : start + self._most]
                    head = _string(handle) + struct.pack(">QI", offset, len(data))
                    waiting.append(self._request(_Packet.WRITE, head, data))
                    offset += len(data)
                    if len(waiting) >= most:
                        self._succeeded(waiting.popleft())
            while waiting:
                self._succeeded(waiting.popleft())
        finally:
            self._drop(waiting)

    def read(self, handle: bytes, offset: int, length: int) -> Iterator[memoryview]:
        """Yield the bytes of a range in order; fewer if the file ends before."""
        end = offset + length
        waiting: deque[tuple[int, int, int]] = deque()
        most = max(1, _IN_FLIGHT // self._most)

        def ask(start: int, count: int) -> tuple[int, int, int]:
            body = _string(handle) + struct.pack(">QI", start, count)
            return self._request(_Packet.READ, body), start, count

        try:
            while offset < end or waiting:
                while offset < end and len(waiting) < most:
                    count = min(self._most, end - offset)
                    waiting.append(ask(offset, count))
                    offset += count
                number, start, count = waiting.popleft()
                data = self._data(number)
                if not data:
                    return
                if len(data) > count:
                    raise MalformedAnswer("the SFTP server sends more than it was asked for")
                yield data
                if len(data) < count:  # a server may give less than it was asked for
                    waiting.appendleft(ask(start + len(data), count - len(data)))
        finally:
            self._drop(number for number, _, _ in waiting)

    def set_modified(self, handle: bytes, seconds: int) -> None:
        """Set the time of a file."""
        self._done(_Packet.FSETSTAT, _string(handle) + struct.pack(">III", 8, seconds, seconds))

    def flush(self, handle: bytes) -> None:
        """Make a file, or the names in a directory, durable."""
        self._done(_Packet.EXTENDED, _text(FSYNC) + _string(handle))

    def link(self, path: str, new: str) -> None:
        """Give a file a second name; fails if that is there."""
        self._done(_Packet.EXTENDED, _text(HARDLINK) + _text(path) + _text(new))

    def rename(self, path: str, new: str) -> None:
        """Give a file another name; the protocol says that it fails if that is there."""
        self._done(_Packet.RENAME, _text(path) + _text(new))

    def remove(self, path: str) -> None:
        """Remove a file."""
        self._done(_Packet.REMOVE, _text(path))

    def make_folder(self, path: str) -> None:
        """Make a directory that only its owner can read."""
        self._done(_Packet.MKDIR, _text(path) + struct.pack(">II", 4, 0o700))

    def stat(self, path: str) -> Attributes:
        """Return what is known of a file."""
        return self._attributes(self._request(_Packet.STAT, _text(path)))

    def stat_open(self, handle: bytes) -> Attributes:
        """Return what is known of an open file."""
        return self._attributes(self._request(_Packet.FSTAT, _string(handle)))

    def list(self, path: str) -> Iterator[tuple[bytes, Attributes]]:
        """Yield the names in a directory and what is known of each."""
        handle = self._handle(_Packet.OPENDIR, _text(path))
        try:
            while True:
                kind, body = self._answer(self._request(_Packet.READDIR, _string(handle)))
                if kind == _Packet.STATUS and _status(body)[0] is Status.EOF:
                    return
                reader = _Reader(self._expected(kind, body, _Packet.NAME))
                for _ in range(reader.number()):
                    name = reader.string()
                    reader.string()
                    yield name, reader.attributes()
        finally:
            self.close_file(handle)

    def free_bytes(self, path: str) -> int | None:
        """Return the room that is left for us below a path; None if the server does not tell."""
        if not self.offers(_STATVFS):
            return None
        number = self._request(_Packet.EXTENDED, _text(_STATVFS) + _text(path))
        body = self._expected(*self._answer(number), _Packet.EXTENDED_REPLY)
        reader = _Reader(body)
        _, size, _, _, available = (reader.long() for _ in range(5))
        return size * available

    def close(self) -> None:
        """End the session."""
        self._channel.close()

    def _limit(self) -> int:
        if not self.offers(_LIMITS):
            return _SAFE_DATA
        body = self._expected(
            *self._answer(self._request(_Packet.EXTENDED, _text(_LIMITS))), _Packet.EXTENDED_REPLY
        )
        reader = _Reader(body)
        reader.long()
        limits = [reader.long(), reader.long()]
        return min([limit for limit in limits if limit] or [_SAFE_DATA])

    def _done(self, kind: _Packet, body: bytes) -> None:
        self._succeeded(self._request(kind, body))

    def _succeeded(self, number: int) -> None:
        status, message = _status(self._expected(*self._answer(number), _Packet.STATUS))
        if status is not Status.OK:
            raise SftpFailure(status, message)

    def _handle(self, kind: _Packet, body: bytes) -> bytes:
        answer = self._expected(*self._answer(self._request(kind, body)), _Packet.HANDLE)
        return _Reader(answer).string()

    def _attributes(self, number: int) -> Attributes:
        return _Reader(self._expected(*self._answer(number), _Packet.ATTRS)).attributes()

    def _data(self, number: int) -> memoryview:
        kind, body = self._answer(number)
        if kind == _Packet.STATUS and _status(body)[0] is Status.EOF:
            return body[:0]
        return _Reader(self._expected(kind, body, _Packet.DATA)).view()

    def _expected(self, kind: int, body: memoryview, wanted: _Packet) -> memoryview:
        if kind == wanted:
            return body
        if kind == _Packet.STATUS:
            raise SftpFailure(*_status(body))
        raise MalformedAnswer(
            f"the SFTP server answers with packet {kind} instead of {wanted.name}"
        )

    def _request(self, kind: _Packet, body: bytes, data: Buffer = b"") -> int:
        self._next = (self._next + 1) & 0xFFFFFFFF
        self._asked.add(self._next)
        self._send(kind, struct.pack(">I", self._next) + body, data)
        return self._next

    def _answer(self, number: int) -> tuple[int, memoryview]:
        while number not in self._answers:
            kind, body = self._receive()
            answered = int.from_bytes(body[:4])
            if len(body) < 4 or answered not in self._asked:
                raise MalformedAnswer("the SFTP server sends an answer to nothing")
            self._asked.remove(answered)
            if answered in self._unwanted:
                self._unwanted.remove(answered)
            else:
                self._answers[answered] = kind, body[4:]
        return self._answers.pop(number)

    def _drop(self, numbers: Iterable[int]) -> None:
        """Keep no answers that nobody waits for any more."""
        for number in numbers:
            if self._answers.pop(number, None) is None:
                self._unwanted.add(number)

    def _send(self, kind: _Packet, body: bytes, data: Buffer = b"") -> None:
        head = struct.pack(">IB", 1 + len(body) + len(data), kind) + body
        # paramiko cuts off what it has sent: of a view that copies nothing.
        self._channel.sendall(memoryview(b"".join((head, data)) if len(data) else head))

    def _receive(self) -> tuple[int, memoryview]:
        (length,) = struct.unpack(">I", self._exactly(4))
        if not 1 <= length <= _MOST_PACKET:
            raise MalformedAnswer("the server answers with something other than SFTP")
        packet = memoryview(self._exactly(length))
        return packet[0], packet[1:]

    def _exactly(self, length: int) -> bytes:
        parts = []
        while length:
            part = self._channel.recv(length)
            if not part:
                raise EOFError
            parts.append(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._place = 0

    @property
    def is_at_end(self) -> bool:
        return self._place >= len(self._data)

    def number(self) -> int:
        return int.from_bytes(self._take(4))

    def long(self) -> int:
        return int.from_bytes(self._take(8))

    def string(self) -> bytes:
        return bytes(self.view())

    def view(self) -> memoryview:
        return self._take(self.number())

    def attributes(self) -> Attributes:
        flags = self.number()
        size = self.long() if flags & 1 else 0
        if flags & 2:
            self._take(8)
        mode = self.number() if flags & 4 else 0
        modified = 0
        if flags & 8:
            self._take(4)
            modified = self.number()
        if flags & 0x80000000:
            for _ in range(self.number()):
                self.string()
                self.string()
        return Attributes(size, modified, stat.S_ISDIR(mode))

    def _take(self, length: int) -> memoryview:
        part = self._data[self._place : self._place + length]
        if len(part) != length:
            raise MalformedAnswer("an answer of the SFTP server ends too early")
        self._place += length
        return part


def _pairs(reader: _Reader) -> Iterator[str]:
    while not reader.is_at_end:
        yield reader.string().decode("utf-8", "replace")
        reader.string()


def _status(body: memoryview) -> tuple[Status, str]:
    reader = _Reader(body)
    code = reader.number()
    message = "" if reader.is_at_end else reader.string().decode("utf-8", "replace")
    return _STATUSES.get(code, Status.FAILURE), message


_STATUSES: Final[Mapping[int, Status]] = {status.value: status for status in Status}


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _text(text: str) -> bytes:
    return _string(text.encode())
