"""LVM: volume groups, their physical and their logical volumes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PhysicalVolume:
    """A physical volume of a group.

    Attributes:
        uuid: as LVM writes it, with dashes.
        place: id of the volume or md array that it lies in; None when it is on no captured disk.
        size: bytes of its device.
    """

    uuid: str
    place: str | None
    size: int


@dataclass(frozen=True, slots=True)
class LogicalVolume:
    """A logical volume.

    Attributes:
        name: within the group.
        uuid: as LVM writes it, with dashes.
        size: bytes.
        kinds: types of its segments, each once: "linear", "striped", "mirror", "raid1",
            "thin-pool", "thin", "snapshot", "cache" ...
        visible: it is there for use, not a part of another one.
    """

    name: str
    uuid: str
    size: int
    kinds: tuple[str, ...]
    visible: bool


@dataclass(frozen=True, slots=True)
class VolumeGroup:
    """A volume group, as the newest metadata on the captured disks describes it.

    Attributes:
        name: of the group.
        uuid: as LVM writes it, with dashes.
        extent: bytes of an extent.
        physical: all physical volumes, those on no captured disk included.
        logical: all logical volumes.
    """

    name: str
    uuid: str
    extent: int
    physical: tuple[PhysicalVolume, ...]
    logical: tuple[LogicalVolume, ...]

    @property
    def missing(self) -> tuple[PhysicalVolume, ...]:
        """Physical volumes on none of the captured disks."""
        return tuple(part for part in self.physical if part.place is None)

    @property
    def title(self) -> str:
        """How people call it: "VG 'data' with LVs root, var"."""
        names = ", ".join(volume.name for volume in self.logical if volume.visible)
        return f"VG '{self.name}'" + (f" with LVs {names}" if names else " without LVs")
