"""Filesystems that get another size than the saved one, by their own programs.

A filesystem shrinks without more room than its new one, and is written once. What the target has is
its front, [0, new length). On a device of the *saved* size, whose front is the target's and whose
rest comes from the image when it is read, the filesystem's own program finds all of it, and moves
what lies behind the new end to the front, that is, to the target. The little that is written
behind the new end goes to memory and is gone afterwards.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imager import process
from imager.blockdev import open_disk
from imager.errors import ProgramError, TargetError, TargetTooSmall, VerificationFailed
from imager.probe.filesystem import declared_size
from imager.units import MIB, format_size
from restore import ext_superblock
from restore.device import OpenTarget
from restore.device_mapper import Segment, linear
from restore.ext_superblock import ExtSuperblock
from restore.fit_steps import GrowFilesystem, RemakeSwap, RemakeXfs, ShrinkFilesystem
from restore.nbd_device import attached, truthful
from restore.overlay import Overlay, Readable, most_kept
from restore.recreate.content import saved_content, segments
from restore.recreate.mounted import mounted
from restore.runs import Image

# e2fsck: nothing was wrong, or it was corrected.
_CORRECTED: Final = (0, 1, 2)
_SECTOR: Final = 512
_EXT_SPARE: Final = 1024  # blocks
# Of `btrfs filesystem df --raw`: a kind of chunks, how often they are kept, bytes used in one copy.
_BTRFS_USE: Final = re.compile(r"^(\w+), (\w+): total=\d+, used=(\d+)$", re.MULTILINE)
_BTRFS_COPIES: Final = {"single": 1, "DUP": 2}
_BTRFS_LEAST: Final = 256 * MIB  # below, the kernel refuses
# Of a btrfs superblock at 64 KiB: the number of the device it is on.
_BTRFS_DEVICE_AT: Final = 0x100C9

_LARGER_DISK: Final = "Use a disk as large as the saved one. The image is untouched."
_NEW_TIMES: Final = (
    "files may have other inode numbers, and folders a newer time: resize2fs does that"
)
_WINDOWS_CHECKS: Final = "Windows will check this filesystem at its next start, as ntfsresize asks"


def check_shrinkable(step: ShrinkFilesystem, image: Image) -> None:
    """Let the filesystem's own program say, before anything is written, whether it will shrink.

    It sees the saved volume as a device; what it writes, such as the replayed journal, goes to
    memory and is gone afterwards. It reads the filesystem's metadata from the repository.

    Raises:
        TargetTooSmall: it can't become as small as that.
        TargetError: it can't be shrunk as it is, or this system lacks what that takes.
        ObjectDamaged, ObjectMissing: the repository can't give its metadata.
    """
    means = _MEANS[step.filesystem]
    what = f"the {step.filesystem} of {step.subject}"
    whole = Overlay(saved_content(step, image), most_kept())
    with attached(whole, step.target.logical_sector) as (device, server):
        try:
            with truthful(server):
                least = means.least(device, step.length)
        except ProgramError as error:
            raise TargetError(
                f"{what} can't be shrunk as it was saved: {error.message}",
                hint="Use a disk as large as the saved one; nothing was written.",
            ) from error
    if least > step.length:
        raise TargetTooSmall(
            f"{what} can be shrunk to {least} bytes ({format_size(least)}), and the disk "
            f"{step.target.path} has room for {step.length} ({format_size(step.length)})",
            hint="Use a larger disk; nothing was written.",
        )


def shrink(step: ShrinkFilesystem, image: Image, opened: OpenTarget) -> tuple[str, ...]:
    """Shrink a filesystem of which the target holds the front, and check it.

    Args:
        step: what and where.
        image: has the whole.
        opened: the target.

    Returns:
        What a person must know.

    Raises:
        ProgramError: the filesystem's program could not do it; the target is no use then.
        ObjectDamaged, ObjectMissing: the repository can't give what has to move.
        VerificationFailed: it is not in order afterwards, or larger than its place.
        NoRoom: more is written behind the new end than memory can hold.
    """
    means = _MEANS[step.filesystem]
    rest = Overlay(_Rest(saved_content(step, image), step.length), most_kept())
    with opened.lend() as device:
        front = segments(step, device)
        with ExitStack() as stack:
            served, server = stack.enter_context(attached(rest, step.target.logical_sector))
            behind = Segment(served, step.length, step.saved_length - step.length)
            try:
                with truthful(server), linear(step.volume, (*front, behind)) as whole:
                    notes = means.resize(whole, step.length)
            except ProgramError as error:
                error.hint = _LARGER_DISK
                raise
        size = check(step, front)
    return (f"the filesystem has {size} bytes now", *notes)


def grow(step: GrowFilesystem, opened: OpenTarget) -> tuple[str, ...]:
    """Make a filesystem as large as its place on the target, and check it.

    Returns:
        What a person must know.

    Raises:
        ProgramError: the filesystem's program could not do it.
        VerificationFailed: it is not in order afterwards, or larger than its place.
    """
    means = _MEANS[step.filesystem]
    with opened.lend() as device:
        place = segments(step, device)
        with linear(step.volume, place) as whole:
            notes = means.resize(whole, None)
        size = check(step, place)
    return (f"the filesystem has {size} bytes now", *notes)


def remake_swap(step: RemakeSwap, opened: OpenTarget) -> tuple[str, ...]:
    """Make a swap area of another size, with the old UUID and label.

    Returns:
        What a person must know: nothing.

    Raises:
        ProgramError: mkswap could not do it.
    """
    words = []
    if step.uuid is not None:
        words += ["--uuid", step.uuid]
    if step.label is not None:
        words += ["--label", step.label]
    with (
        opened.lend() as device,
        linear(step.volume, segments(step, device)) as area,
    ):
        process.run("mkswap", *words, area)
    return ()


class _Rest:
    """What a volume has behind a byte; before it, zeros.

    So the device has the places of the volume, and no signature at its start that anybody takes
    for a filesystem of this machine.
    """

    def __init__(self, volume: Readable, start: int) -> None:
        self.size: int = volume.size
        self._volume = volume
        self._start = start

    def read(self, offset: int, length: int) -> bytearray:
        """Return bytes."""
        before = min(max(self._start - offset, 0), length)
        return bytearray(before) + self._volume.read(offset + before, length - before)


def _least_ext(device: Path, _wanted: int) -> int:
    process.run("e2fsck", "-fp", device, accept=_CORRECTED)
    with open_disk(device) as descriptor:
        data = os.pread(descriptor, ext_superblock.SIZE, ext_superblock.PLACE)
    superblock = ExtSuperblock.parse(data)
    used = superblock.used_blocks
    # Some room for trees of extents, which grow when files are cut into more pieces.
    blocks = used + used // 50 + _EXT_SPARE
    return max(blocks * superblock.block_size, superblock.room_for(superblock.used_inodes))


def _resize_ext(device: Path, size: int | None) -> tuple[str, ...]:
    # It replays the journal first, and resize2fs wants a filesystem that was just checked.
    process.run("e2fsck", "-fp", device, accept=_CORRECTED)
    if size is None:
        process.run("resize2fs", device)
        return ()
    # It asks for up to twice what it needs where few inodes are in use, unless it is forced to try.
    # Where there is no room it gives up, as a rule before it changes anything.
    process.run("resize2fs", "-f", device, f"{size // _SECTOR}s")
    return (_NEW_TIMES,)


def _check_ext(device: Path) -> None:
    process.run("e2fsck", "-fn", device)


def _least_ntfs(device: Path, wanted: int) -> int:
    # It does all but write, and fails where it could not do it.
    words = ("--no-action", "--no-progress-bar", "--size", str(wanted))
    process.run("ntfsresize", *words, device, stdin=b"y\n")
    return wanted


def _resize_ntfs(device: Path, size: int | None) -> tuple[str, ...]:
    # Not "--force": it would also go on where Windows has to check first.
    words = [] if size is None else ["--size", str(size)]
    process.run("ntfsresize", "--no-progress-bar", *words, device, stdin=b"y\n")
    return (_WINDOWS_CHECKS,)


def _check_ntfs(device: Path) -> None:
    # It was marked as to be checked by Windows, which is what has to be forced.
    process.run("ntfsresize", "--info", "--force", "--no-progress-bar", device)


def _least_btrfs(device: Path, _wanted: int) -> int:
    # Not "inspect-internal min-dev-size": it counts chunks whole that are nearly empty.
    with _btrfs(device) as (_, place):
        uses = _BTRFS_USE.findall(process.run("btrfs", "filesystem", "df", "--raw", place))
    used = sum(
        int(size) * _BTRFS_COPIES.get(profile, 1)
        for kind, profile, size in uses
        if kind != "GlobalReserve"
    )
    return max(used, _BTRFS_LEAST)


def _resize_btrfs(device: Path, size: int | None) -> tuple[str, ...]:
    with _btrfs(device) as (number, place):
        wanted = "max" if size is None else str(size)
        process.run("btrfs", "filesystem", "resize", f"{number}:{wanted}", place)
    return ()


@contextmanager
def _btrfs(device: Path) -> Iterator[tuple[str, Path]]:
    """Mount a btrfs; yield the number of its device and where it is mounted."""
    with open_disk(device) as descriptor:
        number = int.from_bytes(os.pread(descriptor, 8, _BTRFS_DEVICE_AT), "little")
    # Without it there is nobody who could forget; where it is built in, there may be no modules at all.
    process.run("modprobe", "btrfs", accept=(0, 1))
    # The kernel remembers which device has which filesystem: the old disk of the machine may be
    # attached as well, and this device will be gone.
    process.run("btrfs", "device", "scan", "--forget")
    try:
        with mounted("btrfs", device, "nodiscard,skip_balance") as place:
            yield str(number), place
    finally:
        process.run("btrfs", "device", "scan", "--forget", device, accept=(0, 1))


def _check_btrfs(device: Path) -> None:
    process.run("btrfs", "check", "--readonly", device)


def _least_xfs(device: Path, _wanted: int) -> int:
    raise TargetError(f"the XFS on {device} can't be shrunk: no program can do that")


def _resize_xfs(device: Path, _size: int | None) -> tuple[str, ...]:
    with mounted("xfs", device, "nouuid") as place:
        process.run("xfs_growfs", "-d", place)
    return ()


def _check_xfs(device: Path) -> None:
    process.run("xfs_repair", "-n", device)


@dataclass(frozen=True, slots=True)
class _Means:
    """What a filesystem gets another size with; all take its device.

    Attributes:
        least: returns bytes that it can shrink to, given those that are wanted; writes as it likes.
        resize: gives it a size in bytes, or its device's; returns notes.
        check: changes nothing; raises `ProgramError` when it is not in order.
    """

    least: Callable[[Path, int], int]
    resize: Callable[[Path, int | None], tuple[str, ...]]
    check: Callable[[Path], None]


_EXT: Final = _Means(_least_ext, _resize_ext, _check_ext)
_MEANS: Final[dict[str, _Means]] = {
    "ext2": _EXT,
    "ext3": _EXT,
    "ext4": _EXT,
    "btrfs": _Means(_least_btrfs, _resize_btrfs, _check_btrfs),
    "ntfs": _Means(_least_ntfs, _resize_ntfs, _check_ntfs),
    "xfs": _Means(_least_xfs, _resize_xfs, _check_xfs),
}


def check(step: ShrinkFilesystem | GrowFilesystem | RemakeXfs, place: Sequence[Segment]) -> int:
    """Check a filesystem on its place alone; return its bytes.

    Raises:
        VerificationFailed: it is larger than its place, or not in order.
    """
    what = f"the {step.filesystem} of {step.subject} on {step.target.path}"
    with linear(step.volume, place, read_only=True) as device:
        with open_disk(device) as descriptor:
            size = declared_size(descriptor, 0, step.filesystem)
        if size is None or not 0 < size <= step.length:
            raise VerificationFailed(
                f"{what} has {size} bytes, and its place {step.length} ({format_size(step.length)})"
            )
        try:
            _MEANS[step.filesystem].check(device)
        except ProgramError as error:
            raise VerificationFailed(
                f"{what} is not in order: {error.message}", hint=_LARGER_DISK
            ) from error
    return size
