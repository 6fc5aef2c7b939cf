"""The server of block devices, spoken to as the kernel does."""

import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from imager.errors import NoRoom, ObjectDamaged
from imager.units import KIB, MIB
from restore.nbd import MOST_LENGTH, Command, Server
from restore.overlay import Overlay

MAGIC = 0x25609513


@dataclass
class Bytes:
    """Content in memory; reads of a place wait until they may go on, or fail."""

    data: bytes
    faults: dict[int, Exception] = field(default_factory=dict)
    waits: dict[int, threading.Event] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytearray:
        if offset in self.waits:
            assert self.waits[offset].wait(30)
        if offset in self.faults:
            raise self.faults[offset]
        return bytearray(self.data[offset : offset + length])


class Client:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def ask(self, command: int, cookie: int, offset: int, length: int, data: bytes = b"") -> None:
        request = struct.pack(">IHHQQI", MAGIC, 0, command, cookie, offset, length)
        self.connection.sendall(request + data)

    def reply(self) -> tuple[int, int]:
        """Return error and cookie."""
        magic, error, cookie = struct.unpack(">IIQ", self.take(16))
        assert magic == 0x67446698
        return error, cookie

    def take(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            piece = self.connection.recv(length - len(data))
            assert piece, "the server has gone"
            data += piece
        return data

    def read(self, offset: int, length: int) -> bytes:
        self.ask(Command.READ, 7, offset, length)
        assert self.reply() == (0, 7)
        return self.take(length)

    def is_over(self) -> bool:
        return self.connection.recv(1) == b""


@pytest.fixture
def content() -> Bytes:
    return Bytes(os.urandom(MIB))


@pytest.fixture
def served(content: Bytes) -> Iterator[tuple[Client, Server]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    with ours, Server(theirs, Overlay(content, 64 * KIB)) as server:
        yield Client(ours), server


def test_what_is_read_is_the_content(served: tuple[Client, Server], content: Bytes) -> None:
    client, server = served
    assert client.read(0, MIB) == content.data
    assert client.read(MIB - 512, 512) == content.data[-512:]
    assert server.failure is None


def test_what_was_written_is_read_and_the_content_stays(
    served: tuple[Client, Server], content: Bytes
) -> None:
    client, _ = served
    before = content.data
    client.ask(Command.WRITE, 3, 1000, 5000, b"x" * 5000)
    assert client.reply() == (0, 3)
    client.ask(Command.FLUSH, 4, 0, 0)
    assert client.reply() == (0, 4)
    assert client.read(0, 8 * KIB) == before[:1000] + b"x" * 5000 + before[6000 : 8 * KIB]
    assert content.data == before


def test_a_slow_read_holds_up_no_other(served: tuple[Client, Server], content: Bytes) -> None:
    client, _ = served
    gate = content.waits[4096] = threading.Event()
    client.ask(Command.READ, 1, 4096, 10)
    client.ask(Command.READ, 2, 0, 10)
    assert client.reply() == (0, 2)
    assert client.take(10) == content.data[:10]
    gate.set()
    assert client.reply() == (0, 1)
    assert client.take(10) == content.data[4096:4106]


def test_a_read_that_fails_is_an_error_and_the_next_goes_on(
    served: tuple[Client, Server], content: Bytes
) -> None:
    client, server = served
    fault = content.faults[512] = ObjectDamaged("a pack is damaged")
    content.faults[1024] = ObjectDamaged("another one")
    for offset in (512, 1024):
        client.ask(Command.READ, 9, offset, 100)
        assert client.reply() == (errno.EIO, 9)
    assert client.read(0, 100) == content.data[:100]
    assert server.failure is fault


def test_more_than_memory_may_hold_is_refused(served: tuple[Client, Server]) -> None:
    client, server = served
    for number in range(16):
        client.ask(Command.WRITE, number, number * 4096, 4096, b"y" * 4096)
        assert client.reply() == (0, number)
    client.ask(Command.WRITE, 50, 0, 4096, b"z" * 4096)  # over what is kept already
    assert client.reply() == (0, 50)
    client.ask(Command.WRITE, 51, 80 * KIB, 4096, bytes(4096))  # zeros cost nothing
    assert client.reply() == (0, 51)
    client.ask(Command.WRITE, 99, 100 * KIB, 4096, b"y" * 4096)
    assert client.reply() == (errno.EIO, 99)
    assert isinstance(server.failure, NoRoom)
    assert client.read(80 * KIB, 4096) == bytes(4096)
    assert client.read(0, 4096) == b"z" * 4096


@pytest.mark.parametrize(
    ("command", "offset", "length", "error"),
    [
        (Command.READ, MIB - 10, 11, errno.EINVAL),
        (Command.READ, 2**63, 1, errno.EINVAL),
        (Command.READ, 0, MOST_LENGTH + 1, errno.EINVAL),
        (Command.WRITE, MIB, 1, errno.ENOSPC),
        (77, 0, 0, errno.EINVAL),
    ],
)
def test_what_makes_no_sense_is_refused_and_the_next_goes_on(
    served: tuple[Client, Server],
    content: Bytes,
    command: int,
    offset: int,
    length: int,
    error: int,
) -> None:
    client, server = served
    client.ask(command, 5, offset, length, b"w" * length if command == Command.WRITE else b"")
    assert client.reply() == (error, 5)
    assert client.read(0, 10) == content.data[:10]
    assert server.failure is None


def test_it_ends_when_asked_to(served: tuple[Client, Server]) -> None:
    client, _ = served
    client.ask(Command.DISCONNECT, 0, 0, 0)
    assert client.is_over()


def test_it_ends_when_it_is_not_spoken_to_as_it_must(served: tuple[Client, Server]) -> None:
    client, _ = served
    client.connection.sendall(bytes(28))
    assert client.is_over()


def test_leaving_ends_it_while_the_other_side_waits(content: Bytes) -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    with ours:
        with Server(theirs, Overlay(content, 0)):
            pass
        assert Client(ours).is_over()
