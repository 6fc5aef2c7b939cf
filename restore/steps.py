"""The steps a restore is made of: frozen, and each able to say what it does.

A step names the disk, the byte offsets and the amounts it touches, so that a person can check it.
All offsets and sizes are bytes.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

from imager.layout.disk import VolumeRole
from imager.layout.mdraid import MdVersion
from imager.layout.partition_table import PartitionTable
from imager.probe.mdraid_superblock import SUPERBLOCK_SIZE, superblock_places
from imager.units import format_size
from restore.boot_steps import (
    EnsureFallbackLoader,
    LogToEsp,
    MapCards,
    MapDisks,
    RepairInitramfs,
    SetBootEntries,
)
from restore.fit_steps import FitStep
from restore.target import Target


class Phase(IntEnum):
    """When a volume is written; one phase is whole and flushed before the next begins."""

    CONTENT = 1
    TABLES = 2  # gaps: extended boot records, backup tables
    BOOT = 3  # boot areas with the primary tables


@dataclass(frozen=True, slots=True)
class MakeFile:
    """Make a sparse raw file of the target's size."""

    name: ClassVar[str] = "make-file"
    target: Target

    def describe(self) -> str:
        """Say what happens."""
        return f"{self.target.path}: make this file, {self.target.size} bytes, sparse"


@dataclass(frozen=True, slots=True)
class EmptyFile:
    """Drop all content of a raw file; afterwards it is one hole of the same size."""

    name: ClassVar[str] = "empty-file"
    target: Target

    def describe(self) -> str:
        """Say what happens."""
        return f"{self.target.path}: drop all {self.target.size} bytes of this file"


@dataclass(frozen=True, slots=True)
class WipeSignatures:
    """Overwrite both ends of a disk with zeros: old tables, RAID, LVM and LUKS labels.

    Attributes:
        target: the disk.
        head: bytes from the start.
        tail: bytes up to the end.
    """

    name: ClassVar[str] = "wipe-signatures"
    target: Target
    head: int
    tail: int

    def describe(self) -> str:
        """Say what happens."""
        return (
            f"{self.target.path}: erase the old table and signatures: zeros over bytes "
            f"0 to {self.head - 1} and {self.target.size - self.tail} to {self.target.size - 1}"
        )


@dataclass(frozen=True, slots=True)
class DiscardDisk:
    """Tell the disk that its old content is not needed (TRIM, UNMAP, deallocate).

    Attributes:
        target: the disk.
        offset: first byte.
        length: bytes.
    """

    name: ClassVar[str] = "discard"
    target: Target
    offset: int
    length: int

    def describe(self) -> str:
        """Say what happens."""
        return (
            f"{self.target.path}: discard old content, bytes "
            f"{self.offset} to {self.offset + self.length - 1}"
        )


@dataclass(frozen=True, slots=True)
class CompareVolume:
    """Read what a target holds where a volume goes, and note what differs from the image.

    Attributes:
        target: the disk.
        volume: id of the volume.
        offset: first byte on the target.
        length: bytes.
        compared: bytes that are compared.
        ends: bytes of the target before the first and from the second on are overwritten with zeros
            as soon as anything differs.
    """

    name: ClassVar[str] = "compare"
    target: Target
    volume: str
    offset: int
    length: int
    compared: int
    ends: tuple[int, int]

    def describe(self) -> str:
        """Say what happens."""
        return (
            f"{self.target.path}: compare {self.compared} bytes of {self.volume} with the image; "
            "write nothing yet"
        )


@dataclass(frozen=True, slots=True)
class InvalidateEnds:
    """If anything was found to differ, overwrite both ends of a disk with zeros.

    So the old table is gone while the disk is neither old nor new.

    Attributes:
        target: the disk.
        head: bytes from the start.
        tail: bytes up to the end of the disk.
    """

    name: ClassVar[str] = "invalidate"
    target: Target
    head: int
    tail: int

    def describe(self) -> str:
        """Say what happens."""
        return (
            f"{self.target.path}: only if anything differs: erase the table, which is written "
            f"again last: zeros over bytes 0 to {self.head - 1} and "
            f"{self.target.size - self.tail} to {self.target.size - 1}"
        )


