"""The disks a capture reads: opened read-only, and refused when they can change meanwhile."""

import errno
import fcntl
import json
import os
import re
import socket
import stat
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from imager import blockdev, process, sysfs
from imager.blockdev import BlockDisk, UsageKind, WriteMark
from imager.capture.qcow2 import Layer, is_qcow2, read_chain
from imager.errors import (
    NoSuchDisk,
    ProgramError,
    ProgramMissing,
    SourceError,
    SourceInUse,
    UsageError,
)
from imager.probe.filesystem import read_signature
from imager.probe.machine import ProbeSource

_OFFLINE: Final = (
    "Boot the rescue medium on this machine and capture from there, "
    "or capture the disk file of a virtual machine that is stopped."
)
# Where the other formats of disk files have their marks.
_FOREIGN: Final = {
    (0, b"KDMV"): "VMDK",
    (0, b"# Disk DescriptorFile"): "VMDK",
    (0, b"vhdxfile"): "VHDX",
    (0, b"conectix"): "VHD",
    (64, b"\x7f\x10\xda\xbe"): "VDI",
}
# Whoever wants to write to an image tests byte 200 + 1 for a lock of those who do not share
# writing (QEMU, block/file-posix.c): holding it keeps a virtual machine from starting meanwhile.
_QEMU_NO_WRITERS: Final = 201
_BLKFLSBUF: Final = 0x1261  # <linux/fs.h>
_FLOCK: Final = struct.Struct("hhqqi4x")
_DAEMON: Final = "qemu-storage-daemon"
_NOT_FOUND: Final = 127  # setpriv's exit code when there is no such program
_DEVICE: Final = re.compile(r"/dev/([sv]d[a-z]+|nvme\d+n\d+|mmcblk\d+|xvd[a-z]+)")
_START_TIMEOUT: Final = 30.0
_STOP_TIMEOUT: Final = 30.0


def default_disks(repository: Sequence[Path]) -> tuple[Path, ...]:
    """Return every disk of this machine except those that hold the repository.

    Optical images on sticks (such as the rescue medium itself) are no disks of the machine.

    Args:
        repository: the directories of the repository, if it lies on this machine.

    Raises:
        NoSuchDisk: none is left.
    """
    excluded = {disk for folder in repository for disk in blockdev.disks_under(folder)}
    found = [disk for disk in blockdev.list_disks() if disk.path not in excluded]
    chosen = tuple(disk.path for disk in found if not _is_optical(disk))
    if not chosen:
        kept = ", ".join(str(path) for path in sorted(excluded))
        raise NoSuchDisk(
            "this machine has no disk to capture"
            + (f" besides the one that holds the repository ({kept})" if kept else ""),
            hint="Give disks or disk files with --disk, or keep the repository elsewhere.",
        )
    return chosen


@contextmanager
def open_sources(paths: Sequence[Path]) -> Iterator[tuple[ProbeSource, ...]]:
    """Open several disks or disk files as `open_source` does, all or none.

    Raises:
        UsageError: the same disk twice.
        SourceError: as `open_source`.
    """
    seen: dict[Path, Path] = {}
    for path in paths:
        resolved = path.resolve()
        if resolved in seen:
            raise UsageError(f"{seen[resolved]} and {path} are the same disk")
        seen[resolved] = path
    with ExitStack() as stack:
        yield tuple(stack.enter_context(open_source(path)) for path in paths)


