"""What a drill is to do, frozen before anything starts."""

import os
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from imager.errors import UsageError
from imager.layout.disk import Disk
from imager.layout.firmware import FirmwareKind
from imager.layout.machine import Machine
from restore.drill.reach import Reach
from restore.drill.vm_spec import Bus, Drive, Firmware, Forward, Share, UserNetwork, VmSpec
from restore.medium import JOB_TAG, REPOSITORY_TAG

# The rescue medium promises to work in this much, so that is what drills give it.
RESCUE_MEMORY_MIB: Final = 1024

_BUSES: Final = {
    "virtio": Bus.VIRTIO,
    "nvme": Bus.NVME,
    "sata": Bus.SATA,
    "ata": Bus.SATA,
    "usb": Bus.USB,
    "scsi": Bus.SCSI,
    "sas": Bus.SCSI,
    "iscsi": Bus.SCSI,
    "fc": Bus.SCSI,
}


class Medium(StrEnum):
    """What the rescue medium is attached as."""

    CD = "cd"
    USB = "usb"


@dataclass(frozen=True, slots=True)
class BlankDisk:
    """A blank disk the machine is restored onto.

    Attributes:
        size: bytes.
        bus: how it is attached.
        serial: what the guest reads, or None.
        wwn: or None.
        sector: bytes of a logical sector.
    """

    size: int
    bus: Bus
    serial: str | None = None
    wwn: str | None = None
    sector: int = 512

    def attached(self, path: Path) -> Drive:
        """Return it as a drive, with its content in a file."""
        return Drive(path, bus=self.bus, serial=self.serial, wwn=self.wwn, sector=self.sector)


def roomy() -> str:
    """Return the folder for temporary files that are large: /tmp is memory on many machines."""
    return os.environ.get("TMPDIR", "/var/tmp")  # noqa: S108  who makes files there does it safely


