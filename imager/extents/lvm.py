"""LVM physical volumes: extents that no logical volume has are not read.

The metadata of the volume group on the volume itself counts only if

- the label, the header of each metadata area and the text carry right checksums, and the areas,
  where there are several, say the same;
- no change is half-way (a text that is not committed, pvmove, a missing or exported part), no
  other machine shares the group, and all in it is known here;
- the extents of the segments lie within the physical volume and do not overlap, and the label and
  the text agree about the device.

What lies in logical volumes is read whole, whatever they are.
"""

import numpy as np

from imager.extents.extents import Extents, UncertainMapError, merged
from imager.extents.lvm_metadata import PhysicalVolume, physical_volume
from imager.probe.lvm_label import LABEL_SECTORS, SECTOR, Label, read_label, read_text
from imager.probe.structure import StructureError


def read(fd: int, offset: int, length: int) -> Extents:
    """Return label and metadata areas, allocated extents, and what lies behind the last extent.

    Raises:
        UncertainMapError: the map can't be relied on.
    """
    try:
        label = read_label(fd, offset, length)
        texts = {read_text(fd, offset, length, area) for area in label.metadata}
        texts.discard("")
        return _map(label, texts, length)
    except StructureError as problem:
        raise UncertainMapError(str(problem)) from problem


def _map(label: Label, texts: set[str], length: int) -> Extents:
    if not texts:
        raise UncertainMapError("the physical volume does not hold the metadata of its group")
    if len(texts) != 1:
        raise UncertainMapError("the metadata areas of the physical volume differ")
    found = physical_volume(texts.pop(), label.identifier)
    _check(found, label, length)
    rows = np.array(found.used, dtype=np.int64).reshape(-1, 2)
    start, extent = found.start * SECTOR, found.extent * SECTOR
    behind = start + found.extents * extent
    starts = start + rows[:, 0] * extent
    ranges = merged(
        np.concatenate([[0], starts, [behind]]),
        np.concatenate([[start], starts + rows[:, 1] * extent, [length]]),
    )
    return Extents(ranges, "LVM extents", None, extent)


def _check(found: PhysicalVolume, label: Label, length: int) -> None:
    if found.size * SECTOR != label.size or label.size > length:
        raise UncertainMapError("label and metadata of LVM disagree about the size of the device")
    end = (found.start + found.extents * found.extent) * SECTOR
    if found.extent < 1 or found.start * SECTOR < SECTOR * LABEL_SECTORS or end > length:
        raise UncertainMapError("the extents of LVM lie outside of the volume")
    next_free = 0
    for first, count in found.used:
        if first < next_free:
            raise UncertainMapError("two logical volumes have the same extents")
        next_free = first + count
    if next_free > found.extents:
        raise UncertainMapError("a logical volume lies beyond the last extent")
    first_extent = found.start * SECTOR
    for place, size in label.metadata:
        if place < end and place + size > first_extent:
            raise UncertainMapError("a metadata area of LVM lies within the extents")
