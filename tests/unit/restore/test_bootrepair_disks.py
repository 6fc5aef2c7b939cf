"""Names of disks in the files of a system: replaced where they lead astray, and nowhere else."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import pytest

from imager.layout.disk import DiskIdentity
from restore.boot_steps import DiskDrivers, MapDisks
from restore.bootrepair.devices import Device, Devices
from restore.bootrepair.disk_files import find_edits, is_early, mentions, renamed_early
from restore.bootrepair.disk_names import DiskNames
from restore.target import Target, TargetKind

SERIAL, WWN = "S3Z9NB0K 123456", "0x5000c500a1b2c3d4"
SAVED = DiskIdentity(1 << 30, 512, wwn=WWN, serial=SERIAL)


def device(path: str, name: str, kind: str, uuid: str, partuuid: str = "") -> Device:
    tags = [("UUID", uuid)] + ([("PARTUUID", partuuid)] if partuuid else [])
    return Device(Path(path), kind, frozenset(tags), frozenset({name}))


@dataclass
class OnDisks:
    """What `Devices` tells, without devices."""

    all: tuple[Device, ...]
    disks: tuple[DiskDrivers, ...]

    def of_type(self, *types: str) -> tuple[Device, ...]:
        return tuple(each for each in self.all if each.type in types)

    def called(self, source: str) -> Device | None:
        old = [name for disk in self.disks if (name := disk.old_name(source))]
        meant = old[0] if old else source
        return next((each for each in self.all if each.is_called(meant)), None)


def disk(here: str = "/dev/nvme0n1", origin: str = "/dev/sda", serial: str = "NEW") -> DiskDrivers:
    target = Target(
        "disk0", Path(here), TargetKind.DEVICE, 1, 1, 512, None, serial, "", "", "0xnew"
    )
    return DiskDrivers(target, origin, (), SAVED)


def names(*disks: DiskDrivers, more: tuple[Device, ...] = ()) -> DiskNames:
    """Each disk has an ESP, a swap and a root."""
    found = []
    for number, each in enumerate(disks):
        between = "p" if str(each.target.path)[-1].isdigit() else ""
        for part, (kind, uuid) in enumerate(
            (
                ("vfat", f"5EF1-0A1{number}"),
                ("swap", f"a1d0c3f2-{number}"),
                ("ext4", f"1f3e-{number}"),
            ),
            start=1,
        ):
            path = f"{each.target.path}{between}{part}"
            found.append(device(path, each.partition(part), kind, uuid, f"0c6b-{number}{part}"))
    return DiskNames(disks, cast(Devices, OnDisks((*found, *more), disks)))


def renamed(root: Path, known: DiskNames, *, has_initramfs: bool = True) -> dict[str, str]:
    found = find_edits(root, known, has_initramfs=has_initramfs)
    return {str(edit.path): edit.change.after for edit in found if edit.change.done}


def write(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


FSTAB = """\
# /dev/sda3 was the root when this was installed
/dev/sda3\t/ ext4 errors=remount-ro 0 1
  /dev/sda2 none swap sw 0 0