@contextmanager
def open_source(path: Path) -> Iterator[ProbeSource]:
    """Open a block device, a raw file or a qcow2 file as something that reads like a disk.

    The source is only ever opened for reading. While it is open, a disk that nobody uses is
    claimed, so that nothing on it can be mounted, and a disk file is locked against virtual
    machines that would write to it. A qcow2 file (known by its first bytes, never guessed
    otherwise) appears as a raw file that a `qemu-storage-daemon` serves; it must be entered in a
    thread that outlives it, since the daemon ends with that thread.

    Raises:
        NoSuchDisk: nothing there, or a partition.
        SourceInUse: something can write to it.
        TruncatedSource: a qcow2 file is cut off, or a file is empty.
        SourceError: a disk file of a kind or state that can't be read.
        ProgramMissing: QEMU's tools are needed and not installed.
    """
    disk = blockdev.identify(path)
    _refuse_writers(disk)
    with ExitStack() as stack:
        fd = stack.enter_context(blockdev.open_disk(disk.path))
        if disk.is_device:
            _drop_cache(fd, disk.path)
            if not disk.usage:
                stack.enter_context(_claimed(disk.path))
            yield ProbeSource(
                path=disk.path,
                origin=str(path.absolute()),
                identity=disk.identity,
                of_this_machine=blockdev.is_machine_disk(disk.path),
                marks=(blockdev.write_mark(disk.path),),
            )
            return
        if disk.identity.size == 0:
            raise SourceError(f"{path} is empty", hint="Check the name; no image was made.")
        _refuse_foreign(fd, path)
        if is_qcow2(fd):
            layers = read_chain(disk.path)
            files = tuple(layer.path for layer in layers)
            raw = stack.enter_context(_exported(layers))
            identity = blockdev.identify(raw).identity
        else:
            _lock(fd, path)
            files = (disk.path,)
            raw, identity = disk.path, disk.identity
        yield ProbeSource(
            path=raw,
            origin=str(path.absolute()),
            identity=identity,
            of_this_machine=False,
            marks=tuple(map(blockdev.write_mark, files)),
        )


def with_serials(sources: Sequence[ProbeSource], serials: Sequence[str]) -> tuple[ProbeSource, ...]:
    """Return sources with the serial numbers that a person gave their disk files.

    A file has none by itself, and without one equal disks can't be told apart at a restore.

    Args:
        sources: that are open.
        serials: each as DISK=SERIAL.

    Raises:
        UsageError: not of this form, of a disk that is not captured, or of one that has its own.
    """
    known = list(sources)
    for number, disk, serial in _of_files("--serial", "SERIAL", "WD-1234", sources, serials):
        if known[number].identity.serial is not None:
            raise UsageError(f"--serial is for disk files, each once: {disk} has a serial number")
        identity = replace(known[number].identity, serial=serial)
        known[number] = replace(known[number], identity=identity)
    return tuple(known)


def with_devices(sources: Sequence[ProbeSource], devices: Sequence[str]) -> tuple[ProbeSource, ...]:
    """Return sources with disk files called what their machine calls these disks.

    Where its files speak of a disk by such a name, a restore knows which one that is.

    Args:
        sources: that are open.
        devices: each as DISK=DEVICE.

    Raises:
        UsageError: not of this form, of a disk that is not captured, or of one that is a device.
    """
    known = list(sources)
    for number, disk, device in _of_files("--device", "DEVICE", "/dev/vda", sources, devices):
        if not _DEVICE.fullmatch(device):
            raise UsageError(
                f"--device {disk}={device} names no whole disk as a kernel does",
                hint="For example: /dev/sda, /dev/vda, /dev/nvme0n1",
            )
        if device in {each.origin for each in known}:
            raise UsageError(f"--device names {disk} or {device} twice")
        known[number] = replace(known[number], origin=device)
    return tuple(known)


def _of_files(
    option: str, what: str, example: str, sources: Sequence[ProbeSource], values: Sequence[str]
) -> Iterator[tuple[int, str, str]]:
    """Yield, of each DISK=VALUE, the number of the source, which must be a file, and both words."""
    places = {Path(source.origin).resolve(): number for number, source in enumerate(sources)}
    for value in values:
        disk, _, given = value.rpartition("=")
        number = places.get(Path(disk).resolve())
        if not disk or not given:
            raise UsageError(
                f"{option} {value} is not of the form DISK={what}",
                hint=f"For example: {option} /var/lib/vm/web1.qcow2={example}",
            )
        if number is None:
            raise UsageError(f"{option} names {disk}, which is none of the captured disks")
        if sources[number].path.is_block_device():
            raise UsageError(f"{option} is for disk files, and {disk} is a device")
        yield number, disk, given


