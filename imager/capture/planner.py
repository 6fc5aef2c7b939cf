"""What a capture will read, decided before the first byte is stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imager.blockdev import WriteMark
from imager.errors import SourceError
from imager.extents.extents import Extents, every_sector
from imager.extents.used import used_of_machine
from imager.layout.disk import Disk, Volume
from imager.layout.machine import Machine
from imager.probe.machine import ProbeSource, probe_machine


@dataclass(frozen=True, slots=True)
class VolumePlan:
    """One volume and what of it is to be read.

    Attributes:
        disk: it lies on.
        path: what to read the disk from.
        volume: the volume.
        extents: what of it matters.
    """

    disk: Disk
    path: Path
    volume: Volume
    extents: Extents

    @property
    def size(self) -> int:
        """Bytes to be read."""
        return self.extents.total


@dataclass(frozen=True, slots=True)
class CapturePlan:
    """What a capture will do.

    Attributes:
        machine: as the image will describe it.
        volumes: in the order of the layout.
        marks: of the sources, from before anything of them was read.
        forensic: every sector is read, whatever it holds.
    """

    machine: Machine
    volumes: tuple[VolumePlan, ...]
    marks: tuple[WriteMark, ...]
    forensic: bool = False

    @property
    def size(self) -> int:
        """Bytes to be read."""
        return sum(volume.size for volume in self.volumes)


def plan(sources: Sequence[ProbeSource], name: str, *, forensic: bool = False) -> CapturePlan:
    """Return the plan of a capture of these disks.

    Args:
        sources: the disks.
        name: of the machine.
        forensic: read every sector, also of what is deleted, swapped out or in no partition.

    Raises:
        SourceError: a disk can't be read, ends before what lies on it, or can't come back from
            what is captured alone.
    """
    machine = probe_machine(sources, name, every_gap=forensic)
    if not forensic:
        _check_whole(machine)
    places = [
        (disk, source.path, volume)
        for disk, source in zip(machine.disks, sources, strict=True)
        for volume in disk.volumes
    ]
    found = (
        tuple(every_sector(volume.length) for _, _, volume in places)
        if forensic
        else used_of_machine([(path, volume) for _, path, volume in places], machine.layers)
    )
    volumes = tuple(
        VolumePlan(*place, extents) for place, extents in zip(places, found, strict=True)
    )
    marks = tuple(mark for source in sources for mark in source.marks)
    return CapturePlan(machine, volumes, marks, forensic)


def _check_whole(machine: Machine) -> None:
    """Refuse what would be broken after a restore, whoever brings it back.

    What is merely not there (a member of an array, a physical volume) may be captured on its own
    or be gone for good, and is warned of.
    """
    for device in machine.layers.torn():
        raise SourceError(
            f"{device.place} is a {device.title} whose newest data are in the cache {device.set_uuid}, "
            "which is on none of the captured disks",
            hint="Capture the disk with the cache as well, or detach the cache first (write 1 to "
            "/sys/block/bcacheN/bcache/detach, and wait until its state is `no cache`).",
        )
