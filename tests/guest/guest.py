"""The guest: built once, kept below .cache under a hash of what makes it; boots within seconds.

A test hands it disks and a Python program; the program runs as root with the disks as /dev/vda,
/dev/vdb, …, and what it prints comes back.
"""

import fcntl
import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bootmedia import initramfs
from bootmedia.cpio import CpioWriter
from imager import process
from restore.drill import accelerator
from restore.drill.qemu import Drive, Vm, VmSpec

CACHE: Final = Path(__file__).parents[2] / ".cache"
SUITE: Final = "trixie"
PACKAGES: Final = (
    "bcache-tools",
    "btrfs-progs",
    "busybox-static",
    "cryptsetup-bin",
    "dosfstools",
    "e2fsprogs",
    "exfatprogs",
    "f2fs-tools",
    "fdisk",
    "kmod",
    "lvm2",
    "mdadm",
    "mount",
    "ntfs-3g",
    "python3",
    "udev",
    "util-linux",
    "xfsprogs",
)
# Patterns of what the path of a module ends with; all that they need comes along.
MODULES: Final = (
    "(crypto|nls|lib)/[a-z0-9_-]+",
    "bcache",
    "btrfs",
    "dm-cache-smq",
    "dm-crypt",
    "dm-mirror",
    "dm-mod",
    "dm-raid",
    "dm-snapshot",
    "dm-thin-pool",
    "exfat",
    "ext4",
    "f2fs",
    "fuse",
    "loop",
    "ntfs3",
    "raid0",
    "raid1",
    "raid10",
    "raid456",
    "vfat",
    "virtio_blk",
    "virtio_pci",
    "xfs",
)
_KEPT_UNUSED: Final = 14 * 24 * 3600.0  # seconds
_BUILD_TIMEOUT: Final = 1800.0
_PARTS: Final = "guest-parts"
_NOT_PACKED: Final = (
    _PARTS,
    "boot",
    "dev",
    "etc/apt",
    "usr/share/bash-completion",
    "usr/share/common-licenses",
    "usr/share/perl",
    "usr/share/zoneinfo",
    "var/cache",
    "var/lib/apt",
    "var/lib/dpkg",
    "var/log",
)
# ttyS0 is the console, ttyS1 takes what the program prints and ttyS2 how it ended.
_INIT: Final = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
modprobe -a virtio_pci virtio_blk
busybox stty -F /dev/ttyS1 raw
busybox stty -F /dev/ttyS2 raw
python3 /job/main.py >/dev/ttyS1 2>/dev/console
echo "ended with $?." >/dev/ttyS2
busybox poweroff -f
"""


class GuestError(AssertionError):
    """The program in the guest failed."""


@dataclass(frozen=True)
class Guest:
    """What the guest is started from.

    Attributes:
        kernel: Debian's.
        root: compressed archive of its root.
        layer: another, unpacked on top of it.
        memory_mib: of the machine.
    """

    kernel: Path
    root: Path
    layer: bytes = b""
    memory_mib: int = 768

    def run(
        self,
        program: str,
        disks: Sequence[Path],
        folder: Path,
        *,
        modules: Sequence[Path] = (),
        timeout: float = 300,
    ) -> str:
        """Run a Python program in a new guest and return what it printed.

        Args:
            program: its text.
            disks: raw disk files, which it may write.
            folder: receives the console's output.
            modules: Python files it may import.
            timeout: seconds from power-on to power-off.

        Raises:
            GuestError: the program did not end with 0; the message holds the console's last lines.
            DrillError: the guest does not start, or does not end in time.
        """
        folder.mkdir(parents=True, exist_ok=True)
        console, printed, ended = (folder / name for name in ("console", "printed", "ended"))
        with tempfile.NamedTemporaryFile(prefix="guest-initrd-") as initrd:
            initrd.write(self.root.read_bytes() + self.layer + _job(program, modules))
            initrd.flush()
            spec = VmSpec(
                "guest",
                self.memory_mib,
                tuple(Drive(disk) for disk in disks),
                serials=(console, printed, ended),
                kernel=self.kernel,
                initrd=Path(initrd.name),
                append="console=ttyS0 panic=-1 quiet",
            )
            with Vm(spec, accelerator.choose(lambda: self.kernel).accelerator) as vm:
                vm.wait_exit(timeout)
        if ended.read_bytes() != b"ended with 0.\n":
            lines = console.read_text(errors="replace").splitlines()
            raise GuestError("\n".join([*lines[-40:], ended.read_text(errors="replace")]))
        return printed.read_text()


def guest() -> Guest:
    """Return the guest, built first if need be; several processes may ask at once."""
    script = Path(__file__).with_name("root.sh")
    made_of = [SUITE, PACKAGES, MODULES, _NOT_PACKED, script.read_text(), initramfs.LEVEL]
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    place = CACHE / f"guest-{key}"
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"guest-{key}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            with tempfile.TemporaryDirectory(dir=CACHE, prefix="guest-") as name:
                _build(Path(name), script)
                (Path(name) / "made").rename(place)
        os.utime(place)
        for other in CACHE.glob("guest-*/root.zst"):
            if time.time() - other.parent.stat().st_mtime > _KEPT_UNUSED:
                shutil.rmtree(other.parent)
    return Guest(place / "vmlinuz", place / "root.zst")


def _build(work: Path, script: Path) -> None:
    work.chmod(0o755)  # mmdebstrap may work under another user id
    tar = work / "root.tar"
    process.run(
        "mmdebstrap",
        "--variant=minbase",
        "--format=tar",
        "--aptopt=Apt::Install-Recommends false",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/lib/x86_64-linux-gnu/gconv/*",
        f"--include={','.join(PACKAGES)}",
        f'--customize-hook=MODULES="{" ".join(MODULES)}" sh {script} "$1"',
        SUITE,
        tar,
        timeout=_BUILD_TIMEOUT,
    )
    made = work / "made"
    made.mkdir()
    with tarfile.open(tar) as archive:
        kernel = archive.extractfile(f"./{_PARTS}/vmlinuz")
        assert kernel is not None
        (made / "vmlinuz").write_bytes(kernel.read())
        initramfs.pack_tar(archive, made / "root.zst", drop=_NOT_PACKED)


def _job(program: str, modules: Sequence[Path]) -> bytes:
    """Return a second archive, which the kernel unpacks on top of the root."""
    archive = io.BytesIO()
    writer = CpioWriter(archive, 0)
    writer.folder("job")
    writer.file("job/main.py", program.encode())
    for module in modules:
        writer.file(f"job/{module.name}", module.read_bytes())
    writer.file("init", _INIT.encode(), 0o755)
    writer.close()
    # An archive that is not compressed would have to begin at a multiple of four.
    return initramfs.compress(archive.getvalue())
