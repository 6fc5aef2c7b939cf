from pathlib import Path

import pytest

from imager.errors import DrillError
from restore.drill import firmware
from restore.drill.command_line import command_line
from restore.drill.vm_spec import (
    KVM,
    TCG,
    Bus,
    Drive,
    Firmware,
    Forward,
    Share,
    UserNetwork,
    VmSpec,
)


def _words(spec: VmSpec, nvram: Path | None = None) -> list[str]:
    return list(command_line(spec, TCG.arguments, monitor=5, serials=[6, 7], nvram=nvram))


def _after(words: list[str], option: str) -> list[str]:
    return [words[at + 1] for at, word in enumerate(words) if word == option]


def test_bios_has_no_flash() -> None:
    words = _words(VmSpec("m", 512))
    assert _after(words, "-machine") == ["q35"]
    assert not [drive for drive in _after(words, "-drive") if "pflash" in drive]


def test_uefi_has_code_and_variables_of_its_own() -> None:
    words = _words(VmSpec("m", 512, firmware=Firmware.UEFI), Path("/keep/nvram.fd"))
    code, variables = _after(words, "-drive")
    assert "readonly=on" in code
    assert code.endswith("OVMF_CODE_4M.fd")
    assert variables.endswith("file=/keep/nvram.fd")
    assert "readonly" not in variables


def test_secure_boot_protects_its_variables() -> None:
    words = _words(VmSpec("m", 512, firmware=Firmware.SECUREBOOT), Path("/keep/nvram.fd"))
    assert _after(words, "-machine") == ["q35,smm=on"]
    assert _after(words, "-global") == ["driver=cfi.pflash01,property=secure,value=on"]
    assert _after(words, "-drive")[0].endswith("OVMF_CODE_4M.secboot.fd")


@pytest.mark.parametrize(
    ("bus", "device"),
    [
        (Bus.VIRTIO, "virtio-blk-pci,drive=drive0,serial=S1"),
        (Bus.SCSI, "scsi-hd,bus=scsi.0,drive=drive0,serial=S1"),
        (Bus.SATA, "ide-hd,bus=ide.0,drive=drive0,serial=S1"),
        (Bus.NVME, "nvme,drive=drive0,serial=S1"),
        (Bus.USB, "usb-storage,bus=usb.0,removable=on,drive=drive0,serial=S1"),
        (Bus.CDROM, "ide-cd,bus=ide.0,drive=drive0,serial=S1"),
    ],
)
def test_each_bus(bus: Bus, device: str) -> None:
    words = _words(VmSpec("m", 512, (Drive(Path("/d.raw"), bus=bus, serial="S1"),)))
    assert device in _after(words, "-device")


def test_commas_in_paths_and_names_stay_commas() -> None:
    words = _words(VmSpec("a,b", 512, (Drive(Path("/x,y.raw"), serial="S,1"),)))
    assert "-name a,,b" in " ".join(words)
    assert "file=/x,,y.raw" in _after(words, "-drive")[0]
    assert any(device.endswith("serial=S,,1") for device in _after(words, "-device"))


def test_sectors_wwn_and_boot_order_reach_the_device() -> None:
    drive = Drive(Path("/d"), bus=Bus.SCSI, wwn="0x5000c50012345678", sector=4096, bootindex=2)
    device = _after(_words(VmSpec("m", 512, (drive,))), "-device")[-1]
    assert "wwn=0x5000c50012345678" in device
    assert "logical_block_size=4096,physical_block_size=4096" in device
    assert "bootindex=2" in device


def test_more_sata_disks_than_one_controller_has_ports() -> None:
    drives = tuple(Drive(Path(f"/{n}"), bus=Bus.SATA) for n in range(8))
    devices = _after(_words(VmSpec("m", 512, drives)), "-device")
    assert "ich9-ahci,id=ahci1" in devices
    assert "ide-hd,bus=ide.5,drive=drive5" in devices
    assert "ide-hd,bus=ahci1.0,drive=drive6" in devices
    assert "ide-hd,bus=ahci1.1,drive=drive7" in devices


def test_a_cd_and_what_is_read_only_cannot_be_written() -> None:
    drives = (Drive(Path("/c"), bus=Bus.CDROM), Drive(Path("/u"), bus=Bus.USB, read_only=True))
    assert all("readonly=on" in drive for drive in _after(_words(VmSpec("m", 1, drives)), "-drive"))


def test_flushes_are_kept_for_what_is_not_disposable() -> None:
    drives = (Drive(Path("/a")), Drive(Path("/b"), disposable=False))
    first, second = _after(_words(VmSpec("m", 512, drives)), "-drive")
    assert "cache=unsafe" in first
    assert "cache=writeback" in second


def test_shares_are_read_only_unless_said_otherwise() -> None:
    shares = (Share("a", Path("/a")), Share("b", Path("/b"), read_only=False))
    first, second = _after(_words(VmSpec("m", 512, shares=shares)), "-fsdev")
    assert first.endswith("readonly=on")
    assert second.endswith("readonly=off")


def test_there_is_no_network_unless_asked_for() -> None:
    assert _after(_words(VmSpec("m", 512)), "-nic") == ["none"]


def test_a_network_leads_nowhere_and_is_reached_on_loopback_only() -> None:
    network = UserNetwork((Forward(2222, 22),))
    [nic] = _after(_words(VmSpec("m", 512, network=network)), "-nic")
    assert "restrict=on" in nic
    assert "hostfwd=tcp:127.0.0.1:2222-:22" in nic


def test_accelerators() -> None:
    assert "kvm" in KVM.arguments
    assert "tcg,thread=multi" in TCG.arguments


def test_missing_firmware_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firmware, "_OVMF", tmp_path)
    with pytest.raises(DrillError) as caught:
        firmware.code(Firmware.UEFI)
    assert "ovmf" in caught.value.hint


def test_variables_are_made_once_and_then_kept(tmp_path: Path) -> None:
    place = tmp_path / "nvram.fd"
    firmware.make_nvram(Firmware.SECUREBOOT, place)
    assert (
        place.stat().st_size
        == firmware.code(Firmware.SECUREBOOT).with_name("OVMF_VARS_4M.ms.fd").stat().st_size
    )
    place.write_bytes(b"changed")
    firmware.make_nvram(Firmware.SECUREBOOT, place)
    assert place.read_bytes() == b"changed"
