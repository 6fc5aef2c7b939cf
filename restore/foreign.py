"""Targets that hold data of somebody else, which nobody overwrites by a word typed too fast.

A target is foreign when all of this is so:

- it is a device; a file is named by whoever made it;
- it was not recognised by its WWN or serial, but chosen with `--map`, by its size, or as the only
  one that is large enough (`restore.match`);
- it holds something: a partition table, or the signature of a filesystem, swap, RAID, LVM or LUKS
  on the whole disk or a partition. Where none of these can be seen, or the disk or its table can't
  be read, it holds "something that can't be understood", unless its first and its last MiB are
  zeros;
- nothing of that is of the machine in the image: no id of a table (of an MBR, its signature), of a
  filesystem, array, LUKS container, volume group or bcache device is also in the image. A group of
  the same name says nothing;
- it holds no unfinished restore from the same repository (`restore.journal`) with nothing else
  over it.

So a blank disk is not foreign, nor is the old disk of the machine, whatever it is plugged into,
nor a clone of it. Of a foreign disk, its serial number has to be typed, or given beforehand: for
that, a person must look at the disk that is meant. Without a serial it is the size in bytes; two
foreign disks of one size and without serials are one answer.

This module decides on data alone, except for `look`, which only reads.
"""

from collections.abc import Collection, Iterable
from typing import Final

from imager import blockdev
from imager.blockdev import BlockDisk
from imager.errors import ForeignTarget, NotConfirmed, RemetalError, SourceError, UsageError
from imager.units import MIB
from restore import marks
from restore.journal import Found
from restore.marks import Carried, Mark, MarkKind
from restore.match import Basis, Match
from restore.target import Target, TargetKind

UNKNOWN: Final = "something that can't be understood"

_RECOGNISED: Final = frozenset({Basis.WWN, Basis.SERIAL, Basis.SERIAL_ONLY})
_END: Final = MIB  # of each end of a disk that is looked at where nothing is recognised


def can_be(match: Match) -> bool:
    """Whether a target could be foreign, so that what it holds has to be looked at."""
    return match.target.is_device and match.basis not in _RECOGNISED


def look(disk: BlockDisk) -> Carried:
    """Return what a disk holds. One that holds nothing, and is not blank, holds `UNKNOWN`."""
    try:
        carried = marks.read(disk)
    except RemetalError:
        carried = Carried((), ())
    if carried.words or _is_blank(disk):
        return carried
    return Carried((UNKNOWN,), ())


def foreign_content(
    carried: Carried, own: Collection[Mark], journal: Found | None, repository: str
) -> tuple[str, ...]:
    """Return what makes a target foreign that could be, in words; nothing if it is not.

    Args:
        carried: what it holds, as `look` says.
        own: marks of the machine in the image.
        journal: of an interrupted restore on it, if there is one.
        repository: id of the one that is restored from.
    """
    if any(mark in own for mark in carried.marks if mark.kind is not MarkKind.GROUP_NAME):
        return ()
    # In a restore that was cut off while it wrote the table, the journal is alone no more.
    if (
        journal is not None
        and journal.note.repository == repository
        and (journal.is_alone or carried.words == (UNKNOWN,))
    ):
        return ()
    return carried.words


def answer_for(target: Target) -> str:
    """Return what has to be typed before a foreign target is overwritten."""
    return target.serial or str(target.size)


def question(target: Target) -> str:
    """Ask for that."""
    return f"Type {_what(target)} to overwrite it"


def describe(target: Target) -> str:
    """Say what a foreign target holds."""
    listed = ", ".join(target.foreign)
    if target.foreign == (UNKNOWN,):
        return f"holds {listed}; nothing says that it is of this machine"
    return f"holds {listed}; none of it is of this machine"


def unnamed(targets: Iterable[Target], names: Collection[str]) -> tuple[Target, ...]:
    """Return the foreign targets that are not among those named beforehand.

    Args:
        targets: of a plan.
        names: serials, or sizes in bytes of disks without one. They may name targets that are not
            foreign: what was foreign is blank or half restored when the same restore is started
            again after it was cut off.

    Raises:
        UsageError: a name is that of no target.
    """
    targets = tuple(targets)
    known = {answer_for(target) for target in targets if target.kind is TargetKind.DEVICE}
    for name in names:
        if name not in known:
            raise UsageError(
                f"{name} is the serial number of no disk that this restore overwrites",
                hint="Look at the plan with --dry-run: it shows each disk with its serial number. "
                "The size in bytes is for disks without one only; nothing was written.",
            )
    return tuple(target for target in targets if target.foreign and answer_for(target) not in names)


def require(targets: Iterable[Target], names: Collection[str]) -> None:
    """Make sure that all foreign targets were named beforehand, where nobody can be asked.

    Raises:
        ForeignTarget: one was not.
        UsageError: a name is that of no target.
    """
    left = unnamed(targets, names)
    if not left:
        return
    told = "; ".join(f"{target.describe()} {describe(target)}" for target in left)
    options = " ".join(f"--overwrite-serial {answer_for(target)}" for target in left)
    raise ForeignTarget(
        told,
        hint=f"If it is really to be overwritten: {options} (in an order: overwrite_serials); "
        "else choose another disk. Nothing was written.",
    )


def check_answer(target: Target, answer: str) -> None:
    """Make sure that what was typed is what has to be.

    Raises:
        NotConfirmed: it is something else.
    """
    if answer.strip() != answer_for(target):
        raise NotConfirmed(f"what was typed is not {_what(target)}")


def _what(target: Target) -> str:
    return f"the {'serial number' if target.serial else 'size in bytes'} of {target.path}"


def _is_blank(disk: BlockDisk) -> bool:
    """Whether the ends of a disk are zeros; what can't be read might be anything."""
    size = disk.identity.size
    length = min(_END, size)
    try:
        with blockdev.open_disk(disk.path) as fd:
            return not any(
                any(blockdev.read_at(fd, offset, length)) for offset in (0, size - length)
            )
    except SourceError:
        return False
