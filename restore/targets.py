"""What this machine has to offer: the facts that matching and planning decide on. Only reads."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from imager import blockdev
from imager.blockdev import BlockDisk
from imager.errors import NoRoom, NoTarget, ProgramError, SourceError
from imager.layout.machine import Machine
from imager.units import format_size
from restore import foreign, journal, network
from restore.bootrepair.drivers import disk_drivers
from restore.bootrepair.efi import started_by_uefi
from restore.circumstances import Surroundings
from restore.journal import head_of
from restore.match import Match, NewFile, Survey
from restore.network import Card
from restore.plan import Plan
from restore.steps import WriteVolume
from restore.target import TargetKind
from restore.twins import twin_notes

# ISO 9660: the primary volume descriptor, and the volume's name in it.
_ISO_DESCRIPTOR: Final = 32768
_ISO_SECTOR: Final = 2048
_ISO_MAGIC: Final = b"\x01CD001"
_ISO_NAME: Final = slice(40, 72)
_MEDIUM_NAME: Final = b"REMETAL"


def survey(repository: Sequence[Path], mapping: Mapping[str, Path]) -> Survey:
    """Look at the disks of this machine and at what `--map` names.

    Args:
        repository: the directories of the repository, if it lies on this machine.
        mapping: values of `--map`.

    Raises:
        NoTarget: a target of `--map` can't be one.
        SourceError: a disk can't be looked at.
    """
    disks = blockdev.list_disks()
    named = {saved: _named(path) for saved, path in mapping.items()}
    forbidden = dict(_forbidden(disks, repository))
    for target in named.values():
        if any(target.path.is_relative_to(folder.resolve()) for folder in repository):
            forbidden[target.path] = "lies in the repository"
        elif isinstance(target, BlockDisk) and _is_medium(target):
            forbidden[target.path] = "is a rescue medium"
    return Survey(disks, named, forbidden)


def surroundings(machine: Machine, matches: Sequence[Match], seen: Survey) -> Surroundings:
    """Return what this system can do, what else is in it, and what is left of interrupted restores.

    Args:
        machine: of the image.
        matches: a target for every saved disk that is not left out.
        seen: all disks here.
    """
    targets = {match.target.path for match in matches}
    # A file is restored for another machine, which does not see the disks of this one.
    is_for_here = any(match.target.is_device for match in matches)
    others = [disk for disk in seen.disks if disk.path not in targets] if is_for_here else []
    journals = {
        match.saved.id: found
        for match in matches
        if not match.is_new
        and (found := journal.find(match.target.path, head_of(match.saved))) is not None
    }
    cards = _cards() if is_for_here and machine.cards else ()
    return Surroundings(
        uefi=started_by_uefi(),
        discards=frozenset(device for device in targets if _discards(device)),
        twins=twin_notes(machine, others),
        journals=journals,
        carried={
            match.saved.id: foreign.look(match.target) for match in matches if foreign.can_be(match)
        },
        drivers={
            match.target.path: disk_drivers(match.target.path.name)
            for match in matches
            if match.target.is_device
        },
        cards=tuple(card.hardware for card in cards if card.hardware is not None),
        linked=tuple(card.name for card in cards if card.has_link),
    )


def check_room(plan: Plan) -> None:
    """Make sure that the filesystems of target files can take what will be written.

    Raises:
        NoRoom: one can't.
    """
    needed: defaultdict[int, int] = defaultdict(int)
    places: dict[int, Path] = {}
    for step in plan.steps:
        if isinstance(step, WriteVolume) and step.target.kind is not TargetKind.DEVICE:
            folder = step.target.path.parent
            needed[folder.stat().st_dev] += step.data
            places[folder.stat().st_dev] = folder
    for target in plan.targets:
        if target.kind is TargetKind.FILE:
            status = target.path.stat()
            needed[status.st_dev] -= status.st_blocks * 512  # what emptying it gives back
    for device, folder in places.items():
        room = os.statvfs(folder)
        free = room.f_bavail * room.f_frsize
        if needed[device] > free:
            raise NoRoom(
                f"{folder} has {format_size(free)} free, and the restore needs "
                f"{format_size(needed[device])}",
                hint="Free some room, or choose another place; nothing was written.",
            )


def _cards() -> tuple[Card, ...]:
    """Return the network cards here; a restore does not fail because they can't be listed."""
    try:
        return network.cards()
    except (OSError, ProgramError):
        return ()


def _named(path: Path) -> BlockDisk | NewFile:
    if path.exists():
        return blockdev.identify(path)
    absolute = path.absolute()
    if not absolute.parent.is_dir():
        raise NoTarget(
            f"there is no folder {absolute.parent} for {path.name}",
            hint="Name a disk, a disk file, or a new file in a folder that exists.",
        )
    if absolute.is_relative_to("/dev"):
        raise NoTarget(f"there is no disk {path}", hint="`lsblk` lists the disks of this machine.")
    return NewFile(absolute.parent.resolve() / absolute.name)


def _forbidden(
    disks: Iterable[BlockDisk], repository: Iterable[Path]
) -> Iterator[tuple[Path, str]]:
    for folder in repository:
        for device in blockdev.disks_under(folder):
            yield device, "holds the repository"
    for device in blockdev.disks_under(Path("/")):
        yield device, "runs this system"
    for disk in disks:
        if _is_medium(disk):
            yield disk.path, "is a rescue medium"


def _is_medium(disk: BlockDisk) -> bool:
    """Whether a disk carries a rescue medium; a failing disk that can't be read is none."""
    if disk.identity.size < _ISO_DESCRIPTOR + _ISO_SECTOR:
        return False
    try:
        with blockdev.open_disk(disk.path) as fd:
            descriptor = blockdev.read_at(fd, _ISO_DESCRIPTOR, _ISO_SECTOR)
    except SourceError:
        return False
    return descriptor.startswith(_ISO_MAGIC) and descriptor[_ISO_NAME].startswith(_MEDIUM_NAME)


def _discards(device: Path) -> bool:
    limit = Path("/sys/block") / device.name / "queue" / "discard_max_bytes"
    try:
        return int(limit.read_text()) > 0
    except (OSError, ValueError):
        return False