/dev/disk/by-id/ata-Samsung_SSD_S3Z9NB0K_123456-part1 /boot/efi vfat umask=0077 0 1
/dev/disk/by-id/wwn-0x5000c500a1b2c3d4-part3 /again ext4 noauto 0 0
UUID=kept /srv ext4 defaults 0 2
/dev/sdb1 /data ext4 nofail 0 2
/dev/mapper/ward-home /home ext4 defaults 0 2
"""


def test_fstab_gets_uuids_as_blkid_writes_them_and_all_else_stays(tmp_path: Path) -> None:
    write(tmp_path, "etc/fstab", FSTAB)
    assert renamed(tmp_path, names(disk()))["/etc/fstab"] == (
        FSTAB.replace("/dev/sda3\t", "UUID=1f3e-0\t")
        .replace("  /dev/sda2 ", "  UUID=a1d0c3f2-0 ")
        .replace("/dev/disk/by-id/ata-Samsung_SSD_S3Z9NB0K_123456-part1", "UUID=5EF1-0A10")
        .replace("/dev/disk/by-id/wwn-0x5000c500a1b2c3d4-part3", "UUID=1f3e-0")
    )


def test_names_that_hold_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path, "etc/fstab", FSTAB)
    same = disk("/dev/sda")
    same = replace(same, target=replace(same.target, serial=SERIAL, wwn=WWN))
    assert not same.is_renamed
    assert renamed(tmp_path, names(same)) == {}
    assert replace(same, origin="/dev/sdb").is_renamed
    # Another disk with the kernel's old name: what its maker gave it is all that has changed.
    other = disk("/dev/sda")
    assert other.is_renamed
    text = renamed(tmp_path, names(other))["/etc/fstab"]
    assert "/dev/sda3\t/ ext4" in text
    assert "by-id" not in text


def test_disks_that_changed_places_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path, "etc/fstab", "/dev/sda3 / ext4\n/dev/sdb3 /srv ext4\n")
    known = names(disk("/dev/sdb"), replace(disk("/dev/sda", "/dev/sdb"), identity=None))
    assert renamed(tmp_path, known)["/etc/fstab"] == "UUID=1f3e-0 / ext4\nUUID=1f3e-1 /srv ext4\n"


def test_nvme_partitions_are_not_taken_for_another_disk(tmp_path: Path) -> None:
    write(tmp_path, "etc/fstab", "/dev/nvme0n1p3 / ext4\n/dev/nvme0n10p3 /other ext4\n")
    known = names(disk("/dev/sda", "/dev/nvme0n1"))
    text = renamed(tmp_path, known)["/etc/fstab"]
    assert text == "UUID=1f3e-0 / ext4\n/dev/nvme0n10p3 /other ext4\n"


def test_a_container_is_found_by_its_uuid_and_a_plain_one_by_its_partition(tmp_path: Path) -> None:
    crypt = device("/dev/nvme0n1p5", "/dev/sda5", "crypto_LUKS", "c0de", "0c6b-05")
    plain = Device(
        Path("/dev/nvme0n1p6"),
        "swap",  # as it was before it was encrypted
        frozenset({("PARTUUID", "0c6b-06"), ("UUID", "gone")}),
        frozenset({"/dev/sda6"}),
    )
    write(
        tmp_path,
        "etc/crypttab",
        "# name device key\nroot /dev/sda5 none luks\nswap /dev/sda6 /dev/urandom swap\n",
    )
    assert renamed(tmp_path, names(disk(), more=(crypt, plain)))["/etc/crypttab"] == (
        "# name device key\nroot UUID=c0de none luks\n"
        "swap /dev/disk/by-partuuid/0c6b-06 /dev/urandom swap\n"
    )


def test_what_has_no_lasting_name_is_told_and_left(tmp_path: Path) -> None:
    write(tmp_path, "etc/fstab", "/dev/sda9 /old ext4\n")
    bare = Device(Path("/dev/nvme0n1p9"), "", frozenset(), frozenset({"/dev/sda9"}))
    (edit,) = find_edits(tmp_path, names(disk(), more=(bare,)), has_initramfs=True)
    assert (edit.change.done, edit.change.left) == ((), ("/dev/sda9",))
    assert edit.change.after == "/dev/sda9 /old ext4\n"


GRUB = """\
set root='hd0,gpt3'
menuentry 'Debian' {
    linux /boot/vmlinuz root=/dev/sda3 ro resume=/dev/sda2 quiet
    initrd /boot/initrd.img
}
"""


@pytest.mark.parametrize("has_initramfs", [True, False])
def test_kernels_find_their_root_with_and_without_an_initramfs(
    has_initramfs: bool, tmp_path: Path
) -> None:
    files = {
        "boot/grub/grub.cfg": GRUB,
        "etc/default/grub": 'GRUB_CMDLINE_LINUX="root=/dev/sda3"\n#GRUB_X="root=/dev/sda3"\n',
        "boot/efi/loader/entries/debian.conf": "options root=/dev/sda3 ro\n",
        "boot/extlinux/extlinux.conf": "append initrd=/i root=/dev/sda3\n",
        "etc/kernel/cmdline": "root=/dev/sda3",
    }
    for name, text in files.items():
        write(tmp_path, name, text)
    found = renamed(tmp_path, names(disk()), has_initramfs=has_initramfs)
    assert set(found) == {f"/{name}" for name in files}
    root = "root=UUID=1f3e-0" if has_initramfs else "root=PARTUUID=0c6b-03"
    assert all(root in text for text in found.values())
    resume = "resume=UUID=a1d0c3f2-0" if has_initramfs else "resume=PARTUUID=0c6b-02"
    assert found["/boot/grub/grub.cfg"] == GRUB.replace("root=/dev/sda3", root).replace(
        "resume=/dev/sda2", resume
    )
    assert '#GRUB_X="root=/dev/sda3"' in found["/etc/default/grub"]


def test_mdadm_looks_everywhere_where_it_looked_at_disks_of_old(tmp_path: Path) -> None:
    member = device("/dev/nvme0n1p4", "/dev/sda4", "linux_raid_member", "a44a")
    text = (
        "DEVICE /dev/sd[ab]4\n# devices=/dev/sda4\n"
        "ARRAY /dev/md0 UUID=1:2:3:4 devices=/dev/sda4,/dev/sdb4 name=ward\n"
    )
    path = write(tmp_path, "etc/mdadm/mdadm.conf", text)
    known = names(disk(), more=(member,))
    assert renamed(tmp_path, known)["/etc/mdadm/mdadm.conf"] == (
        "DEVICE partitions containers\n# devices=/dev/sda4\nARRAY /dev/md0 UUID=1:2:3:4 name=ward\n"
    )
    path.write_text("DEVICE partitions\nARRAY /dev/md0 UUID=1:2:3:4\n")
    assert renamed(tmp_path, known) == {}
    path.write_text("ARRAY /dev/md0 devices=/dev/sda4\n")
    (edit,) = find_edits(tmp_path, known, has_initramfs=True)
    assert edit.change.left == ("/dev/sda4",)


def test_an_initramfs_that_looks_for_an_old_name_is_told() -> None:
    known = names(disk(), more=(device("/dev/nvme0n1p5", "/dev/sda5", "crypto_LUKS", "c0de"),))
    files = [
        ("cryptroot/crypttab", b"root /dev/sda5 none luks\n"),
        ("conf/conf.d/resume", b"RESUME=/dev/sda2\n"),
        ("etc/fstab.empty", b"/dev/sda3 / ext4\n"),
    ]
    assert renamed_early(files, known) == (
        "/dev/sda5 is UUID=c0de now",
        "/dev/sda2 is UUID=a1d0c3f2-0 now",
    )
    assert [is_early(name) for name, _ in files] == [True, True, False]
    assert renamed_early([("conf/conf.d/resume", b"RESUME=UUID=a1d0c3f2-0\n")], known) == ()


def test_what_else_names_an_old_disk_is_found(tmp_path: Path) -> None:
    write(tmp_path, "etc/smartd.conf", "# /dev/sda -a\nDEVICESCAN\n")
    write(tmp_path, "etc/hdparm.conf", "/dev/sda {\n}\n")
    write(tmp_path, "etc/lvm/devices/system.devices", "IDNAME=naa.5000c500a1b2c3d4 PVID=x\n")
    write(tmp_path, "etc/lvm/backup/ward", 'device = "/dev/sda3" # Hint only\n')
    write(tmp_path, "etc/other", "/dev/sdab /dev/sda-x /x/dev/sda\n")
    assert [(str(path), mark) for path, mark in mentions(tmp_path, names(disk()).marks())] == [
        ("/etc/hdparm.conf", "/dev/sda"),
        ("/etc/lvm/devices/system.devices", "5000c500a1b2c3d4"),
    ]


@pytest.mark.parametrize(
    ("link", "name"),
    [
        ("ata-Samsung_SSD_S3Z9NB0K_123456", "/dev/sda"),
        ("ata-Samsung_SSD_S3Z9NB0K_123456-part12", "/dev/sda12"),
        ("nvme-Samsung_S3Z9NB0K_123456_1-part2", "/dev/sda2"),
        ("scsi-35000c500a1b2c3d4-part1", "/dev/sda1"),
        ("wwn-0x5000c500a1b2c3d4", "/dev/sda"),
        ("ata-Samsung_SSD_XS3Z9NB0K_123456", None),
        ("wwn-0x5000c500a1b2c3d4ff", None),
    ],
)
def test_links_by_id_mean_the_disk_of_old(link: str, name: str | None) -> None:
    assert disk().old_name(f"/dev/disk/by-id/{link}") == name


def test_a_file_that_stood_for_a_disk_has_no_names() -> None:
    assert not disk(origin="/srv/disk.raw").is_renamed


def test_the_step_says_what_is_another_now() -> None:
    said = MapDisks((disk(), disk("/dev/sdb", "/dev/sdb"))).describe()
    assert "(/dev/sda is /dev/nvme0n1 now; /dev/sdb is another disk now)" in said
