"""Frames of the protocol between a client and `remetal serve`; SERVE.md is its specification.

Everything here is bytes; who speaks when is in `serve.py` and `ssh_store.py`.
"""

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, TypeVar

from imager.errors import MalformedAnswer
from imager.repository.backend.protocol import Buffer, Entry

MAGIC: Final = b"remetal serve"
VERSION: Final = 1
MOST_PAYLOAD: Final = 1 << 20  # bytes of one frame
MOST_TEXT: Final = 4096  # bytes of a name or a message
DIGEST: Final = 32  # bytes of a BLAKE3
_FRAME: Final = struct.Struct(">BI")
_GREETING: Final = struct.Struct(f">{len(MAGIC)}sBBQ")
_PUT: Final = struct.Struct(">Qd")
_RANGE: Final = struct.Struct(">QQ")
_ENTRY: Final = struct.Struct(">QdH")
_NUMBER: Final = struct.Struct(">d")
_SIZE: Final = struct.Struct(">Q")

_Code = TypeVar("_Code", bound=IntEnum)


class Kind(IntEnum):
    """What a frame is."""

    GREETING = 1
    PUT = 2
    GET = 3
    RANGE = 4
    LIST = 5
    DELETE = 6
    LOCKED = 7
    NOW = 8
    TIDY = 9
    DATA = 16
    END = 17
    CREATED = 32
    SAME = 33
    OTHER = 34
    DONE = 35
    SIZE = 36
    NUMBER = 37
    THERE = 38
    ERROR = 63


_EMPTY: Final = frozenset(
    (Kind.NOW, Kind.TIDY, Kind.CREATED, Kind.SAME, Kind.OTHER, Kind.DONE, Kind.THERE)
)


class Role(IntEnum):
    """What a key may do."""

    READ_ONLY = 0
    APPEND_ONLY = 1
    MAY_DELETE = 2


class Fault(IntEnum):
    """What an ERROR says; numbers are never used again for something else."""

    MALFORMED = 1
    MISSING = 2
    DAMAGED = 3
    NOT_ALLOWED = 4
    NO_ROOM = 5
    LOCKED = 6
    NOT_TAKEN = 7
    OVER_QUOTA = 8
    WRONG_HASH = 9
    BAD_NAME = 10


@dataclass(frozen=True, slots=True)
class Greeting:
    """What the server says first.

    Attributes:
        version: of the protocol.
        role: of the key.
        most: bytes of the largest object that is taken.
    """

    version: int
    role: Role
    most: int

    def encode(self) -> bytes:
        """Return the payload."""
        return _GREETING.pack(MAGIC, self.version, self.role, self.most)

    @classmethod
    def decode(cls, payload: bytes) -> "Greeting":
        """Return what a payload says.

        Raises:
            MalformedAnswer: no server of remetal has said it.
        """
        if len(payload) != _GREETING.size:
            raise MalformedAnswer("what answers is no `remetal serve`")
        magic, version, role, most = _GREETING.unpack(payload)
        if magic != MAGIC:
            raise MalformedAnswer("what answers is no `remetal serve`")
        if version != VERSION:
            raise MalformedAnswer(
                f"the server speaks version {version} of the protocol, and this is version {VERSION}",
                hint="Install the same version of remetal on both sides.",
            )
        return cls(version, _one_of(Role, role), most)


@dataclass(frozen=True, slots=True)
class Put:
    """An object that is about to come.

    Attributes:
        name: of it.
        size: bytes.
        modified: when the store took it first; NaN for now.
    """

    name: str
    size: int
    modified: float

    def encode(self) -> bytes:
        """Return the payload."""
        return _PUT.pack(self.size, self.modified) + self.name.encode()

    @classmethod
    def decode(cls, payload: bytes) -> "Put":
        """Return what a payload says; `MalformedAnswer` otherwise."""
        size, modified = _unpack(_PUT, payload[: _PUT.size])
        return cls(text(payload[_PUT.size :]), size, modified)


def split_digest(payload: bytes) -> bytes:
    """Return the BLAKE3 in the END of an object that is put; `MalformedAnswer` otherwise."""
    if len(payload) != DIGEST:
        raise MalformedAnswer("an object ends without its hash")
    return payload


