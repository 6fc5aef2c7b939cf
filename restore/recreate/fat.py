"""A FAT that is made anew, since it counts in sectors that are not the disk's any more.

The saved one is mounted out of the image, the new one on the target, and every file is copied: name,
content, time, attributes (hidden, system, archive, read-only) and place in its folder. Short names of
the form REPORT~1.TXT are chosen anew by the kernel.
"""

import fcntl
import filecmp
import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imager import process
from imager.errors import ProgramError, TargetTooSmall, VerificationFailed
from imager.units import format_size
from restore.device import OpenTarget
from restore.device_mapper import linear
from restore.fit_steps import RemakeFat
from restore.recreate.content import saved_content, saved_files, segments
from restore.recreate.mounted import mounted
from restore.runs import EDGE, Image

# <linux/msdos_fs.h>: FAT_IOCTL_GET_ATTRIBUTES and FAT_IOCTL_SET_ATTRIBUTES, of a __u32.
_GET_ATTRIBUTES: Final = 0x80047210
_SET_ATTRIBUTES: Final = 0x40047211

# Clusters that decide how many bits each has ("FAT: General Overview of On-Disk Format", 1.03).
_LEAST_32: Final = 65525
_LEAST_16: Final = 4085
_MOST_32: Final = (1 << 28) - 16
_ENTRY: Final = 32  # bytes of a folder; a long name takes one more for each 13 characters
_NAME_PART: Final = 13
_ROOT_ENTRIES: Final = 512  # of FAT12 and FAT16
_RESERVED: Final = {32: 32, 16: 1, 12: 1}  # sectors before the tables, as mkfs.fat has them

_OPTIONS: Final = "utf8=1,tz=UTC,quiet"
# Of a boot sector: bytes of a sector, sectors of a cluster.
_UNITS: Final = struct.Struct("<HB")
_UNITS_AT: Final = 11


@dataclass(frozen=True, slots=True)
class Shape:
    """What a FAT is made with.

    Attributes:
        bits: of the number of a cluster: 12, 16 or 32.
        cluster: bytes.
        clusters: how many there are at least.
    """

    bits: int
    cluster: int
    clusters: int


def shape_of(length: int, sector: int, cluster: int) -> Shape:
    """Return what a FAT is made with.

    Args:
        length: bytes of its volume.
        sector: bytes of a sector.
        cluster: bytes that one had before; it gets larger where sectors are, or where there would be
            too many for fewer bits and too few for more.
    """
    cluster = max(cluster, sector)
    # Drivers go by the count of clusters, so none may lie where it could be taken for the other kind.
    while True:
        most = length // cluster
        for bits, least, limit in (
            (32, _LEAST_32, _MOST_32),
            (16, _LEAST_16, _LEAST_32),
            (12, 0, _LEAST_16),
        ):
            count = _clusters(length, sector, cluster, bits)
            if least <= count and most < limit:
                return Shape(bits, cluster, count)
        cluster *= 2


