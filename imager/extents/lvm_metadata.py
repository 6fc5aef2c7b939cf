"""A volume group as its text says: which extents of which physical volume are used."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from imager.extents.extents import UncertainMapError
from imager.probe.lvm_text import Section, number, parse, section, string, strings

# What a volume group, its parts and their segments may say of themselves. Anything else could
# mean that extents are used which no segment names.
_GROUP_STATUS: Final = frozenset({"RESIZEABLE", "READ", "WRITE"})
_VOLUME_STATUS: Final = frozenset({"READ", "WRITE", "VISIBLE", "FIXED_MINOR"})
_VOLUME_FLAGS: Final = frozenset(
    {"ACTIVATION_SKIP", "ERROR_WHEN_FULL", "NOTSYNCED", "METADATA_FORMAT", "CACHE_VOL"}
)
_GROUP_KEYS: Final = frozenset(
    {
        "id",
        "seqno",
        "format",
        "status",
        "flags",
        "tags",
        "extent_size",
        "max_lv",
        "max_pv",
        "metadata_copies",
        "system_id",
        "allocation_policy",
        "profile",
        "lock_type",
        "physical_volumes",
        "logical_volumes",
        "historical_logical_volumes",
        "creation_host",
        "creation_time",
    }
)
_SEGMENT_TYPES: Final = re.compile(
    r"striped|mirror|raid\w+|thin|thin-pool|snapshot|cache|cache-pool|writecache|error|zero"
    r"|vdo|vdo-pool"
)
_ON_PHYSICAL: Final = {"stripes": "stripe_count", "mirrors": "mirror_count"}


@dataclass(frozen=True, slots=True)
class PhysicalVolume:
    """What a volume group says of one of its physical volumes.

    Attributes:
        size: of its device, in sectors of 512 bytes.
        start: first sector of the first extent.
        extents: how many it has.
        extent: sectors of an extent.
        used: (first extent, number) of every allocated range, sorted.
    """

    size: int
    start: int
    extents: int
    extent: int
    used: tuple[tuple[int, int], ...]


def physical_volume(text: str, identifier: str) -> PhysicalVolume:
    """Return what a volume group says of the physical volume with an id.

    Raises:
        UncertainMapError: it says nothing of it, is in the midst of a change, or says something
            that is not known here.
    """
    groups = [value for value in parse(text).values() if isinstance(value, dict)]
    if len(groups) != 1:
        raise UncertainMapError("the LVM metadata is not about one volume group")
    group = groups[0]
    _check_group(group)
    physical = section(group, "physical_volumes")
    logical = section(group, "logical_volumes")
    names = []
    for name in physical:
        part = section(physical, name)
        if strings(part, "status") not in ([], ["ALLOCATABLE"]) or strings(part, "flags"):
            raise UncertainMapError("a physical volume of the group is missing or in another state")
        if string(part, "id").replace("-", "") == identifier:
            names.append(name)
    if len(names) != 1:
        raise UncertainMapError("the volume group does not know this physical volume")
    own = section(physical, names[0])
    if "ba_start" in own:
        raise UncertainMapError("the physical volume has an area for a boot loader")
    found = sorted(
        pair
        for name in logical
        for pair in _areas(section(logical, name), physical, logical, names[0])
    )
    return PhysicalVolume(
        size=number(own, "dev_size"),
        start=number(own, "pe_start"),
        extents=number(own, "pe_count"),
        extent=number(group, "extent_size"),
        used=tuple(found),
    )


def _check_group(group: Section) -> None:
    if string(group, "format") != "lvm2":
        raise UncertainMapError("the LVM metadata is of an unknown format")
    status = {*strings(group, "status"), *strings(group, "flags")}
    if "EXPORTED" in status:
        raise UncertainMapError("the volume group is exported")
    if status & {"CLUSTERED", "SHARED"} or group.get("lock_type", "none") != "none":
        raise UncertainMapError("the volume group is shared between machines")
    unknown = (status - _GROUP_STATUS) | (group.keys() - _GROUP_KEYS)
    if unknown:
        raise UncertainMapError(f"the volume group says what is not known here: {min(unknown)}")


def _areas(
    volume: Section, physical: Section, logical: Section, wanted: str
) -> Iterator[tuple[int, int]]:
    """Yield the (first extent, number) that a logical volume has on one physical volume."""
    status = {*strings(volume, "status"), *strings(volume, "flags")}
    if status & {"PVMOVE", "LOCKED"}:
        raise UncertainMapError("LVM is moving extents (pvmove)")
    unknown = status - _VOLUME_STATUS - _VOLUME_FLAGS
    if unknown:
        raise UncertainMapError(f"a logical volume says what is not known here: {min(unknown)}")
    next_extent = 0
    for index in range(1, number(volume, "segment_count") + 1):
        segment = section(volume, f"segment{index}")
        count = number(segment, "extent_count")
        if number(segment, "start_extent") != next_extent or count == 0:
            raise UncertainMapError("a logical volume has a gap")
        next_extent += count
        yield from _segment_areas(segment, count, physical, logical, wanted)
    if f"segment{number(volume, 'segment_count') + 1}" in volume:
        raise UncertainMapError("a logical volume has more segments than it says")


def _segment_areas(
    segment: Section, count: int, physical: Section, logical: Section, wanted: str
) -> Iterator[tuple[int, int]]:
    kind = string(segment, "type").partition("+")[0]
    if not _SEGMENT_TYPES.fullmatch(kind):
        raise UncertainMapError(f"a logical volume is of a kind not known here: {kind}")
    for key, value in segment.items():
        listed = value if isinstance(value, list) else [value]
        if key not in _ON_PHYSICAL:
            if key not in {"type", "tags"} and any(
                isinstance(item, str) and item in physical and item not in logical
                for item in listed
            ):
                raise UncertainMapError(f"a logical volume uses extents in an unknown way: {key}")
            continue
        parts = number(segment, _ON_PHYSICAL[key])
        if len(listed) != 2 * parts or (kind == "striped" and count % parts):
            raise UncertainMapError("the stripes of a logical volume make no sense")
        length = count // parts if kind == "striped" else count
        for name, first in zip(listed[0::2], listed[1::2], strict=True):
            if not isinstance(name, str) or not isinstance(first, int) or first < 0:
                raise UncertainMapError("the stripes of a logical volume make no sense")
            # LVM takes a name for that of a physical volume first.
            if name == wanted:
                yield first, length
            elif name not in physical and name not in logical:
                raise UncertainMapError("a logical volume lies on what is not there")