def check_unwritten(marks: Iterable[WriteMark]) -> None:
    """Make sure that nothing was written to sources since their marks were taken.

    A disk with a partition that is mounted read-only can't be claimed: somebody may have mounted
    it for writing meanwhile.

    Raises:
        SourceInUse: something was written.
    """
    for mark in marks:
        if blockdev.write_mark(mark.path) != mark:
            raise SourceInUse(
                f"{mark.path} was written to while it was read; no image was made",
                hint="Find out what writes to it, stop that, and capture again. " + _OFFLINE,
            )


def _drop_cache(fd: int, device: Path) -> None:
    """Let reads come from the disk itself, and let it hold what was written to it before.

    The kernel caches a disk and each partition apart. While a partition is mounted, read-only too,
    what was read of the disk earlier stays, and would hide what was written to another partition;
    and what was written to a partition may wait in its cache for half a minute.
    """
    try:
        for node in sysfs.partitions(sysfs.node_at(device)):
            with blockdev.open_disk(sysfs.device_path(node)) as partition:
                fcntl.ioctl(partition, _BLKFLSBUF)
        fcntl.ioctl(fd, _BLKFLSBUF)
    except OSError as error:
        raise SourceError(
            f"{device} may be read from an old cache: {error.strerror}", hint="Run this as root."
        ) from error


def _is_optical(disk: BlockDisk) -> bool:
    found = read_signature(disk.path, 0, disk.identity.size).filesystem
    return found is not None and found.type == "iso9660"


def _refuse_writers(disk: BlockDisk) -> None:
    writers = [usage for usage in disk.usage if not usage.read_only]
    if not writers:
        return
    # Of a stack of layers the mount at the top says best what is going on.
    best = next((usage for usage in writers if usage.kind is UsageKind.MOUNT), writers[0])
    raise SourceInUse(f"{disk.path} is in use: {best}", hint=_way_out(best.kind, best.where))


def _way_out(kind: UsageKind, where: str) -> str:
    match kind:
        case UsageKind.MOUNT:
            return (
                f"{_OFFLINE} A disk the system does not need can also be unmounted "
                f"(`umount {where}`) or mounted read-only."
            )
        case UsageKind.SWAP:
            return f"{_OFFLINE} Swap can also be switched off with `swapoff -a`."
        case UsageKind.HOLDER:
            return (
                f"{_OFFLINE} What is built on it can also be stopped: `vgchange -an` for LVM, "
                "`cryptsetup close` for LUKS, `mdadm --stop` for md."
            )
        case UsageKind.LOOP:
            return f"Detach it with `losetup -d {where}`, then run this again."
        case UsageKind.VM:
            return "Stop the virtual machine first, then run this again."
        case UsageKind.CLAIMED:
            return _OFFLINE


def _refuse_foreign(fd: int, path: Path) -> None:
    start = blockdev.read_at(fd, 0, min(512, blockdev.size_of(fd)))
    for (offset, magic), name in _FOREIGN.items():
        if start.startswith(magic, offset):
            raise SourceError(
                f"{path} is a {name} file, which can't be read here",
                hint=f"Convert it first: `qemu-img convert -O qcow2 {path} DISK.qcow2`.",
            )


@contextmanager
def _claimed(device: Path) -> Iterator[None]:
    """Hold a device so that the kernel lets nobody mount it or build on it meanwhile."""
    try:
        fd = os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise SourceInUse(f"{device} has just been taken into use", hint=_OFFLINE) from error
        raise SourceError(f"{device} can't be opened: {error.strerror}") from error
    try:
        yield
    finally:
        os.close(fd)


