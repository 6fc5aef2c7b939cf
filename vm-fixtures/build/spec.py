"""What a fixture machine is, as frozen values; `machine_file` reads them from TOML.

What lies on something names it: a partition as `DISK/PARTITION`, a whole disk, an md array or an opened LUKS
container by its name, a logical volume as `GROUP/VOLUME`.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import Final

import msgspec

from restore.drill.vm_spec import Bus

_DEVICES: Final = {Bus.VIRTIO: "vd", Bus.NVME: "nvme"}


class Firmware(StrEnum):
    """How the machine starts."""

    BIOS = "bios"
    UEFI = "uefi"


class Loader(StrEnum):
    """What the firmware starts."""

    GRUB_PC = "grub-pc"  # GRUB in the MBR, and the gap behind it or a BIOS boot partition
    GRUB_EFI_SIGNED = "grub-efi-signed"  # shim and GRUB as Debian signs them, on the ESP
    SYSTEMD_BOOT = (
        "systemd-boot"  # with kernels and their initramfs on the ESP, as kernel-install has them
    )


class Naming(StrEnum):
    """By what fstab, the resume device and the kernel's command line name disks."""

    UUID = "uuid"
    KERNEL = "kernel"  # /dev/vda1: what an old installer or a hasty person wrote


class TableKind(StrEnum):
    """Kind of a partition table."""

    GPT = "gpt"
    MBR = "mbr"
    NONE = "none"  # the disk itself is the device


class PartitionType(StrEnum):
    """What a partition is for; sfdisk knows these names for both kinds of table."""

    BIOS_BOOT = "bios-boot"  # room for GRUB's core, which a GPT leaves no gap for
    ESP = "esp"
    EXTENDED = "extended"
    LINUX = "linux"
    LVM = "lvm"
    RAID = "raid"
    SWAP = "swap"
    WINDOWS = "windows"  # basic data: NTFS, exFAT


class FilesystemType(StrEnum):
    """What a filesystem is made with."""

    BTRFS = "btrfs"
    EXFAT = "exfat"
    EXT4 = "ext4"
    NTFS = "ntfs"
    SWAP = "swap"
    VFAT = "vfat"
    XFS = "xfs"


class LayoutOrder(StrEnum):
    """In which order files are copied into a filesystem, and so lie on the disk."""

    PATH = "path"  # of their paths
    PACKAGE = "package"  # package by package, as an installation does; packages shuffled
    FILE = "file"  # every file for itself, shuffled: far from its neighbours on any real machine


class VolumeType(StrEnum):
    """How a logical volume lies on its group's physical volumes."""

    LINEAR = "linear"
    STRIPED = "striped"  # over two
    RAID1 = "raid1"  # on two
    RAID5 = "raid5"  # over three
    THIN_POOL = "thin-pool"
    THIN = "thin"  # in the pool before it


class Size(int):
    """Bytes, written in TOML as `"256MiB"`."""


def encode(value: msgspec.Struct) -> bytes:
    """Return any of these values as JSON; sizes are numbers of bytes."""
    return msgspec.json.encode(value, enc_hook=int)


