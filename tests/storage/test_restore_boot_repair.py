"""The initramfs of a restored system, repaired on real filesystems of loop devices.

The system is small, and so is its `update-initramfs`; what Debian's own does is shown by a drill.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from disk_files import digest
from kernel_mounts import loop, mounted

from imager import process
from imager.sysfs import mounts
from imager.units import MIB
from restore.boot_steps import DiskDrivers, Driver, RepairInitramfs
from restore.bootrepair import repair as module
from restore.bootrepair.repair import repair
from restore.target import Target, TargetKind
from tests.guest.small_system import INITRAMFS, SETTINGS, TOOL, VERSION, plant

KINDS = {
    "ext4": ("mke2fs", "-q", "-t", "ext4", "-O", "^orphan_file"),
    "xfs": ("mkfs.xfs", "-q"),
    "btrfs": ("mkfs.btrfs", "-q"),
}


def make(folder: Path, kind: str, tool: str = TOOL) -> Path:
    """A disk with a system, taken while it is mounted and a file that is deleted is still open."""
    disk = folder / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(310 * MIB)
    process.run(*KINDS[kind], disk)
    uuid = process.run("blkid", "-p", "-s", "UUID", "-o", "value", disk).strip()
    options = "subvol=@" if kind == "btrfs" else "defaults"
    line = f"UUID={uuid} / {kind} {options} 0 1\nUUID=0 /data ext4 nofail 0 0\n"
    with loop(disk) as device, mounted(device, folder / "mnt") as root:
        if kind == "btrfs":
            process.run("btrfs", "subvolume", "create", root / "@")
            process.run("btrfs", "subvolume", "create", root / "@home")
        plant(root / "@" if kind == "btrfs" else root, line, tool)
        with (root / "deleted").open("wb") as held:
            held.write(b"x" * 70_000)
            (root / "deleted").unlink()
            process.run("sync")
            taken = folder / "taken.raw"
            # What XFS has only in its log is not seen without a replay; a capture freezes it.
            if kind == "xfs":
                process.run("fsfreeze", "--freeze", root)
            try:
                process.run("cp", "--sparse=always", disk, taken)
            finally:
                if kind == "xfs":
                    process.run("fsfreeze", "--unfreeze", root)
    return taken


def step(device: Path, *names: str) -> RepairInitramfs:
    target = Target("disk0", device, TargetKind.DEVICE, 1, 1, 512, None, None, "", "")
    drivers = tuple(Driver(name, "", built_in=False) for name in names)
    return RepairInitramfs((DiskDrivers(target, "/dev/sda", drivers),))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "place"
    yield place
    assert [mount.point for mount in mounts() if mount.point.startswith(str(place))] == []


def read(disk: Path, tmp_path: Path, kind: str) -> dict[str, bytes]:
    """The files that a repair may touch."""
    options = ("subvol=@",) if kind == "btrfs" else ()
    with loop(disk) as device, mounted(device, tmp_path / "mnt", *options) as root:
        paths = [*(root / "boot").iterdir(), root / SETTINGS]
        return {str(path.relative_to(root)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("kind", KINDS)
def test_not_one_byte_changes_where_nothing_is_missing(
    kind: str, tmp_path: Path, place: Path
) -> None:
    disk = make(tmp_path, kind)
    before = digest(disk)
    with loop(disk) as device:
        (note,) = repair(step(device, "virtio_blk"), place)
        assert process.run("blockdev", "--getro", device).strip() == "0"
    assert f"{VERSION} has the drivers of its disks, nothing to do" in note
    assert digest(disk) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_driver_is_added_and_the_old_initramfs_kept(
    kind: str, tmp_path: Path, place: Path
) -> None:
    disk = make(tmp_path, kind)
    with loop(disk) as device:
        (note,) = repair(step(device, "nvme"), place)
        assert f"/{INITRAMFS}" in note
        assert "lacked nvme and was rebuilt with it; the old one is beside it" in note
        (again,) = repair(step(device, "nvme"), place)
        assert "nothing to do" in again
    found = read(disk, tmp_path, kind)
    assert found[SETTINGS].decode().splitlines()[-2:][1:] == ["nvme"]
    assert found[SETTINGS].startswith(b"# modules of a person\ndummy\n")
    assert b"virtio_blk" in found[f"{INITRAMFS}.before-remetal"]  # not compressed


@pytest.mark.parametrize(
    ("tool", "why"),
    [
        pytest.param("#!/bin/sh\necho no space left\nexit 3\n", "exit code 3", id="fails"),
        pytest.param(
            f"#!/bin/sh\necho half done >/{INITRAMFS}\necho oh no\nexit 1\n",
            "exit code 1",
            id="half",
        ),
        pytest.param(f"#!/bin/sh\necho fine, oh\n: >/{INITRAMFS}\n", "lacks nvme", id="empty"),
        pytest.param("#!/bin/sh\necho nothing done, oh\n", "lacks nvme", id="does nothing"),
    ],
)
def test_what_goes_wrong_leaves_all_as_it_was(
    tool: str, why: str, tmp_path: Path, place: Path
) -> None:
    disk = make(tmp_path, "ext4", tool)
    before = read(disk, tmp_path, "ext4")
    with loop(disk) as device:
        warning, *said = repair(step(device, "nvme"), place)
    assert warning.startswith(f"WARNING: /{INITRAMFS}")
    assert why in warning
    assert "By hand" in warning
    assert said
    assert all(line.startswith("| ") for line in said)
    assert read(disk, tmp_path, "ext4") == before


def test_a_driver_that_the_kernel_does_not_have_is_named(tmp_path: Path, place: Path) -> None:
    disk = make(tmp_path, "ext4")
    before = digest(disk)
    with loop(disk) as device:
        (note,) = repair(step(device, "virtio_blk", "megaraid_sas"), place)
        assert note == (
            f"kernel {VERSION} of this machine has no driver megaraid_sas for {device}: it will not "
            "find its disk there"
        )
    assert digest(disk) == before


def test_a_boot_that_is_not_there_is_no_reason_to_write_into_the_root(
    tmp_path: Path, place: Path
) -> None:
    disk = make(tmp_path, "ext4")
    with loop(disk) as device, mounted(device, tmp_path / "mnt") as root:
        fstab = root / "etc/fstab"
        fstab.write_text(fstab.read_text() + "UUID=5ef1-0a11 /boot ext4 defaults 0 2\n")
    before = digest(disk)
    with loop(disk) as device:
        (note,) = repair(step(device, "nvme"), place)
    assert (
        "not looked into, without its /boot (UUID=5ef1-0a11 is not on the restored disks)" in note
    )
    assert digest(disk) == before


def test_disks_without_a_system_are_told_of(tmp_path: Path, place: Path) -> None:
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(64 * MIB)
    process.run(
        "cryptsetup", "luksFormat", "-q", "--type", "luks2", "--pbkdf", "pbkdf2",
        "--pbkdf-force-iterations", "1000", "--key-file", "-", disk, stdin=b"secret",
    )  # fmt: skip
    before = digest(disk)
    with loop(disk) as device:
        (note,) = repair(step(device, "nvme"), place)
        assert f"{device} is encrypted and locked" in note
    assert digest(disk) == before


def test_everything_is_taken_down_when_a_rebuild_breaks_off(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    disk = make(tmp_path, "ext4")
    monkeypatch.setattr(module, "rebuild", interrupted)
    with loop(disk) as device, pytest.raises(KeyboardInterrupt):
        repair(step(device, "nvme"), place)


ENTRY = "efi/loader/entries/ward.conf"
COPY = f"efi/ward/{VERSION}/initrd.img-{VERSION}"
# As kernel-install does, which Debian's hook calls: with the command line that runs now.
HOOKED = (
    TOOL
    + f"""