@dataclass(frozen=True, slots=True)
class Places:
    """Where a drill keeps its files; all below one folder.

    Attributes:
        folder: exists, readable by its owner only.
    """

    folder: Path

    @property
    def job(self) -> Path:
        """The directory the rescue system reads its order from and writes its report to."""
        return self.folder / "job"

    @property
    def nvram(self) -> Path:
        """The UEFI variables, which the restore changes and the restored machine starts with."""
        return self.folder / "nvram.fd"

    def disk(self, index: int) -> Path:
        """The disk with that number."""
        return self.folder / f"disk{index}.raw"

    @property
    def stale(self) -> Path:
        """An old disk that is left plugged in during the rescue."""
        return self.folder / "stale0.img"

    @property
    def repository_disk(self) -> Path:
        """A disk that carries the repository, and is attached during the rescue."""
        return self.folder / "repository.img"

    def consoles(self, machine: str) -> tuple[Path, Path]:
        """What `machine` ("rescue" or "restored") writes on its two serial ports."""
        return self.folder / f"{machine}-ttyS0.log", self.folder / f"{machine}-ttyS1.log"

    def screenshot(self, machine: str) -> Path:
        """The last look at the screen of `machine`."""
        return self.folder / f"{machine}.png"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One drill.

    Attributes:
        name: of the machine.
        firmware: what starts the rescue medium and the restored machine.
        medium: what the rescue medium is attached as.
        disks: blank ones, in the order of the saved ones; the machine starts from the first.
        memory_mib: RAM of the restored machine.
        uuid: DMI UUID of the machine, or None.
        ports: TCP ports of which an open one counts as proof; then the machine has a network
            card on a network that leads nowhere.
        reversed: disks are attached in reverse order.
        stale: an old disk that is attached during the rescue as well, or None.
        cuts: the power fails when these shares of the content are written, one after the other.
        repository: the disk that the repository lies on, or None where it is shared or far.
    """

    name: str
    firmware: Firmware
    medium: Medium
    disks: tuple[BlankDisk, ...]
    memory_mib: int
    uuid: str | None = None
    ports: tuple[int, ...] = ()
    reversed: bool = False
    stale: BlankDisk | None = None
    cuts: tuple[float, ...] = ()
    repository: BlankDisk | None = None

    def rescue(self, places: Places, iso: Path, way: Reach) -> VmSpec:
        """Return the machine that starts the medium with blank disks and a way to the repository."""
        bus = Bus.CDROM if self.medium is Medium.CD else Bus.USB
        shares = [Share(JOB_TAG, places.job, read_only=False)]
        if way.folder is not None:
            shares.append(Share(REPOSITORY_TAG, way.folder, read_only=True))
        return VmSpec(
            name=f"{self.name}-rescue",
            memory_mib=RESCUE_MEMORY_MIB,
            firmware=self.firmware,
            nvram=self._nvram(places),
            drives=(
                Drive(iso, bus=bus, serial="REMETAL-RESCUE", read_only=True, bootindex=0),
                *self._drives(places),
                *((self.stale.attached(places.stale),) if self.stale is not None else ()),
                *(
                    (self.repository.attached(places.repository_disk),)
                    if self.repository is not None
                    else ()
                ),
            ),
            shares=tuple(shares),
            serials=places.consoles("rescue"),
            network=UserNetwork(outlets=(way.outlet,)) if way.outlet is not None else None,
            uuid=self.uuid,
        )

    def restored(self, places: Places) -> VmSpec:
        """Return the machine with the restored disks alone.

        Under UEFI it starts what the restore left in the NVRAM; nothing tells it where to look.
        """
        return VmSpec(
            name=f"{self.name}-restored",
            memory_mib=self.memory_mib,
            firmware=self.firmware,
            nvram=self._nvram(places),
            drives=self._drives(places, boots=True),
            serials=places.consoles("restored"),
            network=UserNetwork(tuple(Forward(0, port) for port in self.ports))
            if self.ports
            else None,
            uuid=self.uuid,
        )

    def _nvram(self, places: Places) -> Path | None:
        return None if self.firmware is Firmware.BIOS else places.nvram

    def _drives(self, places: Places, *, boots: bool = False) -> tuple[Drive, ...]:
        """Return the disks; where slots decide what BIOS starts from, a person has set it up."""
        is_set_up = boots and self.reversed and self.firmware is Firmware.BIOS
        drives = [disk.attached(places.disk(index)) for index, disk in enumerate(self.disks)]
        if is_set_up:
            drives[0] = replace(drives[0], bootindex=0)
        return tuple(reversed(drives) if self.reversed else drives)


def default_firmware(machine: Machine) -> Firmware:
    """Return the firmware the saved machine had."""
    if machine.firmware.kind is FirmwareKind.BIOS:
        return Firmware.BIOS
    return Firmware.SECUREBOOT if machine.firmware.secure_boot else Firmware.UEFI


def check_firmware(machine: Machine, firmware: Firmware) -> None:
    """Refuse a firmware that can't start the machine.

    Raises:
        UsageError: a machine made for BIOS under UEFI, or the other way round.
    """
    saved = default_firmware(machine)
    if (saved is Firmware.BIOS) != (firmware is Firmware.BIOS):
        raise UsageError(
            f"{machine.name} starts from {machine.firmware.kind.value}, not from {firmware.value}",
            hint="Leave --firmware out to drill with the firmware the machine has.",
        )


def blank_disk(disk: Disk) -> BlankDisk:
    """Return a blank disk like a saved one; if its transport is not known, it is attached by virtio."""
    identity = disk.identity
    return BlankDisk(
        size=identity.size,
        bus=_BUSES.get(identity.transport or "", Bus.VIRTIO),
        serial=identity.serial,
        wwn=identity.wwn if identity.wwn and identity.wwn.startswith("0x") else None,
        sector=identity.logical_sector,
    )