def range_of(name: str, offset: int, length: int) -> bytes:
    """Return the payload of RANGE."""
    return _RANGE.pack(offset, length) + name.encode()


def split_range(payload: bytes) -> tuple[str, int, int]:
    """Return name, offset and length of a RANGE; `MalformedAnswer` otherwise."""
    offset, length = _unpack(_RANGE, payload[: _RANGE.size])
    return text(payload[_RANGE.size :]), offset, length


def number(value: float | None) -> bytes:
    """Return the payload of NUMBER; NaN for None."""
    return _NUMBER.pack(math.nan if value is None else value)


def split_number(payload: bytes) -> float | None:
    """Return what a NUMBER says; `MalformedAnswer` otherwise."""
    (value,) = _unpack(_NUMBER, payload)
    return None if math.isnan(value) else float(value)


def size(value: int) -> bytes:
    """Return the payload of SIZE."""
    return _SIZE.pack(value)


def split_size(payload: bytes) -> int:
    """Return what a SIZE says; `MalformedAnswer` otherwise."""
    (value,) = _unpack(_SIZE, payload)
    return int(value)


def error(fault: Fault, message: str) -> bytes:
    """Return the payload of ERROR."""
    return bytes([fault]) + message.encode("utf-8", "replace")[:MOST_TEXT]


def split_error(payload: bytes) -> tuple[Fault, str]:
    """Return what an ERROR says; `MalformedAnswer` otherwise."""
    if not payload:
        raise MalformedAnswer("the server sent an empty error")
    return _one_of(Fault, payload[0]), payload[1:].decode("utf-8", "replace")


def entry(found: Entry) -> bytes:
    """Return an object of a listing as it lies in DATA."""
    name = found.name.encode()
    return _ENTRY.pack(found.size, found.modified, len(name)) + name


def split_entries(payload: bytes) -> Iterator[Entry]:
    """Yield the objects of one DATA of a listing; `MalformedAnswer` otherwise."""
    place = 0
    while place < len(payload):
        long, modified, length = _unpack(_ENTRY, payload[place : place + _ENTRY.size])
        place += _ENTRY.size
        if length > len(payload) - place:
            raise MalformedAnswer("a listing ends in the middle of a name")
        yield Entry(text(payload[place : place + length]), long, modified)
        place += length


def text(data: bytes) -> str:
    """Return a name; `MalformedAnswer` if it is none that could be sent."""
    if len(data) > MOST_TEXT:
        raise MalformedAnswer("a name is longer than any")
    try:
        return data.decode()
    except UnicodeDecodeError as problem:
        raise MalformedAnswer("a name is no text") from problem


def frame(kind: Kind, *parts: Buffer) -> list[Buffer]:
    """Return a frame, in parts."""
    return [head(kind, sum(len(part) for part in parts)), *parts]


def head(kind: Kind, length: int) -> bytes:
    """Return the head of a frame whose payload is sent by itself."""
    return _FRAME.pack(kind, length)


def read_head(read: Callable[[int], bytes]) -> tuple[Kind, int]:
    """Read the head of a frame; return its kind and the bytes of the payload that comes next.

    Args:
        read: returns exactly as many bytes as it is asked for, or raises.

    Raises:
        MalformedAnswer: what comes is no frame.
    """
    kind, length = _FRAME.unpack(read(_FRAME.size))
    known = _one_of(Kind, kind)
    if length > (0 if known in _EMPTY else MOST_PAYLOAD):
        raise MalformedAnswer(f"a frame claims {length} bytes, more than it may have")
    return known, length


def read_frame(read: Callable[[int], bytes]) -> tuple[Kind, bytes]:
    """Read one frame whole; arguments and errors are those of `read_head`."""
    kind, length = read_head(read)
    return kind, read(length) if length else b""


def _unpack(form: struct.Struct, data: bytes) -> tuple[Any, ...]:
    if len(data) != form.size:
        raise MalformedAnswer("a frame is too short or too long for its kind")
    return form.unpack(data)


def _one_of(codes: type[_Code], value: int) -> _Code:
    try:
        return codes(value)
    except ValueError as problem:
        raise MalformedAnswer(f"{value} is no known {codes.__name__.lower()}") from problem
