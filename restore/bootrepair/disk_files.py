"""Files of a restored system, or of its initramfs, that call a disk by a name.

A name is replaced only where it says *which* disk is meant, and only if it means another one now or
none (`DiskNames.lost`). Every other byte stays.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Final

from restore.bootrepair.disk_names import DiskNames
from restore.bootrepair.settings import COMMENTS, LARGEST, files_below, without_comments
from restore.bootrepair.systems import inside

_FSTAB: Final = re.compile(r"^[ \t]*(?P<name>/dev/[^\s#]+)(?=[ \t])", re.MULTILINE)
_CRYPTTAB: Final = re.compile(r"^[ \t]*[^\s#]+[ \t]+(?P<name>/dev/\S+)", re.MULTILINE)
_RESUME: Final = re.compile(
    r"""^[ \t]*(?:export[ \t]+)?(?:RESUME|resume|ROOT)=["']?(?P<name>/dev/[^\s"'#]+)""",
    re.MULTILINE,
)
_KERNEL: Final = re.compile(
    r"""(?<![\w.])(?:root|real_root|resume|cryptdevice)=(?P<name>/dev/[^\s"'\\,;}:]+)"""
)
_DEVICE: Final = re.compile(r"^[ \t]*DEVICE[ \t]+(?P<words>.*)$", re.MULTILINE | re.IGNORECASE)
_DEVICES: Final = re.compile(r"[ \t]+devices=(?P<names>\S+)", re.IGNORECASE)
_ALL_DEVICES: Final = "DEVICE partitions containers"
_HINTS: Final = ("/etc/lvm/archive", "/etc/lvm/backup")  # where LVM notes names that nobody goes by


@dataclass(frozen=True, slots=True)
class Change:
    """What a text becomes.

    Attributes:
        after: all of it.
        done: what was replaced and by what, in words.
        left: names that have changed, and nothing lasting takes their place.
    """

    after: str
    done: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Edit:
    """A file that has to change.

    Attributes:
        path: in its system.
        change: its content, read as Latin-1 so that each byte has a character of its own.
    """

    path: PurePosixPath
    change: Change


def find_edits(root: Path, names: DiskNames, *, has_initramfs: bool) -> Iterator[Edit]:
    """Yield the files of a system that call a disk by a name that has changed.

    Args:
        root: of the system.
        names: of its disks.
        has_initramfs: a kernel's root is found by one, and not by the kernel alone.

    Raises:
        OSError: a file can't be read.
    """
    seen: set[Path] = set()
    for kind in _KINDS:
        for path in kind.files_in(root):
            real = inside(root, path)
            if real in seen or not real.is_file() or real.stat().st_size > LARGEST:
                continue
            seen.add(real)
            by_kernel = kind.is_for_kernel and not has_initramfs
            change = kind.rename(real.read_bytes().decode("latin-1"), names, by_kernel)
            if change.done or change.left:
                yield Edit(path, change)


def is_early(name: str) -> bool:
    """Return whether a file of this name in an initramfs may call a disk by a name."""
    return _early_kind(name) is not None


def renamed_early(files: Iterable[tuple[str, bytes]], names: DiskNames) -> tuple[str, ...]:
    """Return what files of an initramfs call disks by names that have changed, in words.

    Args:
        files: name and content of those that `is_early` chooses.
        names: of the disks.
    """
    found: list[str] = []
    for name, data in files:
        kind = _early_kind(name)
        if kind is not None:
            found += kind.rename(data.decode("latin-1"), names, False).done
    return tuple(dict.fromkeys(found))


def mentions(root: Path, marks: Iterable[str]) -> Iterator[tuple[PurePosixPath, str]]:
    """Yield each file below /etc in which, outside of comments, an old disk is still named.

    Args:
        root: of the system.
        marks: `DiskNames.marks`.
    """
    words = {
        mark: re.compile(rf"(?<![\w./-]){re.escape(mark)}(?:p?\d+)?(?![\w-])")
        if mark.startswith("/dev/")
        else re.compile(re.escape(mark), re.IGNORECASE)
        for mark in marks
    }
    for path, file in files_below(root, "etc"):
        if any(path.is_relative_to(folder) for folder in _HINTS):
            continue
        text = without_comments(file.read_text("latin-1"))
        for mark, word in words.items():
            if word.search(text):
                yield path, mark


@dataclass(frozen=True, slots=True)
class _Kind:
    """Files of one form.

    Attributes:
        files: folder in a system and pattern of a name.
        rename: text, names of disks, and whether the kernel itself must find them → the new text.
        early: patterns of such files in an initramfs.
        is_for_kernel: its names are read by a kernel.
    """

    files: tuple[tuple[str, str], ...]
    rename: Callable[[str, DiskNames, bool], Change]
    early: tuple[str, ...] = ()
    is_for_kernel: bool = False

    def files_in(self, root: Path) -> Iterator[PurePosixPath]:
        """Yield the paths of those that a system has."""
        for folder, pattern in self.files:
            real = inside(root, folder)
            for found in sorted(real.glob(pattern)) if real.is_dir() else ():
                yield PurePosixPath("/", folder, found.relative_to(real))


