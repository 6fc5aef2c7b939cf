"""What was saved of something that changes its size, and where it lies on a target."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from imager.errors import VerificationFailed
from restore.device_mapper import Segment
from restore.nbd_device import attached, truthful
from restore.overlay import Overlay, Readable, most_kept
from restore.recreate.mounted import mounted
from restore.runs import Image
from restore.saved_group import Joined
from restore.saved_volume import SavedVolume
from restore.target import LogicalPlace, Stretch


class Resized(Protocol):
    """A step that changes the size of a volume, or of a logical one in it."""

    @property
    def subject(self) -> str:
        """What it is, in words."""

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


@contextmanager
def saved_files(
    step: Resized, content: Readable, sector: int, kind: str, options: str
) -> Iterator[tuple[Path, Path]]:
    """Mount what was saved, only to be read; the replay of its log stays in memory.

    Args:
        step: is about it.
        content: of it.
        sector: bytes of a logical sector of the saved disk.
        kind: as mount calls it.
        options: for that, separated by commas.

    Yields:
        The device that has it, and where it is mounted.

    Raises:
        ProgramError: it can't be mounted.
        ObjectDamaged, ObjectMissing: the repository could not give what was read.
        VerificationFailed: a file can't be read or written, for another reason.
    """
    with attached(Overlay(content, most_kept()), sector) as (device, server):
        try:
            with truthful(server), mounted(kind, device, f"ro,{options}") as place:
                yield device, place
        except OSError as error:
            raise VerificationFailed(f"{step.subject}: {error}") from error


def segments(step: Resized, device: Path) -> tuple[Segment, ...]:
    """Return where it lies on the target's device."""
    return tuple(Segment(device, each.offset, each.length) for each in step.stretches)
