"""Whether a saved disk can come on one whose logical sectors have another size, and how.

A GPT counts in sectors, so it is written anew; partitions keep their first bytes. What lies in them
stays as it is wherever it never asks for less than a sector: with larger sectors ext and btrfs by the
size of their blocks, XFS by its own sectors, swap, and volume groups of which this can be said of
every volume; with smaller ones everything but what Windows would not take (NTFS, exFAT). FAT counts in
sectors that firmware wants to be the disk's: it is made anew, file by file, and so is an XFS of
smaller sectors.

Refused is what starts from such a disk by the numbers of sectors: an MBR, and boot code for a BIOS.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from imager.errors import TargetError
from imager.layout.disk import Disk, DiskIdentity, Volume, VolumeRole
from imager.layout.filesystem import Filesystem
from imager.layout.partition_table import TableKind
from restore import ext_superblock, xfs_superblock
from restore.ext_superblock import ExtSuperblock
from restore.fit import SWAP, XFS, Fitted
from restore.overlay import Readable
from restore.without import CONTENT, WITHOUT_DATA
from restore.xfs_superblock import XfsSuperblock

_FAT: Final = "vfat"
_WINDOWS_ONLY: Final = {"ntfs": "NTFS", "exfat": "exFAT"}
_SWAP_PAGE: Final = 4096
# struct btrfs_super_block at 64 KiB: sectorsize.
_BTRFS_SECTOR: Final = (0x10090, 4)
# Of the boot sector of a FAT: bytes of its sectors.
_FAT_SECTOR: Final = (11, 2)

Part = tuple[str, Filesystem | None, Readable]
"""What it is in words, what it holds, and its bytes."""
Parts = Callable[[Volume], Sequence[Part] | str]
"""Returns what a volume is made of (itself, or the volumes of its group), or why that is not known."""


def on_sectors(
    saved: Disk, fitted: Fitted, target: DiskIdentity, parts: Parts, *, has_boot_code: bool
) -> Fitted:
    """Return how a disk comes on one with sectors of another size.

    Args:
        saved: the disk.
        fitted: how it comes on one of that size with its own sectors.
        target: what it comes on.
        parts: of its volumes.
        has_boot_code: a BIOS starts from it.

    Raises:
        TargetError: it can't; the message says what stands against it.
    """
    table, sector = fitted.disk.table, target.logical_sector
    if table is not None and table.kind is TableKind.MBR:
        raise _refused(saved, sector, "its MBR counts in sectors, and so does what starts from it")
    if has_boot_code:
        raise _refused(saved, sector, "a BIOS starts from it, by the numbers of sectors")
    remade = dict.fromkeys((*fitted.remade, *_remade(saved, fitted.disk, sector, parts)))
    gaps = [each.id for each in fitted.disk.volumes if each.role is VolumeRole.GAP]
    kept = tuple(each for each in fitted.disk.volumes if each.id not in gaps)
    identity = replace(saved.identity, size=target.size, logical_sector=sector)
    return replace(
        fitted,
        disk=replace(fitted.disk, identity=identity, volumes=kept),
        dropped=(*fitted.dropped, *gaps),
        has_new_table=table is not None,
        remade=tuple(remade),
    )


def _remade(saved: Disk, disk: Disk, sector: int, parts: Parts) -> Iterator[str]:
    """Yield the ids of volumes that are made anew; of the others, make sure that they can stay."""
    own = saved.identity.logical_sector
    types = {part.number: part.type for part in disk.table.partitions} if disk.table else {}
    for volume in disk.volumes:
        if volume.role not in CONTENT:
            continue
        if volume.offset % sector or volume.length % sector:
            raise _refused(saved, sector, f"{volume.id} does not begin and end with a whole one")
        found = () if types.get(volume.partition or 0) in WITHOUT_DATA else parts(volume)
        if isinstance(found, str):
            if sector < own:
                continue
            raise _refused(saved, sector, f"{volume.id}: {found}")
        if _is_made_anew(volume, found, sector):
            yield volume.id
            continue
        for what, held, content in found:
            reason = _reason(held, content, sector, own)
            if reason is not None:
                raise _refused(saved, sector, f"{what}: {reason}")


def _is_made_anew(volume: Volume, parts: Sequence[Part], sector: int) -> bool:
    """Whether a volume is a FAT in a partition that counts in other sectors, or an XFS in smaller ones."""
    if len(parts) != 1 or volume.role is not VolumeRole.PARTITION:
        return False
    _, held, content = parts[0]
    if held is None or held.type != XFS:
        return held is not None and held.type == _FAT and _fat_sector(content) != sector
    superblock = _xfs(content)
    can_be = superblock.is_sound and superblock.is_plain and volume.length >= xfs_superblock.LEAST
    return can_be and superblock.sector < sector


def _xfs(content: Readable) -> XfsSuperblock:
    return XfsSuperblock.parse(content.read(0, xfs_superblock.SIZE))


def _fat_sector(content: Readable) -> int:
    return int.from_bytes(content.read(*_FAT_SECTOR), "little")


def _reason(held: Filesystem | None, content: Readable, sector: int, saved: int) -> str | None:
    """Return why what is there does not work on sectors of another size; None if it does."""
    kind = held.type if held is not None else None
    if kind in _WINDOWS_ONLY:
        return f"{_WINDOWS_ONLY[kind]} is not used on sectors other than its own"
    if sector < saved:
        return None
    unit = _unit(kind, content)
    if unit is None:
        return (
            f"of {kind or 'what has no known filesystem'} it is not known what it asks a disk for"
        )
    if unit < sector:
        return f"{kind} asks the disk for {unit} bytes at a time"
    return None


def _unit(kind: str | None, content: Readable) -> int | None:
    """Return the least bytes that a filesystem reads and writes; None where that is not known."""
    if kind == SWAP:
        return _SWAP_PAGE
    if kind == _FAT:
        return _fat_sector(content)
    if kind in ext_superblock.TYPES:
        found = ExtSuperblock.parse(content.read(ext_superblock.PLACE, ext_superblock.SIZE))
        return found.block_size if found.is_sound else None
    if kind == "btrfs":
        return int.from_bytes(content.read(*_BTRFS_SECTOR), "little")
    if kind == XFS:
        superblock = _xfs(content)
        return superblock.sector if superblock.is_sound else None
    return None


def _refused(saved: Disk, sector: int, why: str) -> TargetError:
    own = saved.identity.logical_sector
    return TargetError(
        f"{saved.id} can't come on sectors of {sector} bytes: {why}",
        hint=f"Take a disk with logical sectors of {own} bytes; some drives can be switched with "
        "`nvme format`. Nothing was written.",
    )
