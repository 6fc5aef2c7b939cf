"""Members of md mirrors: what of the data is not in use is not read.

Superblock, bitmap, bad block log and all else outside of the data are kept whole. Of the data that
is kept which what lies in the array needs, as for a volume of its own; and only if

- the array is RAID1, where each member holds all of it in one piece;
- all members in the image have seen the same changes, are active, and were left clean;
- nothing is being reshaped, recovered or replaced, and no block is known to be bad.

What free space of the members holds after a restore need not be alike. No filesystem reads it; a
`check` of md counts it as mismatches, which a `repair` takes away.

Of the other levels all is read: the parity of free stripes must stay right, since one day a member
is rebuilt from it, and which blocks of a member are in use can't be told without the others.
"""

from dataclasses import replace

import numpy as np

from imager.extents.extents import Extents, Part, UncertainMapError, merged
from imager.layout.mdraid import MdArray
from imager.probe.mdraid_superblock import MdSuperblock, read_superblock


def read_member(part: Part, array: MdArray | None) -> MdSuperblock:
    """Return the superblock of a member whose data may be looked into.

    Args:
        part: the member.
        array: that the layout says it belongs to, or None.

    Raises:
        UncertainMapError: it may not.
    """
    superblock = read_superblock(part.fd, part.offset, part.length)
    if superblock is None or array is None or superblock.uuid != array.uuid:
        raise UncertainMapError("it is a member of an array that can't be read")
    if not superblock.is_mirror:
        raise UncertainMapError(
            f"a member of {array.level.upper()} is not looked into: only all members together tell "
            "what is in use"
        )
    check_sound(array)
    if not superblock.settled:
        raise UncertainMapError("its array is being rebuilt or reshaped, or has bad blocks")
    end = superblock.data_offset + superblock.size
    if any(superblock.data_offset <= place < end for place in superblock.metadata):
        raise UncertainMapError("its superblock says that metadata lie within the data")
    return superblock


def check_sound(array: MdArray) -> None:
    """Make sure that all members in the image hold the same.

    Raises:
        UncertainMapError: they may not.
    """
    if not array.is_sound:
        raise UncertainMapError("its array was not stopped cleanly, or its members differ")


def around(inner: Extents, superblock: MdSuperblock, length: int) -> Extents:
    """Return the map of a member of `length` bytes, given that of its data."""
    start = superblock.data_offset
    rows = inner.ranges.astype(np.int64)
    starts = rows[:, 0] + start
    ranges = merged(
        np.concatenate([[0], starts, [start + superblock.size]]),
        np.concatenate([[start], starts + rows[:, 1], [length]]),
    )
    method = inner.method if inner.method == "whole" else f"{inner.method}, in md RAID1"
    return replace(inner, ranges=ranges, method=method)