class System(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The Debian that is installed.

    Attributes:
        suite: Debian's code name.
        packages: beside the essential ones; recommended ones are not added.
        masked: systemd units that never run.
    """

    suite: str
    packages: tuple[str, ...]
    masked: tuple[str, ...] = ()


class Boot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the kernel is started.

    Attributes:
        loader: what the firmware starts.
        options: for the kernel's command line, behind `root=… ro`.
        naming: by what disks are named.
    """

    loader: Loader
    options: str = ""
    naming: Naming = Naming.UUID


class Layout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where files lie on the disk.

    Attributes:
        order: in which they are copied.
        seed: decides the order where it is shuffled.
    """

    order: LayoutOrder = LayoutOrder.PATH
    seed: int = 0


class Life(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the machine writes at its first boot.

    Attributes:
        seed: decides all content.
        size: of the files that are kept, about.
        also: mountpoints of data filesystems that receive plain files, too.
        midway: commands that run when half of it is written, such as for a snapshot.
    """

    seed: int
    size: Size
    also: tuple[str, ...] = ()
    midway: tuple[tuple[str, ...], ...] = ()


class Partition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An entry of a partition table.

    Attributes:
        number: the kernel's number; logical partitions of an MBR start at 5.
        name: what a filesystem names it by; in a GPT also the name of the entry.
        type: what it is for.
        size: None for all that is left; of an extended one, logical ones included.
        uuid: of the GPT entry.
        bootable: the MBR's active flag.
    """

    number: int
    name: str
    type: PartitionType
    size: Size | None = None
    uuid: str | None = None
    bootable: bool = False


class Disk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A disk.

    Attributes:
        name: what a filesystem names it by.
        size: of the whole.
        bus: how it is attached.
        serial: what the guest reads as its serial number.
        table: kind of the partition table.
        table_id: GPT disk GUID, or the MBR disk signature as eight hex digits.
        partition: in the order of their numbers.
        sector: bytes of a logical sector.
    """

    name: str
    size: Size
    bus: Bus
    serial: str
    table: TableKind
    table_id: str = ""
    partition: tuple[Partition, ...] = ()
    sector: int = 512


class Md(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A software RAID.

    Attributes:
        name: of the device.
        level: 0, 1, 5, 6 or 10.
        metadata: version of the superblock: "0.90", "1.0", "1.1" or "1.2".
        uuid: as mdadm writes it, four groups of eight digits.
        members: devices.
        bitmap: it keeps a write-intent bitmap.
    """

    name: str
    level: int
    metadata: str
    uuid: str
    members: tuple[str, ...]
    bitmap: bool = False


class Luks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A LUKS container. It opens by a passphrase, "fixture", and by a key file in the initramfs.

    Attributes:
        name: of the opened device.
        on: device.
        version: 1 or 2.
        uuid: of its header.
    """

    name: str
    on: str
    version: int
    uuid: str


class LogicalVolume(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A logical volume of LVM.

    Attributes:
        name: in its group.
        size: of what it offers; a thin one may be larger than its pool.
        type: how it lies.
    """

    name: str
    size: Size
    type: VolumeType = VolumeType.LINEAR


class VolumeGroup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A volume group of LVM; LVM chooses its UUIDs.

    Attributes:
        name: of the group.
        on: devices that become its physical volumes.
        volume: in the order they are made.
    """

    name: str
    on: tuple[str, ...]
    volume: tuple[LogicalVolume, ...]


class Filesystem(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A filesystem or swap area.

    Attributes:
        on: the device; several filesystems of this list may be subvolumes of one btrfs.
        type: what it is made with.
        uuid: as blkid writes it.
        label: or None.
        mountpoint: None for swap.
        options: for /etc/fstab.
        subvolume: of a btrfs; None for its top.
        mirror: the second device of a btrfs that keeps everything twice.
    """

    on: str
    type: FilesystemType
    uuid: str
    label: str | None = None
    mountpoint: str | None = None
    options: str = "defaults"
    subvolume: str | None = None
    mirror: str | None = None


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fixture machine.

    Attributes:
        description: one line for people.
        hostname: its name.
        machine_id: /etc/machine-id.
        uuid: DMI UUID.
        firmware: how it starts.
        memory_mib: RAM in MiB.
        system: the Debian on it.
        boot: how its kernel is started.
        life: what it writes at its first boot.
        disk: its disks.
        filesystem: what lies on them.
        layout: where files lie on the disk.
        md: arrays.
        luks: containers.
        group: volume groups.
    """

    description: str
    hostname: str
    machine_id: str
    uuid: str
    firmware: Firmware
    memory_mib: int
    system: System
    boot: Boot
    life: Life
    disk: tuple[Disk, ...]
    filesystem: tuple[Filesystem, ...]
    layout: Layout = Layout()
    md: tuple[Md, ...] = ()
    luks: tuple[Luks, ...] = ()
    group: tuple[VolumeGroup, ...] = ()

    @property
    def is_layered(self) -> bool:
        """Whether something lies between its partitions and its filesystems."""
        return bool(self.md or self.luks or self.group)

    @property
    def needs_kernel(self) -> bool:
        """Whether its disks can't be put together without a kernel that knows all of it."""
        foreign = {FilesystemType.BTRFS, FilesystemType.EXFAT, FilesystemType.NTFS}
        return (
            self.is_layered
            or any(disk.table is TableKind.NONE or disk.sector != 512 for disk in self.disk)
            or any(each.type in foreign for each in self.filesystem)
        )

    def devices(self) -> Iterator[str]:
        """Yield the name of everything that something else can lie on."""
        for disk in self.disk:
            if disk.table is TableKind.NONE:
                yield disk.name
            for partition in disk.partition:
                if partition.type not in {PartitionType.EXTENDED, PartitionType.BIOS_BOOT}:
                    yield f"{disk.name}/{partition.name}"
        yield from (each.name for each in (*self.md, *self.luks))
        for group in self.group:
            for volume in group.volume:
                if volume.type is not VolumeType.THIN_POOL:
                    yield f"{group.name}/{volume.name}"

    def boot_folder(self) -> tuple[Filesystem, str]:
        """Return the filesystem that kernels lie on, and where on it /boot is."""
        try:
            filesystem, folder = self.at("/boot"), ""
        except KeyError:
            filesystem, folder = self.at("/"), "/boot"
        return filesystem, f"/{filesystem.subvolume}{folder}" if filesystem.subvolume else folder

    def root_device(self) -> str:
        """Return what the kernel's command line calls the root, as Debian's installer would.

        The initramfs finds logical volumes by their names alone.
        """
        root = self.at("/")
        for group in self.group:
            if root.on.startswith(f"{group.name}/"):
                return f"/dev/mapper/{root.on.replace('/', '-')}"
        return self.source(root)

    def source(self, filesystem: Filesystem) -> str:
        """Return what fstab calls the device of a filesystem."""
        if self.boot.naming is Naming.UUID:
            return f"UUID={filesystem.uuid}"
        for disk in self.disk:
            for partition in disk.partition:
                if filesystem.on == f"{disk.name}/{partition.name}":
                    separator = "p" if disk.bus is Bus.NVME else ""
                    return f"{self.device(disk)}{separator}{partition.number}"
        raise KeyError(filesystem.on)

    def device(self, disk: Disk) -> str:
        """Return what the machine's kernel calls a disk."""
        prefix = _DEVICES.get(disk.bus, "sd")
        number = [each.name for each in self.disk if _DEVICES.get(each.bus, "sd") == prefix].index(
            disk.name
        )
        return (
            f"/dev/nvme{number}n1" if disk.bus is Bus.NVME else f"/dev/{prefix}{chr(97 + number)}"
        )

    def at(self, mountpoint: str) -> Filesystem:
        """Return the filesystem that is mounted at `mountpoint`.

        Raises:
            KeyError: there is none.
        """
        for filesystem in self.filesystem:
            if filesystem.mountpoint == mountpoint:
                return filesystem
        raise KeyError(mountpoint)
