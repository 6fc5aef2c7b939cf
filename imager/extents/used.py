"""The used ranges of volumes: finds the reader for each filesystem."""

import struct
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

from imager import blockdev
from imager.errors import TruncatedSource
from imager.extents import btrfs, exfat, ext, f2fs, fat, lvm, mdraid, ntfs, swap, xfs
from imager.extents.extents import Extents, Part, UncertainMapError, whole
from imager.layout.disk import Volume
from imager.layout.filesystem import Filesystem
from imager.layout.layers import Layers
from imager.layout.mdraid import MEMBER_TYPE, MdArray

_CLOSED: Final = "LUKS, closed"

_READERS: Final[dict[str, Callable[[int, int, int], Extents]]] = {
    "LVM2_member": lvm.read,
    "exfat": exfat.read,
    "ext2": ext.read,
    "ext3": ext.read,
    "ext4": ext.read,
    "f2fs": f2fs.read,
    "ntfs": ntfs.read,
    "vfat": fat.read,
    "swap": swap.read,
    "xfs": xfs.read,
}
_NO_SENSE: Final = (ArithmeticError, LookupError, RecursionError, ValueError, struct.error)
# Filesystems that may span several volumes.
_POOL_READERS: Final[dict[str, Callable[[Sequence[Part]], list[Extents]]]] = {"btrfs": btrfs.read}


def used(path: Path, volume: Volume) -> Extents:
    """Return what of a volume that has nothing to do with others must be read.

    As `used_of_machine`, of which it is the simplest case.
    """
    return used_of_machine([(path, volume)], Layers())[0]


def used_of_machine(volumes: Sequence[tuple[Path, Volume]], layers: Layers) -> tuple[Extents, ...]:
    """Return what of each volume must be read.

    Everything, for boot areas, gaps, filesystems without a reader here, and wherever a reader is
    not sure; then `reason` says why. Volumes that carry the same filesystem are read together.

    Args:
        volumes: of one machine, as the probe found them, each with the disk or disk file that it
            lies on, which is only read.
        layers: of the machine, which say what its arrays hold.

    Raises:
        TruncatedSource: a disk ends within a volume.
        UnreadableSource: a read error.
        ProgramMissing: e2fsprogs are not installed.
    """
    pools: dict[Filesystem | int, list[int]] = {}
    for index, (_, volume) in enumerate(volumes):
        filesystem = volume.filesystem
        if filesystem is not None and filesystem.type in _POOL_READERS:
            pools.setdefault(filesystem, []).append(index)
        else:
            pools[index] = [index]
    found: dict[int, Extents] = {}
    for members in pools.values():
        filesystem = volumes[members[0]][1].filesystem
        with ExitStack() as stack:
            parts = [_open(stack, *volumes[index]) for index in members]
            kind = filesystem.type if filesystem else None
            if kind == MEMBER_TYPE:
                (index,) = members
                extents = [_read_member(parts[0], layers.array_of(volumes[index][1].id))]
            else:
                extents = _read(kind, parts, _mirrors(layers, volumes, members))
        found.update(zip(members, extents, strict=True))
    return tuple(found[index] for index in range(len(volumes)))


def _open(stack: ExitStack, path: Path, volume: Volume) -> Part:
    fd = stack.enter_context(blockdev.open_disk(path))
    if blockdev.size_of(fd) < volume.end:
        raise TruncatedSource(
            f"{path} ends at byte {blockdev.size_of(fd)}, but {volume.id} reaches to byte "
            f"{volume.end}"
        )
    return Part(fd, volume.offset, volume.length)


def _mirrors(
    layers: Layers, volumes: Sequence[tuple[Path, Volume]], members: Iterable[int]
) -> list[MdArray]:
    """Return the mirrors of whole disks that volumes are on, which the table is part of."""
    disks = {volumes[index][1].id.partition("/")[0] for index in members}
    found = (layers.array_of(disk) for disk in sorted(disks))
    return [array for array in found if array is not None]


def _read_member(part: Part, array: MdArray | None) -> Extents:
    try:
        superblock = mdraid.read_member(part, array)
    except UncertainMapError as doubt:
        return whole(part.length, str(doubt))
    inside = Part(part.fd, part.offset + superblock.data_offset, superblock.size)
    filesystem = array.filesystem if array else None
    (inner,) = _read(filesystem.type if filesystem else None, [inside], [])
    return mdraid.around(inner, superblock, part.length)


def _read(kind: str | None, parts: list[Part], mirrors: Iterable[MdArray]) -> list[Extents]:
    try:
        for array in mirrors if kind in {*_POOL_READERS, *_READERS} else ():
            mdraid.check_sound(array)
        if kind in _POOL_READERS:
            return _POOL_READERS[kind](parts)
        if kind in _READERS:
            return [_READERS[kind](part.fd, part.offset, part.length) for part in parts]
    except UncertainMapError as doubt:
        return [whole(part.length, str(doubt)) for part in parts]
    except _NO_SENSE as problem:
        # Numbers that a reader did not expect, under right checksums: all of it is read.
        reason = f"its structures make no sense ({type(problem).__name__}: {problem})"
        return [whole(part.length, reason) for part in parts]
    everything = [whole(part.length) for part in parts]
    if kind == "crypto_LUKS":
        return [replace(extents, method=_CLOSED) for extents in everything]
    return everything