@dataclass(frozen=True, slots=True)
class ClearOutside:
    """Make bytes near the ends of a disk or volume zero that nothing is written to, where they are not.

    Attributes:
        target: the disk.
        ranges: first byte and length of each.
    """

    name: ClassVar[str] = "clear-outside"
    target: Target
    ranges: tuple[tuple[int, int], ...]

    def describe(self) -> str:
        """Say what happens."""
        places = " and ".join(
            f"{offset} to {offset + length - 1}" for offset, length in self.ranges
        )
        return f"{self.target.path}: zeros over bytes {places}, where they are not zero"


@dataclass(frozen=True, slots=True)
class Subject:
    """What a restore restores.

    Attributes:
        repository: its id.
        image: the image's id.
        machine: name of the machine, for people.
        taken: when the image was taken, for people.
    """

    repository: str
    image: str
    machine: str
    taken: str


@dataclass(frozen=True, slots=True)
class BeginJournal:
    """Keep on each target, where its table comes last, how far the restore is.

    Attributes:
        targets: all.
        subject: what is restored.
        start: first byte of the place on each.
        end: first byte behind.
    """

    name: ClassVar[str] = "journal"
    targets: tuple[Target, ...]
    subject: Subject
    start: int
    end: int

    def describe(self) -> str:
        """Say what happens."""
        names = ", ".join(str(target.path) for target in self.targets)
        return (
            f"{names}: note in bytes {self.start} to {self.end - 1} what is written, until the "
            "table comes there, so that an interrupted restore can go on"
        )


@dataclass(frozen=True, slots=True)
class Resume:
    """Go on where an interrupted restore stood. Nothing is erased.

    Attributes:
        targets: all.
        subject: what is restored.
        restore: id of the restore that goes on.
        begun: when it began.
        stopped: when it last noted how far it was.
        sequences: number of the last note on each target.
        done: windows that are written and flushed.
        windows: how many there are in all.
        there: bytes that the finished ones stand for.
    """

    name: ClassVar[str] = "resume"
    targets: tuple[Target, ...]
    subject: Subject
    restore: str
    begun: str
    stopped: str
    sequences: tuple[int, ...]
    done: int
    windows: int
    there: int

    def describe(self) -> str:
        """Say what happens."""
        text = (
            f"resume the restore that began {self.begun} and stopped after {self.stopped}: "
            f"{self.done} of {self.windows} parts, {format_size(self.there)}, are there already, "
            "each chunk checked when it was written"
        )
        if self.done < self.windows:
            text += "; compare the part that was underway, and write what is missing"
        return text


@dataclass(frozen=True, slots=True)
class WriteVolume:
    """Write the saved content of a volume.

    Attributes:
        target: the disk.
        volume: id of the volume.
        phase: when.
        role: why the volume is kept.
        content: what it holds, in words.
        offset: first byte on the target.
        length: bytes.
        data: bytes that come from the image.
        zeros: bytes that the image knows to be zero.
        cleared: bytes of free space near the ends that are zeroed, with any old signature there.
        only_differences: write only what was found to differ.
        is_shortened: the saved volume goes on behind these `length` bytes of it.
        source: first byte of the saved volume that is written.
        skipped: bytes of the chunk with that byte that lie before it.
    """

    name: ClassVar[str] = "write"
    target: Target
    volume: str
    phase: Phase
    role: VolumeRole
    content: str
    offset: int
    length: int
    data: int
    zeros: int
    cleared: int
    only_differences: bool = False
    is_shortened: bool = False
    source: int = 0
    skipped: int = 0

    @property
    def written(self) -> int:
        """Bytes that have a defined content afterwards, and that verification reads back."""
        return self.data + self.zeros + self.cleared

    def describe(self) -> str:
        """Say what happens."""
        free = self.length - self.written
        what = "write what differs of" if self.only_differences else "write"
        if self.source:
            what += f" bytes {self.source} to {self.source + self.length - 1} of"
        elif self.is_shortened:
            what += " the beginning of"
        return (
            f"{self.target.path}: {what} {self.volume} ({self.content}, "
            f"{format_size(self.length)}) to bytes "
            f"{self.offset} to {self.offset + self.length - 1}: "
            f"{self.data} data, {self.zeros + self.cleared} zeros, {free} free"
        )


