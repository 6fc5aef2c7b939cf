"""An XFS that is made anew, smaller or for larger sectors, since no program changes one.

It gets the format of the saved one (`xfs_db info`), so that the kernels and loaders that read that
can read this, its UUID and its label. The saved one is mounted out of the image, and GNU cp copies
every file with owner, mode, times, links, holes, extended attributes and ACLs. What cp leaves out,
flags and project ids, is added. Inode numbers are others.
"""

import fcntl
import filecmp
import os
import re
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from imager import process
from imager.errors import TargetTooSmall, VerificationFailed
from imager.units import MIB, format_duration, format_size
from restore.device import OpenTarget
from restore.device_mapper import linear
from restore.fit_steps import RemakeXfs
from restore.recreate.content import saved_content, saved_files, segments
from restore.recreate.filesystem import check
from restore.recreate.mounted import mounted
from restore.runs import Image

# <linux/fs.h>: FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR, of a struct fsxattr.
_GET_FLAGS: Final = 0x801C581F
_SET_FLAGS: Final = 0x401C5820
# Flags, extent size, extents, project, extent size of copies.
_FLAGS: Final = struct.Struct("=IIIII8x")
# What a person or program sets: immutable, append, sync, no atime, no dump, project inheritance, no
# symbolic links, extent size inheritance, no defragmentation, file streams, DAX.
_SETTABLE: Final = 0xF6F8
_HANDS_ON_SIZE: Final = 0x1000

# Of `xfs_db info`: what a section says, and by which option mkfs.xfs takes it.
_SECTION: Final = re.compile(r"^(meta-data|data|naming|log|realtime)\b")
_VALUE: Final = re.compile(r"([a-z][\w-]*)\s*=\s*(\d+)")
_FORMAT: Final = (
    ("meta-data", "crc", "-m", "crc"),
    ("meta-data", "finobt", "-m", "finobt"),
    ("meta-data", "rmapbt", "-m", "rmapbt"),
    ("meta-data", "reflink", "-m", "reflink"),
    ("meta-data", "bigtime", "-m", "bigtime"),
    ("meta-data", "inobtcount", "-m", "inobtcount"),
    ("meta-data", "isize", "-i", "size"),
    ("meta-data", "sparse", "-i", "sparse"),
    ("meta-data", "nrext64", "-i", "nrext64"),
    ("data", "bsize", "-b", "size"),
    ("naming", "bsize", "-n", "size"),
    ("naming", "ftype", "-n", "ftype"),
    ("log", "version", "-l", "version"),
)
# Without checksums these are not there, and naming them is an error.
_WITH_CHECKSUMS: Final = frozenset(
    {"finobt", "rmapbt", "reflink", "bigtime", "inobtcount", "sparse", "nrext64"}
)
_LEAST_ROOM: Final = 32 * MIB
_LOG_SHARE: Final = 8
_LEAST_LOG: Final = 64 * MIB
_SECTORS: Final = 512  # what st_blocks counts in
_LOOK: Final = 1.0  # seconds between two looks at how far it is
_TOLD: Final = 20  # times in all

Format = Mapping[tuple[str, str], int]


def check_remakable(step: RemakeXfs, image: Image) -> None:
    """Make sure, before anything is written, that all files have room.

    Every file is looked at, since files may share what they hold (reflinks), and copies don't.

    Raises:
        TargetTooSmall: they have not.
        ProgramError: the saved filesystem can't be mounted.
        ObjectDamaged, ObjectMissing: the repository can't give its metadata.
    """
    with _saved(step, image) as (old, shape):
        inode, log = shape["meta-data", "isize"], _log_size(shape, step.length)
        held = sum(found.st_blocks * _SECTORS + inode for _, found in _each(old))
    # What XFS keeps for itself, for trees that grow, is a few per cent.
    needed = held + held // 25 + log + _LEAST_ROOM
    if needed > step.length:
        raise TargetTooSmall(
            f"the files of {step.subject} need an XFS of {needed} bytes ({format_size(needed)}), and "
            f"there is room for one of {step.length} ({format_size(step.length)})",
            hint="Use a larger disk; nothing was written.",
        )


