"""XFS on one disk and btrfs over two: captured as one machine, restored onto old disks, mounted."""

from pathlib import Path

import btrfs_disks
import pytest
from disk_files import START, make_disk, map_of
from kernel_mounts import cut_off, facts, fill, mounted, partition
from restored_disks import Saved, run

from imager import process
from imager.units import MIB

SIZE = 160 * MIB


def restored(saved: Saved, name: str, disks: list[Path], folder: Path) -> list[Path]:
    """Capture disks as a machine, and restore it onto as many that are full of something else."""
    words = [word for disk in disks for word in ("--disk", str(disk))]
    credential = str(saved.folder / "keys" / "capture.credential")
    capture = ["capture", str(saved.repository), "--name", name, "--credential", credential]
    assert run([*capture, *words]) == 0
    targets = [folder / f"target{index}.raw" for index in range(len(disks))]
    maps = []
    for index, target in enumerate(targets):
        make_disk(target, disks[index].stat().st_size - START - MIB, seed=9)
        maps += ["--map", f"disk{index}={target}"]
    assert saved.restore(name, *maps, "--yes") == 0
    return targets


def test_a_machine_with_xfs_and_a_btrfs_over_two_disks(saved: Saved, tmp_path: Path) -> None:
    xfs = tmp_path / "xfs.raw"
    make_disk(xfs, 64 * MIB)
    with partition(xfs) as device:
        process.run("mkfs.xfs", "-q", "-f", "-K", "--unsupported", "-m", "rmapbt=1", device)
        with mounted(device, tmp_path / "mnt") as root:
            fill(root)
            expected = facts(root)
    pair = [tmp_path / "one.raw", tmp_path / "two.raw"]
    btrfs_disks.make(pair, "-m", "raid1", "-d", "raid0")
    with (
        btrfs_disks.devices(pair) as attached,
        btrfs_disks.pool(attached, tmp_path / "mnt", "compress=zstd") as root,
    ):
        btrfs_disks.live(root)
        expected_pool = facts(root)
    targets = restored(saved, "many", [xfs, *pair], tmp_path)
    with partition(targets[0]) as device:
        process.run("xfs_repair", "-n", device)
        with mounted(device, tmp_path / "mnt", "ro") as root:
            assert facts(root) == expected
    with btrfs_disks.devices(targets[1:]) as attached:
        assert btrfs_disks.check(attached, tmp_path / "mnt") == expected_pool


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_a_machine_whose_power_was_cut(kind: str, saved: Saved, tmp_path: Path) -> None:
    """Read whole, with what waits in the log; mounting it brings back what was synced to it."""
    disk, cut = tmp_path / "disk.raw", tmp_path / "cut.raw"
    make_disk(disk, SIZE)
    with partition(disk) as device:
        process.run(
            f"mkfs.{kind}", "-q", "-f", "-K", *(["--unsupported"] * (kind == "xfs")), device
        )
        with mounted(device, tmp_path / "mnt") as root:
            fill(root, files=40)
            process.run("sync", "--file-system", root)
            (root / "last").write_bytes(b"the last words" * 9_000)
            process.run("sync", root / "last")
            cut_off(disk, cut)
    assert map_of(cut)[1].method == "whole"
    (target,) = restored(saved, f"cut-{kind}", [cut], tmp_path)
    found = []
    for path in (cut, target):
        with btrfs_disks.devices([path]) as (device,), mounted(device, tmp_path / "mnt") as root:
            found.append(facts(root))
            assert (root / "last").read_bytes() == b"the last words" * 9_000
    assert found[0] == found[1]
