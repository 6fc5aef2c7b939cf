"""What md keeps at the end of a whole disk, moved to the end of a larger one.

The superblock of metadata 0.90 and 1.0 is looked for by counting from the end of the device. Bitmap
and bad block log lie at fixed distances from it and move with it; what the array uses for data stays
where it is, and is as much as it was.
"""

from typing import Final

from imager.blockdev import open_disk
from imager.errors import VerificationFailed
from imager.layout.mdraid import MdVersion
from imager.probe.mdraid_superblock import (
    SUPERBLOCK_SIZE,
    MdSuperblock,
    read_superblock,
    superblock_places,
    with_place,
)
from imager.units import MIB
from restore.device import OpenTarget

# Far more than any bitmap and log that lie before a superblock at the end.
_MOST_MOVED: Final = 64 * MIB


def relocate_superblock(opened: OpenTarget, version: MdVersion) -> None:
    """Move the superblock of a member, and what belongs to it, to the end of a larger disk.

    Args:
        opened: the target, with all content of the saved disk.
        version: of the metadata.

    Raises:
        VerificationFailed: there is no such superblock, or it is not found at the new end.
        WriteFailed: the target refused.
    """
    target = opened.target
    opened.flush()
    found = _read(opened, target.saved_size)
    if found is None or found.version is not version:
        raise VerificationFailed(
            f"{target.path} ({target.disk}) has no md superblock {version} where the saved disk has one"
        )
    old = found.place
    new = dict(superblock_places(target.size))[version]
    start = min(old, *found.metadata) if found.metadata else old
    end = min(target.saved_size, old + target.size - new)
    if end - start > _MOST_MOVED:
        raise VerificationFailed(f"{target.path} ({target.disk}): the md superblock makes no sense")
    moved = bytearray(end - start)
    opened.read_into(start, memoryview(moved))
    at = old - start
    moved[at : at + SUPERBLOCK_SIZE] = with_place(
        bytes(moved[at : at + SUPERBLOCK_SIZE]), version, new
    )
    opened.overwrite_with_zeros(start, target.saved_size - start)
    opened.write(new - at, bytes(moved))
    opened.flush()
    again = _read(opened, target.size)
    if again is None or (again.uuid, again.number) != (found.uuid, found.number):
        raise VerificationFailed(
            f"{target.path} ({target.disk}): the md superblock can't be read back from its end"
        )


def _read(opened: OpenTarget, size: int) -> MdSuperblock | None:
    opened.forget()
    with open_disk(opened.target.path) as descriptor:
        return read_superblock(descriptor, 0, size)
