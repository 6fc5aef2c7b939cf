"""What a kernel has, what an initramfs has, and what is missing between them."""

from pathlib import Path, PurePosixPath

import pytest

from restore.boot_steps import Driver
from restore.bootrepair.kernels import (
    Kernel,
    Lack,
    find_copies,
    find_initramfs,
    has_kernel,
    kernels,
    modules_in,
)
from restore.bootrepair.systems import System

DEP = """\
kernel/drivers/nvme/host/nvme.ko.xz: kernel/drivers/nvme/host/nvme-core.ko.xz kernel/lib/t10-pi.ko.xz
kernel/drivers/nvme/host/nvme-core.ko.xz: kernel/lib/t10-pi.ko.xz
kernel/lib/t10-pi.ko.xz:
kernel/drivers/scsi/hpsa.ko: kernel/drivers/scsi/scsi_transport_sas.ko
kernel/drivers/scsi/scsi_transport_sas.ko:
kernel/drivers/ata/ata_piix.ko.zst:
"""
# What `modprobe --resolve-alias` says of devices.
ALIASES = {
    "pci:smart-array": ("hpsa",),
    "pci:piix": ("ata_piix", "ata_generic"),
    "pci:ahci": ("ahci",),
}
NVME = Driver("nvme", "", built_in=False)


@pytest.fixture
def system(tmp_path: Path) -> System:
    folder = tmp_path / "usr/lib/modules/6.1"
    folder.mkdir(parents=True)
    (tmp_path / "boot").mkdir()
    (tmp_path / "lib").symlink_to("usr/lib")
    (folder / "modules.dep").write_text(DEP)
    (folder / "modules.builtin").write_text("kernel/drivers/ata/ahci.ko\nkernel/sd-mod.ko\n")
    return System(tmp_path, ("", ""), "", frozenset(), ())


@pytest.fixture
def kernel(system: System, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(Kernel, "alternatives", lambda _, modalias: ALIASES.get(modalias, ()))
    (found,) = kernels(system)
    return found


def test_what_modprobe_knows_nothing_of_has_no_alternatives(system: System) -> None:
    (found,) = kernels(system)
    assert found.alternatives("pci:v00001000d0000005Fsv0sd0bc01sc04i00") == ()
    assert found.alternatives("") == ()


def test_a_module_needs_all_that_it_depends_on(kernel: Kernel) -> None:
    assert kernel.version == "6.1"
    assert kernel.parts("nvme") == {"nvme", "nvme_core", "t10_pi"}
    assert kernel.parts("ata_piix") == {"ata_piix"}
    assert kernel.parts("ahci") == frozenset()
    assert kernel.parts("sd_mod") == frozenset()
    assert kernel.parts("megaraid_sas") is None


@pytest.mark.parametrize(
    ("present", "lack"),
    [
        pytest.param({"nvme", "nvme_core", "t10_pi"}, Lack(), id="all there"),
        pytest.param({"nvme", "t10_pi"}, Lack(("nvme",)), id="what it depends on is missing"),
        pytest.param(set(), Lack(("nvme",)), id="nothing there"),
    ],
)
def test_an_initramfs_must_have_all_parts(present: set[str], lack: Lack, kernel: Kernel) -> None:
    assert kernel.lack([NVME], present) == lack


def test_what_is_built_in_is_never_missing(kernel: Kernel) -> None:
    drivers = [Driver("ahci", "", built_in=False), Driver("sd_mod", "", built_in=False)]
    assert kernel.lack(drivers, frozenset()) == Lack()


def test_bridges_that_a_module_could_serve_as_well_are_of_no_disk(kernel: Kernel) -> None:
    assert kernel.lack([Driver("pcieportdrv", "", built_in=True)], frozenset()) == Lack()


def test_what_is_built_in_here_may_be_a_module_there(kernel: Kernel) -> None:
    assert kernel.lack([Driver("nvme", "", built_in=True)], frozenset()) == Lack(("nvme",))


def test_kernels_call_a_driver_differently(kernel: Kernel) -> None:
    """An old kernel has cciss where a new one has hpsa; the device says what it is."""
    driver = Driver("cciss", "pci:smart-array", built_in=False)
    assert kernel.lack([driver], frozenset()) == Lack(("hpsa",))
    assert kernel.lack([driver], {"hpsa", "scsi_transport_sas"}) == Lack()


def test_another_driver_of_the_device_is_as_good(kernel: Kernel) -> None:
    driver = Driver("hpsa", "pci:piix", built_in=False)
    assert kernel.lack([driver], {"ata_piix"}) == Lack()
    driver = Driver("hpsa", "pci:ahci", built_in=False)
    assert kernel.lack([driver], frozenset()) == Lack()  # built in there


def test_a_driver_that_the_kernel_does_not_have_is_named(kernel: Kernel) -> None:
    for modalias in ("", "pci:unheard-of"):
        driver = Driver("megaraid_sas", modalias, built_in=False)
        assert kernel.lack([driver], frozenset()) == Lack((), ("megaraid_sas",))


@pytest.mark.parametrize(
    "name",
    [
        "boot/initrd.img-6.1",
        "boot/initramfs-6.1.img",
        "boot/initrd-6.1",
        "boot/6f1c2a9e4b7d4c0f/6.1/initrd",
        "efi/6f1c2a9e4b7d4c0f/6.1/initrd",
    ],
)
def test_an_initramfs_is_found_where_distributions_keep_it(name: str, system: System) -> None:
    assert find_initramfs(system, "6.1") is None
    path = system.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert find_initramfs(system, "6.1") == PurePosixPath("/", name)
    assert find_initramfs(system, "6.10") is None


def test_copies_are_what_boot_loader_entries_load(system: System) -> None:
    entry = "boot/efi/6f1c2a9e4b7d4c0f/6.1"
    for name in (f"{entry}/initrd.img-6.1", f"{entry}/linux", f"{entry}/microcode.cpio"):
        path = system.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert find_copies(system, "6.1") == ()  # without another one, none of them is a copy
    (system.root / "boot/initrd.img-6.1").touch()
    assert find_copies(system, "6.1") == (PurePosixPath(f"/{entry}/initrd.img-6.1"),)
    (system.root / "efi").symlink_to("boot/efi")
    assert find_copies(system, "6.1") == (PurePosixPath(f"/efi/{entry[9:]}/initrd.img-6.1"),)


def test_a_kernel_is_there_when_its_image_is(system: System) -> None:
    assert not has_kernel(system, "6.1")
    (system.root / "boot/vmlinuz-6.1").touch()
    assert has_kernel(system, "6.1")


def test_modules_are_those_of_this_kernel() -> None:
    names = [
        "usr/lib/modules/6.1/kernel/drivers/nvme/host/nvme-core.ko.xz",
        "lib/modules/6.1/updates/dkms/raid-x.ko",
        "usr/lib/modules/6.10/kernel/ahci.ko",
        "usr/lib/modules/6.1/modules.dep",
        "usr/lib/modules/6.1/kernel/drivers/nvme",
    ]
    assert modules_in(names, "6.1") == {"nvme_core", "raid_x"}
