"""Firmware, and what it was told to start."""

from dataclasses import dataclass
from enum import StrEnum


class FirmwareKind(StrEnum):
    """How the machine starts."""

    BIOS = "bios"
    UEFI = "uefi"


@dataclass(frozen=True, slots=True)
class BootEntry:
    """A UEFI boot entry that starts a loader from an EFI system partition.

    Attributes:
        label: what the firmware's menu shows, such as "debian".
        partition_uuid: unique GUID of the GPT entry that holds the loader, upper case.
        loader: path on that partition with backslashes, such as "\\\\EFI\\\\debian\\\\shimx64.efi".
    """

    label: str
    partition_uuid: str
    loader: str


@dataclass(frozen=True, slots=True)
class Firmware:
    """Firmware of a machine.

    Attributes:
        kind: BIOS or UEFI; for a disk file that nobody booted, what its layout is made for.
        secure_boot: whether signatures were enforced; None when it can't be known.
        boot_entries: in boot order; empty when they can't be known (then they are found on the
            EFI system partition at restore).
    """

    kind: FirmwareKind
    secure_boot: bool | None = None
    boot_entries: tuple[BootEntry, ...] = ()
