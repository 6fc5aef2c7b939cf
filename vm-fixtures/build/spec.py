"""What a fixture machine is, as frozen values; `machine_file` reads them from TOML.

A filesystem names the block device it lies on as `DISK/PARTITION`. Shapes to come (LVM, md,
LUKS) declare devices of their own, and filesystems name them in the same way.
"""

from enum import StrEnum

import msgspec

from restore.drill.vm_spec import Bus


class Firmware(StrEnum):
    """How the machine starts."""

    BIOS = "bios"
    UEFI = "uefi"


class Loader(StrEnum):
    """What the firmware starts."""

    GRUB_PC = "grub-pc"  # GRUB in the MBR, and the gap behind it or a BIOS boot partition
    GRUB_EFI_SIGNED = "grub-efi-signed"  # shim and GRUB as Debian signs them, on the ESP


class TableKind(StrEnum):
    """Kind of a partition table."""

    GPT = "gpt"
    MBR = "mbr"


class PartitionType(StrEnum):
    """What a partition is for; sfdisk knows these names for both kinds of table."""

    BIOS_BOOT = "bios-boot"  # room for GRUB's core, which a GPT leaves no gap for
    ESP = "esp"
    EXTENDED = "extended"
    LINUX = "linux"
    SWAP = "swap"


class FilesystemType(StrEnum):
    """What a filesystem is made with."""

    EXT4 = "ext4"
    SWAP = "swap"
    VFAT = "vfat"
    XFS = "xfs"


class LayoutOrder(StrEnum):
    """In which order files are copied into a filesystem, and so lie on the disk."""

    PATH = "path"  # of their paths
    PACKAGE = "package"  # package by package, as an installation does; packages shuffled
    FILE = "file"  # every file for itself, shuffled: far from its neighbours on any real machine


class Size(int):
    """Bytes, written in TOML as `"256MiB"`."""


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
        options: for the kernel's command line, behind `root=UUID=… ro`.
    """

    loader: Loader
    options: str = ""


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
    """

    seed: int
    size: Size


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
    """

    name: str
    size: Size
    bus: Bus
    serial: str
    table: TableKind
    table_id: str
    partition: tuple[Partition, ...]


class Filesystem(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A filesystem or swap area.

    Attributes:
        on: the device, as `DISK/PARTITION`.
        type: what it is made with.
        uuid: as blkid writes it.
        label: or None.
        mountpoint: None for swap.
        options: for /etc/fstab.
    """

    on: str
    type: FilesystemType
    uuid: str
    label: str | None = None
    mountpoint: str | None = None
    options: str = "defaults"


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

    def boot_folder(self) -> tuple[Filesystem, str]:
        """Return the filesystem that kernels lie on, and where on it /boot is."""
        try:
            return self.at("/boot"), ""
        except KeyError:
            return self.at("/"), "/boot"

    def at(self, mountpoint: str) -> Filesystem:
        """Return the filesystem that is mounted at `mountpoint`.

        Raises:
            KeyError: there is none.
        """
        for filesystem in self.filesystem:
            if filesystem.mountpoint == mountpoint:
                return filesystem
        raise KeyError(mountpoint)
