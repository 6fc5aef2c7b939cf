"""The steps that make a disk another size than the saved one; see `restore.steps`, `restore.fit`.

All offsets and lengths are bytes on the target.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from imager.layout.partition_table import PartitionTable
from imager.units import format_size
from restore.target import LogicalPlace, Stretch, Target


def _bytes(stretches: Sequence[Stretch]) -> str:
    return ", ".join(f"{each.offset} to {each.offset + each.length - 1}" for each in stretches)


class _Resized:
    """What the steps have in common that change the size of a volume, or of a logical one in it."""

    __slots__ = ()

    volume: str
    offset: int
    length: int
    logical: LogicalPlace | None

    @property
    def subject(self) -> str:
        """What it is."""
        return f"LV {self.logical.name}" if self.logical is not None else self.volume

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        """Where it lies on the target."""
        return self.logical.here if self.logical else (Stretch(self.offset, self.length),)


@dataclass(frozen=True, slots=True)
class ShrinkFilesystem(_Resized):
    """Make a filesystem smaller that is written up to its new end, and is larger in the image.

    It comes when all content is written, verified if that was asked for, and flushed, and before
    tables and boot areas: bytes 0 to `length` of the saved volume are on the target from `offset`.
    `length` is at least what `restore.least_size` says. Of ext4 that is less than resize2fs itself
    estimates (-P), which counts groups of blocks twice: it needs its -f.

    Attributes:
        target: the disk.
        volume: id of the volume.
        filesystem: as libblkid calls it: "ext2", "ext3", "ext4", "btrfs" or "ntfs".
        offset: first byte on the target.
        length: bytes there; the filesystem must not be larger afterwards.
        saved_length: bytes of the saved volume.
        logical: the logical volume that it is in, if it is in one; all bytes are that one's then, and
            `offset` is its first.
    """

    name: ClassVar[str] = "shrink"
    target: Target
    volume: str
    filesystem: str
    offset: int
    length: int
    saved_length: int
    logical: LogicalPlace | None = None

    def describe(self) -> str:
        """Say what happens."""
        return (
            f"{self.target.path}: shrink the {self.filesystem} of {self.subject} from "
            f"{self.saved_length} to {self.length} bytes ({format_size(self.length)}), at bytes "
            f"{_bytes(self.stretches)}; what lies behind moves to the front"
        )


@dataclass(frozen=True, slots=True)
class RemakeSwap(_Resized):
    """Make a swap area anew for a volume of another size; it keeps its UUID and label.

    Attributes:
        target: the disk.
        volume: id of the volume.
        offset: first byte on the target.
        length: bytes there.
        uuid: of the area, or None.
        label: or None.
        logical: the logical volume that it is, if it is one.
    """

    name: ClassVar[str] = "remake-swap"
    target: Target
    volume: str
    offset: int
    length: int
    uuid: str | None
    label: str | None
    logical: LogicalPlace | None = None

    def describe(self) -> str:
        """Say what happens."""
        return (
            f"{self.target.path}: make the swap area of {self.subject} anew with its UUID: "
            f"{self.length} bytes ({format_size(self.length)}), at bytes {_bytes(self.stretches)}"
        )


@dataclass(frozen=True, slots=True)
class RemakeFat(_Resized):
    """Make a FAT anew for sectors of another size, and copy every file of the saved one into it.

    It keeps its serial number, its label, and of each file name, content, time and attributes. How
    many bits its numbers of clusters have follows from how many fit.

    Attributes:
        target: the disk.
        volume: id of the volume.
        offset: first byte on the target.
        length: bytes there.
        saved_sector: bytes of a logical sector of the saved disk.
        uuid: its serial number, as libblkid gives it, or None.
        label: or None.
        logical: always None: only one in a partition is made anew.
    """

    name: ClassVar[str] = "remake-fat"
    target: Target
    volume: str
    offset: int
    length: int
    saved_sector: int
    uuid: str | None
    label: str | None
    logical: LogicalPlace | None = None

    def describe(self) -> str:
        """Say what happens."""
        return (
            f"{self.target.path}: make the FAT of {self.volume} anew for sectors of "
            f"{self.target.logical_sector} bytes with its serial number, at bytes {self.offset} to "
            f"{self.offset + self.length - 1}, and copy its files"
        )


@dataclass(frozen=True, slots=True)
class RemakeXfs(_Resized):
    """Make an XFS anew, smaller or for larger sectors, and copy every file of the saved one into it.

    It keeps its format, UUID and label, and of each file all but the number of its inode.

    Attributes:
        target: the disk.
        volume: id of the volume.
        offset: first byte on the target.
        length: bytes there.
        saved_length: bytes of the saved volume.
        saved_sector: bytes of a logical sector of the saved disk.
        uuid: of the filesystem, or None.
        label: or None.
        compares: the content of each file is compared afterwards, too.
        logical: the logical volume that it is in, if it is in one.
    """

    name: ClassVar[str] = "remake-xfs"
    filesystem: ClassVar[str] = "xfs"
    target: Target
    volume: str
    offset: int
    length: int
    saved_length: int
    saved_sector: int
    uuid: str | None
    label: str | None
    compares: bool
    logical: LogicalPlace | None = None

    def describe(self) -> str:
        """Say what happens."""
        compared = " and compare them" if self.compares else ""
        return (
            f"{self.target.path}: make the XFS of {self.subject}, of {self.saved_length} bytes, anew "
            f"with its UUID and {self.length} bytes ({format_size(self.length)}), at bytes "
            f"{_bytes(self.stretches)}, and copy its files{compared}; inodes get other numbers"
        )


@dataclass(frozen=True, slots=True)
class GrowFilesystem(_Resized):
    """Make a filesystem as large as its volume on the target. It comes when the table is there.

    Attributes:
        target: the disk.
        volume: id of the volume.
        filesystem: as libblkid calls it: "ext2", "ext3", "ext4", "btrfs", "ntfs" or "xfs".
        offset: first byte on the target.
        length: bytes there.
        saved_length: bytes of the saved volume.
        partition: its number in the table; None on a disk without one.
        logical: the logical volume that it is in, if it is in one.
    """

    name: ClassVar[str] = "grow"
    target: Target
    volume: str
    filesystem: str
    offset: int
    length: int
    saved_length: int
    partition: int | None
    logical: LogicalPlace | None = None

    def describe(self) -> str:
        """Say what happens."""
        return (
            f"{self.target.path}: grow the {self.filesystem} of {self.subject} from "
            f"{self.saved_length} to {self.length} bytes ({format_size(self.length)}), at bytes "
            f"{_bytes(self.stretches)}"
        )


@dataclass(frozen=True, slots=True)
class WriteGroup:
    """Write the beginning of a physical volume of LVM whose group is laid out anew.

    It is the saved one: label and metadata area, in which the new size of the device and the new
    text replace the old ones, of which nothing is left.

    Attributes:
        target: the disk.
        volume: id of the volume that is the physical volume.
        group: name of the volume group.
        offset: first byte of the physical volume on the target.
        length: bytes of it.
        head: bytes before its first extent.
        extents: how many it has.
        change: number of the change that the new text is, one more than the saved one's.
        text: the metadata of the group.
    """

    name: ClassVar[str] = "write-group"
    target: Target
    volume: str
    group: str
    offset: int
    length: int
    head: int
    extents: int
    change: int
    text: str

    def describe(self) -> str:
        """Say what happens."""
        return (
            f"{self.target.path}: write the label and the metadata of VG {self.group} for "
            f"{self.volume} of {self.length} bytes with {self.extents} extents, as change "
            f"{self.change}, to bytes {self.offset} to {self.offset + self.head - 1}; names and "
            "UUIDs stay"
        )


@dataclass(frozen=True, slots=True)
class WriteTable:
    """Write a partition table in which partitions have other places or sizes than the saved ones.

    The boot code before it stays as it is. Numbers, UUIDs, names, types and attributes of
    partitions are the saved ones, and so is the id of the table.

    Attributes:
        target: the disk.
        table: what is written.
        first_usable: of a GPT, its first usable sector.
        entries: of a GPT, how many it has room for.
        old: where the saved table lies if it is one for sectors of another size: zeros come there.
    """

    name: ClassVar[str] = "write-table"
    target: Target
    table: PartitionTable
    first_usable: int | None = None
    entries: int | None = None
    old: Stretch | None = None

    def describe(self) -> str:
        """Say what happens."""
        places = ", ".join(
            f"{part.number} at bytes {part.offset} to {part.end - 1}"
            for part in self.table.partitions
        )
        made_for = "size" if self.old is None else "sectors, with zeros where the saved one was"
        return (
            f"{self.target.path}: write the {self.table.kind.upper()} {self.table.id} for this disk's "
            f"{made_for}: partitions {places}"
        )


@dataclass(frozen=True, slots=True)
class CorrectBootSector:
    """Let the boot sector of a FAT or NTFS that moved say where it begins ("hidden sectors").

    Boot code in it counts from there. It is left alone where it said anything else before.

    Attributes:
        target: the disk.
        volume: id of the volume.
        filesystem: as libblkid calls it: "vfat" or "ntfs".
        saved_offset: first byte on the saved disk.
        offset: first byte on the target.
        length: bytes there.
    """

    name: ClassVar[str] = "correct-boot-sector"
    target: Target
    volume: str
    filesystem: str
    saved_offset: int
    offset: int
    length: int

    def describe(self) -> str:
        """Say what happens."""
        return (
            f"{self.target.path}: let the boot sector of {self.volume} ({self.filesystem}), if it "
            f"says that it begins at byte {self.saved_offset}, say {self.offset}"
        )


FitStep = (
    ShrinkFilesystem
    | RemakeSwap
    | RemakeFat
    | RemakeXfs
    | GrowFilesystem
    | WriteGroup
    | WriteTable
    | CorrectBootSector
)
