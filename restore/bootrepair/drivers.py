"""Which drivers lie between a disk and the processor, as the kernel that runs this has them.

sysfs hangs each device below the one that it is reached through: a disk below its controller, that
below a bus, and so on. Each on the way that has a driver is needed to reach the disk at boot.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from restore.boot_steps import Driver

_SYS: Final = Path("/sys")


def disk_drivers(disk: str, sys: Path = _SYS) -> tuple[Driver, ...]:
    """Return the drivers of a disk, each once, the nearest to the disk first.

    Args:
        disk: the kernel's name of it, such as "nvme0n1".
        sys: where sysfs is.
    """
    found: dict[str, Driver] = {}
    for start in _starts(sys / "block" / disk.replace("/", "!")):
        for device in (start, *start.parents):
            if not device.is_relative_to(sys.resolve() / "devices"):
                break
            driver = _driver(device)
            if driver is not None:
                found.setdefault(driver.name, driver)
    return tuple(found.values())


def plain_name(module: str) -> str:
    """Return the name of a module as the kernel shows it; files and aliases may write dashes."""
    return module.replace("-", "_")


def _starts(node: Path) -> Iterator[Path]:
    """Yield the devices from which the way to the processor begins."""
    try:
        real = node.resolve(strict=True)
    except OSError:
        return
    # A multipath NVMe disk hangs below its subsystem, which names the controllers.
    controllers = [
        path.resolve() for path in sorted(real.parent.glob("nvme*")) if path.is_symlink()
    ]
    yield from controllers or (real,)


def _driver(device: Path) -> Driver | None:
    link = device / "driver"
    if not link.is_symlink():
        return None
    driver = link.resolve()
    # A driver that is built in may name a module, too; only one that was loaded has a state.
    module = driver / "module"
    try:
        modalias = (device / "modalias").read_text().strip()
    except OSError:
        modalias = ""
    return Driver(
        name=plain_name(module.resolve().name if module.is_symlink() else driver.name),
        modalias=modalias,
        built_in=not (module / "initstate").exists(),
    )
