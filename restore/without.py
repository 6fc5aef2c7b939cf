"""Whether a machine comes up without some of its saved disks, and what is different then.

A person leaves saved disks out, never the program. What this decides, from the layout alone:

- an array of md goes on with the members that are left, if these are enough: active, and with the
  newest count of events. RAID1 needs one, RAID4 and 5 all but one, RAID6 all but two; RAID4, 5 and
  6 that were not stopped cleanly need all, as for the kernel. So do RAID0 and linear, and RAID10,
  whose pairs the image does not know. A journal that is left out is always needed.
- a volume group, a btrfs on several devices, a LUKS container (nothing is known of what it holds)
  and anything of bcache need every device, unless it lies in such an array.
- firmware needs an EFI system partition, or boot code on a disk (BIOS).
- any other filesystem or swap is lost, which the plan says by name.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from imager.errors import DiskNeeded
from imager.layout.disk import Disk, Volume, VolumeRole
from imager.layout.firmware import FirmwareKind
from imager.layout.layers import LAYER_TYPES, Layers
from imager.layout.machine import Machine, system_partitions
from imager.layout.mdraid import MEMBER_TYPE, MdArray, MdMember, MdState

# By how much a member that is left is ahead of all others in its count of events. Those may have
# lived on after the image was taken: an array that changes counts twice a second at most, 2^32 are
# decades. Even, so that a clean array stays one for the kernel.
AHEAD: Final = 1 << 32
_MOST_EVENTS: Final = (1 << 64) - 1

CONTENT: Final = frozenset({VolumeRole.PARTITION, VolumeRole.WHOLE_DISK})
# How many active members may be missing; of other levels none.
_SPARES: Final = {"raid4": 1, "raid5": 1, "raid6": 2}
_WITH_PARITY: Final = frozenset(_SPARES)
# What libblkid calls journals of filesystems that lie elsewhere.
_JOURNALS: Final = frozenset({"jbd", "xfs_external_log"})
# Partitions that hold no data of a person: BIOS boot, PReP, reserved by Microsoft.
WITHOUT_DATA: Final = frozenset(
    {
        "21686148-6449-6E6F-744E-656564454649",
        "9E1A2D38-C612-4316-AA26-8B49521E5A8B",
        "E3C9E316-0B5C-4DB8-817D-F92DF00215AE",
    }
)
# No system starts from these.
_NO_SYSTEM: Final = frozenset({"vfat", "exfat", "swap"})


@dataclass(frozen=True, slots=True)
class ReducedArray:
    """An array of which members are left out.

    Attributes:
        array: as it was saved.
        members: those that it goes on with, spares among them.
        active: how many of its disks it has then.
        events: what their superblocks shall count.
    """

    array: MdArray
    members: tuple[MdMember, ...]
    active: int
    events: int


@dataclass(frozen=True, slots=True)
class Without:
    """What a restore without some disks means.

    Attributes:
        disks: that are left out.
        arrays: that lose members by it.
        changes: what is different then, a sentence each.
    """

    disks: tuple[Disk, ...] = ()
    arrays: tuple[ReducedArray, ...] = ()
    changes: tuple[str, ...] = ()


NOTHING: Final = Without()


def judge(machine: Machine, left_out: Collection[str], boot_code: Collection[str]) -> Without:
    """Return what it means to leave disks out.

    Args:
        machine: of the image.
        left_out: ids of saved disks.
        boot_code: ids of those that hold code that a BIOS starts; of machines with UEFI it does not
            matter.

    Raises:
        DiskNeeded: the machine does not come up without them.
    """
    if not left_out:
        return NOTHING
    return _Judgement(machine, frozenset(left_out), frozenset(boot_code)).result()


def members_on(
    disk: Disk, size: int, without: Without
) -> Iterator[tuple[ReducedArray, MdMember, int, int]]:
    """Yield the members on a disk of arrays that lose others.

    Args:
        disk: that is restored.
        size: bytes of its target: what md looks for from the end of a whole disk is at that end.
        without: what is left out.

    Yields:
        The array, the member, its first byte on the target and its bytes.
    """
    places = {disk.id: (0, size)}
    for volume in disk.volumes:
        is_whole = volume.role is VolumeRole.WHOLE_DISK
        places[volume.id] = (volume.offset, size if is_whole else volume.length)
    for reduced in without.arrays:
        for member in reduced.members:
            if member.place in places:
                yield (reduced, member, *places[member.place])


def advise(machine: Machine, left_out: Collection[str], boot_code: Collection[str]) -> str:
    """Say how these disks can be left out and what it costs; nothing where they are needed.

    Args:
        machine: of the image.
        left_out: ids of saved disks: those that have no target, and those that are left out already.
        boot_code: as for `judge`.
    """
    try:
        found = judge(machine, left_out, boot_code)
    except DiskNeeded:
        return ""
    options = " ".join(f"--leave-out {disk.id}" for disk in found.disks)
    what = "It" if len(found.disks) == 1 else "They"
    return " ".join(
        (f"{what} can be left out: {options} (`leave` on the rescue medium).", *found.changes)
    )


class _Judgement:
    def __init__(
        self, machine: Machine, left_out: frozenset[str], boot_code: frozenset[str]
    ) -> None:
        self._machine = machine
        self._layers = machine.layers
        self._boot_code = boot_code
        self._gone = tuple(disk for disk in machine.disks if disk.id in left_out)
        self._kept = tuple(disk for disk in machine.disks if disk.id not in left_out)
        self._gone_places = frozenset(_places(self._gone))

    def result(self) -> Without:
        if not self._kept:
            raise DiskNeeded("all disks of this machine are left out: nothing would be restored")
        arrays = tuple(self._arrays())
        self._check_layers()
        lost = tuple(self._lost())
        self._check_start()
        return Without(
            self._gone,
            tuple(array for array, _ in arrays if array is not None),
            (*(sentence for _, sentence in arrays), *self._losses(lost), *self._start_changes()),
        )

    def _is_gone(self, place: str) -> bool:
        """Whether something at a place is gone with it."""
        return place in self._gone_places and self._layers.array_of(_disk_of(place)) is None

    def _arrays(self) -> Iterator[tuple[ReducedArray | None, str]]:
        for array in self._layers.md:
            gone = [member for member in array.members if member.place in self._gone_places]
            if gone:
                yield self._judge_array(array, gone)

    def _judge_array(
        self, array: MdArray, gone: Sequence[MdMember]
    ) -> tuple[ReducedArray | None, str]:
        """Return what becomes of an array; None for one that loses no disk."""
        newest = max(member.events for member in array.members)
        left = [member for member in array.members if member not in gone]
        current = [member for member in left if member.events == newest]
        active = [
            member
            for member in current
            if member.state is MdState.ACTIVE and member.role is not None
        ]
        number = len({member.role for member in active})
        places = ", ".join(member.place for member in gone)
        _check_array(array, gone, active, number)
        if all(member.role is None for member in gone):
            return None, f"{array.title} loses its spare {places}."
        spares = [member for member in left if member.state is MdState.SPARE]
        others = [
            member for member in current if member.state in {MdState.REBUILDING, MdState.JOURNAL}
        ]
        reduced = ReducedArray(
            array, (*active, *others, *spares), number, min(newest + AHEAD, _MOST_EVENTS)
        )
        return reduced, (
            f"{array.title} goes on with {number} of its {array.disks} disks, without {places}"
            + (f", and rebuilds onto its spare {spares[0].place}" if spares else "")
            + "; a disk that is added later (mdadm --add) makes it whole again."
        )

    def _check_layers(self) -> None:
        for place, reason in _holders(self._layers):
            if self._is_gone(place):
                raise _needed(f"{place} is {reason}")

    def _lost(self) -> Iterator[tuple[Disk, Volume]]:
        """Yield the filesystems and the like that are gone with their disk."""
        for disk in self._gone:
            if self._layers.array_of(disk.id) is not None:
                continue  # its volumes are those of the array
            types = {part.number: part.type for part in disk.table.partitions} if disk.table else {}
            for volume in disk.volumes:
                is_content = volume.role in CONTENT and self._layers.array_of(volume.id) is None
                if is_content and types.get(volume.partition or 0) not in WITHOUT_DATA:
                    _check_alone(volume)
                    yield disk, volume

    def _losses(self, lost: Sequence[tuple[Disk, Volume]]) -> Iterator[str]:
        if lost:
            names = ", ".join(f"{volume.id} ({_title(volume)})" for _, volume in lost)
            yield (
                f"Lost, since nothing else holds it: {names}. If the system needs it to start (/, "
                "/usr, /boot), the machine does not come up; for a line of it in /etc/fstab without "
                "nofail the start waits, and ends in emergency mode."
            )

    def _check_start(self) -> None:
        if self._machine.firmware.kind is FirmwareKind.UEFI:
            if self._esps(self._machine.disks) and not self._esps(self._kept):
                raise _needed(f"{_names(self._gone)} holds the only EFI system partition")
        elif self._boot_code and not self._boot_code & {disk.id for disk in self._kept}:
            raise _needed(
                f"{_names(self._gone)} is the only one with boot code, which a BIOS starts from"
            )
        if not any(map(self._may_hold_system, self._kept)):
            raise _needed(f"nothing but {_names(self._gone)} can hold the system")

    def _esps(self, disks: Sequence[Disk]) -> tuple[Disk, ...]:
        return tuple(disk for disk, _ in system_partitions(disks, self._layers))

    def _may_hold_system(self, disk: Disk) -> bool:
        for volume in disk.volumes:
            array = self._layers.array_of(volume.id) or self._layers.array_of(disk.id)
            filesystem = array.filesystem if array is not None else volume.filesystem
            kind = filesystem.type if filesystem is not None else None
            # What an array with stripes holds is not known.
            if kind not in _NO_SYSTEM and (kind is not None or array is not None):
                return True
        return False

    def _start_changes(self) -> Iterator[str]:
        if self._machine.firmware.kind is FirmwareKind.UEFI:
            return
        gone = [disk for disk in self._gone if disk.id in self._boot_code]
        kept = [disk for disk in self._kept if disk.id in self._boot_code]
        if gone and kept:
            yield f"The BIOS has to start from {_names(kept)}; {_names(gone)} had boot code, too."


def _places(disks: Sequence[Disk]) -> Iterator[str]:
    for disk in disks:
        yield disk.id
        yield from (volume.id for volume in disk.volumes)


def _holders(layers: Layers) -> Iterator[tuple[str, str]]:
    """Yield the places that layers above md need, and what each is."""
    for group in layers.volume_groups:
        for part in group.physical:
            if part.place is not None:
                yield part.place, f"a physical volume of {group.title}"
    for pool in layers.btrfs:
        for device in pool.members:
            yield (
                device.place,
                f"a device of {pool.title}, which mounts only with -o degraded when one is missing",
            )
    for cached in layers.bcache:
        yield cached.place, f"a {cached.title}, which needs its other half"
    for container in layers.luks:
        yield container.place, f"a {container.title}: nothing is known of what it holds"


def _disk_of(place: str) -> str:
    return place.partition("/")[0]


def _check_array(
    array: MdArray, gone: Sequence[MdMember], active: Sequence[MdMember], number: int
) -> None:
    """Refuse an array that does not start with the members that are left.

    Args:
        array: as it was saved.
        gone: members that are left out.
        active: those that are left, have all of their data and have seen all changes.
        number: how many disks of the array these are.
    """
    without = f"{array.title} does not start without {', '.join(each.place for each in gone)}"
    if any(member.state is MdState.JOURNAL for member in gone):
        raise _needed(f"{without}: its journal is there")
    least = _least(array)
    if number < least:
        raise _needed(
            f"{without}: it needs {least} of its {array.disks} disks, and of those that are left "
            f"{number} {'is' if number == 1 else 'are'} active and up to date{_why(array)}"
        )
    is_clean = all(member.clean for member in active)
    if array.level in _WITH_PARITY and number < array.disks and not is_clean:
        raise _needed(f"{without}: it was not stopped cleanly, so its parity may be wrong")


def _least(array: MdArray) -> int:
    """Return how many active disks an array needs."""
    return 1 if array.level == "raid1" else array.disks - _SPARES.get(array.level, 0)


def _why(array: MdArray) -> str:
    if array.level != "raid10":
        return ""
    return ". Which disks of a RAID10 hold the same is not in the image"


def _check_alone(volume: Volume) -> None:
    """Refuse what is a part of something else that the layout has nothing more of."""
    kind = volume.filesystem.type if volume.filesystem is not None else ""
    if kind in LAYER_TYPES or kind == MEMBER_TYPE or kind.endswith("_member") or kind in _JOURNALS:
        raise _needed(
            f"{volume.id} is a part of something ({kind}) whose other parts are not known"
        )


def _title(volume: Volume) -> str:
    return volume.filesystem.title if volume.filesystem is not None else "no known filesystem"


def _names(disks: Sequence[Disk]) -> str:
    return " and ".join(disk.id for disk in disks)


def _needed(reason: str) -> DiskNeeded:
    return DiskNeeded(f"the machine does not come up without what is left out: {reason}")
