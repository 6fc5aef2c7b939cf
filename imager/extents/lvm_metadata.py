"""LVM's text of a volume group: parsed, and read as which extents of which physical volume are used.

The form is that of libdevmapper's configuration files: sections in braces, values, lists.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from imager.extents.extents import UncertainMapError

Value: TypeAlias = "int | float | str | list[Value] | Section"
Section: TypeAlias = "dict[str, Value]"

_TOKEN: Final = re.compile(
    r'\s*(?:#[^\n]*\n\s*)*(?:(?P<string>"(?:[^"\\]|\\.)*")|(?P<number>-?\d+(?:\.\d+)?)(?![\w.-])'
    r"|(?P<word>[\w.+@-]+)|(?P<sign>[{}=\[\],]))"
)
_REST: Final = re.compile(r"\s*(?:#[^\n]*(?:\n\s*|$))*\0*\Z")
_DEEPEST: Final = 16

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


def parse(text: str) -> Section:
    """Return the sections of a configuration text.

    Raises:
        UncertainMapError: it is none.
    """
    return _Parser(text).top()


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
    physical = _section(group, "physical_volumes")
    logical = _section(group, "logical_volumes")
    names = []
    for name in physical:
        part = _section(physical, name)
        if _strings(part, "status") not in ([], ["ALLOCATABLE"]) or _strings(part, "flags"):
            raise UncertainMapError("a physical volume of the group is missing or in another state")
        if _string(part, "id").replace("-", "") == identifier:
            names.append(name)
    if len(names) != 1:
        raise UncertainMapError("the volume group does not know this physical volume")
    own = _section(physical, names[0])
    if "ba_start" in own:
        raise UncertainMapError("the physical volume has an area for a boot loader")
    found = sorted(
        pair
        for name in logical
        for pair in _areas(_section(logical, name), physical, logical, names[0])
    )
    return PhysicalVolume(
        size=_number(own, "dev_size"),
        start=_number(own, "pe_start"),
        extents=_number(own, "pe_count"),
        extent=_number(group, "extent_size"),
        used=tuple(found),
    )


def _check_group(group: Section) -> None:
    if _string(group, "format") != "lvm2":
        raise UncertainMapError("the LVM metadata is of an unknown format")
    status = {*_strings(group, "status"), *_strings(group, "flags")}
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
    status = {*_strings(volume, "status"), *_strings(volume, "flags")}
    if status & {"PVMOVE", "LOCKED"}:
        raise UncertainMapError("LVM is moving extents (pvmove)")
    unknown = status - _VOLUME_STATUS - _VOLUME_FLAGS
    if unknown:
        raise UncertainMapError(f"a logical volume says what is not known here: {min(unknown)}")
    next_extent = 0
    for number in range(1, _number(volume, "segment_count") + 1):
        segment = _section(volume, f"segment{number}")
        count = _number(segment, "extent_count")
        if _number(segment, "start_extent") != next_extent or count == 0:
            raise UncertainMapError("a logical volume has a gap")
        next_extent += count
        yield from _segment_areas(segment, count, physical, logical, wanted)
    if f"segment{_number(volume, 'segment_count') + 1}" in volume:
        raise UncertainMapError("a logical volume has more segments than it says")


def _segment_areas(
    segment: Section, count: int, physical: Section, logical: Section, wanted: str
) -> Iterator[tuple[int, int]]:
    kind = _string(segment, "type").partition("+")[0]
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
        parts = _number(segment, _ON_PHYSICAL[key])
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


def _section(parent: Mapping[str, Value], name: str) -> Section:
    found = parent.get(name, {} if name == "logical_volumes" else None)
    if not isinstance(found, dict):
        raise UncertainMapError(f"the LVM metadata lacks {name}")
    return found


def _number(section: Section, name: str) -> int:
    found = section.get(name)
    if not isinstance(found, int) or found < 0:
        raise UncertainMapError(f"the LVM metadata lacks {name}")
    return found


def _string(section: Section, name: str) -> str:
    found = section.get(name)
    if not isinstance(found, str):
        raise UncertainMapError(f"the LVM metadata lacks {name}")
    return found


def _strings(section: Section, name: str) -> list[str]:
    found = section.get(name, [])
    words = found if isinstance(found, list) else [found]
    if not all(isinstance(word, str) for word in words):
        raise UncertainMapError(f"the LVM metadata has no words in {name}")
    return [str(word) for word in words]


class _Parser:
    """A text and the place where it is read."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0

    def top(self) -> Section:
        """Return the whole text."""
        found: Section = {}
        while not _REST.match(self._text, self._position):
            self._entry(found, 0)
        return found

    def _entry(self, into: Section, depth: int) -> None:
        kind, name = self._next()
        if kind == "number":
            kind = "word"  # a name may be all digits
        if kind != "word" or name in into or depth > _DEEPEST:
            raise UncertainMapError("the LVM metadata can't be parsed")
        sign = self._next()
        if sign == ("sign", "="):
            into[name] = self._value()
        elif sign == ("sign", "{"):
            section: Section = {}
            while self._peek() != ("sign", "}"):
                self._entry(section, depth + 1)
            self._next()
            into[name] = section
        else:
            raise UncertainMapError("the LVM metadata can't be parsed")

    def _value(self) -> Value:
        kind, text = self._next()
        if kind == "string":
            return re.sub(r"\\(.)", r"\1", text[1:-1])
        if kind == "number":
            return float(text) if "." in text else int(text)
        if (kind, text) != ("sign", "["):
            raise UncertainMapError("the LVM metadata can't be parsed")
        items: list[Value] = []
        while self._peek() != ("sign", "]"):
            if items and self._next() != ("sign", ","):
                raise UncertainMapError("the LVM metadata can't be parsed")
            items.append(self._value())
        self._next()
        return items

    def _peek(self) -> tuple[str, str]:
        position = self._position
        found = self._next()
        self._position = position
        return found

    def _next(self) -> tuple[str, str]:
        match = _TOKEN.match(self._text, self._position)
        if match is None or match.lastgroup is None:
            raise UncertainMapError("the LVM metadata can't be parsed")
        self._position = match.end()
        return match.lastgroup, match[match.lastgroup]
