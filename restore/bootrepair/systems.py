"""The restored systems, mounted for a short while as they mount themselves.

To look, all is mounted so that nothing is written, not even by the kernel for itself: read-only, the
log not replayed, and the device itself closed to writes.
"""

import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Final

from imager import process, sysfs
from imager.errors import ProgramError
from restore.attached import UNTOUCHED
from restore.bootrepair.devices import Device, Devices

MOUNTS: Final = Path("/run/remetal/system")

# Filesystems that a system may start from, and that it may have below its root.
_ROOTS: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs"})
_MOUNTED: Final = _ROOTS | {"vfat"}
# What a tool that rebuilds an initramfs reads and writes, beside the root.
_BELOW_ROOT: Final = ("/boot", "/efi", "/usr", "/var", "/opt", "/etc", "/lib")
_SUBVOLUME_INODE: Final = 256  # of the top folder of each subvolume of a btrfs
_MOST_LINKS: Final = 40
_FINDMNT_CODES: Final = (0, 1)  # 1 says that it found nothing
# kernel-install, which hooks call, would write the kernel command line of this system into boot loader
# entries of that one.
_ENVIRONMENT: Final = {"KERNEL_INSTALL_BYPASS": "1"}
# What a program says and its exit code, in one stream.
_SAYING_ALL: Final = '"$@" 2>&1; code=$?; echo; echo $code'


@dataclass(frozen=True, slots=True)
class System:
    """A restored system, mounted.

    Attributes:
        root: where.
        key: what tells it from others, also when it is mounted again.
        title: what it lies on, for people.
        disks: paths of the whole disks that its root and its /usr lie on.
        missing: mount points of its fstab that can't be mounted here, with the reason.
    """

    root: Path
    key: tuple[str, str]
    title: str
    disks: frozenset[Path]
    missing: tuple[tuple[str, str], ...]

    def inside(self, path: str | PurePosixPath) -> Path:
        """Return where a path of this system lies; see `inside`."""
        return inside(self.root, path)

    def run(self, *argv: str, timeout: float) -> tuple[int, str]:
        """Run a program of this system in it, as if it had been started; nothing stays behind.

        Args:
            argv: the program and its arguments.
            timeout: seconds.

        Returns:
            Its exit code, and all it said.

        Raises:
            ProgramError: it took too long, or could not be started.
        """
        with ExitStack() as stack:
            for source in ("dev", "sys", "run"):
                _mount(stack, self.inside(source), "--bind", f"/{source}")
            _mount(stack, self.inside("tmp"), "-t", "tmpfs", "tmp")
            text = process.run(
                "unshare", "--fork", "--pid", "--kill-child", "--mount-proc",
                f"--root={self.root}", "/bin/sh", "-c", _SAYING_ALL, "sh", *argv,
                env=_ENVIRONMENT | ({"TMPDIR": "/tmp"} if self.is_read_only else {}),  # noqa: S108  its own
                timeout=timeout,
            )  # fmt: skip
        said, _, code = text.rstrip("\n").rpartition("\n")
        return int(code), said.strip()

    @property
    def is_read_only(self) -> bool:
        """Whether it is mounted only to be looked at."""
        return bool(os.statvfs(self.root).f_flag & os.ST_RDONLY)


@dataclass(frozen=True, slots=True)
class _Line:
    source: str
    target: str
    options: str


def inside(root: Path, path: str | PurePosixPath) -> Path:
    """Return where a path of a system lies; links are followed as the system itself follows them.

    Raises:
        OSError: a link leads to itself.
    """
    pending = _parts(path)
    at = root
    links = 0
    while pending:
        part = pending.pop()
        if part == "..":
            at = at if at == root else at.parent
            continue
        step = at / part
        if not step.is_symlink():
            at = step
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(step))
        target = step.readlink()
        if target.is_absolute():
            at = root
        pending.extend(_parts(target))
    return at


def mount_systems(
    devices: Devices,
    stack: ExitStack,
    *,
    place: Path = MOUNTS,
    only: frozenset[tuple[str, str]] | None = None,
) -> Iterator[System]:
    """Yield the systems on some devices; all is unmounted when the stack unwinds.

    Args:
        devices: on the restored disks.
        stack: takes what has to be undone.
        place: folder for the mount points.
        only: keys of those that are mounted, and for writing; by default all, to look at.

    Raises:
        ProgramError: something is mounted and can't be unmounted.
    """
    mounter = _Mounter(devices, stack, writable=only is not None)
    place.mkdir(parents=True, exist_ok=True)
    for number, (device, options) in enumerate(_roots(devices, mounter, place)):
        key = (device.uuid, options)
        if only is None or key in only:
            root = place / str(number)
            root.mkdir(exist_ok=True)
            yield mounter.system(root, device, options, key)


def _roots(devices: Devices, mounter: "_Mounter", place: Path) -> list[tuple[Device, str]]:
    """Return each device with a root on it, and the options that choose it there."""
    looked_at: set[str] = set()
    found: list[tuple[Device, str]] = []
    for device in devices.all:
        if device.type in _ROOTS and device.uuid not in looked_at:
            looked_at.add(device.uuid)
            found.extend((device, options) for options in mounter.roots(device, place))
    return found


