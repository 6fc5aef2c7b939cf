"""Which disks of an image hold code that a BIOS starts: read from the image itself."""

from typing import Final

import numpy as np

from imager.layout.disk import Disk
from imager.layout.firmware import FirmwareKind
from restore.runs import Image, each_part

_CODE: Final = 440  # bytes of code at the start of a disk; what follows is the table
_SIGNATURE: Final = slice(510, 512)
_SIGNED: Final = b"\x55\xaa"


def disks_with_boot_code(image: Image) -> frozenset[str]:
    """Return the ids of disks with boot code; of a machine with UEFI, none.

    One chunk of each disk is read.

    Raises:
        ObjectDamaged, ObjectMissing: the repository can't give it.
    """
    if image.machine.firmware.kind is not FirmwareKind.BIOS:
        return frozenset()
    return frozenset(disk.id for disk in image.machine.disks if _has_code(image, disk))


def _has_code(image: Image, disk: Disk) -> bool:
    first = disk.volumes[0] if disk.volumes else None
    if first is None or first.offset:
        return False
    runs = next(each_part(image, first), None)
    if runs is None or not len(runs.data_offsets) or runs.data_offsets[0]:
        return False
    identity = np.ascontiguousarray(runs.data_ids[0]).tobytes()
    sector = image.chunks([identity])[identity][: _SIGNATURE.stop]
    return sector[_SIGNATURE] == _SIGNED and any(sector[:_CODE])
