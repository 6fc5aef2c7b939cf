"""Disks and the volumes they are made of."""

from dataclasses import dataclass
from enum import StrEnum

from imager.layout.filesystem import Filesystem
from imager.layout.partition_table import PartitionTable


@dataclass(frozen=True, slots=True)
class DiskIdentity:
    """What tells one disk from another; never the kernel's name for it.

    Attributes:
        size: bytes.
        logical_sector: bytes of the smallest addressable unit, 512 or 4096.
        wwn: World Wide Name as udev writes it ("0x5000c500…"), or None.
        serial: or None.
        model: or None.
        transport: "nvme", "sata", "scsi", "usb", "virtio" …, or None.
    """

    size: int
    logical_sector: int
    wwn: str | None = None
    serial: str | None = None
    model: str | None = None
    transport: str | None = None


class VolumeRole(StrEnum):
    """Why a byte range of a disk is kept."""

    BOOT_AREA = "boot-area"  # before the first partition: MBR, table, gap with boot code
    PARTITION = "partition"
    GAP = "gap"  # between or behind partitions: EBRs, backup GPT
    WHOLE_DISK = "whole-disk"  # a disk without a partition table


@dataclass(frozen=True, slots=True)
class Volume:
    """A leaf of the layout: a byte range of a disk that holds content.

    Attributes:
        id: unique in the machine, such as "disk0/p1", "disk0/boot-area", "disk0/gap2".
        role: why it is kept.
        offset: first byte on the disk.
        length: bytes.
        partition: number in the table for PARTITION, else None.
        filesystem: what its signature says; None when there is none or it is no partition.
    """

    id: str
    role: VolumeRole
    offset: int
    length: int
    partition: int | None = None
    filesystem: Filesystem | None = None

    @property
    def end(self) -> int:
        """First byte after the volume."""
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk of a machine.

    Volumes are in order of offset, never overlap, and together with the ranges nobody needs
    (large unpartitioned space) cover the disk.

    Attributes:
        id: unique in the machine: "disk0", "disk1", …
        origin: the path it had when it was captured, for people only.
        identity: what it is recognised by.
        table: None for a disk without one.
        volumes: all content.
    """

    id: str
    origin: str
    identity: DiskIdentity
    table: PartitionTable | None
    volumes: tuple[Volume, ...]
