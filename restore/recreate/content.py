"""What was saved of something that changes its size, and where it lies on a target."""

from pathlib import Path
from typing import Protocol

from restore.device_mapper import Segment
from restore.overlay import Readable
from restore.runs import Image
from restore.saved_group import Joined
from restore.saved_volume import SavedVolume
from restore.target import LogicalPlace, Stretch


class Resized(Protocol):
    """A step that changes the size of a volume, or of a logical one in it."""

    @property
    def volume(self) -> str:
        """Id of the volume."""

    @property
    def logical(self) -> LogicalPlace | None:
        """The logical volume in it, if it is about one."""

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        """Where it lies on the target."""


def saved_content(step: Resized, image: Image) -> Readable:
    """Return what was saved of it."""
    volume = SavedVolume(image, step.volume)
    return volume if step.logical is None else Joined(volume, step.logical.saved)


def segments(step: Resized, device: Path) -> tuple[Segment, ...]:
    """Return where it lies on the target's device."""
    return tuple(Segment(device, each.offset, each.length) for each in step.stretches)
