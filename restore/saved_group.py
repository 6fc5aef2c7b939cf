"""The volume group of LVM on a saved physical volume, and what its logical volumes hold.

An image knows a physical volume as one volume. What is known of its logical volumes is read here from
the saved bytes: the metadata, the beginning and the end of each, and the counts of its filesystem.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from imager.blockdev import open_disk
from imager.errors import TargetError
from imager.layout.disk import Volume, VolumeRole
from imager.layout.filesystem import Filesystem
from imager.probe.filesystem import read_signature
from imager.probe.lvm_label import LABEL_SECTORS, SECTOR, read_label, read_text, with_text
from imager.probe.structure import StructureError
from imager.units import GIB, KIB, MIB
from restore import windows
from restore.least_size import least_within
from restore.linear_group import FittedGroup, LinearGroup, LinearVolume, read_group
from restore.overlay import Readable
from restore.runs import Image
from restore.saved_volume import SavedVolume
from restore.target import Stretch

# Signatures lie that near to an end (`restore.runs`); of the beginning btrfs needs most, 68 KiB.
_HEAD: Final = MIB
_TAIL: Final = MIB
_MOST_HEAD: Final = 64 * MIB  # of a physical volume, up to its first extent
_BTRFS_DEVICES: Final = 64 * KIB + 136  # of its superblock: how many devices it is on
_MOST_PROBED: Final = 8192 * GIB  # a sparse file may be that large everywhere


class SavedGroup:
    """A group of linear volumes on one physical volume. Remembers what it has counted.

    Attributes:
        group: what the metadata says.
        filesystems: what each logical volume holds, in the group's order.

    Args:
        image: the opened image.
        volume: the physical volume.

    Raises:
        StructureError: it holds no group that can be laid out anew, with the reason.
        ObjectDamaged, ObjectMissing: the repository can't give what the image names.
        LinkError: it can't be reached.
    """

    def __init__(self, image: Image, volume: Volume) -> None:
        saved = SavedVolume(image, volume.id)
        self.group: LinearGroup = _group(saved)
        self._head = bytes(saved.read(0, self.group.start))
        if volume.role is VolumeRole.WHOLE_DISK and self.group.start < windows.HEAD:
            raise StructureError(f"VG '{self.group.name}' has extents in the first MiB of a disk")
        self._parts = {each.name: logical(saved, self.group, each) for each in self.group.volumes}
        self.filesystems: tuple[Filesystem | None, ...] = tuple(
            _held(self._parts[each.name]) for each in self.group.volumes
        )
        self._kinds = {
            each.name: held.type if held is not None else ""
            for each, held in zip(self.group.volumes, self.filesystems, strict=True)
        }
        self._least: dict[str, int] = {}

    def check(self, fitted: FittedGroup) -> None:
        """Make sure that the new metadata can be written.

        Raises:
            TargetError: it has no room.
        """
        try:
            with_text(self._head, fitted.length, fitted.text)
        except StructureError as error:
            raise TargetError(
                f"VG '{self.group.name}' of {fitted.volume} can't be laid out anew: {error}",
                hint="Take a disk as large as the saved one; nothing was written.",
            ) from error

    def parts(self) -> Iterator[tuple[str, Filesystem | None, Readable]]:
        """Yield the name of each logical volume, what it holds, and its bytes."""
        for volume, held in zip(self.group.volumes, self.filesystems, strict=True):
            yield volume.name, held, self._parts[volume.name]

    def least(self, volume: LinearVolume) -> int:
        """Return bytes that a logical volume can be shrunk to; its own where nothing can go."""
        if volume.name not in self._least:
            kind = self._kinds[volume.name]
            self._least[volume.name] = least_within(kind, self._parts[volume.name])
        return self._least[volume.name]


class Joined:
    """Stretches of something, one behind the other.

    Args:
        below: what has them.
        stretches: where.
    """

    def __init__(self, below: Readable, stretches: Iterable[Stretch]) -> None:
        self._below = below
        self._stretches = tuple(stretches)
        self.size: int = sum(each.length for each in self._stretches)

    def read(self, offset: int, length: int) -> bytearray:
        """Return bytes.

        Raises:
            RemetalError: whatever reading below raises.
        """
        found = bytearray()
        position = 0
        for each in self._stretches:
            start, stop = max(offset, position), min(offset + length, position + each.length)
            if start < stop:
                found += self._below.read(each.offset + start - position, stop - start)
            position += each.length
        return found


def stretches(group: LinearGroup, volume: LinearVolume, base: int = 0) -> tuple[Stretch, ...]:
    """Return where the bytes of a logical volume lie, in its order.

    Args:
        group: its group.
        volume: as it was saved, or as it comes.
        base: first byte of the physical volume.
    """
    found: list[Stretch] = []
    for run in volume.runs:
        here = Stretch(base + group.length_of(run.first), run.count * group.extent)
        if found and found[-1].offset + found[-1].length == here.offset:
            here = Stretch(found[-1].offset, found.pop().length + here.length)
        found.append(here)
    return tuple(found)


def logical(saved: Readable, group: LinearGroup, volume: LinearVolume) -> Joined:
    """Return a logical volume of a saved physical one."""
    return Joined(saved, stretches(group, volume))


def _group(saved: SavedVolume) -> LinearGroup:
    with _as_file(saved, [(0, LABEL_SECTORS * SECTOR)]) as path, open_disk(path) as fd:
        label = read_label(fd, 0, saved.size)
    most = min(_MOST_HEAD, saved.size)
    if len(label.metadata) != 1 or not 0 < sum(label.metadata[0]) <= most:
        raise StructureError("its metadata is not in one area at its beginning")
    with _as_file(saved, [label.metadata[0]]) as path, open_disk(path) as fd:
        text = read_text(fd, 0, saved.size, label.metadata[0])
    group = read_group(text, label.identifier)
    if not sum(label.metadata[0]) <= group.start <= most:
        raise StructureError("its metadata area is not before its extents")
    if any(run.end > group.extents_in(saved.size) for each in group.volumes for run in each.runs):
        raise StructureError("it is smaller than its metadata says")
    return group


def _held(part: Joined) -> Filesystem | None:
    if part.size > _MOST_PROBED:
        return None
    head = min(_HEAD, part.size)
    tail = min(_TAIL, part.size - head)
    with _as_file(part, [(0, head), (part.size - tail, tail)]) as path:
        held = read_signature(path, 0, part.size).filesystem
    if held is not None and held.type == "btrfs":
        devices = int.from_bytes(part.read(_BTRFS_DEVICES, 8), "little")
        return held if devices == 1 else replace(held, type="btrfs on several devices")
    return held


@contextmanager
def _as_file(part: Readable, ranges: Sequence[tuple[int, int]]) -> Iterator[Path]:
    """Let some ranges be in a sparse file, for those who read files; it ends with the last one."""
    with tempfile.NamedTemporaryFile(prefix="remetal-") as file:
        os.truncate(file.fileno(), max(map(sum, ranges)))
        for offset, length in ranges:
            os.pwrite(file.fileno(), part.read(offset, length), offset)
        yield Path(file.name)
