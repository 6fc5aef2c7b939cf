"""A volume group of LVM on one physical volume of another size: which extents its volumes get.

Pure: it decides on the metadata of the group, how many extents there are, and how small each logical
volume may be. It knows groups on one physical volume whose logical volumes are all linear, of one or
more segments; anything else is refused with the reason.

What is free goes first. Then logical volumes give as partitions do (`restore.fit`): swap what it has
above a least, the largest first, then filesystems, the one with the most room first, each only what is
missing. What lies behind the new end moves into free extents in front, into one run of them where one
is long enough. All else stays where it is. The new text has the names, UUIDs, tags and the order of the
old one, and counts as the next change after it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from imager.layout.filesystem import Filesystem
from imager.probe.lvm_label import SECTOR
from imager.probe.lvm_text import Section, number, parse, render, section, string, strings
from imager.probe.structure import StructureError

_GROUP_STATUS: Final = frozenset({"RESIZEABLE", "READ", "WRITE"})
_VOLUME_STATUS: Final = frozenset({"READ", "WRITE", "VISIBLE", "FIXED_MINOR", "ACTIVATION_SKIP"})
_SECTIONS: Final = frozenset({"physical_volumes", "logical_volumes", "historical_logical_volumes"})


@dataclass(frozen=True, slots=True)
class Run:
    """Extents of a logical volume that lie side by side on the physical one.

    Attributes:
        first: the first one on the physical volume.
        count: how many.
        segment: number of the saved segment that they belong to, from 1.
    """

    first: int
    count: int
    segment: int

    @property
    def end(self) -> int:
        """First extent behind."""
        return self.first + self.count


@dataclass(frozen=True, slots=True)
class LinearVolume:
    """A logical volume.

    Attributes:
        name: within the group.
        runs: its extents, in its order.
    """

    name: str
    runs: tuple[Run, ...]

    @property
    def extents(self) -> int:
        """How many it has."""
        return sum(run.count for run in self.runs)


@dataclass(frozen=True, slots=True)
class LinearGroup:
    """A volume group on one physical volume.

    Attributes:
        name: of the group.
        extent: bytes of an extent.
        start: first byte of the first extent on the physical volume.
        volumes: all logical volumes, in the order of the text.
        text: the metadata as it was saved.
    """

    name: str
    extent: int
    start: int
    volumes: tuple[LinearVolume, ...]
    text: str

    @property
    def used(self) -> int:
        """Extents that logical volumes have."""
        return sum(volume.extents for volume in self.volumes)

    def extents_in(self, length: int) -> int:
        """Return how many extents a physical volume of so many bytes has."""
        return max(length - self.start, 0) // self.extent

    def length_of(self, extents: int) -> int:
        """Return how many bytes a physical volume with so many extents needs."""
        return self.start + extents * self.extent


@dataclass(frozen=True, slots=True)
class FittedGroup:
    """A volume group as it comes on a physical volume of another size.

    Attributes:
        volume: id of the volume that is the physical volume.
        saved: the group.
        length: bytes of the physical volume on the target.
        volumes: all logical volumes as they come, in the order of the saved ones.
        filesystems: what each holds.
        text: the new metadata.
        change: its number.
    """

    volume: str
    saved: LinearGroup
    length: int
    volumes: tuple[LinearVolume, ...]
    filesystems: tuple[Filesystem | None, ...]
    text: str
    change: int

    @property
    def extents(self) -> int:
        """How many the physical volume has."""
        return self.saved.extents_in(self.length)


def read_group(text: str, identifier: str) -> LinearGroup:
    """Return a group from its text.

    Args:
        text: of the metadata area of a physical volume.
        identifier: of the physical volume, 32 characters.

    Raises:
        StructureError: it is not one of linear volumes on that physical volume alone, in good order.
    """
    name, group = _group_in(parse(text))
    if string(group, "format") != "lvm2" or group.get("lock_type", "none") != "none":
        raise StructureError(f"VG '{name}' is of another format, or shared between machines")
    strange = {*strings(group, "status"), *strings(group, "flags")} - _GROUP_STATUS
    strange |= {key for key, value in group.items() if isinstance(value, dict)} - _SECTIONS
    if strange:
        raise StructureError(f"VG '{name}' has {min(strange)}")
    physical = section(group, "physical_volumes")
    if len(physical) != 1:
        raise StructureError(f"VG '{name}' has {len(physical)} physical volumes")
    (own_name,) = physical
    own = section(physical, own_name)
    if string(own, "id").replace("-", "") != identifier or "ba_start" in own:
        raise StructureError(f"VG '{name}' describes its physical volume otherwise than its label")
    if strings(own, "status") not in ([], ["ALLOCATABLE"]) or strings(own, "flags"):
        raise StructureError(f"the physical volume of VG '{name}' is not in its usual state")
    logical = section(group, "logical_volumes")
    found = LinearGroup(
        name=name,
        extent=number(group, "extent_size") * SECTOR,
        start=number(own, "pe_start") * SECTOR,
        volumes=tuple(_volume(each, section(logical, each), own_name) for each in logical),
        text=text,
    )
    if not found.extent or not found.start:
        raise StructureError(f"VG '{name}' has no size of extents, or no place for them")
    _check_overlaps(found, number(own, "pe_count"))
    return found


def least_length(group: LinearGroup, least: Callable[[LinearVolume], int]) -> int:
    """Return how many bytes a physical volume needs for a group.

    Args:
        group: as it was saved.
        least: returns bytes that a logical volume can be shrunk to, at most its own.
    """
    return group.length_of(sum(_least_extents(group, each, least) for each in group.volumes))


def fit(
    volume: str,
    group: LinearGroup,
    length: int,
    filesystems: Sequence[Filesystem | None],
    least: Callable[[LinearVolume], int],
    grows: str | None = None,
) -> FittedGroup:
    """Return a group as it comes on a physical volume of another size.

    Args:
        volume: id of the physical volume.
        group: as it was saved.
        length: bytes of the physical volume, at least what `least_length` says.
        filesystems: what each logical volume holds.
        least: as in `least_length`; asked only if extents are missing.
        grows: name of the logical volume that takes all that is free; None: what is free stays so.
    """
    extents = group.extents_in(length)
    wanted = _shared_out(group, extents, filesystems, least)
    if grows is not None:
        wanted[grows] += extents - sum(wanted.values())
    volumes = _arranged(group, extents, wanted)
    text, change = _rewritten(group, length, volumes)
    return FittedGroup(volume, group, length, volumes, tuple(filesystems), text, change)


def moves(saved: LinearVolume, here: LinearVolume) -> Iterator[tuple[int, int, int]]:
    """Yield the extents that are elsewhere: first one before, first one now, and how many."""
    for old, new, count in pairs(saved, here):
        if old != new:
            yield old, new, count


def pairs(saved: LinearVolume, here: LinearVolume) -> Iterator[tuple[int, int, int]]:
    """Yield where extents lay, where they lie now, and how many, as far as both volumes reach."""
    olds, news = list(_single(saved)), list(_single(here))
    while olds and news:
        old, new = olds[0], news[0]
        count = min(old[1], new[1])
        yield old[0], new[0], count
        for each in (olds, news):
            first, left = each[0]
            each[:1] = [(first + count, left - count)] if left > count else []


def _single(volume: LinearVolume) -> Iterator[tuple[int, int]]:
    """Yield first extent and number of runs, those side by side as one."""
    held: tuple[int, int] | None = None
    for run in volume.runs:
        if held is not None and sum(held) == run.first:
            held = (held[0], held[1] + run.count)
            continue
        if held is not None:
            yield held
        held = (run.first, run.count)
    if held is not None:
        yield held


def _group_in(text: Section) -> tuple[str, Section]:
    groups = [(name, value) for name, value in text.items() if isinstance(value, dict)]
    if len(groups) != 1:
        raise StructureError("the LVM metadata is not about one volume group")
    return groups[0]


def _volume(name: str, volume: Section, physical: str) -> LinearVolume:
    strange = {*strings(volume, "status"), *strings(volume, "flags")} - _VOLUME_STATUS
    if strange or "VISIBLE" not in strings(volume, "status"):
        raise StructureError(f"LV {name} is {min(strange).lower() if strange else 'hidden'}")
    runs = []
    position = 0
    for index in range(1, number(volume, "segment_count") + 1):
        segment = section(volume, f"segment{index}")
        kind, count = string(segment, "type"), number(segment, "extent_count")
        if kind != "striped" or number(segment, "stripe_count") != 1:
            raise StructureError(f"LV {name} is not linear, but {kind}")
        stripes = segment.get("stripes")
        if number(segment, "start_extent") != position or not count:
            raise StructureError(f"LV {name} has a gap")
        match stripes:
            case [str(where), int(first)] if where == physical and first >= 0:
                runs.append(Run(first, count, index))
            case _:
                raise StructureError(f"LV {name} lies on something else than the physical volume")
        position += count
    if not runs:
        raise StructureError(f"LV {name} has no extents")
    return LinearVolume(name, tuple(runs))


def _check_overlaps(group: LinearGroup, extents: int) -> None:
    end = 0
    for run in sorted((run for each in group.volumes for run in each.runs), key=_first):
        if run.first < end:
            raise StructureError(f"two logical volumes of VG '{group.name}' have the same extents")
        end = run.end
    if end > extents:
        raise StructureError(f"a logical volume of VG '{group.name}' ends behind the last extent")


def _first(run: Run) -> int:
    return run.first


def _least_extents(
    group: LinearGroup, volume: LinearVolume, least: Callable[[LinearVolume], int]
) -> int:
    return min(-(-least(volume) // group.extent), volume.extents)


def _shared_out(
    group: LinearGroup,
    extents: int,
    filesystems: Sequence[Filesystem | None],
    least: Callable[[LinearVolume], int],
) -> dict[str, int]:
    """Return how many extents each volume gets."""
    wanted = {volume.name: volume.extents for volume in group.volumes}
    missing = group.used - extents
    if missing <= 0:
        return wanted
    rooms = {
        volume.name: volume.extents - _least_extents(group, volume, least)
        for volume in group.volumes
    }
    named = zip(group.volumes, filesystems, strict=True)
    kinds = {volume.name: held.type if held is not None else "" for volume, held in named}
    swaps = {name for name, kind in kinds.items() if kind == "swap"}
    by_size = sorted(swaps, key=lambda name: (-wanted[name], name))
    # What is made anew comes last: that takes longer, and gives files other inodes.
    by_room = sorted(
        wanted.keys() - swaps, key=lambda name: (kinds[name] == "xfs", -rooms[name], name)
    )
    for name in (*by_size, *by_room):
        given = min(rooms[name], missing)
        wanted[name] -= given
        missing -= given
    assert not missing  # noqa: S101  the length is at least the least one
    return wanted


def _arranged(
    group: LinearGroup, extents: int, wanted: Mapping[str, int]
) -> tuple[LinearVolume, ...]:
    """Return where the extents of all volumes come."""
    fronts = {volume.name: _front(volume.runs, wanted[volume.name]) for volume in group.volumes}
    free = _Free(extents, (run for runs in fronts.values() for run in runs))
    arranged = []
    for volume in group.volumes:
        runs: list[Run] = []
        for run in fronts[volume.name]:
            stays = min(run.count, max(extents - run.first, 0))
            if stays:
                runs.append(replace(run, count=stays))
            runs.extend(free.take(run.count - stays, runs, run.segment))
        more = wanted[volume.name] - sum(run.count for run in runs)
        runs.extend(free.take(more, runs, volume.runs[-1].segment))
        arranged.append(LinearVolume(volume.name, tuple(_merged(runs))))
    return tuple(arranged)


def _front(runs: Sequence[Run], extents: int) -> list[Run]:
    """Return the first extents of runs."""
    kept = []
    for run in runs:
        count = min(run.count, extents)
        if count:
            kept.append(replace(run, count=count))
        extents -= count
    return kept


def _merged(runs: Sequence[Run]) -> Iterator[Run]:
    """Yield runs of one segment that lie side by side as one."""
    held = runs[0]
    for run in runs[1:]:
        if (held.end, held.segment) == (run.first, run.segment):
            held = replace(held, count=held.count + run.count)
        else:
            yield held
            held = run
    yield held


class _Free:
    """Extents that no logical volume has.

    Args:
        extents: of the physical volume.
        used: runs that are in use; what of them lies behind its end does not count.
    """

    def __init__(self, extents: int, used: Iterator[Run]) -> None:
        self._holes: dict[int, int] = {}  # first extent and number
        position = 0
        for run in sorted(used, key=_first):
            if position < min(run.first, extents):
                self._holes[position] = min(run.first, extents) - position
            position = run.end
        if position < extents:
            self._holes[position] = extents - position

    def take(self, count: int, behind: Sequence[Run], segment: int) -> Iterator[Run]:
        """Yield free extents, which are in use then.

        Args:
            count: how many; there must be so many.
            behind: what they continue, if they can.
            segment: of all of them.
        """
        end = behind[-1].end if behind else -1
        while count:
            fitting = [first for first, size in self._holes.items() if size >= count]
            if end in fitting or (end in self._holes and not fitting):
                first = end
            elif fitting:
                first = min(fitting, key=lambda each: (self._holes[each], each))
            else:
                first = max(self._holes, key=lambda each: (self._holes[each], -each))
            size = self._holes.pop(first)
            taken = min(size, count)
            if size > taken:
                self._holes[first + taken] = size - taken
            yield Run(first, taken, segment)
            count -= taken
            end = first + taken


def _rewritten(group: LinearGroup, length: int, volumes: Sequence[LinearVolume]) -> tuple[str, int]:
    """Return the text of a group as it comes, and the number of its change."""
    whole = parse(group.text)
    _, text = _group_in(whole)
    change = number(text, "seqno") + 1
    text["seqno"] = change
    physical = section(text, "physical_volumes")
    (name,) = physical
    own = section(physical, name)
    own["dev_size"] = length // SECTOR
    own["pe_count"] = group.extents_in(length)
    logical = section(text, "logical_volumes")
    for volume in volumes:
        found = section(logical, volume.name)
        segments = _segments(found, volume, name)
        kept = {key: value for key, value in found.items() if not isinstance(value, dict)}
        kept["segment_count"] = len(segments)
        logical[volume.name] = {**kept, **segments}
    return render(whole), change


def _segments(saved: Section, volume: LinearVolume, physical: str) -> Section:
    made: Section = {}
    position = 0
    for index, run in enumerate(volume.runs, 1):
        made[f"segment{index}"] = {
            **section(saved, f"segment{run.segment}"),
            "start_extent": position,
            "extent_count": run.count,
            "stripes": [physical, run.first],
        }
        position += run.count
    return made
