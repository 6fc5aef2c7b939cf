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
class Target:
    """A disk or file that is rewritten.

    Attributes:
        disk: id of the saved disk it takes.
        path: device or file.
        kind: what it is.
        size: bytes.
        saved_size: bytes of the saved disk; at most `size`.
        logical_sector: bytes.
        model: or None.
        serial: or None.
        saved: the saved disk in words.
        basis: why this target was chosen, in words.
        wwn: or None.
        layers: what the saved disk carries between partitions and filesystems, in words.
        foreign: what it holds, in words, where that is not of this machine (`restore.foreign`).
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

    def describe(self) -> str:
        """Say which disk this is, so that a person can find it in the rack."""
        parts = [self.model or "", f"serial {self.serial}" if self.serial else ""]
        parts.append(f"{format_size(self.size)} ({self.size} bytes)")
        kind = {TargetKind.FILE: "file ", TargetKind.NEW_FILE: "new file "}.get(self.kind, "")
        return f"{kind}{self.path}: " + ", ".join(part for part in parts if part)
