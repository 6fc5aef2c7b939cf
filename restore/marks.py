"""What a disk carries: the marks by which disks and what is on them are told apart, and words for it.

Two disks that have a mark in common hold the same thing: one is the other, an older state of it, or
a clone. A stale twin (`restore.twins`) and a foreign disk (`restore.foreign`) are known by that.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from imager.blockdev import BlockDisk
from imager.layout.disk import Disk
from imager.layout.layers import LAYER_TYPES, Layers
from imager.layout.mdraid import MEMBER_TYPE
from imager.layout.partition_table import PartitionTable, TableKind
from imager.probe.disk import probe_disk
from imager.probe.layers import read_layers

# Told of as layers, or by what is in them.
_TOLD_OF: Final = LAYER_TYPES | {MEMBER_TYPE}
_NO_SIGNATURE: Final = "00000000"  # of an MBR that nobody has numbered
_SHOWN: Final = 8  # digits of a GPT's id; a whole one tells a person no more


class MarkKind(StrEnum):
    """What a mark belongs to."""

    TABLE = "table"
    FILESYSTEM = "filesystem"
    MD = "md"
    LUKS = "luks"
    GROUP = "group"
    GROUP_NAME = "group-name"  # two of one name disturb each other, and need not be the same
    BCACHE = "bcache"


@dataclass(frozen=True, slots=True)
class Mark:
    """One thing by which a disk can be known; equal to another one whatever it is called.

    Attributes:
        kind: what it belongs to.
        value: the id.
        words: what people call it.
    """

    kind: MarkKind
    value: str
    words: str = field(compare=False)


@dataclass(frozen=True, slots=True)
class Carried:
    """What is on a disk.

    Attributes:
        words: each table, layer and filesystem, named by its label where it has one.
        marks: all of them.
    """

    words: tuple[str, ...]
    marks: tuple[Mark, ...]


def read(disk: BlockDisk) -> Carried:
    """Return what a disk carries. Only reads.

    Raises:
        RemetalError: it can't be read, or its partition table can't be understood.
    """
    found = probe_disk(disk.path, "disk0", disk.identity)
    layers = read_layers([(disk.path, found)])
    return Carried(tuple(dict.fromkeys(_words(found, layers))), tuple(marks_of([found], layers)))


def marks_of(disks: Iterable[Disk], layers: Layers) -> Iterator[Mark]:
    """Yield the marks of disks and of the layers on them."""
    for disk in disks:
        if disk.table is not None and disk.table.id != _NO_SIGNATURE:
            yield Mark(MarkKind.TABLE, disk.table.id, f"{_kind(disk.table)} {disk.table.id}")
        for volume in disk.volumes:
            filesystem = volume.filesystem
            if filesystem and filesystem.uuid and filesystem.type not in _TOLD_OF:
                words = f"{filesystem.type} {filesystem.uuid}"
                yield Mark(MarkKind.FILESYSTEM, filesystem.uuid, words)
    yield from _layer_marks(layers)


def _layer_marks(layers: Layers) -> Iterator[Mark]:
    for array in layers.md:
        yield Mark(MarkKind.MD, array.uuid, array.title)
        inside = array.filesystem
        if inside and inside.uuid and inside.type not in _TOLD_OF:
            yield Mark(MarkKind.FILESYSTEM, inside.uuid, f"{inside.type} {inside.uuid}")
    for container in layers.luks:
        yield Mark(MarkKind.LUKS, container.uuid, f"{container.title} {container.uuid}")
    for group in layers.volume_groups:
        yield Mark(MarkKind.GROUP, group.uuid, f"VG '{group.name}'")
        yield Mark(MarkKind.GROUP_NAME, group.name, f"VG '{group.name}'")
    for pool in layers.btrfs:
        yield Mark(MarkKind.FILESYSTEM, pool.uuid, f"btrfs {pool.uuid}")
    for device in layers.bcache:
        yield Mark(MarkKind.BCACHE, device.uuid, device.title)


def _words(disk: Disk, layers: Layers) -> Iterator[str]:
    if disk.table is not None:
        yield f"{_kind(disk.table)} {disk.table.id[:_SHOWN]}"
    yield from layers.describe(disk.id)
    for volume in disk.volumes:
        named = layers.describe(volume.id)
        yield from named
        filesystem = volume.filesystem
        if filesystem is not None and not named:
            yield filesystem.type + (f" '{filesystem.label}'" if filesystem.label else "")


def _kind(table: PartitionTable) -> str:
    return "GPT" if table.kind is TableKind.GPT else "MBR"
