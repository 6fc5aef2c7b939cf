"""What restoring a volume group of LVM onto a physical volume of another size takes: the steps.

Each logical volume is written where its extents come, and what changes its size is done to those. The
beginning of the physical volume, with the metadata, is made last: until then LVM sees nothing of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from imager.layout.filesystem import Filesystem
from restore import fit
from restore.fit import Fitted
from restore.fit_steps import (
    CorrectBootSector,
    GrowFilesystem,
    RemakeFat,
    RemakeSwap,
    RemakeXfs,
    ShrinkFilesystem,
    WriteGroup,
)
from restore.linear_group import FittedGroup, LinearVolume, moves, pairs
from restore.runs import EDGE
from restore.saved_group import stretches
from restore.steps import ClearOutside
from restore.target import LogicalPlace, Stretch, Target

ContentStep = (
    ShrinkFilesystem
    | RemakeSwap
    | RemakeFat
    | RemakeXfs
    | CorrectBootSector
    | ClearOutside
    | WriteGroup
)


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a saved physical volume that come somewhere.

    Attributes:
        content: what they are, in words.
        source: first byte on the saved physical volume.
        offset: first byte on the target.
        length: bytes.
    """

    content: str
    source: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class PlacedGroup:
    """A fitted group on a target.

    Attributes:
        target: the disk.
        group: the group.
        offset: first byte of the physical volume.
        saved_sector: bytes of a logical sector of the saved disk.
        compares: what is made anew is compared, too.
    """

    target: Target
    group: FittedGroup
    offset: int
    saved_sector: int
    compares: bool = False

    def pieces(self) -> Iterator[Piece]:
        """Yield what is written from the image; of what is made anew nothing."""
        extent = self.group.saved.extent
        for saved, here, held in self._volumes():
            if _is_made_anew(saved, here, held):
                continue
            content = f"LV {self.group.saved.name}/{saved.name}, {_words(held)}"
            for old, new, count in pairs(saved, here):
                source, offset = (self.group.saved.length_of(each) for each in (old, new))
                yield Piece(content, source, self.offset + offset, count * extent)

    def after_content(self) -> Iterator[ContentStep]:
        """Yield what is done when the pieces are there."""
        ranges = tuple((each.offset, each.length) for each in self._unwritten())
        if ranges:
            yield ClearOutside(self.target, ranges)
        for saved, here, held in self._volumes():
            place = _place(self.group, saved, here, held, self.offset)
            size, new_size = place.saved_length, place.length
            if held is None or size == new_size:
                continue
            first = place.here[0].offset
            if held.type == fit.XFS and new_size < size:
                yield RemakeXfs(
                    self.target,
                    self.group.volume,
                    first,
                    new_size,
                    size,
                    self.saved_sector,
                    held.uuid,
                    held.label,
                    self.compares,
                    place,
                )
            elif _is_made_anew(saved, here, held):
                yield RemakeSwap(
                    self.target,
                    self.group.volume,
                    first,
                    new_size,
                    held.uuid,
                    held.label,
                    place,
                )
            elif new_size < size:
                yield ShrinkFilesystem(
                    self.target, self.group.volume, held.type, first, new_size, size, place
                )
        yield WriteGroup(
            self.target,
            self.group.volume,
            self.group.saved.name,
            self.offset,
            self.group.length,
            self.group.saved.start,
            self.group.extents,
            self.group.change,
            self.group.text,
        )

    def after_table(self) -> Iterator[GrowFilesystem]:
        """Yield what is done when the table is there."""
        for saved, here, held in self._volumes():
            if here.extents > saved.extents and held is not None and held.type != fit.SWAP:
                place = _place(self.group, saved, here, held, self.offset)
                yield GrowFilesystem(
                    self.target,
                    self.group.volume,
                    held.type,
                    place.here[0].offset,
                    place.length,
                    place.saved_length,
                    None,
                    place,
                )

    def _volumes(self) -> Iterator[tuple[LinearVolume, LinearVolume, Filesystem | None]]:
        group = self.group
        yield from zip(group.saved.volumes, group.volumes, group.filesystems, strict=True)

    def _unwritten(self) -> Iterator[Stretch]:
        """Yield what is near the ends of the physical volume, or of a logical one, and not written.

        Old signatures there could be taken for the new content's.
        """
        group = self.group.saved
        end = self.offset + self.group.length
        written = [(self.offset, self.offset + group.start)]
        written += sorted((each.offset, each.offset + each.length) for each in self.pieces())
        ends = [(self.offset, end)]
        for saved, here, held in self._volumes():
            if here.extents > saved.extents or _is_made_anew(saved, here, held):
                places = stretches(group, here, self.offset)
                ends.extend((each.offset, each.offset + each.length) for each in places)
        edges = [
            edge
            for low, high in ends
            for edge in ((low, min(low + EDGE, high)), (max(high - EDGE, low), high))
        ]
        position = self.offset
        for low, high in sorted(edges):
            start = max(low, position)
            for first, last in written:
                if start < min(first, high):
                    yield Stretch(start, min(first, high) - start)
                start = max(start, min(last, high))
            if start < high:
                yield Stretch(start, high - start)
            position = max(position, high)


def logical_places(fitted: Fitted) -> tuple[LogicalPlace, ...]:
    """Return the logical volumes of a fitted disk that come elsewhere, or with another length."""
    places = (
        _place(group, saved, here, held, fitted.offset_of(group.volume))
        for group in fitted.groups
        for saved, here, held in zip(
            group.saved.volumes, group.volumes, group.filesystems, strict=True
        )
    )
    return tuple(each for each in places if each.moves or each.length != each.saved_length)


def _place(
    group: FittedGroup,
    saved: LinearVolume,
    here: LinearVolume,
    held: Filesystem | None,
    offset: int,
) -> LogicalPlace:
    return LogicalPlace(
        volume=group.volume,
        name=f"{group.saved.name}/{saved.name}",
        content=_words(held),
        saved=stretches(group.saved, saved),
        here=stretches(group.saved, here, offset),
        moves=tuple(moves(saved, here)),
    )


def _is_made_anew(saved: LinearVolume, here: LinearVolume, held: Filesystem | None) -> bool:
    if held is None or saved.extents == here.extents:
        return False
    return held.type == fit.SWAP or (held.type == fit.XFS and here.extents < saved.extents)


def _words(held: Filesystem | None) -> str:
    return held.title if held is not None else "no known filesystem"