class _Mounter:
    """Mounts devices, to look or to write."""

    def __init__(self, devices: Devices, stack: ExitStack, *, writable: bool) -> None:
        self._devices = devices
        self._stack = stack
        self._writable = writable

    def roots(self, device: Device, place: Path) -> tuple[str, ...]:
        """Return the options with which a root is mounted from a device; none where none is."""
        try:
            with ExitStack() as stack:
                self._look(stack, device, "", place)
                if _is_root(place):
                    return ("",)
            if device.type != "btrfs":
                return ()
            with ExitStack() as stack:
                self._look(stack, device, "subvolid=5", place)
                return tuple(self._root_subvolumes(place))
        except ProgramError:
            return ()

    def _root_subvolumes(self, top: Path) -> Iterator[str]:
        """Yield the subvolumes that say of themselves that they are mounted as root."""
        for folder in sorted(top.iterdir()):
            if not folder.is_dir() or folder.stat().st_ino != _SUBVOLUME_INODE:
                continue
            for line in read_fstab(folder):
                named = _subvolume(line.options)
                if line.target == "/" and named.removeprefix("subvol=").strip("/") == folder.name:
                    yield f"subvol={folder.name}"

    def system(self, root: Path, device: Device, options: str, key: tuple[str, str]) -> System:
        """Mount a root, and what its fstab has below it."""
        self._mount(device, options, root)
        devices = [device]
        missing: list[tuple[str, str]] = []
        lines = [line for line in read_fstab(root) if _is_needed(line)]
        for line in sorted(lines, key=lambda line: len(PurePosixPath(line.target).parts)):
            found = self._devices.called(line.source)
            if found is None:
                missing.append((line.target, f"{line.source} is not on the restored disks"))
                continue
            if found.type not in _MOUNTED:
                missing.append((line.target, f"{found.path} holds {found.type or 'nothing'}"))
                continue
            try:
                self._mount(found, _subvolume(line.options), inside(root, line.target))
            except ProgramError as error:
                missing.append((line.target, error.message))
                continue
            if line.target == "/usr":
                devices.append(found)
        disks = frozenset(
            disk
            for each in devices
            for one in self._all_of(each)
            for disk in _disks_below(sysfs.node_at(one.path))
        )
        return System(root, key, f"{device.path} {options}".strip(), disks, tuple(missing))

    def _all_of(self, device: Device) -> Sequence[Device]:
        """Return all devices of a btrfs; any other filesystem has one."""
        if device.type != "btrfs":
            return (device,)
        return [each for each in self._devices.of_type("btrfs") if each.uuid == device.uuid]

    def _mount(self, device: Device, options: str, point: Path) -> None:
        if not self._writable:
            self._look(self._stack, device, options, point)
            return
        words = [word for word in ("rw", options, *self._companions(device)) if word]
        _mount(self._stack, point, "-t", device.type, "-o", ",".join(words), device.path)

    def _look(self, stack: ExitStack, device: Device, options: str, point: Path) -> None:
        for each in self._all_of(device):
            # ext4 deletes files that were open when the image was taken, also if mounted read-only.
            if sysfs.read_text(sysfs.node_at(each.path) / "ro") == "0":
                process.run("blockdev", "--setro", each.path)
                stack.callback(process.run, "blockdev", "--setrw", each.path)
        _, mode = UNTOUCHED[device.type]
        words = [word for word in (mode, options, *self._companions(device)) if word]
        _mount(stack, point, "-t", device.type, "-o", ",".join(words), device.path)

    def _companions(self, device: Device) -> Iterator[str]:
        """Yield the options that name all devices of a btrfs."""
        if device.type != "btrfs":
            return
        # The kernel may know devices of a stale copy by the same UUID; it has to forget them.
        process.run("btrfs", "device", "scan", "--forget", accept=(0, 1))
        yield from (f"device={each.path}" for each in self._all_of(device))


def read_fstab(root: Path) -> tuple[_Line, ...]:
    """Return what a system mounts, in the order of its fstab; nothing where it has none."""
    path = inside(root, "etc/fstab")
    if not path.is_file():
        return ()
    text = process.run(
        "findmnt", "--tab-file", path, "--json", "--list", "--output", "SOURCE,TARGET,OPTIONS",
        accept=_FINDMNT_CODES,
    )  # fmt: skip
    lines = json.loads(text)["filesystems"] if text.strip() else []
    return tuple(
        _Line(line["source"] or "", line["target"] or "", line["options"] or "") for line in lines
    )


def _mount(stack: ExitStack, point: Path, *words: str | Path) -> None:
    process.run("mount", *words, point)
    stack.callback(process.run, "umount", point)


def _is_root(place: Path) -> bool:
    # Where /usr is a filesystem of its own, what links lead to is not there yet.
    release = inside(place, "etc/os-release").is_file() or (place / "etc/os-release").is_symlink()
    return (release or inside(place, "etc/fstab").is_file()) and os.path.lexists(place / "usr")


def _is_needed(line: _Line) -> bool:
    options = line.options.split(",")
    is_device = line.source.startswith(("/dev/", "UUID=", "LABEL=", "PARTUUID=", "PARTLABEL="))
    target = PurePosixPath(line.target)
    return (
        is_device
        and "bind" not in options
        and any(target.is_relative_to(folder) for folder in _BELOW_ROOT)
    )


def _subvolume(options: str) -> str:
    """Return the option that chooses a subvolume, or an empty string."""
    chosen = [word for word in options.split(",") if word.startswith(("subvol=", "subvolid="))]
    return ",".join(chosen)


def _disks_below(node: Path) -> Iterator[Path]:
    """Yield the paths of the whole disks that a device lies on."""
    whole = node.parent if (node / "partition").exists() else node
    slaves = whole / "slaves"
    below = [slave.resolve() for slave in slaves.iterdir()] if slaves.is_dir() else []
    if not below:
        yield sysfs.device_path(whole)
    for each in below:
        yield from _disks_below(each)


def _parts(path: str | PurePath) -> list[str]:
    """Return the parts of a path, the last one first."""
    return [part for part in reversed(PurePosixPath(path).parts) if part != "/"]
