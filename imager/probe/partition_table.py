"""Partition tables, read twice: by sfdisk and from their bytes. They must agree."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from imager import process
from imager.errors import SourceError, TruncatedSource
from imager.layout.partition_table import Partition, PartitionTable, TableKind
from imager.probe.gpt import GptBytes, read_gpt
from imager.probe.mbr import read_mbr

_REPAIR: Final = "Look at it with `fdisk -l`, repair it, then run this again; no image was made."


@dataclass(frozen=True, slots=True)
class ReadTable:
    """A partition table and the places of its own bytes.

    Attributes:
        table: as a person understands it.
        structures: (offset, length) of every header, array of entries and boot record, sorted.
    """

    table: PartitionTable
    structures: tuple[tuple[int, int], ...]


class _SfdiskPartition(msgspec.Struct):
    node: str
    start: int
    size: int
    type: str
    uuid: str | None = None
    name: str = ""
    attrs: str = ""
    bootable: bool = False


class _SfdiskTable(msgspec.Struct):
    label: str
    id: str
    device: str
    sectorsize: int
    partitions: list[_SfdiskPartition] = []


class _Sfdisk(msgspec.Struct):
    partitiontable: _SfdiskTable


def read_table(
    path: Path, fd: int, size: int, sector: int, *, signature: str | None
) -> ReadTable | None:
    """Return the partition table of a disk, or None when it has none that a PC starts from.

    Args:
        path: disk or disk file, for sfdisk.
        fd: the same, open for reading.
        size: of the disk, bytes.
        sector: of the disk, bytes.
        signature: kind of table libblkid sees there, or None.

    Raises:
        TruncatedSource: a partition or the table itself reaches beyond the end of the disk.
        SourceError: partitions overlap, the table is damaged, or the two readings differ.
    """
    gpt = read_gpt(fd, size, sector)
    if gpt is not None:
        table = PartitionTable(TableKind.GPT, gpt.id, gpt.partitions)
        _confirm_gpt(path, gpt, sector)
        structures = gpt.structures
    elif signature == "dos":
        mbr = read_mbr(fd, size, sector)
        table = _sfdisk_table(path)
        if {(part.offset, part.length, part.type) for part in table.partitions} != mbr.ranges:
            raise SourceError(
                f"the partition table of {path} can be read in two ways", hint=_REPAIR
            )
        structures = mbr.structures
    else:
        return None
    _check(path, table, size)
    return ReadTable(table, structures)


def _confirm_gpt(path: Path, gpt: GptBytes, sector: int) -> None:
    if path.is_file() and sector != 512:
        return  # sfdisk takes a file's sectors to be of 512 bytes
    table = _sfdisk_table(path)
    if (table.kind, table.id, table.partitions) != (TableKind.GPT, gpt.id, gpt.partitions):
        raise SourceError(f"the partition table of {path} can be read in two ways", hint=_REPAIR)


def _sfdisk_table(path: Path) -> PartitionTable:
    text = process.run("sfdisk", "--json", path)
    # Remarks on a table (such as an empty boot record in a chain) come before the document.
    start = text.find("{")
    try:
        found = msgspec.json.decode(text[start:], type=_Sfdisk).partitiontable
    except msgspec.MsgspecError as error:
        raise SourceError(f"the partition table of {path} can't be read", hint=_REPAIR) from error
    is_gpt = found.label == "gpt"
    partitions = (
        Partition(
            number=int(part.node.removeprefix(found.device).lstrip("p")),
            offset=part.start * found.sectorsize,
            length=part.size * found.sectorsize,
            type=part.type.upper() if is_gpt else part.type.lower().zfill(2),
            uuid=part.uuid.upper() if is_gpt and part.uuid else None,
            name=part.name,
            attributes=part.attrs,
            bootable=part.bootable,
        )
        for part in found.partitions
    )
    return PartitionTable(
        kind=TableKind.GPT if is_gpt else TableKind.MBR,
        id=found.id.upper() if is_gpt else found.id.lower().removeprefix("0x").zfill(8),
        partitions=tuple(sorted(partitions, key=lambda part: part.number)),
    )


def _check(path: Path, table: PartitionTable, size: int) -> None:
    """Refuse partitions that overlap or leave the disk: no volume could be cut out of them."""
    for part in table.partitions:
        if part.end > size:
            raise TruncatedSource(
                f"{path} ends at byte {size}, but its partition {part.number} reaches to byte "
                f"{part.end}"
            )
    frames = [part for part in table.partitions if part.is_extended]
    logical = [part for part in table.partitions if table.kind is TableKind.MBR and part.number > 4]
    outer = [part for part in table.partitions if part not in logical]
    for group in (outer, logical):
        ordered = sorted(group, key=lambda part: part.offset)
        for before, after in itertools.pairwise(ordered):
            if after.offset < before.end:
                raise SourceError(
                    f"partitions {before.number} and {after.number} of {path} overlap",
                    hint=_REPAIR,
                )
    for part in logical:
        if not any(frame.offset <= part.offset and part.end <= frame.end for frame in frames):
            raise SourceError(
                f"partition {part.number} of {path} lies outside the extended partition",
                hint=_REPAIR,
            )
