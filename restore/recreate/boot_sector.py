"""Boot sectors of FAT and NTFS, which say at which sector of the disk they lie."""

from restore.device import OpenTarget
from restore.fit_steps import CorrectBootSector

_HIDDEN = slice(0x1C, 0x20)  # sectors before the partition, little-endian, in both
_FAT16_SIZE = slice(0x16, 0x18)  # of one table; zero means FAT32
_FAT32_BACKUP = slice(0x32, 0x34)  # sector of the copy of the boot sector
_NTFS_SECTORS = slice(0x28, 0x30)  # of the filesystem; the sector behind them is the copy
_SECTOR_SIZE = slice(0x0B, 0x0D)


def correct_boot_sector(step: CorrectBootSector, opened: OpenTarget) -> tuple[str, ...]:
    """Let a boot sector and its copy say where they lie now, if they said where they lay.

    Returns:
        What was done.

    Raises:
        VerificationFailed: a sector can't be read.
        WriteFailed: the target refused.
    """
    unit = step.target.logical_sector
    old = step.saved_offset // unit
    new = step.offset // unit
    first = opened.sector(step.offset)
    corrected = [
        place
        for place in (0, *_copies(step.filesystem, first))
        if place + unit <= step.length and _correct(opened, step.offset + place, old, new)
    ]
    if not corrected:
        return (f"{step.volume} says nothing of where it begins, or something else: left alone",)
    return (f"{step.volume} says that it begins at sector {new}, and not at {old}",)


def _copies(filesystem: str, first: bytes) -> tuple[int, ...]:
    """Return the places of a boot sector's copies, in bytes from the first."""
    size = int.from_bytes(first[_SECTOR_SIZE], "little")
    if filesystem == "ntfs":
        return (int.from_bytes(first[_NTFS_SECTORS], "little") * size,)
    if any(first[_FAT16_SIZE]):
        return ()
    sector = int.from_bytes(first[_FAT32_BACKUP], "little")
    return (sector * size,) if sector else ()


def _correct(opened: OpenTarget, offset: int, old: int, new: int) -> bool:
    sector = bytearray(opened.sector(offset))
    is_boot_sector = sector[510:512] == b"\x55\xaa"
    if not is_boot_sector or int.from_bytes(sector[_HIDDEN], "little") != old or new >> 32:
        return False
    sector[_HIDDEN] = new.to_bytes(4, "little")
    opened.write(offset, bytes(sector))
    opened.flush()
    return True