[ "$KERNEL_INSTALL_BYPASS" = 1 ] || {{ cat /proc/cmdline >/{ENTRY}; rm /{COPY}; }}
"""
)


def with_entry(folder: Path) -> Path:
    """A system whose boot loader starts a copy of its initramfs, as systemd-boot does."""
    disk = make(folder, "ext4", HOOKED)
    with loop(disk) as device, mounted(device, folder / "mnt") as root:
        for name in (ENTRY, COPY):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / ENTRY).write_text("options root=UUID=ward ro\n")
        (root / COPY).write_bytes((root / INITRAMFS).read_bytes())
    return disk


def test_what_the_boot_loader_starts_is_renewed_and_its_entry_stays(
    tmp_path: Path, place: Path
) -> None:
    disk = with_entry(tmp_path)
    with loop(disk) as device:
        rebuilt, copied = repair(step(device, "nvme"), place)
        assert "lacked nvme and was rebuilt" in rebuilt
        assert copied.startswith(f"/{COPY} on ")
        (again,) = repair(step(device, "nvme"), place)
        assert "nothing to do" in again
        with mounted(device, tmp_path / "mnt") as root:
            assert (root / COPY).read_bytes() == (root / INITRAMFS).read_bytes()
            assert (root / ENTRY).read_text() == "options root=UUID=ward ro\n"
            assert [path.name for path in (root / COPY).parent.iterdir()] == [Path(COPY).name]
            # A copy alone that is an old one is enough to stop the machine.
            (root / COPY).write_bytes((root / f"{INITRAMFS}.before-remetal").read_bytes())
        rebuilt, _ = repair(step(device, "nvme"), place)
        assert "lacked nvme and was rebuilt" in rebuilt
        (again,) = repair(step(device, "nvme"), place)
        assert "nothing to do" in again
