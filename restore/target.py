"""What is rewritten: a disk, or a raw file that stands for one. All sizes are bytes."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from imager.units import format_size


class TargetKind(StrEnum):
    """What is written to."""

    DEVICE = "device"
    FILE = "file"  # a raw file that exists; its content is dropped, or compared
    NEW_FILE = "new-file"  # made by the restore, and removed when that fails


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes side by side.

    Attributes:
        offset: the first.
        length: how many.
    """

    offset: int
    length: int


def _resized(saved: int, length: int) -> list[str]:
    """Say what becomes of a length in bytes; nothing if it stays."""
    if length == saved:
        return []
    verb = "shrinks" if length < saved else "grows"
    return [f"{verb} from {format_size(saved)} to {format_size(length)} ({length} bytes)"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a volume comes that is not where it was, or not as long.

    Attributes:
        volume: its id.
        content: what it holds, in words.
        saved_offset: first byte on the saved disk.
        saved_length: bytes there.
        offset: first byte on the target.
        length: bytes there.
    """

    volume: str
    content: str
    saved_offset: int
    saved_length: int
    offset: int
    length: int

    @property
    def mark(self) -> tuple[str | int, ...]:
        """What tells it from another place of the same volume."""
        return self.volume, self.offset, self.length

    def describe(self) -> str:
        """Say what differs."""
        parts = _resized(self.saved_length, self.length)
        if self.offset != self.saved_offset:
            parts.append(f"moves from byte {self.saved_offset} to byte {self.offset}")
        return f"{self.volume} ({self.content}) {' and '.join(parts)}"


@dataclass(frozen=True, slots=True)
class LogicalPlace:
    """Where a logical volume of LVM comes that is not where it was, or not as long.

    Attributes:
        volume: id of the volume that is its physical volume.
        name: of the group and its own: "system/root".
        content: what it holds, in words.
        saved: its bytes, in its order, on the saved physical volume.
        here: likewise, on the target.
        moves: first extent on the saved physical volume, first one on the new, and how many.
    """

    volume: str
    name: str
    content: str
    saved: tuple[Stretch, ...]
    here: tuple[Stretch, ...]
    moves: tuple[tuple[int, int, int], ...]

    @property
    def saved_length(self) -> int:
        """Bytes of the saved one."""
        return sum(each.length for each in self.saved)

    @property
    def length(self) -> int:
        """Bytes on the target."""
        return sum(each.length for each in self.here)

    @property
    def mark(self) -> tuple[str | int, ...]:
        """What tells it from another place of the same volume."""
        return self.name, *(number for each in self.here for number in (each.offset, each.length))

    def describe(self) -> str:
        """Say what differs."""
        parts = _resized(self.saved_length, self.length)
        if self.moves:
            moved = ", ".join(
                f"{old} to {old + count - 1} of {self.volume} to {new} to {new + count - 1}"
                for old, new, count in self.moves
            )
            parts.append(f"moves extents {moved}")
        return f"LV {self.name} ({self.content}) {' and '.join(parts)}"


@dataclass(frozen=True, slots=True)
class Target:
    """A disk or file that is rewritten.

    Attributes:
        disk: id of the saved disk it takes.
        path: device or file.
        kind: what it is.
        size: bytes.
        saved_size: bytes of the saved disk; at most `size`, unless the disk is fitted.
        logical_sector: bytes.
        model: or None.
        serial: or None.
        saved: the saved disk in words.
        basis: why this target was chosen, in words.
        wwn: or None.
        layers: what the saved disk carries between partitions and filesystems, in words.
        foreign: what it holds, in words, where that is not of this machine (`restore.foreign`).
        places: what of the saved disk comes elsewhere, or with another length (`restore.fit`).
    """

    disk: str
    path: Path
    kind: TargetKind
    size: int
    saved_size: int
    logical_sector: int
    model: str | None
    serial: str | None
    saved: str
    basis: str
    wwn: str | None = None
    layers: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    places: tuple[Place | LogicalPlace, ...] = ()

    def describe(self) -> str:
        """Say which disk this is, so that a person can find it in the rack."""
        parts = [self.model or "", f"serial {self.serial}" if self.serial else ""]
        parts.append(f"{format_size(self.size)} ({self.size} bytes)")
        kind = {TargetKind.FILE: "file ", TargetKind.NEW_FILE: "new file "}.get(self.kind, "")
        return f"{kind}{self.path}: " + ", ".join(part for part in parts if part)
