"""The files that a restored system starts by call its disks what stays, where they are others now."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from restore.boot_steps import MapDisks
from restore.bootrepair.conductor import Work, conduct
from restore.bootrepair.devices import Devices
from restore.bootrepair.disk_files import Edit, find_edits, mentions
from restore.bootrepair.disk_names import DiskNames
from restore.bootrepair.kernels import find_initramfs, kernels
from restore.bootrepair.settings import replace_file
from restore.bootrepair.systems import MOUNTS, System

# Mount points without which a look would lead astray, and others where names may be.
_NEEDED_TO_LOOK: Final = frozenset({"/etc"})
_LOOKED_INTO: Final = frozenset({"/boot", "/efi", "/boot/efi"})


def map_disks(step: MapDisks, place: Path = MOUNTS) -> tuple[str, ...]:
    """Do what the step says, and return what was found and done, file by file.

    Args:
        step: says which disks were restored, and what they were called.
        place: folder for mount points.
    """

    def look(system: System, devices: Devices) -> tuple[bool | None, tuple[str, ...]]:
        names = DiskNames(step.disks, devices)
        edits = _edits(system, names)
        if any(edit.change.done for edit in edits):
            return True, ()
        return None, tuple(_told(system, names, edits))

    def change(system: System, devices: Devices, _: bool) -> Iterator[str]:
        names = DiskNames(step.disks, devices)
        edits = _edits(system, names)
        for edit in edits:
            if not edit.change.done:
                continue
            done = ", ".join(edit.change.done)
            try:
                replace_file(system.inside(edit.path), edit.change.after.encode("latin-1"))
            except OSError as error:
                yield (
                    f"{system.title}: WARNING: {edit.path} was not changed ({error.strerror}). "
                    f"By hand: {done}"
                )
                continue
            yield f"{system.title}: {edit.path}: {done}"
        yield from _told(system, names, edits)

    trouble = "names of disks could not be mapped to the end"
    return conduct(step.disks, place, Work(_NEEDED_TO_LOOK, look, change, _no_system, trouble))


def _edits(system: System, names: DiskNames) -> tuple[Edit, ...]:
    has_initramfs = any(find_initramfs(system, kernel.version) for kernel in kernels(system))
    return tuple(find_edits(system.root, names, has_initramfs=has_initramfs))


def _told(system: System, names: DiskNames, edits: Sequence[Edit]) -> Iterator[str]:
    """Say what still names disks that are gone, and is not changed."""
    for point, why in system.missing:
        if point in _LOOKED_INTO:
            yield f"{system.title}: its {point} was not looked into ({why})"
    told = set()
    for edit in edits:
        for name in edit.change.left:
            told.add(edit.path)
            yield (
                f"{system.title}: WARNING: {edit.path} names {name}, and nothing on it has a name "
                "that stays. By hand: say there where it is now"
            )
    for path, mark in mentions(system.root, names.marks()):
        if path not in told:
            told.add(path)
            yield (
                f"{system.title}: {path} still names {mark}, which has changed: look whether it "
                "matters there"
            )
    if not told:
        yield f"{system.title}: no file there calls a disk by a name that has changed any more"


def _no_system(_: Devices) -> str:
    return (
        "no restored system could be looked into: where it calls its disks by names that have "
        "changed (/etc/fstab, /etc/crypttab, its kernels' command lines), they have to be changed "
        "by hand"
    )
