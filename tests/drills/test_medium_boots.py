"""The real medium through every door of a machine: firmware by firmware, as CD and as USB stick."""

import time
from pathlib import Path

import pytest

from bootmedia.config import MediumConfig
from bootmedia.medium import build_medium, medium_kernel
from restore.drill import accelerator
from restore.drill.accelerator import Accelerator
from restore.drill.qemu import Bus, Drive, Firmware, UserNetwork, Vm, VmSpec

_MEMORY_MIB = 1024  # what the medium promises to work in
_START = 400.0  # seconds until the console is reached, on a busy machine without KVM
_ANSWER = 120.0
_CACHE = Path(__file__).parents[2] / ".cache"


@pytest.fixture(scope="module")
def chosen() -> Accelerator:
    return accelerator.choose(
        lambda: medium_kernel(MediumConfig(), _CACHE, lambda _: None)
    ).accelerator


@pytest.fixture(scope="module")
def iso(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("medium") / "rescue.iso"
    return build_medium(path, MediumConfig(), _CACHE, lambda _: None).path


@pytest.fixture(scope="module")
def shell_iso(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("medium") / "shell.iso"
    config = MediumConfig(
        kernel_parameters=("remetal.shell",), menu_seconds=0, keyboard="de-latin1"
    )
    return build_medium(path, config, _CACHE, lambda _: None).path


def _machine(
    iso: Path, firmware: Firmware, bus: Bus, log: Path, disk: Path | None = None
) -> VmSpec:
    medium = Drive(
        iso, bus=bus, read_only=bus is Bus.CDROM, snapshot=bus is not Bus.CDROM, bootindex=0
    )
    disks = (Drive(disk, snapshot=True),) if disk else ()
    return VmSpec(
        f"medium-{firmware}-{bus}",
        _MEMORY_MIB,
        (medium, *disks),
        firmware=firmware,
        serials=(log,),
        network=UserNetwork(),
    )


@pytest.mark.parametrize(
    ("firmware", "bus"),
    [
        # One door is quick enough for every run; the others are for the long one.
        (Firmware.BIOS, Bus.CDROM),
        *(
            pytest.param(firmware, bus, marks=pytest.mark.slow)
            for firmware in Firmware
            for bus in (Bus.CDROM, Bus.USB)
            if (firmware, bus) != (Firmware.BIOS, Bus.CDROM)
        ),
    ],
)
def test_every_door_leads_to_the_restorer(
    iso: Path,
    chosen: Accelerator,
    firmware: Firmware,
    bus: Bus,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    log = tmp_path / "ttyS0.log"
    start = time.monotonic()
    with Vm(_machine(iso, firmware, bus, log), chosen) as vm:
        vm.wait_serial(0, r"remetal: console reached after [\d.]+ s", _START)
        seconds = round(time.monotonic() - start, 1)
        request.node.user_properties.append(("power-on to console, seconds", seconds))
        vm.wait_serial(0, r"Nothing is written to any disk before you agree", _ANSWER)
        # The network comes up when somebody wants it; here it leads nowhere.
        vm.wait_serial(0, r"Type look, path, shell", _ANSWER)
        vm.send(0, "path\r")
        vm.wait_serial(0, r"Place of the repository", _ANSWER)
        vm.send(0, "ssh://backup@10.0.2.2/srv/images\r")
        vm.wait_serial(0, r"address  10\.0\.2\.15/24 on ", _ANSWER)
        vm.wait_serial(0, r"TCP  NO: port 22 of 10\.0\.2\.2 can't be reached", _ANSWER)
    assert b"panic" not in log.read_bytes().lower()


@pytest.mark.slow
def test_what_is_on_it_works_under_secure_boot(
    shell_iso: Path, chosen: Accelerator, tmp_path: Path
) -> None:
    log = tmp_path / "ttyS0.log"
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(64 << 20)

    with Vm(_machine(shell_iso, Firmware.SECUREBOOT, Bus.USB, log, disk), chosen) as vm:
        vm.wait_serial(0, r"root@remetal-rescue:.*# ", _START)

        def ask(command: str) -> bytes:
            """Type a command and return the line it answers with, marked so by the shell."""
            vm.send(0, f"echo ANSWER: $({command}) :END\r")
            return vm.wait_serial(0, r"ANSWER: (?!\$)(.*):END", _ANSWER)[1].strip()

        assert b"[integrity]" in ask("cat /sys/kernel/security/lockdown")
        modules = "ext4 xfs btrfs vfat isofs 9p 9pnet_virtio nvme ahci usb_storage uas sd_mod "
        modules += "virtio_blk virtio_scsi virtio_net mpt3sas megaraid_sas e1000e igb ixgbe tg3 "
        modules += "bnxt_en mlx5_core vmxnet3 vmw_pvscsi dm_mod dm_crypt raid1 raid456"
        assert ask(f"modprobe -a {modules} && echo signed") == b"signed"
        # Loads on Hyper-V only.
        assert b"kernel key" in ask("modinfo -F signer hv_storvsc")
        wheels = "numpy, cryptography, blake3, zstandard, msgspec, jinja2, rich, click"
        assert ask(f"python3 -I -c 'import {wheels}; print(numpy.zeros(3).sum())'") == b"0.0"
        tools = "sfdisk sgdisk blkid mke2fs e2fsck mkfs.xfs mkfs.btrfs mkfs.vfat ntfsfix lvm mdadm "
        tools += "cryptsetup efibootmgr ip lsblk partclone.extfs loadkeys vi less"
        assert ask(f"for t in {tools}; do command -v $t >/dev/null || echo $t; done") == b""
        assert int(ask("dumpkeys | grep -c adiaeresis")) > 0
        # An old array on the machine's disks is left alone until somebody asks for it.
        make = "mdadm --create /dev/md9 --run --level=1 --raid-devices=2 /dev/vda missing"
        assert ask(f"{make} 2>/dev/null && mdadm --stop /dev/md9 2>/dev/null; echo made") == b"made"
        assert b"linux_raid_member" in ask("blkid -p /dev/vda")
        ask("udevadm trigger --action=add --settle /sys/class/block/vda")
        assert ask("grep -c ^md /proc/mdstat") == b"0"
        ask("mdadm --incremental /dev/vda 2>&1")
        assert ask("grep -c ^md /proc/mdstat") == b"1"
        # Room for the restorer itself.
        assert int(ask("awk '/MemAvailable/{print $2}' /proc/meminfo")) > 400_000
        vm.send(0, "poweroff\r")
        assert vm.wait_exit(_ANSWER) == "guest-shutdown"