def _named(
    pattern: re.Pattern[str], form: Callable[[str], str] = str, only: str | None = None
) -> Callable[..., Change]:
    """Return what replaces the names that a pattern finds.

    Args:
        pattern: with a group `name`.
        form: how `UUID=…` or `PARTUUID=…` is written there.
        only: the type of content whose UUID stays; None for any.
    """

    def rename(text: str, names: DiskNames, by_kernel: bool) -> Change:
        parts: list[str] = []
        done: list[str] = []
        left: list[str] = []
        at = 0
        for match in pattern.finditer(text):
            old = match["name"]
            device = names.lost(old)
            if device is None or _is_comment(text, match.start()):
                continue
            as_partition = by_kernel or (only is not None and device.type != only)
            lasting = names.lasting(device, as_partition=as_partition)
            if lasting is None:
                left.append(old)
                continue
            new = form(lasting)
            parts += [text[at : match.start("name")], new]
            at = match.end("name")
            done.append(f"{old} is {new} now")
        return Change(
            "".join((*parts, text[at:])), tuple(dict.fromkeys(done)), tuple(dict.fromkeys(left))
        )

    return rename


def _is_comment(text: str, at: int) -> bool:
    line = text[text.rfind("\n", 0, at) + 1 : at]
    return line.lstrip().startswith(COMMENTS)


def _by_path(lasting: str) -> str:
    """Return a path where only that is understood everywhere."""
    tag, _, value = lasting.partition("=")
    return lasting if tag == "UUID" else f"/dev/disk/by-partuuid/{value}"


def _in_mdadm(text: str, names: DiskNames, _: bool) -> Change:
    """Let mdadm look at every device where it looked at those of old; arrays have UUIDs."""
    members = [str(device.path) for device in names.devices.of_type("linux_raid_member")]
    done: list[str] = []
    left: list[str] = []

    def every_device(match: re.Match[str]) -> str:
        words = match["words"].split()
        is_open = {"partitions", "containers"} & set(words)
        if is_open or all(any(fnmatchcase(path, word) for word in words) for path in members):
            return match[0]
        done.append(f"{match[0].strip()} is {_ALL_DEVICES} now")
        return _ALL_DEVICES

    def without_devices(line: str) -> str:
        match = _DEVICES.search(line)
        if match is None or not any(map(names.lost, match["names"].split(","))):
            return line
        if "uuid=" not in line.lower():
            left.append(match["names"])
            return line
        done.append(f"{match[0].strip()} is left out")
        return line[: match.start()] + line[match.end() :]

    lines = (
        line if line.lstrip().startswith(COMMENTS) else without_devices(line)
        for line in _DEVICE.sub(every_device, text).splitlines(keepends=True)
    )
    return Change("".join(lines), tuple(done), tuple(left))


def _early_kind(name: str) -> _Kind | None:
    path = PurePosixPath(name)
    return next((kind for kind in _KINDS if any(map(path.match, kind.early))), None)


_KINDS: Final = (
    _Kind((("etc", "fstab"),), _named(_FSTAB)),
    _Kind(
        (("etc", "crypttab"),),
        # What is seen on a swap with a key of chance is gone with the next start.
        _named(_CRYPTTAB, _by_path, "crypto_LUKS"),
        ("cryptroot/crypttab", "etc/crypttab"),
    ),
    _Kind(
        (("etc/initramfs-tools", "conf.d/*"), ("etc/initramfs-tools", "initramfs.conf")),
        _named(_RESUME),
        ("conf/conf.d/*", "conf/initramfs.conf", "conf/param.conf"),
    ),
    _Kind(
        (("etc/mdadm", "mdadm.conf"), ("etc", "mdadm.conf")),
        _in_mdadm,
        ("etc/mdadm/mdadm.conf", "etc/mdadm.conf"),
    ),
    _Kind(
        (
            ("boot", "grub/grub.cfg"),
            ("boot", "grub2/grub.cfg"),
            ("boot", "grub/menu.lst"),
            ("boot", "extlinux/extlinux.conf"),
            ("boot", "syslinux/*.cfg"),
            *((place, "loader/entries/*.conf") for place in ("boot", "efi", "boot/efi")),
            ("boot/efi/EFI", "*/grub.cfg"),
            ("etc/default", "grub"),
            ("etc/default", "grub.d/*.cfg"),
            ("etc/default", "extlinux"),
            ("etc/kernel", "cmdline"),
        ),
        _named(_KERNEL),
        ("etc/cmdline.d/*.conf",),
        is_for_kernel=True,
    ),
)
