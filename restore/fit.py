"""Where the volumes of a saved disk come on a disk of another size.

Pure: it decides on the layout, the size of the target and how small each volume may be. Nothing is
chosen by itself: `--fit` and `--grow` ask for it.

On a smaller disk the first partition stays where it is, with all that lies before it: tables, boot
code, BIOS boot partitions. The others close up, each at a place as round as its old one, up to 1 MiB.
If that does not do, swap areas give what they have above a least, the largest first, then
filesystems, the one with the most room first, each only what is missing; at last XFS, which no program
shrinks, by being made anew. A physical volume of LVM counts as one, if its group can be laid out anew
(`restore.linear_group`). Nothing else shrinks: what has no program for it (FAT), and what carries
other layers (members of md, LUKS, other physical volumes), moves at most. On a larger disk one partition grows, and those behind it move up.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from imager.errors import TargetError, TargetTooSmall
from imager.layout.disk import Disk, Volume, VolumeRole
from imager.layout.layers import Layers
from imager.layout.partition_table import PartitionTable, TableKind
from imager.units import KIB, MIB, format_size, round_up
from restore.linear_group import FittedGroup
from restore.target import Place

SWAP: Final = "swap"
PHYSICAL: Final = "LVM2_member"
XFS: Final = "xfs"
SHRINKS: Final = frozenset({"ext2", "ext3", "ext4", "btrfs", "ntfs"})
GROWS: Final = SHRINKS | {XFS}

_LARGEST_UNIT: Final = MIB
# The boot record of a logical partition lies that much before it: sfdisk puts it there.
_BOOT_RECORD: Final = MIB
_MOST_PRIMARY: Final = 4  # partitions of an MBR; what comes behind is logical
_WHOLE_UNIT: Final = 64 * KIB  # no block of a filesystem is larger
# Boot code counts sectors to what lies in it, from the start of the disk.
_BIOS_BOOT: Final = "21686148-6449-6E6F-744E-656564454649"
_RIGID: Final = {
    "vfat": "no program makes FAT smaller and keeps its files",
    "exfat": "exFAT can't be made smaller",
    "crypto_LUKS": "what is encrypted is kept whole",
    "bcache": "a device of bcache is kept whole",
    None: "it holds no known filesystem",
}
_NOTHING_WRITTEN: Final = "nothing was written."

Least = Callable[[Volume], int]
"""Returns the length in bytes that a volume can be shrunk to, at most its own."""
Rigid = Callable[[Volume], str | None]
"""Returns why a physical volume of LVM must stay as large as it is; None if it need not."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A saved disk as it comes on its target.

    Attributes:
        disk: with the size of the target, and volumes and partitions where they come. Gaps that
            have no place there any more are left out.
        places: of volumes that come elsewhere, or with another length; empty for an exact restore.
        dropped: ids of the gaps that are left out.
        has_new_table: the saved table does not describe this disk.
        groups: of LVM, on physical volumes that come with another length.
        remade: ids of volumes that are made anew, file by file: XFS that gets smaller, and what
            counts in sectors of another size (`restore.sector_size`).
    """

    disk: Disk
    places: tuple[Place, ...] = ()
    dropped: tuple[str, ...] = ()
    has_new_table: bool = False
    groups: tuple[FittedGroup, ...] = ()
    remade: tuple[str, ...] = ()

    def group_in(self, volume: str) -> FittedGroup | None:
        """Return the group whose physical volume is a volume, if it is laid out anew."""
        return next((group for group in self.groups if group.volume == volume), None)

    def offset_of(self, volume: str) -> int:
        """Return the first byte of a volume of this disk."""
        return next(each.offset for each in self.disk.volumes if each.id == volume)


def kept_whole(_volume: Volume) -> str:
    """Say why a physical volume stays as large as it is, where nothing is known of it."""
    return "a physical volume of LVM is kept whole"


@dataclass(frozen=True, slots=True)
class _Bounds:
    """What says how small volumes may be."""

    layers: Layers
    least: Least
    rigid: Rigid

    def reason(self, volume: Volume) -> str | None:
        """Return why a volume can't shrink; None if it can."""
        kind = _kind(volume)
        layer = _layer_reason(volume, self.layers)
        if layer is not None or kind in SHRINKS | {SWAP, XFS}:
            return layer
        if kind == PHYSICAL:
            return self.rigid(volume)
        return _RIGID.get(kind, f"{kind} can't be made smaller")


def exact(disk: Disk) -> Fitted:
    """Return a saved disk as it was."""
    return Fitted(disk)


