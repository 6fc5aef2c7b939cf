"""Disks that stay in the machine and carry what the restored disks will carry: stale twins.

The old disk of a mirror that was left in a bay, or a clone from the day before, has the same ids as
what is restored. The restored machine would see everything twice: md may start the old half, LVM
refuses groups of one name, and a filesystem is mounted from whichever comes first.
"""

from collections.abc import Collection, Iterable

from imager.blockdev import BlockDisk
from imager.errors import RemetalError
from imager.layout.machine import Machine
from restore import marks
from restore.marks import Mark
from restore.match import describe


def twin_notes(machine: Machine, disks: Iterable[BlockDisk]) -> tuple[str, ...]:
    """Return a note for each of these disks that carries something of the machine.

    Only reads. A disk that can't be read or understood says nothing: it is not restored to, and
    must not hold up a restore.

    Args:
        machine: of the image.
        disks: of this machine that are not restored to.
    """
    saved = frozenset(marks.marks_of(machine.disks, machine.layers))
    return tuple(note for disk in disks if (note := _note(disk, saved)) is not None)


def _note(disk: BlockDisk, saved: Collection[Mark]) -> str | None:
    try:
        carried = marks.read(disk)
    except RemetalError:
        return None
    same = [mark.words for mark in carried.marks if mark in saved]
    if not same:
        return None
    listed = ", ".join(dict.fromkeys(same))
    return (
        f"{describe(disk.path, disk.identity)} is not restored to and carries the same as this "
        f"machine: {listed}. Detach it before the restored machine starts, or wipe it: the machine "
        "would see two of each, and may take the old one."
    )
