"""Disks of this machine and disk files: what they are, who uses them, what lies on them.

Everything here only reads. Facts come from lsblk (which asks udev where there is one, as on a
running system and on the rescue medium) and from sysfs and /proc, which say how partitions,
device-mapper, md and loop devices sit on each other.
"""

import errno
import fcntl
import os
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from imager import process, sysfs
from imager.errors import NoSuchDisk, SourceError, TruncatedSource, UnreadableSource
from imager.layout.disk import DiskIdentity

# Kernel devices that are no disks a machine is captured from or restored to: loop, RAM and
# compressed RAM disks, CD drives, floppies, network block devices, the layers above disks, and
# the boot and replay-protected parts of eMMC (which are devices of their own).
_NO_DISK: Final = re.compile(
    r"(loop|ram|zram|sr|fd|nbd|dm-|md|mtdblock)\d|md_|mmcblk\d+(boot\d|rpmb)"
)
_COLUMNS: Final = "NAME,PATH,TYPE,SIZE,LOG-SEC,WWN,SERIAL,MODEL,TRAN,SUBSYSTEMS,RO,RM"
_TRANSPORTS: Final = frozenset({"mmc", "nvme", "scsi", "usb", "virtio", "xen"})
_FILE_SECTOR: Final = 512
# Sectors that were written, and discarded; requests won't do, since a flush counts as one.
_WRITE_FIELDS: Final = (6, 13)

# QEMU marks an image it may write by locking byte 100 + 1 (its "write" permission, block/file-posix.c).
_QEMU_WRITE_LOCK: Final = 101
# struct flock: type, whence, start, length, pid (64-bit Linux)
_FLOCK: Final = struct.Struct("hhqqi4x")


class UsageKind(StrEnum):
    """What uses a disk."""

    MOUNT = "mount"
    SWAP = "swap"
    HOLDER = "holder"  # device-mapper, md or bcache sits on it
    LOOP = "loop"  # a disk file that is attached to a loop device
    VM = "vm"  # a disk file that a running virtual machine writes to
    CLAIMED = "claimed"  # the kernel says busy, and nothing says why


@dataclass(frozen=True, slots=True)
class Usage:
    """One thing that uses a disk or a part of it.

    Attributes:
        kind: what uses it.
        device: the part that is used: the disk itself, a partition, or something on top of it.
        where: the mount point, the holder's device, or an empty string.
        read_only: it can't write.
    """

    kind: UsageKind
    device: Path
    where: str
    read_only: bool

    def __str__(self) -> str:
        mode = "read-only" if self.read_only else "read-write"
        match self.kind:
            case UsageKind.MOUNT:
                return f"{self.device} is mounted {mode} on {self.where}"
            case UsageKind.SWAP:
                return f"{self.device} is in use as swap"
            case UsageKind.HOLDER:
                return f"{self.device} is part of {self.where}"
            case UsageKind.LOOP:
                return f"{self.device} is attached {mode} to {self.where}"
            case UsageKind.VM:
                return f"{self.device} is in use by a running virtual machine"
            case UsageKind.CLAIMED:
                return f"{self.device} is claimed by the kernel"


@dataclass(frozen=True, slots=True)
class BlockDisk:
    """A whole disk, or a file with the bytes of one.

    Attributes:
        path: the kernel's name of now ("/dev/sda") or the file, absolute and without links.
        identity: what it is recognised by over time.
        usage: everything that uses it now.
        read_only: the device can't be written (a switch, a lock, no write permission).
        removable: a stick, a card or the like.
        is_device: a block device, not a file.
    """

    path: Path
    identity: DiskIdentity
    usage: tuple[Usage, ...]
    read_only: bool
    removable: bool
    is_device: bool


class _LsblkDevice(msgspec.Struct, rename=lambda name: name.replace("log_sec", "log-sec")):
    name: str
    path: str
    type: str
    size: int
    log_sec: int
    wwn: str | None
    serial: str | None
    model: str | None
    tran: str | None
    subsystems: str | None
    ro: bool
    rm: bool


