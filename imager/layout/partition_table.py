"""Partition tables: GPT and MBR (DOS), logical partitions included."""

from dataclasses import dataclass
from enum import StrEnum


class TableKind(StrEnum):
    """The two kinds of partition table a PC can start from."""

    GPT = "gpt"
    MBR = "mbr"


@dataclass(frozen=True, slots=True)
class Partition:
    """One entry of a partition table.

    Attributes:
        number: the kernel's number; logical partitions of an MBR start at 5.
        offset: first byte on the disk.
        length: bytes.
        type: GPT type GUID in upper case, or the MBR type byte as two hex digits.
        uuid: unique GUID of the entry (GPT), or None.
        name: GPT name, or an empty string.
        attributes: as sfdisk writes them ("RequiredPartition LegacyBIOSBootable GUID:63"), or empty.
        bootable: the MBR active flag.
    """

    number: int
    offset: int
    length: int
    type: str
    uuid: str | None = None
    name: str = ""
    attributes: str = ""
    bootable: bool = False

    @property
    def end(self) -> int:
        """First byte after the partition."""
        return self.offset + self.length

    @property
    def is_extended(self) -> bool:
        """Whether this is only the frame around logical partitions and holds no content."""
        return self.type in {"05", "0f", "85"}


@dataclass(frozen=True, slots=True)
class PartitionTable:
    """A partition table as a person understands it; its bytes are in the boot areas.

    Attributes:
        kind: GPT or MBR.
        id: GPT disk GUID in upper case, or the MBR disk signature as eight hex digits.
        partitions: in the order of their numbers.
    """

    kind: TableKind
    id: str
    partitions: tuple[Partition, ...]