def _lock(fd: int, path: Path) -> None:
    """Keep virtual machines from writing to a raw file as long as it is open."""
    request = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, _QEMU_NO_WRITERS, 1, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, request)
    except OSError as error:
        if error.errno in {errno.EAGAIN, errno.EACCES}:
            raise SourceInUse(
                f"{path} is in use by a virtual machine", hint=_way_out(UsageKind.VM, "")
            ) from error
        # A filesystem without locks (some network ones): QEMU goes without them there, too.


@contextmanager
def _exported(layers: Sequence[Layer]) -> Iterator[Path]:
    """Serve a chain of disk files as one raw file, by QEMU through FUSE; yield its path."""
    if not stat.S_ISCHR(_mode(Path("/dev/fuse"))):
        raise SourceError(
            f"{layers[0].path} can't be served: this kernel has no /dev/fuse",
            hint="Load it with `modprobe fuse`, or convert the file with `qemu-img convert -O raw`.",
        )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="remetal-")))
        mount_point = folder / layers[0].path.name
        mount_point.touch(mode=0o600)
        ours, theirs = socket.socketpair()
        stack.enter_context(ours)
        log = stack.enter_context(tempfile.TemporaryFile())
        arguments = _daemon_arguments(layers, mount_point, theirs.fileno())
        with theirs:
            daemon = process.start(*arguments, stderr=log, pass_fds=(theirs.fileno(),))
        stack.callback(_stop, daemon)
        # The monitor is the last thing the daemon sets up, and greets when all is ready.
        ours.settimeout(_START_TIMEOUT)
        greeting = b""
        with suppress(OSError):
            greeting = ours.recv(1)
        if not greeting:
            _stop(daemon)
            log.seek(0)
            problem = log.read().decode(errors="replace")
            if "lock" in problem:
                raise SourceInUse(
                    f"{layers[0].path} is in use by another program",
                    hint=_way_out(UsageKind.VM, ""),
                )
            if daemon.returncode == _NOT_FOUND:
                raise ProgramMissing((_DAEMON,))
            raise ProgramError(
                arguments,
                daemon.returncode,
                problem,
                hint="Run this as root, or convert the file first: `qemu-img convert -O raw`.",
            )
        yield mount_point


def _daemon_arguments(layers: Sequence[Layer], mount_point: Path, monitor: int) -> tuple[str, ...]:
    # setpriv: if this process is killed, the kernel ends the daemon, which unmounts its file.
    arguments = ["setpriv", "--pdeathsig", "TERM", _DAEMON]
    for index in reversed(range(len(layers))):
        layer = layers[index]
        # Every layer is named with its format, so that QEMU opens nothing it finds by itself.
        nodes: list[dict[str, object]] = [
            {"driver": "file", "node-name": f"file{index}", "filename": str(layer.path)},
            {"driver": layer.driver, "node-name": f"disk{index}", "file": f"file{index}"},
        ]
        if layer.driver == "qcow2":
            is_last = index == len(layers) - 1
            nodes[1]["backing"] = None if is_last else f"disk{index + 1}"
        for node in nodes:
            arguments += ["--blockdev", json.dumps({**node, "read-only": True})]
    export = {
        "type": "fuse",
        "id": "export",
        "node-name": "disk0",
        "mountpoint": str(mount_point),
        "writable": False,
        "allow-other": "off",
    }
    arguments += ["--export", json.dumps(export)]
    arguments += ["--chardev", f"socket,id=monitor,fd={monitor}", "--monitor", "chardev=monitor"]
    return tuple(arguments)


def _stop(daemon: subprocess.Popen[bytes]) -> None:
    """End the daemon; it takes its mount away with it."""
    if daemon.poll() is not None:
        return
    daemon.terminate()
    try:
        daemon.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except OSError:
        return 0