def _clusters(length: int, sector: int, cluster: int, bits: int) -> int:
    """Return how many clusters there are at least."""
    tables = 2 * -(-(length // cluster + 2) * bits // 8 // sector)
    root = 0 if bits == 32 else _ROOT_ENTRIES * _ENTRY // sector
    alignment = 4 * cluster // sector  # mkfs.fat lets each of these parts begin at a cluster
    taken = (_RESERVED[bits] + tables + root + alignment) * sector
    return max(length - taken, 0) // cluster


def check_remakable(step: RemakeFat, image: Image) -> None:
    """Make sure, before anything is written, that all files have room.

    Raises:
        TargetTooSmall: they have not.
        ProgramError: the saved filesystem can't be mounted.
        ObjectDamaged, ObjectMissing: the repository can't give its folders.
    """
    with _saved(step, image) as (old, shape):
        needed = _needed(old, shape.cluster)
    has = shape.clusters * shape.cluster
    if needed > has:
        raise TargetTooSmall(
            f"the files of {step.volume} take {needed} bytes ({format_size(needed)}) in clusters of "
            f"{shape.cluster}, and a FAT of {step.length} bytes has room for {has}",
            hint="Take a disk with sectors as the saved one had; nothing was written.",
        )


def remake(step: RemakeFat, image: Image, opened: OpenTarget) -> tuple[str, ...]:
    """Make a FAT anew, fill it, and compare it with the saved one.

    Args:
        step: what and where.
        image: has the saved one.
        opened: the target.

    Returns:
        What a person must know.

    Raises:
        ProgramError: it can't be made or mounted.
        VerificationFailed: a file is not what it was.
        ObjectDamaged, ObjectMissing: the repository can't give a file.
    """
    edge = min(EDGE, step.length)
    for start in (step.offset, step.offset + step.length - edge):
        opened.zero(start, edge)
    # Lent first: udev does not look at a disk that is locked, and would be waited for.
    with opened.lend() as device, _saved(step, image) as (old, shape):
        places = segments(step, device)
        with linear(step.volume, places) as place:
            process.run("mkfs.vfat", *_words(step, shape), place)
            with mounted("vfat", place, _OPTIONS) as new:
                _copy(old, new)
        with linear(step.volume, places, read_only=True) as place:
            try:
                process.run("fsck.vfat", "-n", place)
            except ProgramError as error:
                raise VerificationFailed(
                    f"the FAT of {step.volume} is not in order: {error.message}"
                ) from error
            with mounted("vfat", place, f"ro,{_OPTIONS}") as new:
                number = _compare(old, new, step)
    return (f"it is a FAT{shape.bits} with {number} files and folders now",)


def _words(step: RemakeFat, shape: Shape) -> Iterator[str]:
    sector = step.target.logical_sector
    yield from ("-F", str(shape.bits), "-S", str(sector), "-s", str(shape.cluster // sector))
    yield from ("-h", str(step.offset // sector))
    if step.uuid is not None:
        yield from ("-i", step.uuid.replace("-", ""))
    if step.label is not None:
        yield from ("-n", step.label)


@contextmanager
def _saved(step: RemakeFat, image: Image) -> Iterator[tuple[Path, Shape]]:
    """Mount the saved filesystem; yield where, and what the new one is made with.

    Raises:
        ObjectDamaged, ObjectMissing: the repository could not give what was read.
    """
    volume = saved_content(step, image)
    sector, factor = _UNITS.unpack_from(volume.read(0, 512), _UNITS_AT)
    shape = shape_of(step.length, step.target.logical_sector, sector * factor)
    with saved_files(step, volume, step.saved_sector, "vfat", _OPTIONS) as (_, place):
        yield place, shape


def _needed(place: Path, cluster: int) -> int:
    """Return the bytes that files and folders take."""
    total = 0
    for folder, _, names in os.walk(place):
        inside = list(os.scandir(folder))
        entries = 2 + sum(2 + len(each.name) // _NAME_PART for each in inside)
        sizes = [entries * _ENTRY, *((Path(folder) / name).stat().st_size for name in names)]
        total += sum(-(-size // cluster) * cluster for size in sizes)
    return total


def _copy(old: Path, new: Path) -> None:
    for each in list(os.scandir(old)):
        source, copy = Path(each.path), new / each.name
        if each.is_dir():
            copy.mkdir()
            _copy(source, copy)
        else:
            shutil.copyfile(source, copy)
        found = source.stat()
        _control(copy, _SET_ATTRIBUTES, _attributes(source))
        os.utime(copy, ns=(found.st_atime_ns, found.st_mtime_ns))


def _attributes(path: Path) -> int:
    return int.from_bytes(_control(path, _GET_ATTRIBUTES, 0), "little")


def _control(path: Path, request: int, value: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return fcntl.ioctl(descriptor, request, value.to_bytes(4, "little"))
    finally:
        os.close(descriptor)


def _compare(old: Path, new: Path, step: RemakeFat) -> int:
    """Return how many files and folders there are.

    Raises:
        VerificationFailed: they are not the same.
    """
    before, after = (
        {path.relative_to(top): _said(path) for path in top.rglob("*")} for top in (old, new)
    )
    wrong = sorted(
        path for path in before.keys() | after.keys() if before.get(path) != after.get(path)
    )
    wrong += [
        path
        for path in before
        if not wrong
        and (old / path).is_file()
        and not filecmp.cmp(old / path, new / path, shallow=False)
    ]
    if wrong:
        raise VerificationFailed(f"{step.volume}: {wrong[0]} is not what it was")
    return len(before)


def _said(path: Path) -> tuple[int, int, int]:
    """Return what a folder says of an entry: attributes, time, and of a file its bytes."""
    found = path.stat()
    return _attributes(path), found.st_mtime_ns, found.st_size if path.is_file() else 0
