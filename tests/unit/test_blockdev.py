"""Disks of this machine, disk files, and what uses them."""

import fcntl
import os
import select
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from imager import blockdev, process, sysfs
from imager.blockdev import Usage, UsageKind
from imager.errors import NoSuchDisk, TruncatedSource
from imager.units import MIB

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")


def test_lists_real_disks_only() -> None:
    for disk in blockdev.list_disks():
        assert disk.path.is_block_device()
        assert disk.is_device
        assert disk.identity.size > 0
        assert disk.identity.logical_sector in {512, 4096}
        assert not disk.path.name.startswith(("loop", "zram", "ram", "sr", "dm-", "md"))
        assert blockdev.is_machine_disk(disk.path)


def test_what_a_path_lies_on(tmp_path: Path) -> None:
    here = blockdev.disks_under(tmp_path)
    assert blockdev.disks_under(tmp_path / "not" / "there" / "yet") == here
    assert all(path.is_block_device() for path in here)
    for path in here:
        assert blockdev.disks_under(path) >= {path}
    assert blockdev.disks_under(Path("/proc/self")) == frozenset()
    used = {disk.path for disk in blockdev.list_disks() if disk.usage}
    assert here & {disk.path for disk in blockdev.list_disks()} <= used


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(3 * MIB))
    (tmp_path / "link").symlink_to("disk")
    disk = blockdev.identify(tmp_path / "link")
    assert disk.path == path
    assert not disk.is_device
    assert (disk.identity.size, disk.identity.logical_sector) == (3 * MIB, 512)
    assert disk.usage == ()


