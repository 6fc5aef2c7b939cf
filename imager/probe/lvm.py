"""Volume groups of LVM from what their physical volumes say."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from imager.layout.lvm import LogicalVolume, PhysicalVolume, VolumeGroup
from imager.probe.lvm_label import SECTOR, read_label, read_text
from imager.probe.lvm_text import Section, number, parse, section, string, strings
from imager.probe.place import Place
from imager.probe.structure import StructureError

_NO_SENSE: Final = (StructureError, RecursionError, ValueError, TypeError)
_MOST_BYTES: Final = 1 << 63
_GROUPS: Final = (6, 4, 4, 4, 4, 4, 6)  # how LVM writes an id of 32 characters


@dataclass(frozen=True, slots=True)
class _Text:
    """The metadata of a group, as one of its physical volumes has it."""

    name: str
    uuid: str
    change: int
    group: Section


def read_groups(places: Sequence[Place]) -> tuple[VolumeGroup, ...]:
    """Return the volume groups that have a physical volume in these places.

    Where several texts of a group differ, the newest one that can be understood counts. What is
    damaged is left out: nothing here decides which bytes are kept.
    """
    where: dict[str, str] = {}
    texts: list[_Text] = []
    for place in places:
        try:
            label = read_label(place.fd, place.offset, place.length)
        except _NO_SENSE:
            continue
        where.setdefault(_dashed(label.identifier), place.id)
        for area in label.metadata:
            try:
                texts.extend(_groups(read_text(place.fd, place.offset, place.length, area)))
            except _NO_SENSE:
                continue
    newest: dict[str, VolumeGroup] = {}
    for text in sorted(texts, key=lambda one: one.change, reverse=True):
        if text.uuid not in newest:
            try:
                newest[text.uuid] = _volume_group(text, where)
            except _NO_SENSE:
                continue
    order = list(dict.fromkeys(text.uuid for text in texts))
    return tuple(newest[uuid] for uuid in order if uuid in newest)


def _groups(text: str) -> Iterator[_Text]:
    for name, value in parse(text).items():
        if isinstance(value, dict):
            yield _Text(name, string(value, "id"), number(value, "seqno"), value)


def _volume_group(text: _Text, where: dict[str, str]) -> VolumeGroup:
    group = text.group
    extent = _size(number(group, "extent_size") * SECTOR)
    physical, logical = section(group, "physical_volumes"), section(group, "logical_volumes")
    return VolumeGroup(
        name=text.name,
        uuid=text.uuid,
        extent=extent,
        physical=tuple(_physical(section(physical, name), where) for name in physical),
        logical=tuple(_logical(name, section(logical, name), extent) for name in logical),
    )


def _physical(part: Section, where: dict[str, str]) -> PhysicalVolume:
    uuid = string(part, "id")
    return PhysicalVolume(uuid, where.get(uuid), _size(number(part, "dev_size") * SECTOR))


def _logical(name: str, volume: Section, extent: int) -> LogicalVolume:
    extents = 0
    kinds: dict[str, None] = {}
    for index in range(1, number(volume, "segment_count") + 1):
        segment = section(volume, f"segment{index}")
        extents += number(segment, "extent_count")
        kind = string(segment, "type").partition("+")[0]
        if kind == "striped" and number(segment, "stripe_count") == 1:
            kind = "linear"
        kinds[kind] = None
    is_visible = "VISIBLE" in strings(volume, "status")
    return LogicalVolume(
        name, string(volume, "id"), _size(extents * extent), tuple(kinds), is_visible
    )


def _size(found: int) -> int:
    if found > _MOST_BYTES:
        raise StructureError("the LVM metadata has a size that can't be")
    return found


def _dashed(identifier: str) -> str:
    position = 0
    pieces = []
    for length in _GROUPS:
        pieces.append(identifier[position : position + length])
        position += length
    return "-".join(pieces)
