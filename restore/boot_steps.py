"""The steps that make firmware find a restored machine; see `restore.steps`."""

from dataclasses import dataclass
from typing import ClassVar

from imager.layout.firmware import BootEntry
from restore.target import Target

# How UEFI writes the architectures of `uname -m` in file names.
EFI_SUFFIXES = {"x86_64": "x64", "aarch64": "aa64", "i686": "ia32", "riscv64": "riscv64"}


@dataclass(frozen=True, slots=True)
class Esp:
    """An EFI system partition on a target.

    Attributes:
        target: the disk.
        number: of the partition.
        uuid: unique GUID of the partition, upper case.
        offset: first byte on the target.
        length: bytes.
    """

    target: Target
    number: int
    uuid: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class EnsureFallbackLoader:
    r"""Copy the machine's loader to \EFI\BOOT where firmware looks when it has no entry.

    Attributes:
        esp: the EFI system partition.
        architecture: as `uname -m` says; it decides the name of the file.
        preferred: directory below \EFI of the first saved boot entry, or None.
    """

    name: ClassVar[str] = "fallback-loader"
    esp: Esp
    architecture: str
    preferred: str | None

    def describe(self) -> str:
        """Say what happens."""
        source = f"\\EFI\\{self.preferred}" if self.preferred else "the first one found below \\EFI"
        return (
            f"{self.esp.target.path}: only if partition {self.esp.number} has no "
            f"{fallback_path(self.architecture)}: copy the loader there, from {source}"
        )


@dataclass(frozen=True, slots=True)
class SetBootEntries:
    """Make the firmware's boot entries, and put them first in its order.

    Attributes:
        entries: as saved, in boot order; empty means: one for each loader found on the partitions.
        esps: the EFI system partitions of the restored disks.
        architecture: as `uname -m` says.
    """

    name: ClassVar[str] = "boot-entries"
    entries: tuple[BootEntry, ...]
    esps: tuple[Esp, ...]
    architecture: str

    def describe(self) -> str:
        """Say what happens."""
        if not self.entries:
            where = ", ".join(f"partition {esp.number} of {esp.target.path}" for esp in self.esps)
            return (
                "firmware: make a boot entry for each loader found below \\EFI on "
                f"{where}, named after its directory, and put it first; remove doubles"
            )
        places = {esp.uuid: f"partition {esp.number} of {esp.target.path}" for esp in self.esps}
        entries = "; ".join(
            f'"{entry.label}" = {entry.loader} on {places[entry.partition_uuid.upper()]}'
            for entry in self.entries
        )
        return f"firmware: boot entries first in order, made if missing, doubles removed: {entries}"


@dataclass(frozen=True, slots=True)
class LogToEsp:
    """Leave the log of this restore on the restored machine's EFI system partition."""

    name: ClassVar[str] = "log-to-esp"
    esp: Esp

    def describe(self) -> str:
        """Say what happens."""
        return (
            f"{self.esp.target.path}: write the log of this restore to "
            f"\\EFI\\remetal\\restore.log on partition {self.esp.number}"
        )


def fallback_path(architecture: str) -> str:
    r"""Return the path that firmware of an architecture starts without a boot entry.

    Raises:
        KeyError: not an architecture with UEFI that remetal knows.
    """
    return f"\\EFI\\BOOT\\BOOT{EFI_SUFFIXES[architecture].upper()}.EFI"