@pytest.mark.parametrize("name", ["missing", "folder", "dangling", "folder/x/y", "fifo"])
def test_no_such_disk(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(NoSuchDisk):
        blockdev.identify(tmp_path / name)


def test_reads_exactly_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"0123456789")
    with blockdev.open_disk(path) as fd:
        assert blockdev.size_of(fd) == 10
        assert blockdev.read_at(fd, 3, 7) == b"3456789"
        with pytest.raises(TruncatedSource, match=f"{path} ends at byte 10"):
            blockdev.read_at(fd, 3, 8)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(fd, b"x")


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Yield a loop device with two partitions, and its file."""
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
    process.run("sfdisk", "--quiet", path, stdin=b"label: gpt\nsize=16M\nsize=16M\n")
    process.run("mke2fs", "-q", "-F", "-t", "ext4", "-E", f"offset={MIB}", path, "16M")
    process.run("mke2fs", "-q", "-F", "-t", "ext4", "-E", f"offset={17 * MIB}", path, "16M")
    device = Path(process.run("losetup", "--find", "--show", "--partscan", path).strip())
    # The kernel's own scan needs its time; without it sfdisk can't be asked to do it either.
    process.run("partx", "--update", device, accept=(0, 1))
    yield device, path
    for part in (f"{device}p1", f"{device}p2"):  # after a test that failed
        process.run("umount", "--quiet", "--all-targets", part, accept=(0, 1, 32))
    process.run("losetup", "--detach", device)


@needs_root
class TestLoop:
    def test_device_and_file(self, loop: tuple[Path, Path]) -> None:
        device, path = loop
        disk = blockdev.identify(device)
        assert disk.path == device
        assert disk.identity.size == 64 * MIB
        assert disk.usage == ()
        assert device not in {disk.path for disk in blockdev.list_disks()}
        assert not blockdev.is_machine_disk(device)
        (usage,) = blockdev.identify(path).usage
        assert usage == Usage(UsageKind.LOOP, path, str(device), read_only=False)
        assert blockdev.disks_under(device) == {device} | blockdev.disks_under(path)

    def test_partition_is_no_disk(self, loop: tuple[Path, Path]) -> None:
        device, _ = loop
        with pytest.raises(NoSuchDisk, match="is a partition") as caught:
            blockdev.identify(Path(f"{device}p1"))
        assert str(device) in caught.value.hint

    @pytest.mark.parametrize("mode", ["ro", "rw"])
    def test_mounted(self, mode: str, loop: tuple[Path, Path], tmp_path: Path) -> None:
        device, path = loop
        point = tmp_path / "a mount point"
        point.mkdir()
        process.run("mount", "-o", mode, f"{device}p2", point)
        try:
            expected = Usage(UsageKind.MOUNT, Path(f"{device}p2"), str(point), mode == "ro")
            assert blockdev.identify(device).usage == (expected,)
            assert expected in blockdev.identify(path).usage
            assert device in blockdev.disks_under(point / "anything")
            assert blockdev.disks_under(point) >= blockdev.disks_under(path)
        finally:
            process.run("umount", point)
        assert blockdev.identify(device).usage == ()

    def test_mounted_elsewhere_read_only(self, loop: tuple[Path, Path], tmp_path: Path) -> None:
        """A read-only view of a filesystem that is mounted read-write does not make it safe."""
        device, _ = loop
        first, second = tmp_path / "first", tmp_path / "second"
        first.mkdir()
        second.mkdir()
        process.run("mount", f"{device}p1", first)
        process.run("mount", "--bind", first, second)
        process.run("mount", "-o", "remount,ro,bind", second)
        try:
            assert [usage.read_only for usage in blockdev.identify(device).usage] == [False, False]
        finally:
            process.run("umount", second)
            process.run("umount", first)

    def test_claimed_without_a_trace(self, loop: tuple[Path, Path]) -> None:
        device, _ = loop
        fd = os.open(f"{device}p1", os.O_RDONLY | os.O_EXCL)
        try:
            (usage,) = blockdev.identify(device).usage
        finally:
            os.close(fd)
        assert (usage.kind, usage.device) == (UsageKind.CLAIMED, Path(f"{device}p1"))

    def test_swap(self, loop: tuple[Path, Path]) -> None:
        device, _ = loop
        part = Path(f"{device}p1")
        process.run("mkswap", part)
        try:
            process.run("swapon", part)
        except process.ProgramError:
            pytest.skip("this kernel swaps to no loop device")
        try:
            (usage,) = blockdev.identify(device).usage
        finally:
            process.run("swapoff", part)
        assert (usage.kind, usage.device, usage.read_only) == (UsageKind.SWAP, part, False)


def test_file_of_a_running_virtual_machine(tmp_path: Path) -> None:
    """QEMU locks byte 101 of an image that it writes to."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(MIB))
    process.run(
        "qemu-storage-daemon", "--daemonize", "--pidfile", tmp_path / "pid",
        "--blockdev", f"driver=file,node-name=disk,filename={path}",
        "--nbd-server", f"addr.type=unix,addr.path={tmp_path / 'nbd'}",
        "--export", "type=nbd,id=export,node-name=disk,writable=on",
    )  # fmt: skip
    daemon = os.pidfd_open(int((tmp_path / "pid").read_text()))
    try:
        kinds = [usage.kind for usage in blockdev.identify(path).usage]
    finally:
        signal.pidfd_send_signal(daemon, signal.SIGTERM)
        select.select([daemon], [], [], 20)
        os.close(daemon)
    assert kinds == [UsageKind.VM]
    assert blockdev.identify(path).usage == ()


def test_other_locks_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(MIB))
    with path.open("r+b") as file:
        request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 300, 10, 0)
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, request)
        assert blockdev.identify(path).usage == ()


class Kernel:
    """A sysfs as Linux 6.1 lays it out, with the stacks this machine may not have."""

    def __init__(self, root: Path) -> None:
        self.block = root / "block"
        self.numbers = root / "dev" / "block"
        self.devices = root / "devices"
        self.btrfs = root / "fs" / "btrfs"
        for folder in (self.block, self.numbers, self.devices, self.btrfs):
            folder.mkdir(parents=True)

    def add(self, name: str, number: str, *, disk: str | None = None) -> Path:
        node = self.devices / (disk or "") / name
        for folder in ("holders", "slaves"):
            (node / folder).mkdir(parents=True)
        (node / "dev").write_text(number + "\n")
        (node / "ro").write_text("0\n")
        (node / "size").write_text("2048\n")
        (node / "uevent").write_text(f"MAJOR=1\nMINOR=2\nDEVNAME={name.replace('!', '/')}\n")
        (self.numbers / number).symlink_to(node)
        if disk is None:
            (self.block / name).symlink_to(node)
        else:
            (node / "partition").write_text("1\n")
        return node

    def stack(self, below: Path, above: Path) -> None:
        (below / "holders" / above.name).symlink_to(above)
        (above / "slaves" / below.name).symlink_to(below)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel(tmp_path / "sys")
    monkeypatch.setattr(sysfs, "BLOCK", kernel.block)
    monkeypatch.setattr(sysfs, "_DEV", kernel.numbers)
    monkeypatch.setattr(sysfs, "_BTRFS", kernel.btrfs)
    monkeypatch.setattr(sysfs, "swaps", lambda: frozenset({"252:2"}))
    return kernel


