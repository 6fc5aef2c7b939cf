"""btrfs filesystems on several devices."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BtrfsDevice:
    """A device of a filesystem.

    Attributes:
        place: id of the volume or md array that it is.
        uuid: of the device.
        number: the filesystem's id for it.
    """

    place: str
    uuid: str
    number: int


@dataclass(frozen=True, slots=True)
class BtrfsPool:
    """A filesystem that says it has several devices; one of one device is only a filesystem.

    Attributes:
        uuid: of the filesystem.
        label: or None.
        devices: how many it says it has.
        members: those on captured disks, in order of number.
    """

    uuid: str
    label: str | None
    devices: int
    members: tuple[BtrfsDevice, ...]

    @property
    def absent(self) -> int:
        """How many of its devices are on none of the captured disks."""
        return self.devices - len({member.uuid for member in self.members})

    @property
    def title(self) -> str:
        """How people call it: "btrfs 'pool' on 2 devices"."""
        return f"btrfs '{self.label or self.uuid}' on {self.devices} devices"
