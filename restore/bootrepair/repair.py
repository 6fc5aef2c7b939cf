"""An initramfs gets the drivers of the machine that was restored to, where it lacks them.

It is made anew as well where it would give network cards names that they then keep, against what was
pinned in the root (`restore.bootrepair.network`), and where it looks for disks by names that have
changed (`restore.bootrepair.disks`).

Where every kernel finds its disks, not one byte of the system changes.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from imager.errors import ProgramError
from restore.boot_steps import DiskDrivers, Driver, RepairInitramfs
from restore.bootrepair.conductor import Work, conduct, reason
from restore.bootrepair.devices import Devices
from restore.bootrepair.disk_files import is_early, renamed_early
from restore.bootrepair.disk_names import DiskNames
from restore.bootrepair.initramfs import UnknownContent, contents, file_names
from restore.bootrepair.kernels import Kernel, find_copies, find_initramfs, has_kernel, kernels
from restore.bootrepair.network import is_named_early, names_cards
from restore.bootrepair.rebuild import NotRebuilt, find_tool, modules_of, rebuild
from restore.bootrepair.systems import MOUNTS, System

# Mount points without which a look would lead astray.
_NEEDED_TO_LOOK = frozenset({"/boot", "/usr"})
# Where systemd-boot has copies of kernels and of what they start with.
_ESPS = frozenset({"/efi", "/boot/efi"})


@dataclass(frozen=True, slots=True)
class _Finding:
    """What a kernel of a system lacks.

    Attributes:
        version: of the kernel.
        initramfs: its path in the system; None where there is none.
        copies: of the initramfs, which boot loader entries load.
        modules: that the initramfs must get.
        notes: what a person must know.
        names_cards: it gives network cards names that must not stand.
        old_names: what it calls disks by names that have changed.
    """

    version: str
    initramfs: PurePosixPath | None
    copies: tuple[PurePosixPath, ...] = ()
    modules: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    names_cards: bool = False
    old_names: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[PurePosixPath, ...]:
        """Where the initramfs is."""
        return (self.initramfs, *self.copies) if self.initramfs is not None else ()

    @property
    def is_stale(self) -> bool:
        """Whether the initramfs must be made anew."""
        return bool(self.modules or self.names_cards or self.old_names)

    @property
    def lack(self) -> str:
        """What it lacks, in words."""
        names = ("the names of the network cards",) if self.names_cards else ()
        disks = ("the names of its disks",) if self.old_names else ()
        return ", ".join((*self.modules, *names, *disks))


def repair(step: RepairInitramfs, place: Path = MOUNTS) -> tuple[str, ...]:
    """Do what the step says, and return what was found and done.

    Args:
        step: says which disks were restored, and what they need here.
        place: folder for mount points.
    """

    def look(
        system: System, devices: Devices
    ) -> tuple[tuple[_Finding, ...] | None, tuple[str, ...]]:
        findings = _examine(system, devices, step)
        wanted = tuple(found for found in findings if found.is_stale)
        return wanted or None, tuple(_told(system, findings))

    def change(system: System, _: Devices, wanted: Sequence[_Finding]) -> Iterator[str]:
        mine = _drivers([disk for disk in step.disks if disk.target.path in system.disks])
        by_version = {kernel.version: kernel for kernel in kernels(system)}
        for found in wanted:
            yield from _rebuild_one(system, by_version[found.version], found, mine)

    trouble = "the restored system could not be looked at to the end"
    return conduct(step.disks, place, Work(_NEEDED_TO_LOOK, look, change, _no_system, trouble))


def _told(system: System, findings: Sequence[_Finding]) -> Iterator[str]:
    if not findings:
        yield f"{system.title}: no kernel was found there"
    for found in findings:
        yield from found.notes
    fine = [found.version for found in findings if not (found.is_stale or found.notes)]
    if fine:
        yield f"{system.title}: {', '.join(fine)} has the drivers of its disks, nothing to do"


def _no_system(devices: Devices) -> str:
    locked = [str(device.path) for device in devices.of_type("crypto_LUKS")]
    reasons = []
    if locked:
        reasons.append(f"{', '.join(locked)} is encrypted and locked")
    if devices.closed:
        reasons.append(f"{', '.join(devices.closed)} is not opened for a look")
    why = "; ".join(reasons) or "no root was found"
    return (
        f"no restored system could be looked into ({why}): if it does not find its disks, its "
        "initramfs needs their drivers"
    )


def _examine(system: System, devices: Devices, step: RepairInitramfs) -> tuple[_Finding, ...]:
    """Return what its kernels lack."""
    mine = [disk for disk in step.disks if disk.target.path in system.disks]
    findings = tuple(
        found for kernel in kernels(system) if (found := _finding(system, kernel, mine)) is not None
    )
    if step.crossed is not None and is_named_early(system.root, step.crossed):
        findings = tuple(
            replace(found, names_cards=_names_cards(system, found.paths)) for found in findings
        )
    if step.has_renamed:
        names = DiskNames(step.disks, devices)
        findings = tuple(
            replace(found, old_names=_old_names(system, found.paths, names)) for found in findings
        )
    return findings


def _finding(system: System, kernel: Kernel, disks: Sequence[DiskDrivers]) -> _Finding | None:
    version = kernel.version
    path = find_initramfs(system, version)
    if path is None and not has_kernel(system, version):
        return None  # modules that an uninstalled kernel left behind
    copies = find_copies(system, version)
    present: frozenset[str] | None = None
    for each in (path, *copies) if path is not None else ():
        modules = modules_of(system, each, version)
        if modules is None:
            return _Finding(
                version, path, notes=(f"{each} can't be looked into: it may lack drivers",)
            )
        present = modules if present is None else present & modules
    present = present or frozenset()
    notes = [
        f"kernel {version} of this machine has no driver {driver} for {disk.target.path}: "
        "it will not find its disk there"
        for disk in disks
        for driver in kernel.lack(disk.drivers, present).absent
    ]
    lacking = kernel.lack(_drivers(disks), present).modules
    if path is None and lacking:
        notes.append(
            f"kernel {version} starts without an initramfs, and {', '.join(lacking)} is not built "
            "in: it will not find its disk"
        )
        lacking = ()
    return _Finding(version, path, copies, lacking, tuple(notes))


def _names_cards(system: System, paths: Sequence[PurePosixPath]) -> bool:
    """Return whether an initramfs names network cards; one that can't be looked into may."""
    try:
        return any(names_cards(tuple(file_names(system.inside(path)))) for path in paths)
    except UnknownContent:
        return True