def mount(device: str, point: str, kind: str = "ext4", source: str = "none") -> sysfs.Mount:
    return sysfs.Mount(1, device, point, kind, source, False, "rw")


class TestStacks:
    def test_md_below_luks_below_lvm(self, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
        parts = []
        for letter, minor in (("a", 0), ("b", 16)):
            kernel.add(f"sd{letter}", f"8:{minor}")
            parts.append(kernel.add(f"sd{letter}1", f"8:{minor + 1}", disk=f"sd{letter}"))
        md = kernel.add("md0", "9:0")
        for part in parts:
            kernel.stack(part, md)
        crypt, root, swap = (kernel.add(f"dm-{index}", f"252:{index}") for index in range(3))
        (root / "dm").mkdir()
        (root / "dm" / "name").write_text("vg-root\n")
        kernel.stack(md, crypt)
        kernel.stack(crypt, root)
        kernel.stack(crypt, swap)
        monkeypatch.setattr(sysfs, "mounts", lambda: (mount("252:1", "/"),))
        usage = blockdev._device_usage(kernel.devices / "sda")
        assert [(one.kind, str(one.device), one.where) for one in usage] == [
            (UsageKind.HOLDER, "/dev/sda1", "/dev/md0"),
            (UsageKind.HOLDER, "/dev/md0", "/dev/dm-0"),
            (UsageKind.HOLDER, "/dev/dm-0", "/dev/mapper/vg-root"),
            (UsageKind.MOUNT, "/dev/mapper/vg-root", "/"),
            (UsageKind.HOLDER, "/dev/dm-0", "/dev/dm-2"),
            (UsageKind.SWAP, "/dev/dm-2", ""),
        ]
        found: set[Path] = set()
        blockdev._collect(root, found)
        assert found == {Path("/dev") / name for name in ("dm-1", "dm-0", "md0", "sda", "sdb")}

    def test_btrfs_on_two_disks(
        self, kernel: Kernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        first, second = kernel.add("sda", "8:0"), kernel.add("cciss!c0d0", "104:0")
        devices = kernel.btrfs / "f5d1" / "devices"
        devices.mkdir(parents=True)
        for node in (first, second):
            (devices / node.name).symlink_to(node)
        monkeypatch.setattr(sysfs, "number_of", lambda _: "8:0")
        mounted = mount("0:33", "/data", "btrfs", str(tmp_path))
        monkeypatch.setattr(sysfs, "mounts", lambda: (mounted,))
        for node, name in ((first, "sda"), (second, "cciss/c0d0")):
            (usage,) = blockdev._device_usage(node)
            assert (usage.kind, usage.device) == (UsageKind.MOUNT, Path("/dev") / name)
        assert sysfs.btrfs_numbers(mounted) == {"8:0", "104:0"}

    def test_what_is_no_disk_of_the_machine(self, kernel: Kernel) -> None:
        names = [
            "sda", "nvme0n1", "vda", "xvda", "mmcblk0", "cciss!c0d0", "pmem0", "sdaa", "dasda",
            "loop0", "ram0", "zram0", "sr0", "fd0", "nbd0", "dm-0", "md0", "md_d0", "md127",
            "mmcblk0boot0", "mmcblk0rpmb",
        ]  # fmt: skip
        nodes = [kernel.add(name, f"1:{index}") for index, name in enumerate(names)]
        (nodes[1] / "hidden").write_text("1\n")
        assert [node.name for node in nodes if blockdev._is_machine_disk(node)] == [
            "sda", "vda", "xvda", "mmcblk0", "cciss!c0d0", "pmem0", "sdaa", "dasda",
        ]  # fmt: skip
