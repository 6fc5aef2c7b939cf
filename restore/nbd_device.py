"""Content of this process as a block device of the kernel, through its nbd driver.

The kernel is asked over generic netlink (<linux/genetlink.h>, <linux/nbd-netlink.h>): it chooses a
free device itself, and no thread has to stay in a call as with the older ioctls. When this process
ends, however that happens, reads of the device fail from then on.
"""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Final, Self

from imager import process
from imager.errors import ProgramError, TargetError
from restore.nbd import Content, Server
from restore.udev import settle

_NETLINK_GENERIC: Final = 16
_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_COMMAND: Final = struct.Struct("=BBH")  # command, version, reserved
_ATTRIBUTE: Final = struct.Struct("=HH")  # length, type
_U16: Final = struct.Struct("=H")
_U32: Final = struct.Struct("=I")
_U64: Final = struct.Struct("=Q")
_REQUEST: Final = 0x01
_ACK: Final = 0x04
_ERROR: Final = 2  # type of the message that ends every answer; it begins with an errno, negative
_CONTROL: Final = 16  # the family that knows the others' numbers
_VERSION: Final = 1
_MOST_ANSWER: Final = 1 << 16

_HAS_FLAGS: Final = 0x01  # NBD_FLAG_HAS_FLAGS: of what the driver may use, nothing is offered


class _Control(IntEnum):
    """Of the family "nlctrl"."""

    GET_FAMILY = 3
    FAMILY_ID = 1
    FAMILY_NAME = 2


class _Nbd(IntEnum):
    """Commands and attributes of the family "nbd"."""

    CONNECT = 1
    DISCONNECT = 2
    INDEX = 1
    SIZE_BYTES = 2
    BLOCK_SIZE_BYTES = 3
    SERVER_FLAGS = 5
    SOCKETS = 7
    SOCKET_ITEM = 1
    SOCKET_FD = 1


@contextmanager
def attached(content: Content, sector: int) -> Iterator[tuple[Path, Server]]:
    """Let content be a block device for a while.

    Args:
        content: what it holds; its size a multiple of `sector`.
        sector: bytes of the device's logical sector.

    Yields:
        The device, and what serves it, which knows why a read of it failed.

    Raises:
        TargetError: the kernel has no nbd driver, or none that works.
    """
    try:
        process.run("modprobe", "nbd")
    except ProgramError as error:
        raise TargetError(
            "this system's kernel has no network block devices (nbd)",
            hint="Do this from the rescue medium.",
        ) from error
    ours, theirs = socket.socketpair()
    with theirs, Server(ours, content) as server:
        with _Netlink() as netlink:
            family = netlink.family("nbd")
            index = netlink.connect(family, theirs.fileno(), content.size, sector)
            # The kernel has its own hold on it: when ours is closed, the server sees the end.
            theirs.close()
        device = Path(f"/dev/nbd{index}")
        try:
            yield device, server
        finally:
            # udev looks at what was written to; were it gone then, the kernel would tell of errors.
            settle()
            _disconnect(family, index)


@contextmanager
def truthful(server: Server) -> Iterator[None]:
    """Let what reading the content raised be told, and not what a program or the kernel made of it.

    Raises:
        RemetalError: a read failed, whether who read went on without it or not.
    """
    try:
        yield
    except (ProgramError, OSError) as error:
        if server.failure is not None:
            raise server.failure from error
        raise
    if server.failure is not None:
        raise server.failure


def _disconnect(family: int, index: int) -> None:
    with _Netlink() as netlink:
        netlink.ask(family, _Nbd.DISCONNECT, _attribute(_Nbd.INDEX, _U32.pack(index)))


class _Netlink:
    """A socket to the kernel's generic netlink."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def family(self, name: str) -> int:
        """Return the number of a family."""
        wanted = _attribute(_Control.FAMILY_NAME, name.encode() + b"\0")
        answer = self.ask(_CONTROL, _Control.GET_FAMILY, wanted)
        return int(_U16.unpack(answer[_Control.FAMILY_ID])[0])

    def connect(self, family: int, fd: int, size: int, sector: int) -> int:
        """Let a free device have a socket; return its number."""
        item = _attribute(_Nbd.SOCKET_ITEM, _attribute(_Nbd.SOCKET_FD, _U32.pack(fd)))
        answer = self.ask(
            family,
            _Nbd.CONNECT,
            _attribute(_Nbd.SIZE_BYTES, _U64.pack(size)),
            _attribute(_Nbd.BLOCK_SIZE_BYTES, _U64.pack(sector)),
            _attribute(_Nbd.SERVER_FLAGS, _U64.pack(_HAS_FLAGS)),
            _attribute(_Nbd.SOCKETS, item),
        )
        return int(_U32.unpack(answer[_Nbd.INDEX])[0])

    def ask(self, family: int, command: int, *attributes: bytes) -> dict[int, bytes]:
        """Send a command; return the attributes of the answer.

        Raises:
            TargetError: the kernel refuses.
        """
        body = _COMMAND.pack(command, _VERSION, 0) + b"".join(attributes)
        head = _HEADER.pack(_HEADER.size + len(body), family, _REQUEST | _ACK, 1, 0)
        try:
            self._socket.send(head + body)
            found: dict[int, bytes] = {}
            while True:
                for kind, message in _messages(self._socket.recv(_MOST_ANSWER)):
                    if kind == _ERROR:
                        _check(-struct.unpack_from("=i", message)[0])
                        return found
                    found |= dict(_attributes(message[_COMMAND.size :]))
        except OSError as error:
            raise TargetError(
                f"the kernel did not do what it was asked for a network block device: "
                f"{error.strerror}"
            ) from error


def _check(code: int) -> None:
    if code:
        raise OSError(code, os.strerror(code))


def _attribute(kind: int, value: bytes) -> bytes:
    size = _ATTRIBUTE.size + len(value)
    return (_ATTRIBUTE.pack(size, kind) + value).ljust(_aligned(size), b"\0")


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(data)
        yield kind, data[_ATTRIBUTE.size : size]
        data = data[_aligned(size) :]


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _HEADER.size:
        size, kind, *_ = _HEADER.unpack_from(data)
        yield kind, data[_HEADER.size : size]
        data = data[_aligned(size) :]


def _aligned(size: int) -> int:
    return -(-size // 4) * 4
