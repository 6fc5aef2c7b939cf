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

    def describe(self) -> str:
        """Say what differs."""
        parts = []
        if self.length != self.saved_length:
            verb = "shrinks" if self.length < self.saved_length else "grows"
            sizes = f"{format_size(self.saved_length)} to {format_size(self.length)}"
            parts.append(f"{verb} from {sizes} ({self.length} bytes)")
        if self.offset != self.saved_offset:
            parts.append(f"moves from byte {self.saved_offset} to byte {self.offset}")
        return f"{self.volume} ({self.content}) {' and '.join(parts)}"


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
    places: tuple[Place, ...] = ()

    def describe(self) -> str:
        """Say which disk this is, so that a person can find it in the rack."""
        parts = [self.model or "", f"serial {self.serial}" if self.serial else ""]
        parts.append(f"{format_size(self.size)} ({self.size} bytes)")
        kind = {TargetKind.FILE: "file ", TargetKind.NEW_FILE: "new file "}.get(self.kind, "")
        return f"{kind}{self.path}: " + ", ".join(part for part in parts if part)
