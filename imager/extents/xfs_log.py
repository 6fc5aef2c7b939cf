"""The log of XFS: does it end with the note that the filesystem was unmounted?

As long as it does not, what is allocated is in the log, and the free space trees are of the past.
"""

import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager import blockdev
from imager.extents.extents import UncertainMapError
from imager.units import MIB

_UNIT: Final = 512
_MAGIC: Final = 0xFEED_BABE
# Of a record: magic, cycle, version, bytes that follow the header
_RECORD: Final = struct.Struct(">IIII")
_OPERATIONS_AT: Final = 40
_BUFFER_SIZE_AT: Final = 320
_VERSION_2: Final = 2
_CYCLES_IN_HEADER: Final = 32 * 1024  # a longer buffer has more than one block of header
_FLAGS_AT: Final = 9  # of an operation, in the first bytes behind the header
_UNMOUNT: Final = 0x20
_DIRTY: Final = "the log waits to be replayed (it was not unmounted cleanly)"


def check_clean(fd: int, offset: int, length: int) -> None:
    """Make sure that nothing in a log waits to be replayed.

    Args:
        fd: of the disk.
        offset: of the log in it.
        length: of the log, in bytes.

    Raises:
        UncertainMapError: something may wait.
    """
    words, cycles = _cycles(fd, offset, length)
    head = _head(cycles)
    # The last record before the head, in the ring.
    records = np.flatnonzero(words == _MAGIC)
    if not records.size:
        raise UncertainMapError("the log holds no record")
    before = records[records < head]
    last = int(before[-1] if before.size else records[-1])
    header = blockdev.read_at(fd, offset + last * _UNIT, _UNIT)
    _, _, version, size = _RECORD.unpack_from(header)
    (operations,) = struct.unpack_from(">I", header, _OPERATIONS_AT)
    (buffer_size,) = struct.unpack_from(">I", header, _BUFFER_SIZE_AT)
    headers = -(-buffer_size // _CYCLES_IN_HEADER) if version & _VERSION_2 and buffer_size else 1
    end = (last + headers + -(-size // _UNIT)) % cycles.size
    if end != head % cycles.size or operations != 1:
        raise UncertainMapError(_DIRTY)
    place = (last + headers) % cycles.size
    flags = blockdev.read_at(fd, offset + place * _UNIT + _FLAGS_AT, 1)[0]
    if not flags & _UNMOUNT:
        raise UncertainMapError(_DIRTY)


def _cycles(fd: int, offset: int, length: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Return the first word of each unit of the log, and in which round it was written."""
    parts = []
    for start in range(0, length, 4 * MIB):
        data = blockdev.read_at(fd, offset + start, min(4 * MIB, length - start))
        parts.append(np.frombuffer(data, ">u4").reshape(-1, _UNIT // 4)[:, :2].astype(np.uint32))
    words = np.concatenate(parts)
    cycles = np.where(words[:, 0] == _MAGIC, words[:, 1], words[:, 0])
    return words[:, 0], cycles.astype(np.int64)


def _head(cycles: NDArray[np.int64]) -> int:
    """Return where the next record would be written: there the cycle falls by one, once."""
    steps = np.diff(cycles)
    falls = np.flatnonzero(steps)
    if not falls.size:
        return int(cycles.size)
    if falls.size > 1 or steps[falls[0]] != -1:
        raise UncertainMapError(_DIRTY)
    return int(falls[0]) + 1
