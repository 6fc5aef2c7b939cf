"""btrfs over one or several disk files, mounted by the running kernel."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from disk_files import make_disk
from kernel_mounts import break_up, facts, fill, loop, mounted, partition

from imager import process
from imager.units import MIB

SIZE = 160 * MIB


@contextmanager
def devices(disks: Sequence[Path], *, partitioned: bool = True) -> Iterator[list[Path]]:
    """Attach disks; the kernel must forget them again, or it would mix them up with copies."""
    with ExitStack() as stack:
        found = [
            stack.enter_context(partition(disk) if partitioned else loop(disk)) for disk in disks
        ]
        try:
            yield found
        finally:
            process.run("btrfs", "device", "scan", "--forget", *found, accept=(0, 1))


@contextmanager
def pool(attached: Sequence[Path], at: Path, *options: str) -> Iterator[Path]:
    others = [f"device={device}" for device in attached]
    with mounted(attached[0], at, *others, *options) as root:
        yield root


def make(disks: Sequence[Path], *options: str, size: int = SIZE) -> None:
    for disk in disks:
        make_disk(disk, size, seed=None)
    with devices(disks) as attached:
        process.run("mkfs.btrfs", "-q", "-f", "-K", *options, *attached)


def live(root: Path) -> None:
    """Have subvolumes and snapshots, some of which go again."""
    process.run("btrfs", "subvolume", "create", root / "sub")
    process.run("btrfs", "subvolume", "create", root / "gone")
    fill(root / "sub", files=160)
    break_up(root / "gone", 60)
    process.run("btrfs", "subvolume", "snapshot", "-r", root / "sub", root / "snapshot")
    process.run("btrfs", "subvolume", "snapshot", root / "sub", root / "other")
    fill_more = root / "other" / "changed"
    fill_more.write_bytes(b"more" * 50_000)
    for path in sorted((root / "other" / "d1").iterdir())[::2]:
        path.unlink()
    process.run("btrfs", "subvolume", "delete", "--commit-after", root / "gone")
    break_up(root / "sub", 150)
    process.run("btrfs", "subvolume", "sync", root, timeout=120)


def check(attached: Sequence[Path], at: Path) -> dict[str, object]:
    """Return all there is in a filesystem; it must be without a fault, in all of its copies."""
    for device in attached:
        process.run("btrfs", "device", "scan", device)
    process.run("btrfs", "check", "--readonly", "--check-data-csum", attached[0])
    with pool(attached, at, "ro") as root:
        found = facts(root)
        said = process.run("btrfs", "scrub", "start", "-B", "-r", root, timeout=300)
        assert "no errors found" in said
    return found
