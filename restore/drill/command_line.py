"""A virtual machine as QEMU's command line."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from restore.drill import firmware, relay
from restore.drill.vm_spec import Bus, Drive, Firmware, Outlet, Share, UserNetwork, VmSpec

PROGRAM: Final = "qemu-system-x86_64"
NETWORK: Final = "network"  # the name of the user network, for the monitor

_AHCI_PORTS: Final = 6  # of one controller


def _escape(text: str | Path) -> str:
    """Double the commas, which separate QEMU's options."""
    return str(text).replace(",", ",,")


def _machine(spec: VmSpec) -> Iterator[str]:
    secure = spec.firmware is Firmware.SECUREBOOT
    yield from ("-machine", "q35,smm=on" if secure else "q35")
    if secure:
        # Only code in system management mode may change the variables.
        yield from ("-global", "driver=cfi.pflash01,property=secure,value=on")


def _firmware(spec: VmSpec, nvram: Path | None) -> Iterator[str]:
    if nvram is None:
        return  # SeaBIOS is QEMU's default
    code = _escape(firmware.code(spec.firmware))
    yield from ("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}")
    yield from ("-drive", f"if=pflash,unit=1,format=raw,file={_escape(nvram)}")


def _device(drive: Drive, index: int, ahci_port: int) -> str:
    controller, port = divmod(ahci_port, _AHCI_PORTS)
    ahci = f"ide.{port}" if controller == 0 else f"ahci{controller}.{port}"
    driver = {
        Bus.VIRTIO: "virtio-blk-pci",
        Bus.SCSI: "scsi-hd,bus=scsi.0",
        Bus.SATA: f"ide-hd,bus={ahci}",
        Bus.NVME: "nvme",
        Bus.USB: "usb-storage,bus=usb.0,removable=on",
        Bus.CDROM: f"ide-cd,bus={ahci}",
    }[drive.bus]
    options = [driver, f"drive=drive{index}"]
    serial = drive.serial
    if serial is None and drive.bus is Bus.NVME:
        serial = f"drive{index}"  # the device demands one
    if serial is not None:
        options.append(f"serial={_escape(serial)}")
    if drive.wwn is not None and drive.bus in {Bus.SCSI, Bus.SATA}:
        options.append(f"wwn={drive.wwn}")
    if drive.sector != 512:
        options.append(f"logical_block_size={drive.sector},physical_block_size={drive.sector}")
    if drive.bootindex is not None:
        options.append(f"bootindex={drive.bootindex}")
    return ",".join(options)


def _drives(drives: Sequence[Drive]) -> Iterator[str]:
    buses = {drive.bus for drive in drives}
    if Bus.SCSI in buses:
        yield from ("-device", "virtio-scsi-pci,id=scsi")
    if Bus.USB in buses:
        yield from ("-device", "qemu-xhci,id=usb")
    ahci_ports = sum(drive.bus in {Bus.SATA, Bus.CDROM} for drive in drives)
    for controller in range(1, -(-ahci_ports // _AHCI_PORTS)):
        yield from ("-device", f"ich9-ahci,id=ahci{controller}")
    ahci_port = 0
    for index, drive in enumerate(drives):
        options = [f"if=none,id=drive{index},format={drive.format},file={_escape(drive.path)}"]
        options.append("cache=unsafe" if drive.disposable else "cache=writeback")
        if drive.read_only or drive.bus is Bus.CDROM:
            options.append("readonly=on")
        else:
            options.append("discard=unmap")
        if drive.snapshot:
            options.append("snapshot=on")
        yield from ("-drive", ",".join(options))
        yield from ("-device", _device(drive, index, ahci_port))
        ahci_port += drive.bus in {Bus.SATA, Bus.CDROM}


def _shares(shares: Sequence[Share]) -> Iterator[str]:
    for index, share in enumerate(shares):
        mode = "readonly=on" if share.read_only else "readonly=off"
        place = f"path={_escape(share.path)},security_model=none,multidevs=remap,{mode}"
        yield from ("-fsdev", f"local,id=share{index},{place}")
        yield from ("-device", f"virtio-9p-pci,fsdev=share{index},mount_tag={share.tag}")


def _network(network: UserNetwork | None) -> Iterator[str]:
    if network is None:
        yield from ("-nic", "none")
        return
    options = ["user", f"id={NETWORK}", "model=virtio-net-pci"]
    if network.restricted:
        options.append("restrict=on")
    if network.mac is not None:
        options.append(f"mac={network.mac}")
    options += [f"hostfwd=tcp:127.0.0.1:{f.host}-:{f.guest}" for f in network.forwards]
    options += [_outlet(outlet) for outlet in network.outlets]
    yield from ("-nic", ",".join(options))


def _outlet(outlet: Outlet) -> str:
    address, port = outlet.guest
    host, host_port = outlet.host
    # A socket of QEMU's own would take a single connection.
    words = [sys.executable, "-IS", relay.__file__, host, str(host_port)]
    return f"guestfwd=tcp:{address}:{port}-cmd:{_escape(shlex.join(words))}"


def command_line(
    spec: VmSpec,
    accelerator: Sequence[str],
    *,
    monitor: int,
    serials: Sequence[int],
    nvram: Path | None,
) -> tuple[str, ...]:
    """Return QEMU's argv.

    Args:
        spec: the machine.
        accelerator: options that choose the accelerator and the processor model.
        monitor: inherited file descriptor of the QMP socket.
        serials: inherited file descriptors of the serial ports' sockets.
        nvram: file with the UEFI variables; None for BIOS.
    """
    words = [PROGRAM, "-name", _escape(spec.name), "-no-user-config", "-nodefaults"]
    words += _machine(spec)
    words += accelerator
    words += ["-smp", str(spec.cpus), "-m", f"{spec.memory_mib}M", "-rtc", "base=utc"]
    words += ["-display", "none", "-vga", "std", "-device", "virtio-rng-pci"]
    if spec.uuid is not None:
        words += ["-uuid", spec.uuid]
    if not spec.allow_reboot:
        words.append("-no-reboot")
    words += ["-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=control"]
    for index, descriptor in enumerate(serials):
        words += ["-chardev", f"socket,id=ttyS{index},fd={descriptor}"]
        words += ["-serial", f"chardev:ttyS{index}"]
    words += _firmware(spec, nvram)
    words += _drives(spec.drives)
    words += _shares(spec.shares)
    words += _network(spec.network)
    if spec.kernel is not None:
        words += ["-kernel", str(spec.kernel), "-append", spec.append]
        if spec.initrd is not None:
            words += ["-initrd", str(spec.initrd)]
    return tuple(words)
