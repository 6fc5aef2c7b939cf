"""Filesystems of disk files, mounted through FUSE on the host; the kernel need not know them."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kernel_mounts import loop

from imager import process


@contextmanager
def mounted(image: Path, place: Path, *program: str) -> Iterator[Path]:
    """Mount a file by a FUSE program; at the end all of it is written and the program has ended."""
    place.mkdir(exist_ok=True)
    alive, held = os.pipe()
    try:
        # The program puts itself into the background, with this end of the pipe.
        subprocess.run([*program, image, place], check=True, pass_fds=(held,), timeout=60)
        os.close(held)
        try:
            yield place
        finally:
            process.run("umount", place)
            assert os.read(alive, 1) == b""
    finally:
        os.close(alive)


@contextmanager
def ntfs(image: Path, place: Path, *options: str) -> Iterator[Path]:
    words = ",".join(("streams_interface=xattr", "compression", *options))
    with mounted(image, place, "ntfs-3g", "-o", words) as folder:
        yield folder


@contextmanager
def exfat(image: Path, place: Path) -> Iterator[Path]:
    with loop(image) as device, mounted(device, place, "mount.exfat-fuse") as folder:
        yield folder