def remake(
    step: RemakeXfs, image: Image, opened: OpenTarget, tell: Callable[[str], None]
) -> tuple[str, ...]:
    """Make an XFS anew, fill it, and look whether all is there.

    Args:
        step: what and where.
        image: has the saved one.
        opened: the target.
        tell: told now and then how far it is.

    Returns:
        What a person must know.

    Raises:
        ProgramError: it can't be made, mounted or filled.
        VerificationFailed: a file is not what it was.
        ObjectDamaged, ObjectMissing: the repository can't give a file.
    """
    # Lent first: udev does not look at a disk that is locked, and would be waited for.
    with opened.lend() as device, _saved(step, image) as (old, shape):
        places = segments(step, device)
        with linear(step.volume, places) as place:
            process.run("mkfs.xfs", "-q", "-f", "-K", *_words(step, shape), place)
            with (
                mounted("xfs", place, "nouuid") as new,
                watched(step.subject, old, new, tell),
            ):
                left = copy_files(old, new)
        what = "all files, byte by byte" if step.compares else "what is known of all files"
        tell(f"{step.subject}: it is checked, and {what} compared ...")
        check(step, places)
        with (
            linear(step.volume, places, read_only=True) as place,
            mounted("xfs", place, "ro,norecovery,nouuid") as new,
        ):
            number = compare_files(old, new, step.subject, contents=step.compares)
    return (f"it is a new XFS with {number} files and folders", *left)


@contextmanager
def _saved(step: RemakeXfs, image: Image) -> Iterator[tuple[Path, Format]]:
    """Mount the saved filesystem; yield where, and its format. Its log is replayed in memory.

    Raises:
        ObjectDamaged, ObjectMissing: the repository could not give what was read.
    """
    content = saved_content(step, image)
    with saved_files(step, content, step.saved_sector, "xfs", "nouuid") as (device, place):
        yield place, format_of(process.run("xfs_db", "-r", "-c", "info", device))


def format_of(text: str) -> Format:
    """Return the numbers that `xfs_db info` says, by section and name."""
    found: dict[tuple[str, str], int] = {}
    section = ""
    for line in text.splitlines():
        begins = _SECTION.match(line)
        section = begins[1] if begins else section
        for name, value in _VALUE.findall(line):
            found.setdefault((section, name), int(value))
    return found


def mkfs_words(shape: Format, length: int, sector: int) -> Iterator[str]:
    """Yield the words with which mkfs.xfs makes a filesystem of a format.

    Args:
        shape: of the saved one.
        length: bytes of the new one.
        sector: bytes of a logical sector of the target.
    """
    has_checksums = bool(shape.get(("meta-data", "crc")))
    for section, name, option, word in _FORMAT:
        if (section, name) not in shape or (name in _WITH_CHECKSUMS and not has_checksums):
            continue
        yield from (option, f"{word}={shape[section, name]}")
    yield from ("-s", f"size={max(shape['meta-data', 'sectsz'], sector)}")
    yield from ("-l", f"size={_log_size(shape, length)}")


