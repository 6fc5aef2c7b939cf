"""A system that is just enough for its initramfs to be rebuilt; needs busybox and nothing else.

Its `update-initramfs` packs the modules that it is told to. Used on the host and in the guest.
"""

import shutil
import subprocess
from pathlib import Path

VERSION = "6.1.0-test"
INITRAMFS = f"boot/initrd.img-{VERSION}"
SETTINGS = "etc/initramfs-tools/modules"
_DEP = "kernel/nvme.ko: kernel/nvme-core.ko\nkernel/nvme-core.ko:\nkernel/virtio_blk.ko:\n"
# Like the real one: a new file that takes the place of the old, from modules named in a file.
TOOL = f"""\
#!/bin/sh
set -e
[ "$1 $2 $3" = "-u -k {VERSION}" ] && [ -e /proc/self/exe ] && [ -e /sys/block ] && [ -e /dev/null ]
cd /var/tmp && mkdir -p work/lib/modules/{VERSION} && cd work
for module in virtio_blk $(sed '/^#/d; s/^nvme$/nvme nvme-core/' /{SETTINGS}); do
    touch lib/modules/{VERSION}/$module.ko
done
find . | cpio -o -H newc 2>/dev/null | gzip >/{INITRAMFS}.new
mv /{INITRAMFS}.new /{INITRAMFS}
cd .. && rm -r work
"""
_COMMANDS = ("sh", "mkdir", "touch", "find", "cpio", "gzip", "mv", "rm", "sed")


def plant(root: Path, fstab: str, tool: str = TOOL) -> None:
    """Make the system in a folder; its initramfs has virtio_blk only, and is not compressed."""
    for folder in ("bin", "usr/sbin", "lib/modules", "etc/initramfs-tools", "var/tmp"):
        (root / folder).mkdir(parents=True)
    for folder in ("boot", "dev", "sys", "run", "proc", "tmp"):
        (root / folder).mkdir(exist_ok=True)
    shutil.copy("/usr/bin/busybox", root / "bin/busybox")
    for name in _COMMANDS:
        (root / "bin" / name).symlink_to("busybox")
    modules = root / "lib/modules" / VERSION
    modules.mkdir()
    (modules / "modules.dep").write_text(_DEP)
    (root / "etc/fstab").write_text(fstab)
    (root / SETTINGS).write_text("# modules of a person\ndummy\n")
    (root / "usr/sbin/update-initramfs").write_text(tool)
    (root / "usr/sbin/update-initramfs").chmod(0o755)
    (modules / "virtio_blk.ko").touch()
    argv = ["busybox", "cpio", "-o", "-H", "newc", "-F", str(root / INITRAMFS)]
    name = (modules / "virtio_blk.ko").relative_to(root)
    subprocess.run(argv, input=f"{name}\n".encode(), cwd=root, check=True, capture_output=True)
