"""What md keeps on its members, where it must not stay as it was saved.

Members that are left out: the superblocks of the others say so, as the kernel would have noted it.

A whole disk that is larger: the superblock of metadata 0.90 and 1.0 is looked for by counting from
the end of the device. Bitmap and bad block log lie at fixed distances from it and move with it; what
the array uses for data stays where it is, and is as much as it was.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from imager.blockdev import open_disk, read_at
from imager.errors import VerificationFailed
from imager.layout.mdraid import MdVersion
from imager.probe.mdraid_superblock import (
    BITMAP_HEAD_SIZE,
    SUPERBLOCK_SIZE,
    MdSuperblock,
    bitmap_place,
    bitmap_with_events,
    read_superblock,
    superblock_places,
    with_members,
    with_place,
)
from imager.units import MIB
from restore.device import OpenTarget
from restore.steps import KeepMembers

# Far more than any bitmap and log that lie before a superblock at the end.
_MOST_MOVED: Final = 64 * MIB


@dataclass(frozen=True, slots=True)
class Relocation:
    """What md keeps at the end of a member, and how far it goes.

    Attributes:
        start: first byte of it on the saved disk.
        length: bytes.
        shift: bytes that it moves by.
    """

    start: int
    length: int
    shift: int


def relocate_superblock(opened: OpenTarget, version: MdVersion) -> None:
    """Move the superblock of a member, and what belongs to it, to the end of a larger disk.

    Args:
        opened: the target, with all content of the saved disk.
        version: of the metadata.

    Raises:
        VerificationFailed: there is no such superblock, or it is not found at the new end.
        WriteFailed: the target refused.
    """
    target = opened.target
    opened.flush()
    found = _read(opened, target.saved_size)
    if found is None or found.version is not version:
        raise VerificationFailed(
            f"{target.path} ({target.disk}) has no md superblock {version} where the saved disk has one"
        )
    try:
        place = relocation(found, target.saved_size, target.size)
    except ValueError as error:
        raise VerificationFailed(f"{target.path} ({target.disk}): {error}") from error
    moved = bytearray(place.length)
    opened.read_into(place.start, memoryview(moved))
    at = found.place - place.start
    moved[at : at + SUPERBLOCK_SIZE] = with_place(
        bytes(moved[at : at + SUPERBLOCK_SIZE]), version, found.place + place.shift
    )
    opened.overwrite_with_zeros(place.start, target.saved_size - place.start)
    opened.write(place.start + place.shift, bytes(moved))
    opened.flush()
    again = _read(opened, target.size)
    if again is None or (again.uuid, again.number) != (found.uuid, found.number):
        raise VerificationFailed(
            f"{target.path} ({target.disk}): the md superblock can't be read back from its end"
        )


def relocation(found: MdSuperblock, saved_size: int, size: int) -> Relocation:
    """Return what moves when the member, a whole disk, ends elsewhere.

    Args:
        found: the superblock, of metadata 0.90 or 1.0.
        saved_size: bytes of the saved disk.
        size: bytes of the one that it is on now.

    Raises:
        ValueError: the superblock says that its bitmap or log lies where none can.
    """
    shift = dict(superblock_places(size))[found.version] - found.place
    start = min(found.place, *found.metadata) if found.metadata else found.place
    length = min(saved_size, size - shift) - start
    if length > _MOST_MOVED:
        raise ValueError("the md superblock makes no sense")
    return Relocation(start, length, shift)


def keep_members(opened: OpenTarget, step: KeepMembers) -> None:
    """Note in a member's superblock, and its bitmap, which members its array goes on with.

    The data of the member stay as they are. Doing it twice changes nothing more.

    Args:
        opened: the target, with all content of the saved disk.
        step: says which member, and what is noted.

    Raises:
        VerificationFailed: there is no such superblock, or it can't be read back.
        WriteFailed: the target refused.
    """
    opened.flush()
    found = _member(opened, step)
    if found is None:
        raise VerificationFailed(
            f"{step.target.path} ({step.place}) has no superblock of {step.array}"
        )
    with open_disk(step.target.path) as descriptor:
        for offset, data in _kept(descriptor, found, step):
            opened.write(offset, data)
    opened.flush()
    again = _member(opened, step)
    if again is None or again.events != step.events:
        raise VerificationFailed(
            f"{step.target.path} ({step.place}): the superblock of {step.array} can't be read back"
        )


def _kept(descriptor: int, found: MdSuperblock, step: KeepMembers) -> Iterator[tuple[int, bytes]]:
    """Yield what is written, and where on the target; the bitmap must never be the older one."""
    data = read_at(descriptor, step.offset + found.place, SUPERBLOCK_SIZE)
    bitmap = _bitmap(data, found, step.length)
    if bitmap is not None:
        head = read_at(descriptor, step.offset + bitmap, BITMAP_HEAD_SIZE)
        yield step.offset + bitmap, bitmap_with_events(head, step.uuid, step.events)
    yield step.offset + found.place, with_members(data, step.version, step.kept, step.events)


def kept_ranges(descriptor: int, offset: int, length: int) -> tuple[tuple[int, int], ...]:
    """Return (offset, length) of all that `keep_members` may change of a member.

    Args:
        descriptor: of the disk.
        offset: first byte of the member on it.
        length: bytes of the member.
    """
    found = read_superblock(descriptor, offset, length)
    if found is None:
        return ()
    data = read_at(descriptor, offset + found.place, SUPERBLOCK_SIZE)
    bitmap = _bitmap(data, found, length)
    heads = () if bitmap is None else ((offset + bitmap, BITMAP_HEAD_SIZE),)
    return ((offset + found.place, SUPERBLOCK_SIZE), *heads)


def _bitmap(data: bytes, found: MdSuperblock, length: int) -> int | None:
    """Return the first byte of the bitmap in a member of `length` bytes, if there is one."""
    place = bitmap_place(data, found.version, found.place)
    is_inside = place is not None and 0 <= place <= length - BITMAP_HEAD_SIZE
    return place if is_inside else None


def _member(opened: OpenTarget, step: KeepMembers) -> MdSuperblock | None:
    opened.forget()
    with open_disk(opened.target.path) as descriptor:
        found = read_superblock(descriptor, step.offset, step.length)
    if found is None:
        return None
    is_it = (found.uuid, found.version, found.number) == (step.uuid, step.version, step.number)
    return found if is_it else None


def _read(opened: OpenTarget, size: int) -> MdSuperblock | None:
    opened.forget()
    with open_disk(opened.target.path) as descriptor:
        return read_superblock(descriptor, 0, size)
