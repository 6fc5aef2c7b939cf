"""What the readers of on-disk structures here say when bytes are not what they look for."""

from imager import blockdev
from imager.errors import TruncatedSource, UnreadableSource


class StructureError(Exception):
    """Bytes are not the structure they should be, or are damaged.

    Never leaves `imager.probe` and `imager.extents`.
    """


def read_bytes(fd: int, offset: int, length: int) -> bytes:
    """Read exactly `length` bytes at `offset`.

    What can't be read holds no structure: a bad sector where a layer might have been must not keep
    a disk from being captured whose content lies elsewhere.

    Raises:
        StructureError: a read error, or the disk ends before.
    """
    try:
        return blockdev.read_at(fd, offset, length)
    except (TruncatedSource, UnreadableSource) as error:
        raise StructureError(error.message) from error
