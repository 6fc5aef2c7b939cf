"""The source is only ever read: no byte of it changes, and no write to it is even tried."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from disk_files import digest, noise
from kernel_mounts import loop
from restored_disks import Saved
from test_extents_lvm import run as lvm
from test_extents_lvm import tools

from imager import process
from imager.units import MIB

TRACING = Path("/sys/kernel/tracing")


def program(*words: str) -> Callable[[Path], object]:
    return lambda image: process.run(*words, image)


def volume_group(image: Path) -> None:
    with tempfile.TemporaryDirectory() as name, tools(Path(name), image) as (device,):
        lvm(Path(name), "pvcreate", "-y", device)
        lvm(Path(name), "vgcreate", "vg", device)
        lvm(Path(name), "lvcreate", "-an", "-Zn", "-Wn", "-y", "-n", "v", "-l", "1", "vg")


def luks(image: Path) -> None:
    process.run(
        "cryptsetup", "luksFormat", "--batch-mode", "--pbkdf", "pbkdf2",
        "--pbkdf-force-iterations", "1000", image, stdin=b"a passphrase",
    )  # fmt: skip


# Size in MiB, what makes it, and what its map must be called, so that each reader ran to its end
KINDS: dict[str, tuple[int, Callable[[Path], object], str]] = {
    "ext4": (16, program("mke2fs", "-q", "-t", "ext4"), "ext block bitmap"),
    "xfs": (300, program("mkfs.xfs", "-q"), "XFS free space trees"),
    "btrfs": (120, program("mkfs.btrfs", "-q"), "btrfs"),
    "ntfs": (16, program("mkntfs", "-q", "-F", "-Q"), "NTFS cluster bitmap"),
    "exfat": (16, program("mkfs.exfat"), "exFAT allocation bitmap"),
    "f2fs": (64, program("mkfs.f2fs", "-f"), "F2FS segment table"),
    "vfat": (16, program("mkfs.fat"), "FAT"),
    "swap": (8, program("mkswap"), "swap header"),
    "lvm": (16, volume_group, "LVM extents"),
    "luks": (18, luks, "LUKS, closed"),
    "unclean": (16, program("mke2fs", "-q", "-t", "ext4"), "whole"),
}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind, in partitions of one disk."""
    folder = tmp_path_factory.mktemp("kinds")
    path = folder / "disk"
    starts, position = [], 1
    for size, _, _ in KINDS.values():
        starts.append(position)
        position += size
    with path.open("wb") as file:
        file.truncate((position + 1) * MIB)
        os.pwrite(file.fileno(), noise(MIB // 4, 1), (position + 0) * MIB)
    rows = [
        f"start={start * MIB // 512}, size={size * MIB // 512}\n"
        for start, (size, _, _) in zip(starts, KINDS.values(), strict=True)
    ]
    process.run("sfdisk", "--quiet", path, stdin=("label: gpt\n" + "".join(rows)).encode())
    for start, (name, (size, make, _)) in zip(starts, KINDS.items(), strict=True):
        image = folder / name
        with image.open("wb") as file:
            file.truncate(size * MIB)
        make(image)
        if name == "unclean":
            with image.open("r+b") as file:
                os.pwrite(file.fileno(), b"\0\0", 1024 + 58)  # state: neither clean nor with errors
        process.run(
            "dd", f"if={image}", f"of={path}", "bs=1M", f"seek={start}", "conv=notrunc,sparse",
            "status=none",
        )  # fmt: skip
        image.unlink()
    return path


@contextmanager
def watched(device: str) -> Iterator[Callable[[], list[str]]]:
    """Watch what is asked of a device; yields what returns the lines about anything but reads."""
    mounted = TRACING / "trace"
    if not mounted.exists():
        process.run("mount", "-t", "tracefs", "tracefs", TRACING)
    number = Path(device).stat().st_rdev
    instance = Path(tempfile.mkdtemp(dir=TRACING / "instances", prefix="untouched-"))
    try:
        for event in ("block_bio_queue", "block_rq_issue"):
            folder = instance / "events" / "block" / event
            key = os.major(number) << 20 | os.minor(number)
            # No sectors: a flush, as e2fsprogs ask for when they close what they have read.
            (folder / "filter").write_text(f'dev == {key} && nr_sector > 0 && !(rwbs ~ "R*")')
            (folder / "enable").write_text("1")

        def seen() -> list[str]:
            lines = (instance / "trace").read_text().splitlines()
            return [line for line in lines if line and not line.startswith("#")]

        yield seen
    finally:
        instance.rmdir()


@pytest.mark.parametrize("words", [(), pytest.param(("--forensic",), marks=pytest.mark.slow)])
def test_no_write_is_tried(
    saved: Saved, disk: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    before = digest(disk)
    with loop(disk) as device, watched(device) as seen:
        assert saved.capture(Path(device), *words) == 0
        assert seen() == []
        process.run("sync", device)
        # The trap works: a write of what is there already is seen.
        with Path(device).open("r+b", buffering=0) as file:
            first = file.read(4096)
            file.seek(0)
            file.write(first)
            os.fsync(file.fileno())
        assert seen() != []
    assert digest(disk) == before
    shown = capsys.readouterr().out
    for _, _, method in KINDS.values():
        assert (method if not words else "every sector") in shown


def test_a_device_that_takes_no_writes(saved: Saved, disk: Path) -> None:
    with loop(disk, read_only=True) as device:
        assert saved.capture(Path(device), "--dry-run") == 0
        assert process.run("blockdev", "--getro", device).strip() == "1"