def _old_names(system: System, paths: Sequence[PurePosixPath], names: DiskNames) -> tuple[str, ...]:
    """Return what an initramfs calls disks by names that have changed; nothing if it can't be read."""
    found: list[str] = []
    for path in paths:
        with suppress(UnknownContent):
            found += renamed_early(contents(system.inside(path), is_early), names)
    return tuple(dict.fromkeys(found))


def _rebuild_one(
    system: System, kernel: Kernel, found: _Finding, drivers: Sequence[Driver]
) -> Iterator[str]:
    path, names = found.initramfs, found.lack
    assert path is not None  # noqa: S101  only of an initramfs it is said what it must get
    try:
        tool = find_tool(system)
        kept = rebuild(system, tool, kernel, path, found.modules, drivers, found.copies)
    except (NotRebuilt, ProgramError, OSError, ValueError) as error:
        yield (
            f"WARNING: {path} on {system.title} lacks {names}, and was not rebuilt: "
            f"{reason(error)}. The machine may not find {_lost(found)}. By hand: mount it, chroot into "
            f"it, and make {path} again with {names} in it"
        )
        yield from (f"| {line}" for line in (error.said if isinstance(error, NotRebuilt) else ()))
        return
    yield f"{path} on {system.title} lacked {names} and was rebuilt with it; {kept}"
    yield from (f"{copy} on {system.title} is a copy of it again" for copy in found.copies)
    for point, why in system.missing:
        if point in _ESPS:
            yield (
                f"WARNING: {point} of {system.title} was not looked into ({why}): if its boot loader "
                "takes the initramfs from there, it is the old one. By hand: mount it, chroot into "
                "the system, and run kernel-install"
            )


def _lost(found: _Finding) -> str:
    return "its disk" if found.modules or found.old_names else "its network cards by their names"


def _drivers(disks: Sequence[DiskDrivers]) -> tuple[Driver, ...]:
    """Return the drivers of some disks; those of two controllers of one kind only once."""
    return tuple(dict.fromkeys(driver for disk in disks for driver in disk.drivers))
