"""The first boots of a fixture machine: it lives a little, then it says what it is."""

import base64
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from imager.errors import DrillError
from restore.drill.accelerator import choose
from restore.drill.qemu import Drive, Firmware, Vm, VmSpec
from spec import Machine

_LIFE_TIMEOUT: Final = 900.0  # seconds; about 100 under TCG on a free machine
_FACTS_TIMEOUT: Final = 600.0
_END_TIMEOUT: Final = 180.0
_CONSOLE: Final = 0
_REPORT: Final = 1


@dataclass(frozen=True, slots=True)
class Report:
    """What a machine said of itself.

    Attributes:
        facts: to compare with those of another boot.
        manifest: path to hashes of metadata and content, by mountpoint: finds what differs.
    """

    facts: dict[str, Any]
    manifest: dict[str, dict[str, str]]


def vm_spec(
    machine: Machine, images: tuple[Path, ...], nvram: Path | None, logs: Path, name: str
) -> VmSpec:
    """Return the virtual machine for a fixture.

    Args:
        machine: what it is.
        images: its disks.
        nvram: UEFI variables, kept from boot to boot; None for BIOS.
        logs: directory for what the serial ports say.
        name: of this boot, such as "life".
    """
    drives = tuple(
        Drive(image, bus=disk.bus, serial=disk.serial, sector=disk.sector)
        for disk, image in zip(machine.disk, images, strict=True)
    )
    return VmSpec(
        name=f"{machine.hostname}-{name}",
        memory_mib=machine.memory_mib,
        drives=drives,
        firmware=Firmware(machine.firmware.value),
        nvram=nvram,
        serials=(logs / f"{name}-console.log", logs / f"{name}-report.log"),
        uuid=machine.uuid,
    )


def live(spec: VmSpec) -> None:
    """Boot for the first time, and let the machine live until it powers itself off.

    Raises:
        DrillError: it does not come up, or its life ends early; with the end of its console.
    """
    with Vm(spec, choose().accelerator) as vm:
        vm.wait_serial(_REPORT, r"REMETAL-LIVED", _LIFE_TIMEOUT)
        vm.wait_exit(_END_TIMEOUT)


def report(spec: VmSpec, hostname: str) -> Report:
    """Boot, wait for login prompt and facts, and shut down cleanly by the power button.

    Raises:
        DrillError: it does not come up, reports nothing, or does not shut down.
    """
    with Vm(spec, choose().accelerator) as vm:
        vm.wait_serial(_CONSOLE, rf"{hostname} login: ", _FACTS_TIMEOUT)
        manifest = vm.wait_serial(_REPORT, r"REMETAL-MANIFEST (\S+)\r?\n", _FACTS_TIMEOUT)
        facts = vm.wait_serial(_REPORT, r"REMETAL-FACTS (\{.*\})\r?\n", _FACTS_TIMEOUT)
        vm.powerdown()
        end = vm.wait_exit(_END_TIMEOUT)
    if end != "guest-shutdown":
        raise DrillError(f"{spec.name}: ended by {end} instead of a power-off")
    return Report(
        facts=json.loads(facts.group(1)),
        manifest=json.loads(zlib.decompress(base64.b64decode(manifest.group(1)))),
    )
