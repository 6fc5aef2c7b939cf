"""A byte range that may carry a layer: a volume, a whole disk, or what a mirror of md holds."""

from dataclasses import dataclass
from pathlib import Path

from imager.layout.filesystem import Filesystem


@dataclass(frozen=True, slots=True)
class Place:
    """Where to look.

    Attributes:
        id: of the volume, disk or array.
        path: of the disk or disk file.
        fd: the same, open for reading.
        offset: first byte on it.
        length: bytes.
        filesystem: what its signature says, or None.
    """

    id: str
    path: Path
    fd: int
    offset: int
    length: int
    filesystem: Filesystem | None
