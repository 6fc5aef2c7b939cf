"""Names of disks are mapped on real filesystems of a partitioned loop device."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from boot_steps import carried_out
from disk_files import digest
from kernel_mounts import mounted

from imager import process
from imager.layout.disk import DiskIdentity
from imager.units import MIB
from restore.boot_steps import DiskDrivers, MapDisks, RepairInitramfs
from restore.bootrepair.repair import repair
from restore.target import Target, TargetKind
from tests.guest.small_system import INITRAMFS, VERSION, plant

TABLE = b"label: gpt\nsize=16M,type=swap\nsize=16M\nsize=64M\nsize=+\n"
SAVED = DiskIdentity(1, 512, serial="S3Z9NB0K123456", wwn="0x5000c500a1b2c3d4")
CRYPTTAB = "ward /dev/sda2 none luks\n"
FSTAB = """\
/dev/sda3 / ext4 defaults 0 1
/dev/disk/by-id/ata-Samsung_SSD_S3Z9NB0K123456-part1 none swap sw 0 0
/dev/sda4 /media/transfer vfat noauto 0 0
/dev/sdb1 /data ext4 nofail 0 2
"""
GRUB = "linux /vmlinuz root=/dev/sda3 ro\ninitrd /initrd.img\n"


@contextmanager
def partitioned(path: Path) -> Iterator[Path]:
    device = process.run("losetup", "--find", "--show", "--partscan", path).strip()
    try:
        process.run("partx", "--update", device, accept=(0, 1))
        yield Path(device)
    finally:
        process.run("losetup", "--detach", device)


def make(folder: Path) -> Path:
    """A disk with a swap, a closed container, and a root that calls them by names of old."""
    disk = folder / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(144 * MIB)
    process.run("sfdisk", "--quiet", disk, stdin=TABLE)
    with partitioned(disk) as device:
        swap, container, system = (Path(f"{device}p{number}") for number in (1, 2, 3))
        process.run("mkswap", swap)
        cheap = ("--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", "--type=luks1")
        process.run("cryptsetup", "luksFormat", "--batch-mode", *cheap, container, "-", stdin=b"x")
        process.run("mke2fs", "-q", "-t", "ext4", system)
        process.run("mkfs.vfat", "-F", "32", "-s", "1", "-i", "5EF10A11", f"{device}p4")
        with mounted(system, folder / "mnt") as root:
            plant(root, FSTAB)
            (root / "etc/crypttab").write_text(CRYPTTAB)
            (root / "boot/grub").mkdir()
            (root / "boot/grub/grub.cfg").write_text(GRUB)
            pack(root)
    return disk


def pack(root: Path) -> None:
    """An initramfs that opens the container by its name of old."""
    (root / "cryptroot").mkdir()
    (root / "cryptroot/crypttab").write_text(CRYPTTAB)
    argv = ["busybox", "cpio", "-o", "-H", "newc", "-F", str(root / INITRAMFS)]
    names = f"lib/modules/{VERSION}/virtio_blk.ko\ncryptroot/crypttab\n"
    subprocess.run(argv, input=names.encode(), cwd=root, check=True, capture_output=True)


def disks(device: Path, origin: str = "/dev/sda") -> tuple[DiskDrivers, ...]:
    target = Target("disk0", device, TargetKind.DEVICE, 1, 1, 512, None, "NEW", "", "")
    return (DiskDrivers(target, origin, (), SAVED),)


def uuid(device: Path) -> str:
    return process.run("blkid", "-p", "-s", "UUID", "-o", "value", device).strip()


def test_a_system_that_names_its_disks_by_kernel_names_starts_on_others(tmp_path: Path) -> None:
    disk = make(tmp_path)
    with partitioned(disk) as device:
        notes = carried_out(MapDisks(disks(device)))
        swap, container, system = (uuid(Path(f"{device}p{number}")) for number in (1, 2, 3))
        old = "/dev/disk/by-id/ata-Samsung_SSD_S3Z9NB0K123456-part1"
        changes = (
            f"/dev/sda3 is UUID={system} now",
            f"{old} is UUID={swap} now",
            "/dev/sda4 is UUID=5EF1-0A11 now",
        )
        assert [note.removeprefix(f"{device}p3: ") for note in notes] == [
            f"/etc/fstab: {', '.join(changes)}",
            f"/etc/crypttab: /dev/sda2 is UUID={container} now",
            f"/boot/grub/grub.cfg: /dev/sda3 is UUID={system} now",
            "no file there calls a disk by a name that has changed any more",
        ]
        with mounted(Path(f"{device}p3"), tmp_path / "mnt") as root:
            assert (root / "etc/fstab").read_text() == FSTAB.replace(
                "/dev/sda3", f"UUID={system}"
            ).replace(old, f"UUID={swap}").replace("/dev/sda4", "UUID=5EF1-0A11")
            assert (root / "etc/crypttab").read_text() == f"ward UUID={container} none luks\n"
            assert f"root=UUID={system} ro" in (root / "boot/grub/grub.cfg").read_text()
            assert [path.name for path in (root / "boot/grub").iterdir()] == ["grub.cfg"]
        # The initramfs still opens the container by its old name.
        (note,) = repair(RepairInitramfs(disks(device)), tmp_path / "place")
        assert f"/{INITRAMFS}" in note
        assert "lacked the names of its disks and was rebuilt" in note
        (again,) = repair(RepairInitramfs(disks(device)), tmp_path / "place")
        assert "nothing to do" in again
        written = digest(disk)
        carried_out(MapDisks(disks(device)))
    assert digest(disk) == written
    assert process.run("e2fsck", "-fn", f"{disk}?offset={33 * MIB}", accept=(0,))


def test_not_one_byte_changes_where_all_names_hold(tmp_path: Path) -> None:
    disk = make(tmp_path)
    before = digest(disk)
    with partitioned(disk) as device:
        (old,) = disks(device, str(device))
        here = replace(old.target, serial=SAVED.serial, wwn=SAVED.wwn)
        same = (replace(old, target=here),)
        assert not same[0].is_renamed
        (note,) = carried_out(MapDisks(same))
    assert "no file there calls a disk by a name that has changed" in note
    assert digest(disk) == before
