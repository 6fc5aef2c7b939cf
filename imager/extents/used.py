"""The used ranges of a volume: finds the reader for its filesystem."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from imager import blockdev
from imager.errors import TruncatedSource
from imager.extents import exfat, ext, fat, ntfs, swap, xfs
from imager.extents.extents import Extents, UncertainMapError, whole
from imager.layout.disk import Volume

_CLOSED: Final = "LUKS, closed"

_READERS: Final[dict[str, Callable[[int, int, int], Extents]]] = {
    "exfat": exfat.read,
    "ext2": ext.read,
    "ext3": ext.read,
    "ext4": ext.read,
    "ntfs": ntfs.read,
    "vfat": fat.read,
    "swap": swap.read,
    "xfs": xfs.read,
}


def used(path: Path, volume: Volume) -> Extents:
    """Return what of a volume must be read.

    Everything, for boot areas, gaps, filesystems without a reader here, and wherever a reader is
    not sure; then `reason` says why.

    Args:
        path: the disk or disk file that the volume lies on; only read.
        volume: as the probe found it.

    Raises:
        TruncatedSource: the disk ends within the volume.
        UnreadableSource: a read error.
        ProgramMissing: e2fsprogs are not installed.
    """
    kind = volume.filesystem.type if volume.filesystem else ""
    reader = _READERS.get(kind)
    with blockdev.open_disk(path) as fd:
        if blockdev.size_of(fd) < volume.end:
            raise TruncatedSource(
                f"{path} ends at byte {blockdev.size_of(fd)}, but {volume.id} reaches to byte "
                f"{volume.end}"
            )
        if kind == "crypto_LUKS":
            return replace(whole(volume.length), method=_CLOSED)
        if reader is None:
            return whole(volume.length)
        try:
            return reader(fd, volume.offset, volume.length)
        except UncertainMapError as doubt:
            return whole(volume.length, str(doubt))