def _log_size(shape: Format, length: int) -> int:
    """Return the bytes of the saved log, or what lies within one of the few allocation groups."""
    saved = shape["log", "blocks"] * shape["data", "bsize"]
    return min(saved, max(length // _LOG_SHARE // MIB * MIB, _LEAST_LOG))


def _words(step: RemakeXfs, shape: Format) -> Iterator[str]:
    yield from mkfs_words(shape, step.length, step.target.logical_sector)
    if step.uuid is not None:
        yield from ("-m", f"uuid={step.uuid}")
    if step.label is not None:
        yield from ("-L", step.label)


def _each(top: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield everything below a folder and itself, what is in a folder before it, each inode once."""
    linked: set[int] = set()
    for folder, _, _ in os.walk(top, topdown=False):
        with os.scandir(folder) as entries:
            inside = [entry.path for entry in entries if not entry.is_dir(follow_symlinks=False)]
        for path in (*inside, folder):
            found = os.lstat(path)
            if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
                if found.st_ino in linked:
                    continue
                linked.add(found.st_ino)
            yield Path(path), found


@contextmanager
def watched(subject: str, old: Path, new: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Tell now and then, while the body runs, how far one filesystem is as full as another.

    Args:
        subject: what it is, for people.
        old: where the full one is mounted.
        new: where the one is that fills.
        tell: called from another thread.
    """
    total = max(_used(old) - _used(new), 1)
    started, empty = time.monotonic(), _used(new)
    ended = threading.Event()

    def watch() -> None:
        told = 0
        while not ended.wait(_LOOK):  # a filesystem that gets full makes no event
            copied = _used(new) - empty
            if copied * _TOLD >= total * (told + 1) and copied < total:
                told = copied * _TOLD // total
                rate = copied / (time.monotonic() - started)
                tell(
                    f"files of {subject}: about {100 * copied // total} % of {format_size(total)}, "
                    f"{format_size(int(rate))}/s, {format_duration((total - copied) / rate)} left"
                )

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _used(place: Path) -> int:
    found = os.statvfs(place)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def copy_files(old: Path, new: Path) -> tuple[str, ...]:
    """Copy all files of an XFS with all that is known of them, and return what could not be kept.

    Args:
        old: where it is mounted.
        new: where an empty one is.

    Raises:
        ProgramError: a file can't be copied.
    """
    process.run("cp", "--archive", f"{old}/.", new)
    failed = 0
    for path, found in _each(old):
        if not _has_flags(found):
            continue
        copy = new / path.relative_to(old)
        try:
            _set_flags(copy, _flags(path))
        except OSError:
            failed += 1
    return (f"flags of {failed} files could not be kept",) if failed else ()


def _has_flags(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)


def _flags(path: Path) -> tuple[int, int, int]:
    """Return the flags of a file, its extent size as far as folders hand it on, and its project."""
    flags, size, _, project, _ = _FLAGS.unpack(_control(path, _GET_FLAGS, bytes(_FLAGS.size)))
    return flags & _SETTABLE, size if flags & _HANDS_ON_SIZE else 0, project


def _set_flags(path: Path, wanted: tuple[int, int, int]) -> None:
    if wanted == (0, 0, 0):
        return
    flags, size, project = wanted
    held, _, extents, _, copies = _FLAGS.unpack(_control(path, _GET_FLAGS, bytes(_FLAGS.size)))
    new = _FLAGS.pack(held & ~_SETTABLE | flags, size, extents, project, copies)
    _control(path, _SET_FLAGS, new)


def _control(path: Path, request: int, value: bytes) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return fcntl.ioctl(descriptor, request, value)
    finally:
        os.close(descriptor)


def compare_files(old: Path, new: Path, subject: str, *, contents: bool) -> int:
    """Compare all files of two filesystems, and return how many there are, folders included.

    Args:
        old: where the one is mounted.
        new: where the other one is.
        subject: what it is, for the error.
        contents: of the files, too, and not only what is known of them.

    Raises:
        VerificationFailed: they are not the same.
    """
    number = 0
    for path, found in _each(old):
        name = path.relative_to(old)
        try:
            is_same = _said(path, found) == _said(new / name, os.lstat(new / name))
        except FileNotFoundError:
            is_same = False
        if is_same and contents and stat.S_ISREG(found.st_mode):
            is_same = filecmp.cmp(path, new / name, shallow=False)
        if not is_same:
            raise VerificationFailed(f"{subject}: {name} is not what it was")
        number += 1
    if number != sum(1 for _ in _each(new)):
        raise VerificationFailed(f"{subject}: there is more than there was")
    return number


def _said(path: Path, found: os.stat_result) -> tuple[object, ...]:
    """Return all that is known of a file but its content; a folder has the size that it needs."""
    names = sorted(os.listxattr(path, follow_symlinks=False))
    attributes = [(name, os.getxattr(path, name, follow_symlinks=False)) for name in names]
    is_folder = stat.S_ISDIR(found.st_mode)
    return (
        *(found.st_mode, found.st_uid, found.st_gid, found.st_rdev, found.st_mtime_ns, attributes),
        None if is_folder else (found.st_size, found.st_nlink),
        path.readlink() if stat.S_ISLNK(found.st_mode) else None,
        _flags(path) if _has_flags(found) else None,
    )
