"""The firmware images Debian ships for virtual machines, and the variables they keep."""

import shutil
from pathlib import Path
from typing import Final

from imager.errors import DrillError
from restore.drill.vm_spec import Firmware

_OVMF: Final = Path("/usr/share/OVMF")

# Firmware to (code, template of the variables). The .ms template holds the keys of Microsoft,
# which signs the shim that Debian's GRUB and kernel hang on.
_IMAGES: Final = {
    Firmware.UEFI: ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
    Firmware.SECUREBOOT: ("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd"),
}


def _image(name: str) -> Path:
    path = _OVMF / name
    if not path.exists():
        raise DrillError(
            f"the UEFI firmware {path} is not on this machine",
            hint="Install the Debian package `ovmf`, then run this again.",
        )
    return path


def code(firmware: Firmware) -> Path:
    """Return the read-only part of a UEFI firmware.

    Raises:
        DrillError: it is not installed.
    """
    return _image(_IMAGES[firmware][0])


def make_nvram(firmware: Firmware, path: Path) -> None:
    """Make blank UEFI variables at `path`, unless the file is there already.

    Raises:
        DrillError: the firmware is not installed.
    """
    if not path.exists():
        shutil.copyfile(_image(_IMAGES[firmware][1]), path)
