"""All restored systems are looked at first, and nothing is written; then those are changed that need it.

A system in which nothing has to change keeps every byte, and so does its journal. What goes wrong is
told, never raised: the disks are restored.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from imager.errors import ProgramError
from restore.boot_steps import DiskDrivers
from restore.bootrepair.devices import Devices
from restore.bootrepair.systems import System, mount_systems

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Work(Generic[Found]):
    """What is done to restored systems.

    Attributes:
        needed: mount points without which a look would lead astray.
        look: returns what has to change in a system, or None; and what a person must know.
        change: changes a system, which is mounted for writing now, and returns what was done.
        nothing: returns what a person must know when there is no system at all.
        trouble: says what could not be done when something goes wrong.
    """

    needed: frozenset[str]
    look: Callable[[System, Devices], tuple[Found | None, Iterable[str]]]
    change: Callable[[System, Devices, Found], Iterable[str]]
    nothing: Callable[[Devices], str]
    trouble: str


def conduct(disks: Sequence[DiskDrivers], place: Path, work: Work[Found]) -> tuple[str, ...]:
    """Do some work to each system on some disks, and return what was found and done.

    Args:
        disks: restored, and used by nobody.
        place: folder for mount points.
        work: what is done.
    """
    notes: list[str] = []
    try:
        wanted = _look(disks, place, work, notes)
        if wanted:
            with ExitStack() as stack:
                devices = Devices(disks, stack, writable=True)
                for system in mount_systems(devices, stack, place=place, only=frozenset(wanted)):
                    notes.extend(work.change(system, devices, wanted[system.key]))
                notes += devices.notes
    except (ProgramError, OSError, ValueError) as error:
        notes.append(f"{work.trouble}: {reason(error)}")
    return tuple(notes)


def reason(error: Exception) -> str:
    """Return why something went wrong."""
    return error.message if isinstance(error, ProgramError) else str(error)


def _look(
    disks: Sequence[DiskDrivers], place: Path, work: Work[Found], notes: list[str]
) -> dict[tuple[str, str], Found]:
    """Return what has to change in the systems where something has, by their keys."""
    wanted: dict[tuple[str, str], Found] = {}
    with ExitStack() as stack:
        devices = Devices(disks, stack, writable=False)
        systems = 0
        for system in mount_systems(devices, stack, place=place):
            systems += 1
            missing = [f"{at} ({why})" for at, why in system.missing if at in work.needed]
            if missing:
                notes.append(f"{system.title}: not looked into, without its {', '.join(missing)}")
                continue
            found, told = work.look(system, devices)
            notes += told
            if found is not None:
                wanted[system.key] = found
        notes += devices.notes
        if not systems:
            notes.append(work.nothing(devices))
    return wanted
