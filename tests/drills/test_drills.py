"""Whole drills: real machines are saved, destroyed, restored from the real medium, and boot."""

import shutil
from pathlib import Path

import pytest

from bootmedia.config import MediumConfig
from bootmedia.medium import medium_kernel
from restore.drill import accelerator, fixture, run
from restore.drill.bring_back import Settings
from restore.drill.matrix import Cell, read_matrix
from restore.drill.qemu import TCG, Accelerator, Firmware
from restore.drill.report import Outcome, Result
from restore.drill.scenario import Medium
from restore.drill.variation import Variation
from tests.drills import plans

CACHE = fixture.checkout() / ".cache"

pytestmark = pytest.mark.timeout(3600)


def _kernel() -> Path:
    return medium_kernel(MediumConfig(), CACHE, print)


@pytest.fixture(scope="session")
def chosen() -> Accelerator:
    return accelerator.choose(_kernel).accelerator


def test_a_stock_kernel_reaches_its_init_under_the_probe() -> None:
    assert accelerator.probe(_kernel(), TCG, 120)


def _drill(cell: Cell, settings: Settings) -> Result:
    result = cell.drill(run.Choices(None, Medium.CD, None, CACHE), settings)
    assert result.outcome is not Outcome.FAILED, f"{result.proof} (kept in {result.kept})"
    assert result.differences == ()
    path = plans.golden(result.name, result.firmware, result.variation)
    if path.exists():  # a plan that nobody has checked yet has none
        assert plans.masked(result.plan or [result.proof]) == path.read_text()
    return result


def test_the_longest_chain_of_signatures_comes_back(chosen: Accelerator, tmp_path: Path) -> None:
    """Firmware that enforces signatures, a medium on a USB stick; drilled in every run."""
    cell = Cell("uefi-ext4", Variation.SAME, Firmware.SECUREBOOT, Medium.USB)
    result = _drill(cell, Settings(chosen, print, keep=tmp_path))
    assert result.outcome is Outcome.PROVEN
    assert result.facts > 0
    assert result.rto is not None
    console = (tmp_path / "uefi-ext4" / "restored-ttyS0.log").read_text(errors="replace")
    assert "Secure boot enabled" in console
    shutil.rmtree(tmp_path)  # disks


def test_disks_that_are_too_small_are_refused_untouched(chosen: Accelerator) -> None:
    """In every run, since no machine has to start for it."""
    result = _drill(Cell("uefi-ext4", Variation.SMALLER), Settings(chosen, print))
    assert result.outcome is Outcome.REFUSED
    assert "no disk was touched" in result.proof


@pytest.mark.slow
@pytest.mark.parametrize(
    "cell",
    [
        *read_matrix(fixture.checkout() / "vm-fixtures" / "matrix.toml"),
        Cell("bios-ext4", Variation.SAME, Firmware.BIOS, Medium.USB),
    ],
    ids=str,
)
def test_a_destroyed_machine_comes_back_as_it_was(cell: Cell, chosen: Accelerator) -> None:
    _drill(cell, Settings(chosen, print))