class _Lsblk(msgspec.Struct):
    blockdevices: list[_LsblkDevice]


def list_disks() -> tuple[BlockDisk, ...]:
    """Return this machine's disks that hold data, in the order of their kernel names.

    Left out: loop, RAM, CD, floppy and network block devices, what sits on top of disks
    (device-mapper, md), paths hidden below a multipath NVMe device, and empty drives.
    """
    return tuple(
        _device_disk(sysfs.device_path(node))
        for node in sorted(sysfs.BLOCK.iterdir())
        if _is_machine_disk(node) and int(sysfs.read_text(node / "size") or 0) > 0
    )


def is_machine_disk(device: Path) -> bool:
    """Whether a block device is a disk of this machine, not a layer above disks or a disk file."""
    return _is_machine_disk(sysfs.node_at(device))


def identify(path: Path) -> BlockDisk:
    """Return the whole disk at a device's path, or the disk in a raw file.

    The sector size of a file is 512 bytes, unless it holds a GPT that only makes sense with 4096.

    Raises:
        NoSuchDisk: nothing there, or it is a partition, a directory or something else.
        SourceError: it may not be opened.
    """
    try:
        resolved = path.resolve(strict=True)
        mode = resolved.stat().st_mode
    except (OSError, RuntimeError) as error:
        raise NoSuchDisk(f"there is no disk or disk file {path}") from error
    if stat.S_ISBLK(mode):
        if (sysfs.node_at(resolved) / "partition").exists():
            raise NoSuchDisk(
                f"{path} is a partition, not a whole disk",
                hint=f"Give the disk it lies on: {', '.join(map(str, sorted(disks_under(path))))}.",
            )
        return _device_disk(resolved)
    if not stat.S_ISREG(mode):
        raise NoSuchDisk(f"{path} is neither a disk nor a disk file")
    with open_disk(resolved) as fd:
        identity = DiskIdentity(size=size_of(fd), logical_sector=_file_sector(fd))
        usage = _file_usage(resolved, fd)
    return BlockDisk(
        path=resolved,
        identity=identity,
        usage=usage,
        read_only=not os.access(resolved, os.W_OK),
        removable=False,
        is_device=False,
    )


def disks_under(path: Path) -> frozenset[Path]:
    """Return the whole devices that a path lies on.

    A path is a file or directory (of one that does not exist yet: its nearest parent), or a block
    device. Partitions, device-mapper, md, loop and btrfs with many devices are followed down.
    Devices between (a dm, md or loop device) are in the answer too, each with its kernel path,
    since writing to them would reach the path as well. Empty for network and memory filesystems.
    """
    resolved = path.resolve()
    while not resolved.exists():
        resolved = resolved.parent
    found: set[Path] = set()
    if stat.S_ISBLK(resolved.stat().st_mode):
        _collect(sysfs.node_at(resolved), found)
    else:
        _collect_path(resolved, found)
    return frozenset(found)


