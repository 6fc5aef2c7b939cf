"""The steps that make a restored machine start; see `restore.steps`."""

import re
from dataclasses import dataclass
from typing import ClassVar, Final

from imager.layout.disk import DiskIdentity
from imager.layout.firmware import BootEntry
from imager.layout.network import NetworkCard
from restore.cards import CardMatch
from restore.target import Target

# How UEFI writes the architectures of `uname -m` in file names.
EFI_SUFFIXES = {"x86_64": "x64", "aarch64": "aa64", "i686": "ia32", "riscv64": "riscv64"}

_BY_ID: Final = re.compile(r"/dev/disk/by-id/(?P<id>.+?)(?:-part(?P<number>\d+))?")
_UNSAFE: Final = re.compile(r"[^\w#+.:=@-]")  # what udev writes as an underscore
_LEAST_ID: Final = 4  # characters; what is shorter may stand in any word


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
class Driver:
    """What serves a device on the way to a disk, in the kernel that runs this.

    Attributes:
        name: of its module, or else of the driver; with underscores.
        modalias: what the device says it is, which any kernel finds its drivers by; or empty.
        built_in: it is no module of this kernel.
    """

    name: str
    modalias: str
    built_in: bool


@dataclass(frozen=True, slots=True)
class DiskDrivers:
    """A target and the drivers it is reached through.

    Attributes:
        target: the disk.
        origin: the path that the saved disk had, which a file of the machine may name.
        drivers: the nearest to the disk first.
        identity: of the saved disk, which such a name may be made of; None where nobody knows.
    """

    target: Target
    origin: str
    drivers: tuple[Driver, ...]
    identity: DiskIdentity | None = None

    @property
    def has_names(self) -> bool:
        """Whether the saved disk was a device, and no file that stood for one."""
        return self.origin.startswith("/dev/")

    @property
    def is_other(self) -> bool:
        """Whether the target is another disk than the saved one."""
        saved, here = self.identity, self.target
        return saved is not None and (saved.serial, saved.wwn) != (here.serial, here.wwn)

    @property
    def is_renamed(self) -> bool:
        """Whether the saved disk had a name that may mean another one here, or none."""
        return self.has_names and (self.is_other or self.origin != str(self.target.path))

    @property
    def ids(self) -> tuple[str, ...]:
        """What a maker gave the saved disk, as udev writes it into names."""
        if self.identity is None:
            return ()
        serial = _UNSAFE.sub("_", (self.identity.serial or "").strip())
        wwn = (self.identity.wwn or "").removeprefix("0x")
        return tuple(each for each in (serial, wwn) if len(each) >= _LEAST_ID)

    def partition(self, number: str | int) -> str:
        """Return what the kernel called a partition of the saved disk."""
        return f"{self.origin}{'p' if self.origin[-1:].isdigit() else ''}{number}"

    def old_name(self, path: str) -> str | None:
        """Return what the kernel called what a path below /dev/disk/by-id meant, if on this disk."""
        match = _BY_ID.fullmatch(path)
        if match is None or not any(
            re.search(rf"(?:[-_]|0x|-3){re.escape(each)}(?:_\d+)?$", match["id"])
            for each in self.ids
        ):
            return None
        return self.partition(match["number"]) if match["number"] else self.origin


@dataclass(frozen=True, slots=True)
class MapDisks:
    """Let the files that a restored system starts by call its disks what stays, where they don't.

    Attributes:
        disks: that the system is on.
    """

    name: ClassVar[str] = "map-disks"
    disks: tuple[DiskDrivers, ...]

    def describe(self) -> str:
        """Say what happens."""
        others = "; ".join(
            f"{disk.origin} is {disk.target.path} now"
            if disk.origin != str(disk.target.path)
            else f"{disk.origin} is another disk now"
            for disk in self.disks
            if disk.is_renamed
        )
        return (
            "restored system: in fstab, crypttab, mdadm.conf, the resume device and kernel command "
            f"lines, where they call a disk by a name that has changed ({others}): the UUID of what "
            "is on it instead; all other bytes stay"
        )


@dataclass(frozen=True, slots=True)
class MapCards:
    """Let the restored system find its network cards by the names and settings of the old ones.

    Attributes:
        disks: that the system is on.
        cards: saved cards that another one here takes the place of, or that are in another place.
        free: cards here that take no saved card's place.
    """

    name: ClassVar[str] = "map-cards"
    disks: tuple[DiskDrivers, ...]
    cards: tuple[CardMatch, ...]
    free: tuple[NetworkCard, ...] = ()

    @property
    def addresses(self) -> dict[str, str]:
        """Addresses that are gone, each with the one that is there instead."""
        return {
            match.saved.mac: match.here.mac
            for match in self.cards
            if match.saved.mac and match.here and match.here.mac
            if match.saved.mac != match.here.mac
        }

    def describe(self) -> str:
        """Say what happens."""
        told = self.addresses
        addresses = "; ".join(f"{old} becomes {new}" for old, new in told.items())
        rewritten = (
            "in udev's rules, .link and .network files, netplan, NetworkManager, ifcfg and "
            f"interfaces files, where they choose a card by its address: {addresses}; "
            if told
            else ""
        )
        names = ", ".join(match.saved.title for match in self.cards)
        return (
            f"restored system: {rewritten}keep the names of its network cards ({names}), with a "
            f"file in /etc/systemd/network for each card that nothing else names; all other bytes "
            "and machine-id stay"
        )


@dataclass(frozen=True, slots=True)
class RepairInitramfs:
    """Rebuild an initramfs of the restored system, only where it lacks drivers of its new disks.

    Attributes:
        disks: that the system is on.
        crossed: names of network cards that udev in the initramfs could give to other ones; None
            where no cards are mapped.
    """

    name: ClassVar[str] = "repair-initramfs"
    disks: tuple[DiskDrivers, ...]
    crossed: tuple[str, ...] | None = None

    @property
    def has_renamed(self) -> bool:
        """Whether an initramfs may call a disk by a name that has changed."""
        return any(disk.is_renamed for disk in self.disks)

    def describe(self) -> str:
        """Say what happens."""
        needs = {
            disk.target.path: [driver.name for driver in disk.drivers if not driver.built_in]
            for disk in self.disks
        }
        each = "; ".join(
            f"{path}: {', '.join(names) or 'no modules'}" for path, names in needs.items()
        )
        return (
            "restored system: look, and write nothing, whether the initramfs of each kernel has the "
            f"drivers of the disks it starts from ({each}){self._names}; only if not: rebuild it "
            "with the system's own tool"
        )

    @property
    def _names(self) -> str:
        names = ", and finds them by names that hold" if self.has_renamed else ""
        if self.crossed is not None:
            names += ", and leaves network cards the names they must have"
        return names


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