def shrink(
    disk: Disk, size: int, layers: Layers, least: Least, rigid: Rigid = kept_whole
) -> Fitted:
    """Return a saved disk as it comes on a smaller one.

    Args:
        disk: as it was saved.
        size: bytes of the target, less than the saved disk has.
        layers: of the machine.
        least: how small volumes may be that can be shrunk; asked only if that is needed.
        rigid: whether physical volumes can be; likewise.

    Raises:
        TargetTooSmall: the data does not fit; it says what was counted and how much is missing.
        TargetError: this disk can't be fitted, for another reason.
    """
    _refuse_array(disk, layers)
    bounds = _Bounds(layers, least, rigid)
    if disk.table is None:
        return _whole(disk, _shrunk_whole(disk, size, bounds), size)
    parts = _partitions(disk)
    limit = size - _tail(disk)
    lengths = {part.id: part.length for part in parts}
    offsets = {part.id: part.offset for part in parts}
    if parts and parts[-1].end > limit:
        _check_logical(disk)
        _take(disk, lengths, limit, bounds)
        missing = _packed_end(disk, lengths) - limit
        if missing > 0:
            raise _does_not_fit(disk, size, missing, parts, lengths, bounds)
        offsets = _pack(disk, lengths)
    elif not parts and any(
        each.role is VolumeRole.BOOT_AREA and each.end > limit for each in disk.volumes
    ):
        raise TargetTooSmall(
            f"{disk.id} has no partitions, and a boot area larger than {size} bytes"
        )
    return _placed(disk, size, offsets, lengths)


