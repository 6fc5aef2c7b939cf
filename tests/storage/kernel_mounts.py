"""Filesystems that the running kernel mounts: made in a partition of a noisy disk file, lived in.

Needs root, loop devices, and a kernel that knows the filesystem.
"""

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from disk_files import START, digest, noise

from imager import process
from imager.units import MIB


@contextmanager
def loop(path: Path, offset: int = 0, size: int = 0, *, read_only: bool = False) -> Iterator[Path]:
    """Attach a part of a file as a block device."""
    words = ["--offset", str(offset), *(["--sizelimit", str(size)] if size else [])]
    words += ["--read-only"] if read_only else []
    device = process.run("losetup", "--find", "--show", *words, path).strip()
    try:
        yield Path(device)
    finally:
        process.run("losetup", "--detach", device)


@contextmanager
def mounted(device: Path, at: Path, *options: str) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    process.run("mount", *(["-o", ",".join(options)] if options else []), device, at)
    try:
        yield at
    finally:
        process.run("umount", at)


@contextmanager
def partition(disk: Path) -> Iterator[Path]:
    """Attach the partition of a disk file that `make_disk` made."""
    with loop(disk, START, disk.stat().st_size - START - MIB) as device:
        yield device


def fill(root: Path, *, seed: int = 1, files: int = 240, reflinks: bool = True) -> None:
    """Write files of all kinds, then delete and change some, so that free space is in pieces."""
    rng = random.Random(seed)
    for folder in range(4):
        (root / f"d{folder}").mkdir()
    sizes = [0, 30, 500, 3_000, 9_000, 40_000, 150_000]
    for index in range(files):
        path = root / f"d{index % 4}" / f"file{index}"
        path.write_bytes(noise(rng.choice(sizes), seed * 1000 + index))
    names = [path for folder in range(4) for path in sorted((root / f"d{folder}").iterdir())]
    process.run("sync", "--file-system", root)
    for path in names[::3]:
        path.unlink()
    kept = [path for path in names if path.exists() and path.stat().st_size > 8_000]
    for index, path in enumerate(kept[:12]):
        if index % 4 == 0:
            process.run("fallocate", "--punch-hole", "--offset", "4096", "--length", "4096", path)
        elif index % 4 == 1:
            os.truncate(path, 5_000)
        elif index % 4 == 2:
            os.setxattr(path, "user.small", b"value")
            os.setxattr(path, "user.large", noise(1_900, index))
            process.run("setfacl", "--modify", "user:1234:r,group:77:rwx", path)
        elif reflinks:
            process.run("cp", "--reflink=always", path, root / f"reflink{index}")
            with (root / f"reflink{index}").open("r+b") as file:
                os.pwrite(file.fileno(), b"changed" * 200, 4_096)
    with (root / "sparse").open("wb") as file:
        file.truncate(40 * MIB)
        os.pwrite(file.fileno(), b"island" * 900, 30 * MIB)
    with (root / "reserved").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, MIB)
        os.pwrite(file.fileno(), b"begun", 300_000)
    (root / "text").write_bytes(b"compresses well " * 30_000)
    (root / "link").symlink_to("d1/file5")
    (root / "long-link").symlink_to("x/" * 450)
    os.link(kept[-1], root / "second-name")
    os.mkfifo(root / "fifo")
    process.run("setfacl", "--default", "--modify", "user:1234:rx", root / "d2")
    for index in range(300):
        (root / "d3" / f"a-name-that-makes-the-directory-large-{index:05}").touch()


def break_up(root: Path, pieces: int) -> None:
    """Leave that many small free ranges behind."""
    folder = root / "pieces"
    folder.mkdir()
    for index in range(2 * pieces):
        (folder / str(index)).write_bytes(noise(3_000, index))
    process.run("sync", "--file-system", root)
    for index in range(0, 2 * pieces, 2):
        (folder / str(index)).unlink()


def facts(root: Path) -> dict[str, object]:
    """Return all there is to know of a tree: content, rights, times, attributes, ACLs."""
    found: dict[str, object] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        status = path.lstat()
        attributes = {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in sorted(os.listxattr(path, follow_symlinks=False))
        }
        content = None
        if path.is_symlink():
            content = str(path.readlink())
        elif path.is_file():
            content = digest(path)
        what = (
            status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_mtime_ns,
            attributes, content,
        )  # fmt: skip
        found[str(path.relative_to(root))] = what
    return found


def cut_off(disk: Path, copy: Path) -> None:
    """Copy a disk file as it is at this moment, as if the power had failed."""
    shutil.copyfile(disk, copy)
