"""md arrays from the superblocks of their members."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from imager.layout.filesystem import Filesystem
from imager.layout.mdraid import AT_END, MEMBER_TYPE, MdArray, MdMember, MdVersion
from imager.layout.partition_table import PartitionTable
from imager.probe.filesystem import read_signature
from imager.probe.mdraid_superblock import MdSuperblock, read_superblock, superblock_places
from imager.probe.place import Place
from imager.probe.structure import StructureError, read_bytes

_GPT_MAGIC: Final = b"EFI PART"


def member_signature(superblock: MdSuperblock) -> Filesystem:
    """Return what libblkid says of a member."""
    return Filesystem(MEMBER_TYPE, superblock.uuid, superblock.name or None)


def read_disk_superblock(
    fd: int, size: int, sector: int, table: PartitionTable | None
) -> MdSuperblock | None:
    """Return the superblock that makes a whole disk a member; None if it is none.

    A superblock at the end of a disk may lie at the end of its last partition, too, and be that
    one's: metadata 1.0 says where it is, 0.90 does not, and then counts as the partition's if its
    data fit there. A GPT that ends with the disk is the disk's own: the superblock before it is a
    leftover.

    Args:
        fd: the disk.
        size: of it, bytes.
        sector: of it, bytes.
        table: that lies on it, or in the array, or nothing.
    """
    found = read_superblock(fd, 0, size)
    if found is None or found.version not in AT_END:
        return found
    if _ends_with_gpt(fd, size, sector):
        return None
    if found.version is MdVersion.V0_90 and table is not None:
        for part in table.partitions:
            places = dict(superblock_places(part.length))
            is_same = part.offset + places.get(MdVersion.V0_90, -1 - part.offset) == found.place
            if is_same and found.size <= found.place - part.offset:
                return None
    return found


def _ends_with_gpt(fd: int, size: int, sector: int) -> bool:
    try:
        return read_bytes(fd, size - sector, len(_GPT_MAGIC)) == _GPT_MAGIC
    except StructureError:
        return False


def carries_table(superblock: MdSuperblock) -> bool:
    """Whether the partition table of the array lies where a disk would have its own."""
    return superblock.is_mirror and superblock.data_offset == 0


def read_arrays(
    places: Sequence[tuple[Place, MdSuperblock]],
) -> tuple[tuple[MdArray, Place | None], ...]:
    """Return the arrays that members belong to, in the order in which they were found.

    Each comes with what it holds, where that lies in one piece on a member: with RAID1, on an
    active member that has seen all changes.
    """
    by_array: dict[tuple[str, MdVersion], list[tuple[Place, MdSuperblock]]] = {}
    for place, superblock in places:
        by_array.setdefault((superblock.uuid, superblock.version), []).append((place, superblock))
    numbers = itertools.count()
    return tuple(_array(f"md{next(numbers)}", found) for found in by_array.values())


def _array(
    identifier: str, found: Iterable[tuple[Place, MdSuperblock]]
) -> tuple[MdArray, Place | None]:
    members = sorted(found, key=lambda item: (item[1].number, item[0].id))
    newest = max((superblock for _, superblock in members), key=lambda one: one.events)
    content = next(_contents(identifier, members, newest.events), None)
    array = MdArray(
        id=identifier,
        uuid=newest.uuid,
        name=newest.name,
        level=newest.level,
        version=newest.version,
        disks=newest.disks,
        chunk=newest.chunk,
        bitmap=newest.bitmap,
        degraded=newest.degraded,
        members=tuple(_member(place, superblock) for place, superblock in members),
        filesystem=content.filesystem if content else None,
    )
    return array, content


def _member(place: Place, superblock: MdSuperblock) -> MdMember:
    return MdMember(
        place=place.id,
        number=superblock.number,
        role=superblock.role,
        state=superblock.state,
        events=superblock.events,
        clean=superblock.clean,
        data_offset=superblock.data_offset,
    )


def _contents(
    identifier: str, members: Iterable[tuple[Place, MdSuperblock]], events: int
) -> Iterator[Place]:
    for place, superblock in members:
        if superblock.is_mirror and superblock.settled and superblock.events == events:
            offset = place.offset + superblock.data_offset
            size = superblock.size
            inside = Place(identifier, place.path, place.fd, offset, size, None)
            if size > 0:
                signature = read_signature(place.path, offset, size)
                yield replace(inside, filesystem=signature.filesystem)
