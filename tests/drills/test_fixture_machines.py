"""Fixture machines report the same facts at every boot; only then a difference means a loss."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from imager import process
from restore.drill.vm_spec import Firmware

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "vm-fixtures" / "build"))

import boot  # noqa: E402
import fixture  # noqa: E402
from machine_file import load  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


MACHINES = sorted(path.stem for path in fixture.MACHINES.glob("*.toml"))


@pytest.mark.parametrize(
    ("name", "firmware"), [*((name, None) for name in MACHINES), ("uefi-ext4", Firmware.SECUREBOOT)]
)
def test_facts_are_the_same_at_the_next_boot(
    tmp_path: Path, name: str, firmware: Firmware | None
) -> None:
    built = fixture.build(name, ROOT / ".cache" / "fixtures", print)
    machine = load(fixture.MACHINES / f"{name}.toml")
    images = []
    for disk in built.disks:
        images.append(tmp_path / Path(disk.path).name)
        process.run("cp", "--sparse=always", disk.path, images[-1])
    nvram = None
    if built.nvram is not None and firmware is None:
        nvram = tmp_path / "nvram.fd"
        nvram.write_bytes(Path(built.nvram).read_bytes())
    spec = boot.vm_spec(machine, tuple(images), nvram, tmp_path, "again")
    spec = replace(spec, firmware=firmware or spec.firmware)
    report = boot.report(spec, machine.hostname)
    before = json.loads(Path(built.facts).read_bytes())
    if firmware is Firmware.SECUREBOOT:
        # Its variables are another machine's: blank but for the keys.
        assert before.pop("boot_entries")
        assert report.facts.pop("boot_entries") == []
    assert report.facts == before
    assert report.manifest == json.loads(Path(built.manifest).read_bytes())