@contextmanager
def open_disk(path: Path) -> Iterator[int]:
    """Open a disk or disk file for reading only, and yield the file descriptor.

    Raises:
        NoSuchDisk: nothing there.
        SourceError: it may not be opened.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NoSuchDisk(f"there is no disk or disk file {path}") from error
    except OSError as error:
        hint = "Run this as root." if error.errno in {errno.EACCES, errno.EPERM} else None
        raise SourceError(f"{path} can't be opened: {error.strerror}", hint=hint) from error
    try:
        yield fd
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class DirectDisk:
    """A disk that is open for reading past the page cache.

    Attributes:
        descriptor: of the file.
        sector: bytes; offsets and lengths must be multiples of it.
    """

    descriptor: int
    sector: int


@contextmanager
def open_past_cache(path: Path, sector: int) -> Iterator[DirectDisk | None]:
    """Open a device for reading past the page cache, given the bytes of a logical sector.

    Yields None of a disk file, which may well lie in the cache, and of what can't be read so.
    """
    if not path.is_block_device():
        yield None
        return
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:
        yield None
        return
    try:
        yield DirectDisk(fd, sector)
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class WriteMark:
    """How far writing to a disk or disk file had come at one moment.

    Attributes:
        path: the disk or file.
        counts: of a device, sectors written and discarded since it is there (Documentation/block/stat.rst
            of Linux); of a file, when it was changed, in nanoseconds.
    """

    path: Path
    counts: tuple[int, ...]


def write_mark(path: Path) -> WriteMark:
    """Return a mark that equals a later one if nothing was written to a disk or file meanwhile.

    What waits in a cache is not written yet.
    """
    status = path.stat()
    if not stat.S_ISBLK(status.st_mode):
        return WriteMark(path, (status.st_mtime_ns, status.st_ctime_ns))
    fields = sysfs.read_text(sysfs.node_at(path) / "stat").split()
    return WriteMark(
        path, tuple(int(fields[place]) for place in _WRITE_FIELDS if place < len(fields))
    )


def size_of(fd: int) -> int:
    """Return the size of an open disk or disk file in bytes."""
    return os.lseek(fd, 0, os.SEEK_END)


def name_of(fd: int) -> str:
    """Return the path an open disk or disk file was opened by, for messages."""
    return str(Path(f"/proc/self/fd/{fd}").readlink())


def read_at(fd: int, offset: int, length: int) -> bytes:
    """Read exactly `length` bytes at `offset`.

    Raises:
        TruncatedSource: it ends before.
        UnreadableSource: the disk gives a read error.
    """
    data = bytearray(length)
    read_into(fd, offset, memoryview(data))
    return bytes(data)


def read_into(fd: int, offset: int, buffer: memoryview) -> None:
    """Fill a buffer with the bytes from `offset` on.

    Raises:
        TruncatedSource: it ends before.
        UnreadableSource: the disk gives a read error.
    """
    while len(buffer):
        try:
            count = os.preadv(fd, [buffer], offset)
        except OSError as error:
            raise UnreadableSource(
                f"reading byte {offset} of {name_of(fd)} failed: {error.strerror}"
            ) from error
        if not count:
            raise TruncatedSource(
                f"{name_of(fd)} ends at byte {offset}, before what lies on it does"
            )
        buffer = buffer[count:]
        offset += count


def _is_machine_disk(node: Path) -> bool:
    return not _NO_DISK.match(node.name) and sysfs.read_text(node / "hidden") != "1"


def _device_disk(device: Path) -> BlockDisk:
    text = process.run("lsblk", "--json", "--bytes", "--nodeps", "--output", _COLUMNS, device)
    row = msgspec.json.decode(text, type=_Lsblk, strict=False).blockdevices[0]
    node = sysfs.node_at(device)
    return BlockDisk(
        path=sysfs.device_path(node),
        identity=DiskIdentity(
            size=row.size,
            logical_sector=row.log_sec,
            wwn=_clean(row.wwn),
            # Without udev lsblk does not know where virtio keeps its serial.
            serial=_clean(row.serial) or _clean(sysfs.read_text(node / "serial")),
            model=_clean(row.model),
            transport=_transport(row),
        ),
        usage=_device_usage(node),
        read_only=row.ro,
        removable=row.rm,
        is_device=True,
    )


def _transport(row: _LsblkDevice) -> str | None:
    if row.tran:
        return row.tran
    # From the disk outwards: a SCSI disk behind a virtio controller is a SCSI disk.
    layers = (row.subsystems or "").split(":")
    return next((name for name in layers if name in _TRANSPORTS), None)


def _clean(text: str | None) -> str | None:
    return (text or "").strip() or None


def _file_sector(fd: int) -> int:
    for sector in (512, 4096):
        if size_of(fd) >= sector + 8 and read_at(fd, sector, 8) == b"EFI PART":
            return sector
    return _FILE_SECTOR


def _device_usage(node: Path) -> tuple[Usage, ...]:
    mounts = sysfs.mounts()
    swaps = sysfs.swaps()
    usage: list[Usage] = []
    for part in (node, *sysfs.partitions(node)):
        if not _usage_of(part, mounts, swaps, usage) and part != node:
            usage.extend(_claims(part))
    # Whatever uses a partition claims the whole disk with it, which says nothing more.
    return tuple(usage) or _claims(node)


def _usage_of(
    node: Path, mounts: tuple[sysfs.Mount, ...], swaps: frozenset[str], usage: list[Usage]
) -> bool:
    """Add what uses a device itself and what sits on it; return whether there is anything."""
    device = sysfs.familiar_path(node)
    number = sysfs.read_text(node / "dev")
    before = len(usage)
    usage.extend(
        Usage(UsageKind.MOUNT, device, mount.point, mount.read_only)
        for mount in mounts
        if mount.device == number or number in sysfs.btrfs_numbers(mount)
    )
    if number in swaps:
        usage.append(Usage(UsageKind.SWAP, device, "", read_only=False))
    for holder in sorted((node / "holders").iterdir()) if (node / "holders").is_dir() else ():
        above = (sysfs.BLOCK / holder.name).resolve()
        read_only = sysfs.read_text(above / "ro") == "1"
        usage.append(Usage(UsageKind.HOLDER, device, str(sysfs.familiar_path(above)), read_only))
        for layer in (above, *sysfs.partitions(above)):
            _usage_of(layer, mounts, swaps, usage)
    return len(usage) > before


def _claims(node: Path) -> tuple[Usage, ...]:
    """Return the users that sysfs does not show: the kernel refuses them exclusive use."""
    device = sysfs.device_path(node)
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return (Usage(UsageKind.CLAIMED, device, "", read_only=False),)
    return ()


def _file_usage(path: Path, fd: int) -> tuple[Usage, ...]:
    usage: list[Usage] = []
    for node in sorted(sysfs.BLOCK.glob("loop*")):
        backing = sysfs.read_text(node / "loop" / "backing_file")
        if backing and Path(backing) == path:
            read_only = sysfs.read_text(node / "ro") == "1"
            device = sysfs.device_path(node)
            usage.append(Usage(UsageKind.LOOP, path, str(device), read_only))
            usage.extend(_device_usage(node.resolve()))
    request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _QEMU_WRITE_LOCK, 1, 0)
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, request)
    except OSError:  # a filesystem without locks
        return tuple(usage)
    if _FLOCK.unpack(answer)[0] != fcntl.F_UNLCK:
        usage.append(Usage(UsageKind.VM, path, "", read_only=False))
    return tuple(usage)


def _collect(node: Path, found: set[Path]) -> None:
    """Add a device and all whole devices below it."""
    whole = node.parent if (node / "partition").exists() else node
    device = sysfs.device_path(whole)
    if device in found:
        return
    found.add(device)
    for below in (whole / "slaves").iterdir() if (whole / "slaves").is_dir() else ():
        _collect(below.resolve(), found)
    backing = sysfs.read_text(whole / "loop" / "backing_file")
    if backing and Path(backing).exists():
        _collect_path(Path(backing), found)


def _collect_path(path: Path, found: set[Path]) -> None:
    """Add the devices of the filesystem that a file or directory lies in."""
    number = path.stat().st_dev
    if os.major(number) != 0:
        _collect(sysfs.node_of(sysfs.number_of(number)), found)
        return
    mount = sysfs.mount_of(path)
    if mount is None:
        return
    for device in sysfs.btrfs_numbers(mount):
        _collect(sysfs.node_of(device), found)
    if mount.type == "overlay":
        for option in mount.options.split(","):
            key, _, value = option.partition("=")
            if key in {"upperdir", "lowerdir"}:
                for layer in value.split(":"):
                    if layer and Path(layer).exists():
                        _collect_path(Path(layer), found)
