"""The steps that make a disk another size than the saved one; see `restore.steps`, `restore.fit`.

All offsets and lengths are bytes on the target.
"""

from dataclasses import dataclass
from typing import ClassVar

from imager.layout.partition_table import PartitionTable
from imager.units import format_size
from restore.target import Target


@dataclass(frozen=True, slots=True)
class ShrinkFilesystem:
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
    """

    name: ClassVar[str] = "shrink"
    target: Target
    volume: str
    filesystem: str
    offset: int
    length: int
    saved_length: int

    def describe(self) -> str:
        """Say what happens."""
        return (
            f"{self.target.path}: shrink the {self.filesystem} of {self.volume} from "
            f"{self.saved_length} to {self.length} bytes ({format_size(self.length)}), at bytes "
            f"{self.offset} to {self.offset + self.length - 1}; what lies behind moves to the front"
        )


@dataclass(frozen=True, slots=True)
class RemakeSwap:
    """Make a swap area anew for a volume of another size; it keeps its UUID and label.

    Attributes:
        target: the disk.
        volume: id of the volume.
        offset: first byte on the target.
        length: bytes there.
        uuid: of the area, or None.
        label: or None.
    """

    name: ClassVar[str] = "remake-swap"
    target: Target
    volume: str
    offset: int
    length: int
    uuid: str | None
    label: str | None

    def describe(self) -> str:
        """Say what happens."""
        return (
            f"{self.target.path}: make the swap area of {self.volume} anew with its UUID: "
            f"{self.length} bytes ({format_size(self.length)}), at bytes "
            f"{self.offset} to {self.offset + self.length - 1}"
        )


@dataclass(frozen=True, slots=True)
class GrowFilesystem:
    """Make a filesystem as large as its volume on the target. It comes when the table is there.

    Attributes:
        target: the disk.
        volume: id of the volume.
        filesystem: as libblkid calls it: "ext2", "ext3", "ext4", "btrfs", "ntfs" or "xfs".
        offset: first byte on the target.
        length: bytes there.
        saved_length: bytes of the saved volume.
        partition: its number in the table; None on a disk without one.
    """

    name: ClassVar[str] = "grow"
    target: Target
    volume: str
    filesystem: str
    offset: int
    length: int
    saved_length: int
    partition: int | None

    def describe(self) -> str:
        """Say what happens."""
        return (
            f"{self.target.path}: grow the {self.filesystem} of {self.volume} from "
            f"{self.saved_length} to {self.length} bytes ({format_size(self.length)}), at bytes "
            f"{self.offset} to {self.offset + self.length - 1}"
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
    """

    name: ClassVar[str] = "write-table"
    target: Target
    table: PartitionTable
    first_usable: int | None = None
    entries: int | None = None

    def describe(self) -> str:
        """Say what happens."""
        places = ", ".join(
            f"{part.number} at bytes {part.offset} to {part.end - 1}"
            for part in self.table.partitions
        )
        return (
            f"{self.target.path}: write the {self.table.kind.upper()} {self.table.id} for this disk's "
            f"size: partitions {places}"
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
