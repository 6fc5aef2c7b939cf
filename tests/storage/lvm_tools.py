"""LVM's own tools, on disk files; they see nothing else meanwhile."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kernel_mounts import loop

from imager import process


@contextmanager
def tools(folder: Path, *disks: Path) -> Iterator[tuple[str, ...]]:
    """Yield the devices of disk files, for LVM's own tools, which see nothing else meanwhile."""
    with ExitStack() as stack:
        devices = [str(stack.enter_context(loop(disk))) for disk in disks]
        allowed = "".join(f'"a|^{device}$|",' for device in devices)
        (folder / "lvm.conf").write_text(
            f'devices {{ use_devicesfile=0 filter=[{allowed}"r|.*|"] }}\n'
            "backup { backup=0 archive=0 }\nactivation { udev_sync=0 udev_rules=0 }\n"
            f'global {{ locking_dir="{folder}" }}\n'
        )
        yield tuple(devices)


def run(folder: Path, verb: str, *words: str) -> str:
    # The kernel of the host has no device-mapper; volumes are described, never activated.
    environment = {"LVM_SYSTEM_DIR": str(folder), "LVM_SUPPRESS_FD_WARNINGS": "1"}
    return process.run(verb, "--driverloaded", "n", *words, env=environment)
