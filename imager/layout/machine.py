"""A machine: the root of the layout."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from imager.layout.disk import Disk, Volume
from imager.layout.filesystem import Filesystem
from imager.layout.firmware import Firmware
from imager.layout.layers import Layers
from imager.layout.network import NetworkCard
from imager.layout.partition_table import Partition

_ESP_TYPES: Final = frozenset({"C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "ef"})


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
        cards: its network cards; empty where none are known, as of disk files.
    """

    id: str
    name: str
    architecture: str
    firmware: Firmware
    disks: tuple[Disk, ...]
    layers: Layers = field(default_factory=Layers)
    cards: tuple[NetworkCard, ...] = ()

    def volumes(self) -> Iterator[tuple[Disk, Volume]]:
        """Yield every volume with the disk it lies on, in order."""
        for disk in self.disks:
            for volume in disk.volumes:
                yield disk, volume


def system_partitions(disks: Iterable[Disk], layers: Layers) -> Iterator[tuple[Disk, Partition]]:
    """Yield every partition that UEFI firmware may start a loader from, with its disk.

    These are EFI system partitions, and members of md mirrors that hold a FAT filesystem where the
    firmware looks for one; such members are often of the type of RAID.
    """
    for disk in disks:
        volumes = {volume.partition: volume for volume in disk.volumes}
        for part in disk.table.partitions if disk.table is not None else ():
            if part.type in _ESP_TYPES:
                yield disk, part
            elif (volume := volumes.get(part.number)) and layers.array_of(volume.id):
                filesystem = outer_filesystem(volume, layers)
                if filesystem is not None and filesystem.type == "vfat":
                    yield disk, part


def outer_filesystem(volume: Volume, layers: Layers) -> Filesystem | None:
    """Return what lies at the first byte of a volume for who knows nothing of md."""
    array = layers.array_of(volume.id)
    if array is not None and all(member.data_offset == 0 for member in array.members):
        return array.filesystem
    return volume.filesystem
