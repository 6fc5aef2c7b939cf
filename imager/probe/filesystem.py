"""What a byte range of a disk holds, as libblkid recognises it."""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imager import blockdev, process
from imager.layout.filesystem import Filesystem

_NOTHING: Final = 2  # blkid's exit code for "no signature"
_AMBIGUOUS: Final = 8  # … and for "several that exclude each other"


@dataclass(frozen=True, slots=True)
class Signature:
    """What libblkid found.

    Attributes:
        filesystem: None when there is none, or when signatures contradict each other.
        table: kind of partition table ("dos", "gpt", …), or None.
    """

    filesystem: Filesystem | None
    table: str | None


def read_signature(path: Path, offset: int, length: int) -> Signature:
    """Probe `length` bytes at `offset` of a disk or disk file.

    Contradicting signatures (old ones that nobody wiped) count as none: what can't be known is
    read whole and never interpreted.
    """
    text = process.run(
        "blkid", "--probe", "--output", "udev",
        "--offset", str(offset), "--size", str(length), path,
        accept=(0, _NOTHING, _AMBIGUOUS),
    )  # fmt: skip
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    if "ID_FS_AMBIVALENT" in values:
        return Signature(None, None)
    kind = values.get("ID_FS_TYPE")
    filesystem = (
        Filesystem(
            type=kind,
            uuid=_decode(values.get("ID_FS_UUID_ENC")),
            label=_decode(values.get("ID_FS_LABEL_ENC")),
        )
        if kind
        else None
    )
    return Signature(filesystem, values.get("ID_PART_TABLE_TYPE"))


def declared_size(fd: int, offset: int, kind: str) -> int | None:
    """Return how many bytes the filesystem at `offset` says it spans; None when not known here.

    This is only to notice a disk that was cut off. Never used as an upper bound of what is read.
    """
    reader = _SPANS.get(kind)
    return reader(fd, offset) if reader else None


def _ext_span(fd: int, offset: int) -> int:
    superblock = blockdev.read_at(fd, offset + 1024, 1024)
    low, shift, high = _u32(superblock, 0x04), _u32(superblock, 0x18), _u32(superblock, 0x150)
    is_64bit = _u32(superblock, 0x60) & 0x80
    return (low + ((high << 32) if is_64bit else 0)) << (10 + min(shift, 6))


def _fat_span(fd: int, offset: int) -> int:
    boot = blockdev.read_at(fd, offset, 512)
    return (_u16(boot, 19) or _u32(boot, 32)) * _u16(boot, 11)


def _xfs_span(fd: int, offset: int) -> int:
    block, count = struct.unpack(">4xIQ", blockdev.read_at(fd, offset, 16))
    return int(block * count)


def _ntfs_span(fd: int, offset: int) -> int:
    boot = blockdev.read_at(fd, offset, 512)
    return int.from_bytes(boot[0x28:0x30], "little") * _u16(boot, 11)


def _btrfs_span(fd: int, offset: int) -> int:
    # total_bytes of the item that describes this device, in the superblock at 64 KiB
    return int.from_bytes(blockdev.read_at(fd, offset + 0x100D1, 8), "little")


_SPANS: Final[dict[str, Callable[[int, int], int]]] = {
    "ext2": _ext_span,
    "ext3": _ext_span,
    "ext4": _ext_span,
    "vfat": _fat_span,
    "xfs": _xfs_span,
    "ntfs": _ntfs_span,
    "btrfs": _btrfs_span,
}


def _u16(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2], "little")


def _u32(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")


def _decode(text: str | None) -> str | None:
    r"""Undo udev's encoding, which writes every unusual byte as \xNN."""
    if not text:
        return None
    raw = re.sub(rb"\\x([0-9a-fA-F]{2})", lambda match: bytes([int(match[1], 16)]), text.encode())
    return raw.decode(errors="replace")