def grow(disk: Disk, size: int, layers: Layers, wanted: str, rigid: Rigid = kept_whole) -> Fitted:
    """Return a saved disk with one volume grown over free space.

    Args:
        disk: as it was saved.
        size: bytes of the target, at least those of the saved disk.
        layers: of the machine.
        wanted: id of a volume that is a partition of this disk, or all of it.
        rigid: whether a physical volume can grow.

    Raises:
        TargetError: that volume can't grow, or there is nothing to grow into.
    """
    _refuse_array(disk, layers)
    volume = next(each for each in disk.volumes if each.id == wanted)
    kind = volume.filesystem.type if volume.filesystem is not None else None
    reason = _layer_reason(volume, layers)
    if reason is None and kind == PHYSICAL:
        reason = rigid(volume)
    elif reason is None and kind not in GROWS | {SWAP}:
        reason = f"a volume with {kind or 'no known filesystem'} is not grown"
    if reason is not None:
        raise TargetError(
            f"{wanted} can't grow: {reason}",
            hint="Restore without --grow, and enlarge it on the machine that came back; "
            + _NOTHING_WRITTEN,
        )
    if disk.table is None:
        length = size // _WHOLE_UNIT * _WHOLE_UNIT
        if length <= volume.length:
            raise _nothing_to_grow_into(wanted)
        return _whole(disk, length, size)
    _refuse_logical(disk)
    parts = _partitions(disk)
    at = parts.index(volume)
    offsets = {part.id: part.offset for part in parts}
    lengths = {part.id: part.length for part in parts}
    end = size - _tail(disk)
    for part in reversed(parts[at + 1 :]):
        unit = _unit(part.offset)
        offsets[part.id] = max(part.offset, (end - part.length) // unit * unit)
        end = offsets[part.id]
    unit = _unit(volume.offset)
    lengths[wanted] = (end - volume.offset) // unit * unit
    if lengths[wanted] <= volume.length:
        raise _nothing_to_grow_into(wanted)
    return _placed(disk, size, offsets, lengths)


def has_room_for_gpt(disk: Disk, size: int) -> bool:
    """Whether the last partition of a disk with a GPT ends before the backup on one of some size."""
    parts = _partitions(disk)
    return not parts or parts[-1].end <= size - _tail(disk)


def last_of(disk: Disk) -> str | None:
    """Return the id of the last partition of a disk, or of all of it; None where it has none."""
    volumes = [
        volume
        for volume in disk.volumes
        if volume.role in {VolumeRole.PARTITION, VolumeRole.WHOLE_DISK}
    ]
    return volumes[-1].id if volumes else None


def _partitions(disk: Disk) -> list[Volume]:
    return [volume for volume in disk.volumes if volume.role is VolumeRole.PARTITION]


def _tail(disk: Disk) -> int:
    """Return how many bytes at the end of a disk are its table's."""
    return MIB if disk.table is not None and disk.table.kind is TableKind.GPT else 0


def _unit(offset: int) -> int:
    """Return what a volume's place is a multiple of: that of the saved one, at most 1 MiB."""
    return min(offset & -offset, _LARGEST_UNIT) or _LARGEST_UNIT


def _is_logical(part: Volume, disk: Disk) -> bool:
    is_mbr = disk.table is not None and disk.table.kind is TableKind.MBR
    return is_mbr and part.partition is not None and part.partition > _MOST_PRIMARY


def _pack(disk: Disk, lengths: Mapping[str, int]) -> dict[str, int]:
    """Return where partitions come when each follows the one before as closely as it may."""
    parts = _partitions(disk)
    offsets = {parts[0].id: parts[0].offset}
    end = parts[0].offset + lengths[parts[0].id]
    for part in parts[1:]:
        if _is_logical(part, disk):
            offsets[part.id] = round_up(end + _BOOT_RECORD, _BOOT_RECORD)
        else:
            offsets[part.id] = round_up(end, _unit(part.offset))
        end = offsets[part.id] + lengths[part.id]
    return offsets


def _packed_end(disk: Disk, lengths: Mapping[str, int]) -> int:
    last = _partitions(disk)[-1].id
    return _pack(disk, lengths)[last] + lengths[last]


def _take(disk: Disk, lengths: dict[str, int], limit: int, bounds: _Bounds) -> None:
    """Take from volumes what is missing, as far as they have it."""
    givers = [part for part in _partitions(disk) if bounds.reason(part) is None]
    swaps = [part for part in givers if _kind(part) == SWAP]
    for volume in sorted(swaps, key=lambda part: part.length, reverse=True):
        _take_from(volume, disk, lengths, limit, bounds.least)
    if _packed_end(disk, lengths) <= limit:
        return
    rooms = {part.id: part.length - bounds.least(part) for part in givers if part not in swaps}
    others = [part for part in givers if part.id in rooms]
    for volume in sorted(others, key=lambda part: (_kind(part) == XFS, -rooms[part.id])):
        _take_from(volume, disk, lengths, limit, bounds.least)


def _take_from(
    volume: Volume, disk: Disk, lengths: dict[str, int], limit: int, least: Least
) -> None:
    missing = _packed_end(disk, lengths) - limit
    if missing <= 0:
        return
    smallest = round_up(least(volume), MIB)
    length = max((volume.length - missing) // MIB * MIB, smallest)
    if length < volume.length:
        lengths[volume.id] = length


def _kind(volume: Volume) -> str | None:
    return volume.filesystem.type if volume.filesystem is not None else None


def _layer_reason(volume: Volume, layers: Layers) -> str | None:
    array = layers.array_of(volume.id)
    if array is not None:
        return f"it is a member of {array.title}"
    for pool in layers.btrfs:
        if any(member.place == volume.id for member in pool.members):
            return f"it is a device of {pool.title}"
    return None


def _refuse_array(disk: Disk, layers: Layers) -> None:
    array = layers.array_of(disk.id)
    if array is not None:
        raise TargetError(
            f"{disk.id} is as a whole a member of {array.title}, and can't be fitted",
            hint=f"Take a disk of at least {disk.identity.size} bytes; {_NOTHING_WRITTEN}",
        )


def _refuse_logical(disk: Disk) -> None:
    if disk.table is not None and any(part.is_extended for part in disk.table.partitions):
        raise TargetError(
            f"{disk.id} has logical partitions, of which none is grown",
            hint=f"Take a disk of at least {disk.identity.size} bytes; {_NOTHING_WRITTEN}",
        )


def _check_logical(disk: Disk) -> None:
    """Refuse logical partitions that sfdisk would number otherwise, or put elsewhere."""
    assert disk.table is not None  # noqa: S101
    parts = _partitions(disk)
    frames = [part for part in disk.table.partitions if part.is_extended]
    numbers = [part.partition for part in parts if _is_logical(part, disk)]
    in_order = list(range(_MOST_PRIMARY + 1, _MOST_PRIMARY + 1 + len(numbers)))
    is_plain = len(frames) == 1 and numbers == in_order and not _is_logical(parts[0], disk)
    if frames and not (is_plain and numbers):
        raise TargetError(
            f"the logical partitions of {disk.id} are in another order than their numbers, or there "
            "is none in the extended one: that can't be fitted",
            hint=f"Take a disk of at least {disk.identity.size} bytes; {_NOTHING_WRITTEN}",
        )


def _nothing_to_grow_into(volume: str) -> TargetError:
    return TargetError(
        f"{volume} can't grow: there is no free space for it on this disk",
        hint=f"Restore without --grow, or onto a larger disk; {_NOTHING_WRITTEN}",
    )


def _shrunk_whole(disk: Disk, size: int, bounds: _Bounds) -> int:
    """Return the length of what fills a smaller disk without a table."""
    (volume,) = disk.volumes
    reason = bounds.reason(volume)
    length = size // _WHOLE_UNIT * _WHOLE_UNIT
    smallest = volume.length if reason is not None else bounds.least(volume)
    if smallest > length:
        lengths = {volume.id: smallest}
        raise _does_not_fit(disk, size, smallest - length, [volume], lengths, bounds)
    return length


def _whole(disk: Disk, length: int, size: int) -> Fitted:
    (volume,) = disk.volumes
    placed = replace(volume, length=length)
    identity = replace(disk.identity, size=size)
    places = tuple(_places([volume], [placed]))
    return Fitted(
        replace(disk, identity=identity, volumes=(placed,)),
        places,
        remade=tuple(_remade([volume], places)),
    )


def _places(saved: Iterable[Volume], placed: Iterable[Volume]) -> Iterable[Place]:
    new = {volume.id: volume for volume in placed}
    for old in saved:
        here = new.get(old.id)
        if here is None or (here.offset, here.length) == (old.offset, old.length):
            continue
        content = old.filesystem.title if old.filesystem is not None else "no known filesystem"
        yield Place(old.id, content, old.offset, old.length, here.offset, here.length)


def _placed(
    disk: Disk, size: int, offsets: Mapping[str, int], lengths: Mapping[str, int]
) -> Fitted:
    """Return a disk with its partitions where they come."""
    assert disk.table is not None  # noqa: S101  a disk without one has no partitions
    parts = _partitions(disk)
    placed = {
        part.id: replace(part, offset=offsets[part.id], length=lengths[part.id]) for part in parts
    }
    places = tuple(_places(parts, placed.values()))
    _refuse_moved_boot_code(disk, places)
    beginning = parts[0].offset if parts else size
    # Where partitions stay, so does what is between them, up to the end of the disk.
    end = beginning if places else size - _tail(disk)
    volumes: list[Volume] = []
    dropped: list[str] = []
    for volume in disk.volumes:
        if volume.id in placed:
            volumes.append(placed[volume.id])
        elif volume.role is VolumeRole.BOOT_AREA or volume.end <= end:
            volumes.append(volume)
        elif volume.offset < end:
            volumes.append(replace(volume, length=end - volume.offset))
        else:
            dropped.append(volume.id)
    assert all(one.end <= other.offset for one, other in pairwise(volumes))  # noqa: S101  its promise
    is_gpt = disk.table.kind is TableKind.GPT
    return Fitted(
        disk=replace(
            disk,
            identity=replace(disk.identity, size=size),
            table=_table(disk, placed.values()) if places else disk.table,
            volumes=tuple(volumes),
        ),
        places=places,
        dropped=tuple(dropped),
        has_new_table=bool(places) or (is_gpt and size < disk.identity.size),
        remade=tuple(_remade(parts, places)),
    )


def _remade(saved: Iterable[Volume], places: Iterable[Place]) -> Iterator[str]:
    shrunk = {place.volume for place in places if place.length < place.saved_length}
    yield from (each.id for each in saved if each.id in shrunk and _kind(each) == XFS)


def _table(disk: Disk, placed: Iterable[Volume]) -> PartitionTable:
    """Return the table that describes where partitions come."""
    assert disk.table is not None  # noqa: S101
    volumes = {volume.partition: volume for volume in placed}
    logical = [volume for volume in volumes.values() if _is_logical(volume, disk)]
    partitions = []
    for part in disk.table.partitions:
        if part.number in volumes:
            volume = volumes[part.number]
            partitions.append(replace(part, offset=volume.offset, length=volume.length))
        elif part.is_extended and logical:
            start = logical[0].offset - _BOOT_RECORD
            partitions.append(replace(part, offset=start, length=logical[-1].end - start))
        else:
            partitions.append(part)
    return replace(disk.table, partitions=tuple(partitions))


def _refuse_moved_boot_code(disk: Disk, places: Iterable[Place]) -> None:
    assert disk.table is not None  # noqa: S101
    moved = {place.volume for place in places if place.offset != place.saved_offset}
    types = {part.number: part.type for part in disk.table.partitions}
    for volume in disk.volumes:
        if volume.id in moved and types.get(volume.partition or 0) == _BIOS_BOOT:
            raise TargetError(
                f"{volume.id} is a BIOS boot partition, to which the boot code counts sectors: it "
                "would move",
                hint=f"Take a disk of at least {disk.identity.size} bytes; {_NOTHING_WRITTEN}",
            )


def _does_not_fit(
    disk: Disk,
    size: int,
    missing: int,
    parts: Iterable[Volume],
    lengths: Mapping[str, int],
    bounds: _Bounds,
) -> TargetTooSmall:
    counted = []
    for part in parts:
        reason = bounds.reason(part)
        length = format_size(lengths[part.id])
        what = part.filesystem.title if part.filesystem is not None else "no known filesystem"
        counted.append(
            f"{part.id} ({what}) {length}"
            + (f", since {reason}" if reason else ", what it uses and room to move that")
        )
    needed = round_up(size + missing, MIB)
    return TargetTooSmall(
        f"the data of {disk.id} does not fit on {size} bytes: {missing} bytes are missing. "
        f"Counted were {'; '.join(counted)}",
        hint=f"Take a disk of at least {needed} bytes ({format_size(needed)}); {_NOTHING_WRITTEN}",
    )
