"""A machine: the root of the layout."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from imager.layout.disk import Disk, Volume
from imager.layout.firmware import Firmware
from imager.layout.layers import Layers


@dataclass(frozen=True, slots=True)
class Machine:
    """A computer that is captured and brought back.

    Attributes:
        id: DMI UUID in lower case, else the machine-id; for disk files, a UUID made from the
            identities of the disks. Stable over time.
        name: what people call it.
        architecture: as `uname -m` says.
        firmware: how it starts.
        disks: in the order they were captured.
        layers: what lies between volumes and filesystems: md, LUKS, LVM, btrfs, bcache.
    """

    id: str
    name: str
    architecture: str
    firmware: Firmware
    disks: tuple[Disk, ...]
    layers: Layers = field(default_factory=Layers)

    def volumes(self) -> Iterator[tuple[Disk, Volume]]:
        """Yield every volume with the disk it lies on, in order."""
        for disk in self.disks:
            for volume in disk.volumes:
                yield disk, volume
