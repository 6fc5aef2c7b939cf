"""Swap areas: only the header matters; what was swapped out is gone with the running system."""

import struct
from typing import Final

import numpy as np

from imager import blockdev
from imager.extents.extents import Extents, UncertainMapError, merged

_PAGE: Final = 4096
_MAGIC: Final = b"SWAPSPACE2"
_MAGIC_OFFSET: Final = _PAGE - len(_MAGIC)
_INFO: Final = struct.Struct("<II")  # version, last page; after 1024 bytes for boot code


def read(fd: int, offset: int, length: int) -> Extents:
    """Return the header page, and what lies behind the swap area.

    A hibernated system carries another magic, is no "swap" for libblkid and is read whole.

    Raises:
        UncertainMapError: not a swap area of version 1 with pages of 4096 bytes.
    """
    if length < 2 * _PAGE:
        raise UncertainMapError("the swap area is too small to be one")
    header = blockdev.read_at(fd, offset, _PAGE)
    if header[_MAGIC_OFFSET:] != _MAGIC:
        raise UncertainMapError(
            "the swap area has pages of another size, or holds a hibernated system"
        )
    version, last_page = _INFO.unpack_from(header, 1024)
    end = (last_page + 1) * _PAGE
    if version != 1 or not _PAGE < end <= length:
        raise UncertainMapError("the header of the swap area makes no sense")
    ranges = merged(np.array([0, end]), np.array([_PAGE, length]))
    return Extents(ranges, "swap header", None, _PAGE)
