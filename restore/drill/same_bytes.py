"""Restored disks beside the disks that were captured: byte by byte, where the image has content.

It comes between the restore and the first start, which writes. What is free has no content, and the
repository says only which ranges are not: their bytes are read from both disks themselves.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np

from imager.layout.disk import Disk, Volume, VolumeRole
from imager.layout.layers import Layers
from imager.probe.mdraid_superblock import SUPERBLOCK_SIZE, read_superblock
from imager.units import MIB
from restore.drill.evidence import Difference
from restore.recreate.mdraid import kept_ranges, relocation
from restore.runs import Image, each_part
from restore.without import NOTHING, Without, members_on

_PIECE: Final = 4 * MIB


def compare_disks(
    image: Image,
    before: Sequence[Path],
    after: Sequence[Path],
    *,
    tables: bool,
    without: Without = NOTHING,
) -> tuple[Difference, ...]:
    """Return a difference for each volume that is not on a restored disk as it was.

    Args:
        image: of the machine.
        before: the captured disks, in the machine's order, without those that are left out.
        after: the restored ones.
        tables: whether all must be the same, or only partitions and disks without a table.
        without: what is left out. Superblocks of md that say so, and the heads of their bitmaps, are
            not compared. What md keeps at the end of a whole disk is looked for at the new end.
    """
    found = []
    disks = [disk for disk in image.machine.disks if disk not in without.disks]
    for disk, old, new in zip(disks, before, after, strict=True):
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("rb")).fileno() for path in (old, new)]
            sizes = old.stat().st_size, new.stat().st_size
            looks = list(_looks(files[0], disk, image.machine.layers, sizes, without))
            for volume in disk.volumes:
                is_table = volume.role in {VolumeRole.BOOT_AREA, VolumeRole.GAP}
                if is_table and not tables:
                    continue
                places = (
                    _differing(files, _apart(_ranges(image, volume), look.left_out), look.shift)
                    for look in looks
                )
                place = next(chain.from_iterable(places), None)
                if place is not None:
                    where = f"differs from byte {place} of the disk on"
                    found.append(Difference(f"bytes / {volume.id}", "as captured", where))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Look:
    """What is compared, and where.

    Attributes:
        left_out: (offset, length) of what is not, in order.
        shift: how many bytes further it lies on the restored disk.
    """

    left_out: Sequence[tuple[int, int]]
    shift: int


def _looks(
    captured: int, disk: Disk, layers: Layers, sizes: tuple[int, int], without: Without
) -> Iterator[_Look]:
    old, new = sizes
    changed = [
        part
        for _, _, offset, length in members_on(disk, old, without)
        for part in kept_ranges(captured, offset, length)
    ]
    is_found_from_end = old != new and layers.array_at_end(disk) is not None
    superblock = read_superblock(captured, 0, old) if is_found_from_end else None
    if superblock is None:
        yield _Look(sorted(changed), 0)
        return
    moved = relocation(superblock, old, new)
    end = moved.start + moved.length
    yield _Look(sorted([*changed, (moved.start, old - moved.start)]), 0)
    elsewhere = (0, moved.start), (end, old - end)
    yield _Look(sorted([*changed, *elsewhere, (superblock.place, SUPERBLOCK_SIZE)]), moved.shift)


def _ranges(image: Image, volume: Volume) -> Iterator[tuple[int, int]]:
    """Yield (offset on the disk, length) of all that has content, zeros included."""
    for runs in each_part(image, volume):
        rows = [np.stack([runs.data_offsets, runs.data_lengths], axis=1), runs.zeros]
        for offset, length in np.concatenate(rows).tolist():
            yield volume.offset + offset, length


def _apart(
    ranges: Iterator[tuple[int, int]], taken: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """Yield what is left of ranges without others, which are in order."""
    for offset, length in ranges:
        start = offset
        for other, size in taken:
            if start < other + size and other < offset + length:
                if start < other:
                    yield start, other - start
                start = other + size
        if start < offset + length:
            yield start, offset + length - start


def _differing(
    files: Sequence[int], ranges: Iterator[tuple[int, int]], shift: int
) -> Iterator[int]:
    """Yield the first byte of each range that is not the same in the second file, `shift` further."""
    captured, restored = files
    for offset, length in ranges:
        for start in range(offset, offset + length, _PIECE):
            size = min(_PIECE, offset + length - start)
            one, other = os.pread(captured, size, start), os.pread(restored, size, start + shift)
            if one != other:
                yield start + _first(one, other)
                break


def _first(one: bytes, other: bytes) -> int:
    common = min(len(one), len(other))
    differs = np.frombuffer(one[:common], np.uint8) != np.frombuffer(other[:common], np.uint8)
    return int(differs.argmax()) if differs.any() else common
