"""The way from a disk to the processor, in trees like those that kernels show."""

from pathlib import Path

import pytest

from restore.boot_steps import Driver
from restore.bootrepair.drivers import disk_drivers


class Sysfs:
    """A tree below a folder; drivers are made when a device is bound to them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "block").mkdir(parents=True)

    def device(
        self, path: str, driver: str = "", module: str = "", *, loaded: bool = True, alias: str = ""
    ) -> Path:
        place = self.root / "devices" / path
        place.mkdir(parents=True, exist_ok=True)
        if alias:
            (place / "modalias").write_text(alias + "\n")
        if driver:
            home = self.root / "bus/any/drivers" / driver
            home.mkdir(parents=True, exist_ok=True)
            (place / "driver").symlink_to(home)
            if module and not (home / "module").is_symlink():
                folder = self.root / "module" / module
                folder.mkdir(parents=True, exist_ok=True)
                if loaded:
                    (folder / "initstate").write_text("live\n")
                (home / "module").symlink_to(folder)
        return place

    def disk(self, name: str, path: str) -> None:
        (self.root / "block" / name).symlink_to(self.device(path))


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path / "sys")


def drivers(sysfs: Sysfs, disk: str) -> list[str]:
    return [driver.name for driver in disk_drivers(disk, sysfs.root) if not driver.built_in]


def test_a_virtio_disk(sysfs: Sysfs) -> None:
    pci = "pci0000:00/0000:00:04.0"
    sysfs.device(pci, "virtio-pci", "virtio_pci", alias="pci:v00001AF4d00001042")
    sysfs.device(f"{pci}/virtio1", "virtio_blk", "virtio_blk", alias="virtio:d00000002v00001AF4")
    sysfs.disk("vda", f"{pci}/virtio1/block/vda")
    assert disk_drivers("vda", sysfs.root) == (
        Driver("virtio_blk", "virtio:d00000002v00001AF4", built_in=False),
        Driver("virtio_pci", "pci:v00001AF4d00001042", built_in=False),
    )


def test_a_disk_behind_bridges_and_a_raid_controller(sysfs: Sysfs) -> None:
    """Bridges are served by what is built in, which may name a module nevertheless."""
    bridge = "pci0000:00/0000:00:01.0"
    controller = f"{bridge}/0000:01:00.0"
    scsi = f"{controller}/host0/target0:2:0/0:2:0:0"
    sysfs.device(bridge, "pcieport", "pcieportdrv", loaded=False)
    sysfs.device(controller, "megaraid_sas", "megaraid_sas")
    sysfs.device(scsi, "sd", "sd_mod", alias="scsi:t-0x00")
    sysfs.disk("sda", f"{scsi}/block/sda")
    assert drivers(sysfs, "sda") == ["sd_mod", "megaraid_sas"]
    assert Driver("pcieportdrv", "", built_in=True) in disk_drivers("sda", sysfs.root)


def test_an_nvme_disk_behind_vmd(sysfs: Sysfs) -> None:
    vmd = "pci0000:00/0000:00:0e.0"
    nvme = f"{vmd}/pci10000:e0/10000:e0:06.0/10000:e1:00.0"
    sysfs.device(vmd, "vmd", "vmd")
    sysfs.device(nvme, "nvme", "nvme")
    sysfs.disk("nvme0n1", f"{nvme}/nvme/nvme0/nvme0n1")
    assert drivers(sysfs, "nvme0n1") == ["nvme", "vmd"]


def test_a_multipath_nvme_disk_hangs_on_its_controllers(sysfs: Sysfs) -> None:
    for number in (1, 2):
        nvme = f"pci0000:00/0000:00:0{number}.0"
        sysfs.device(nvme, "nvme", "nvme")
        controller = sysfs.device(f"{nvme}/nvme/nvme{number}")
        subsystem = sysfs.device("virtual/nvme-subsystem/nvme-subsys0")
        (subsystem / f"nvme{number}").symlink_to(controller)
    sysfs.disk("nvme0n1", "virtual/nvme-subsystem/nvme-subsys0/nvme0n1")
    assert drivers(sysfs, "nvme0n1") == ["nvme"]


def test_a_usb_disk(sysfs: Sysfs) -> None:
    pci = "pci0000:00/0000:00:14.0"
    port = f"{pci}/usb2/2-1/2-1:1.0"
    sysfs.device(pci, "xhci_hcd", "xhci_pci")
    sysfs.device(f"{pci}/usb2/2-1", "usb", "usbcore")
    sysfs.device(port, "uas", "uas")
    sysfs.device(f"{port}/host3/target3:0:0/3:0:0:0", "sd", "sd_mod")
    sysfs.disk("sdb", f"{port}/host3/target3:0:0/3:0:0:0/block/sdb")
    assert drivers(sysfs, "sdb") == ["sd_mod", "uas", "usbcore", "xhci_pci"]


def test_names_have_underscores_and_a_driver_that_is_built_in_is_one(sysfs: Sysfs) -> None:
    sysfs.device("pci0000:00/0000:00:01.0", "ata-piix", "ata-piix")
    sysfs.device("pci0000:00/0000:00:01.0/deeper", "virtio-pci")
    sysfs.disk("sda", "pci0000:00/0000:00:01.0/deeper/block/sda")
    assert disk_drivers("sda", sysfs.root) == (
        Driver("virtio_pci", "", built_in=True),
        Driver("ata_piix", "", built_in=False),
    )


def test_a_disk_that_is_not_there_has_no_drivers(sysfs: Sysfs) -> None:
    assert disk_drivers("sdz", sysfs.root) == ()
