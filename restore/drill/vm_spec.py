"""What a virtual machine is made of; pure data, so that a drill can be printed before it runs."""

import os
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

_CPUS: Final = 2


class Firmware(StrEnum):
    """What starts the machine."""

    BIOS = "bios"
    UEFI = "uefi"
    SECUREBOOT = "secureboot"  # UEFI that enforces signatures with Microsoft's and Debian's keys


class Bus(StrEnum):
    """How a drive is attached, which decides its name and driver in the guest."""

    VIRTIO = "virtio"
    SCSI = "scsi"
    SATA = "sata"
    NVME = "nvme"
    USB = "usb"
    CDROM = "cdrom"


@dataclass(frozen=True, slots=True)
class Drive:
    """A disk, a USB stick or a CD.

    Attributes:
        path: the file that holds its content.
        format: "raw" or "qcow2".
        bus: how it is attached.
        serial: what the guest reads as its serial number; virtio, sata and nvme carry 20
            characters, longer ones are cut by QEMU.
        wwn: World Wide Name as udev writes it ("0x5000c500…"); scsi and sata only.
        sector: bytes of a logical sector, 512 or 4096.
        read_only: the guest can't write; always so for a CD, never for sata (use `snapshot`).
        snapshot: the guest's writes are dropped at the end, the file stays as it was.
        bootindex: place in the firmware's order, 0 is first. None leaves the choice to the
            firmware, which for UEFI means the entries of its NVRAM.
        disposable: flushes are not waited for, so that a power cut of the host may lose content.
    """

    path: Path
    format: str = "raw"
    bus: Bus = Bus.VIRTIO
    serial: str | None = None
    wwn: str | None = None
    sector: int = 512
    read_only: bool = False
    snapshot: bool = False
    bootindex: int | None = None
    disposable: bool = True


@dataclass(frozen=True, slots=True)
class Share:
    """A directory of the host that the guest mounts by 9p (`mount -t 9p -o trans=virtio TAG DIR`).

    Attributes:
        tag: the name the guest mounts it by.
        path: the directory.
        read_only: enforced by QEMU, not by the guest.
    """

    tag: str
    path: Path
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class Forward:
    """A TCP port of the guest that is reached on the host's loopback.

    Attributes:
        host: port on 127.0.0.1; 0 for a free one, which `Vm.forwards` then tells.
        guest: port in the guest.
    """

    host: int
    guest: int


@dataclass(frozen=True, slots=True)
class Outlet:
    """A TCP address in the guest's network behind which a real host answers.

    Attributes:
        guest: address and port as the guest sees them; the address is one of 10.0.2.0/24.
        host: host and port that this machine connects to, anew for each connection.
    """

    guest: tuple[str, int]
    host: tuple[str, int]


@dataclass(frozen=True, slots=True)
class UserNetwork:
    """QEMU's own network with DHCP: looking at the guest from outside, and one way out of it.

    Attributes:
        forwards: guest ports that can be reached.
        restricted: the guest reaches nothing outside; a restored server must not answer for, or
            talk to, the real one's peers. Outlets lead out all the same.
        outlets: what it reaches.
        mac: hardware address of the card, or None for QEMU's.
    """

    forwards: tuple[Forward, ...] = ()
    restricted: bool = True
    outlets: tuple[Outlet, ...] = ()
    mac: str | None = None


def usual_cpus() -> int:
    """Return how many processors a machine gets when nobody says.

    With more than this process may use, translated processors wait for each other's turn: two
    machines with two each, on two, need half as much time again as with one each.
    """
    return min(_CPUS, len(os.sched_getaffinity(0)))


@dataclass(frozen=True, slots=True)
class VmSpec:
    """A virtual machine.

    Attributes:
        name: for messages and QEMU's own title.
        memory_mib: RAM in MiB.
        drives: in the order of their slots.
        cpus: virtual processors; by default two, or as many as this process may use.
        firmware: what starts it.
        nvram: the file with the UEFI variables, kept by the caller from one boot to the next;
            made from the firmware's template when missing. None: a blank one for this run only.
        shares: directories for the guest.
        serials: files that receive what the guest writes on ttyS0, ttyS1, …; overwritten.
        network: None for no network card at all.
        uuid: what the guest reads as its DMI UUID.
        kernel: start this Linux kernel directly, without boot loader.
        initrd: initramfs for `kernel`.
        append: command line for `kernel`.
        allow_reboot: when False, a reboot by the guest ends the run as a power-off does.
    """

    name: str
    memory_mib: int
    drives: tuple[Drive, ...] = ()
    cpus: int = field(default_factory=usual_cpus)
    firmware: Firmware = Firmware.BIOS
    nvram: Path | None = None
    shares: tuple[Share, ...] = ()
    serials: tuple[Path, ...] = ()
    network: UserNetwork | None = None
    uuid: str | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    allow_reboot: bool = False


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A way to run guests.

    Attributes:
        name: "kvm" or "tcg".
        arguments: options for QEMU: accelerator and processor model.
    """

    name: str
    arguments: tuple[str, ...]


KVM: Final = Accelerator("kvm", ("-accel", "kvm", "-cpu", "host"))

# Translated AVX is slower than translated SSE: without it keyed BLAKE3 runs at 59 instead of
# 34 MB/s, SHA-256 at 44 instead of 21, AES-GCM at 40 instead of 31, memcpy four times as fast.
# `rep stosb` and `rep movsb` are translated byte by byte: without ERMS and FSRM, which recommend them,
# a page fault costs half as much and a copy a quarter, and a kernel on a busy host is not stuck for
# minutes in clearing one page.
# Named models fall short of x86-64-v2, which numpy needs, or gain nothing over this.
TCG: Final = Accelerator(
    "tcg",
    ("-accel", "tcg,thread=multi", "-cpu", "max,avx=off,avx2=off,erms=off,fsrm=off"),
)