@dataclass(frozen=True, slots=True)
class VerifyVolume:
    """Read a volume back from the disk and compare it with the ids in the image.

    Attributes:
        target: the disk.
        volume: id of the volume.
        phase: that of the write.
        offset: first byte on the target.
        length: bytes.
        written: bytes that are compared.
        source: first byte of the saved volume that was written.
    """

    name: ClassVar[str] = "verify"
    target: Target
    volume: str
    phase: Phase
    offset: int
    length: int
    written: int
    source: int = 0

    def describe(self) -> str:
        """Say what happens."""
        what = self.volume
        if self.source:
            what = f"bytes {self.source} to {self.source + self.length - 1} of {what}"
        return f"{self.target.path}: read back {what} and compare {self.written} bytes"


@dataclass(frozen=True, slots=True)
class RelocateBackupGpt:
    """Move the backup GPT from the end of the saved size to the end of a larger disk."""

    name: ClassVar[str] = "relocate-backup-gpt"
    target: Target

    def describe(self) -> str:
        """Say what happens."""
        return (
            f"{self.target.path}: move the backup GPT from the end of the saved size "
            f"({self.target.saved_size}) to the end of the disk ({self.target.size})"
        )


@dataclass(frozen=True, slots=True)
class RelocateMdSuperblock:
    """Move what md keeps at the end of a disk from the end of the saved size to the disk's.

    Attributes:
        target: the disk.
        array: that it is a member of, in words.
        version: of the metadata.
    """

    name: ClassVar[str] = "relocate-md-superblock"
    target: Target
    array: str
    version: MdVersion

    def describe(self) -> str:
        """Say what happens."""
        return (
            f"{self.target.path}: move the superblock of {self.array} from the end of the saved size "
            f"({self.target.saved_size}) to the end of the disk ({self.target.size})"
        )


@dataclass(frozen=True, slots=True)
class KeepMembers:
    """Note in the superblock of a member which ones its array goes on with; the rest is gone.

    Attributes:
        target: the disk.
        place: id of the volume or disk that is the member.
        array: in words.
        uuid: of the array.
        version: of the metadata.
        number: of the member.
        offset: first byte of the member on the target.
        length: bytes of it.
        kept: numbers of all members that stay.
        active: how many disks the array has then.
        disks: how many when it is whole.
        events: what the superblock shall count.
    """

    name: ClassVar[str] = "keep-members"
    target: Target
    place: str
    array: str
    uuid: str
    version: MdVersion
    number: int
    offset: int
    length: int
    kept: tuple[int, ...]
    active: int
    disks: int
    events: int

    def describe(self) -> str:
        """Say what happens."""
        at = self.offset + dict(superblock_places(self.length))[self.version]
        return (
            f"{self.target.path}: note in the superblock of {self.place}, bytes {at} to "
            f"{at + SUPERBLOCK_SIZE - 1}, and in its bitmap if it has one, that {self.array} goes on "
            f"with {self.active} of its {self.disks} disks (events {self.events}): it starts at "
            "once, and any other member that is attached later counts as old"
        )


@dataclass(frozen=True, slots=True)
class RereadTable:
    """Let the kernel read the new partition table."""

    name: ClassVar[str] = "reread-table"
    target: Target

    def describe(self) -> str:
        """Say what happens."""
        return f"{self.target.path}: let the kernel read the new partition table"


@dataclass(frozen=True, slots=True)
class CheckTable:
    """Read the partition table from the disk and compare it with what must be there.

    Attributes:
        target: the disk.
        table: what must be found: the saved one, or that of the fitted disk.
    """

    name: ClassVar[str] = "check-table"
    target: Target
    table: PartitionTable

    @property
    def _which(self) -> str:
        return "new" if self.target.places else "saved"

    def describe(self) -> str:
        """Say what happens."""
        return (
            f"{self.target.path}: check that it has the {self._which} {self.table.kind.upper()} "
            f"{self.table.id} with {len(self.table.partitions)} partitions"
        )


Step = (
    MakeFile
    | EmptyFile
    | WipeSignatures
    | DiscardDisk
    | CompareVolume
    | InvalidateEnds
    | ClearOutside
    | BeginJournal
    | Resume
    | WriteVolume
    | VerifyVolume
    | FitStep
    | RelocateBackupGpt
    | RelocateMdSuperblock
    | KeepMembers
    | RereadTable
    | CheckTable
    | MapCards
    | MapDisks
    | RepairInitramfs
    | EnsureFallbackLoader
    | SetBootEntries
    | LogToEsp
)
