"""Whole drills: real machines are saved, destroyed, restored from the real medium, and boot."""

import shutil
from pathlib import Path

import pytest

from bootmedia.config import MediumConfig
from bootmedia.medium import medium_kernel
from restore.drill import accelerator, fixture, run
from restore.drill.bring_back import Settings
from restore.drill.qemu import TCG, Accelerator, Firmware
from restore.drill.report import Outcome
from restore.drill.scenario import Medium

CACHE = fixture.checkout() / ".cache"

pytestmark = pytest.mark.timeout(3600)


def _kernel() -> Path:
    return medium_kernel(MediumConfig(), CACHE, print)


@pytest.fixture(scope="session")
def chosen() -> Accelerator:
    return accelerator.choose(_kernel).accelerator


def test_a_stock_kernel_reaches_its_init_under_the_probe() -> None:
    assert accelerator.probe(_kernel(), TCG, 120)


@pytest.mark.parametrize(
    ("name", "firmware", "medium"),
    [
        # The longest chain of signatures and entries is drilled in every run, the others in the long one.
        ("uefi-ext4", Firmware.SECUREBOOT, Medium.USB),
        pytest.param("uefi-ext4", Firmware.UEFI, Medium.CD, marks=pytest.mark.slow),
        pytest.param("bios-ext4", Firmware.BIOS, Medium.CD, marks=pytest.mark.slow),
        pytest.param("bios-ext4", Firmware.BIOS, Medium.USB, marks=pytest.mark.slow),
        pytest.param("bios-gpt-xfs", Firmware.BIOS, Medium.CD, marks=pytest.mark.slow),
    ],
)
def test_a_destroyed_machine_comes_back_as_it_was(
    name: str, firmware: Firmware, medium: Medium, chosen: Accelerator, tmp_path: Path
) -> None:
    choices = run.Choices(firmware, medium, None, CACHE)
    result = run.drill_fixture(name, choices, Settings(chosen, print, keep=tmp_path))
    assert result.outcome is Outcome.PROVEN, f"{result.proof} (kept in {result.kept})"
    assert result.differences == ()
    assert result.facts > 0
    assert result.rto is not None
    console = (tmp_path / name / "restored-ttyS0.log").read_text(errors="replace")
    assert ("Secure boot enabled" in console) == (firmware is Firmware.SECUREBOOT)
    shutil.rmtree(tmp_path)  # disks
