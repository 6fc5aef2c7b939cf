"""Files that hold the two ends of a volume: `u64` length, `u64` bytes of the first end, the ends."""

import os
import struct
from pathlib import Path

import zstandard

FOLDER = Path(__file__).with_name("layers")
_HEAD = struct.Struct("<QQ")


def write(path: Path, length: int, first: bytes, last: bytes) -> None:
    data = _HEAD.pack(length, len(first)) + first + last
    path.write_bytes(zstandard.compress(data, 19))


def ends(name: str) -> tuple[int, bytes, bytes]:
    """Return the length of a volume, its first bytes and its last ones."""
    data = zstandard.decompress((FOLDER / name).read_bytes())
    length, first = _HEAD.unpack_from(data)
    return length, data[_HEAD.size :][:first], data[_HEAD.size + first :]


def volume(name: str) -> bytes:
    """Return the volume, with zeros between its ends."""
    length, first, last = ends(name)
    return first + bytes(length - len(first) - len(last)) + last


def put(path: Path, offset: int, name: str) -> None:
    """Write the volume into a file that has only zeros there, as holes."""
    length, first, last = ends(name)
    with path.open("r+b") as file:
        file.truncate(max(path.stat().st_size, offset + length))
        os.pwrite(file.fileno(), first, offset)
        os.pwrite(file.fileno(), last, offset + length - len(last))
