"""One disk: its table, and the volumes it is cut into."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from imager import blockdev
from imager.errors import SourceError, TruncatedSource, UnreadableSource
from imager.layout.disk import Disk, DiskIdentity, Volume, VolumeRole
from imager.layout.filesystem import Filesystem
from imager.layout.partition_table import TableKind
from imager.probe.filesystem import Signature, declared_size, read_signature
from imager.probe.mdraid import carries_table, member_signature, read_disk_superblock
from imager.probe.mdraid_superblock import MdSuperblock, read_superblock
from imager.probe.partition_table import ReadTable, read_table
from imager.units import MIB, format_size

# Unpartitioned space up to this size is kept whole. Of more, only the ends are, where boot code
# and metadata of md or a firmware RAID sit (at the start of a disk this much, since boot loaders
# of small boards are large), and what the partition table itself keeps there.
_LARGE: Final = 64 * MIB
_EDGE: Final = MIB


def probe_disk(
    path: Path,
    disk_id: str,
    identity: DiskIdentity,
    *,
    origin: str | None = None,
    every_gap: bool = False,
) -> Disk:
    """Return what a disk holds, cut into volumes that cover all of it that matters.

    Guarantees: volumes are in order, do not overlap, lie within the disk, and hold every byte of
    its partition tables, every partition, and every gap of at most 64 MiB. An MBR without any
    partition counts as no table: the disk is one volume.

    Args:
        path: disk or disk file; only read.
        disk_id: "disk0", "disk1", …
        identity: what it is recognised by; its size and sector size rule.
        origin: what people call it, when that is not `path`.
        every_gap: keep larger gaps whole as well.

    Raises:
        TruncatedSource: the disk ends before what lies on it does.
        SourceError: the partition table can't be relied on.
        UnreadableSource: a read error.
    """
    name = origin or str(path)
    with blockdev.open_disk(path) as fd:
        signature = read_signature(path, 0, identity.size)
        found, member = _table_and_member(path, fd, identity, signature)
        if found is None:
            filesystem = member_signature(member) if member else signature.filesystem
            _check_span(fd, name, filesystem, identity.size)
            whole = Volume(
                id=f"{disk_id}/whole",
                role=VolumeRole.WHOLE_DISK,
                offset=0,
                length=identity.size,
                filesystem=filesystem,
            )
            return Disk(disk_id, name, identity, None, (whole,))
        # Beside a signature of the whole disk a table is a leftover, or it lies in a mirror of md,
        # whose superblock is in a gap: all gaps are kept.
        every = every_gap or member is not None or signature.filesystem is not None
        largest = identity.size if every else _LARGE
        volumes = tuple(_volumes(path, fd, disk_id, identity.size, found, largest))
    return Disk(disk_id, name, identity, found.table, volumes)


def _table_and_member(
    path: Path, fd: int, identity: DiskIdentity, signature: Signature
) -> tuple[ReadTable | None, MdSuperblock | None]:
    """Return the table that a disk is cut by, and the superblock of the array it is a member of.

    With metadata 0.90 and 1.0 an array begins where its members do, and so does its partition
    table. That of a mirror means the same places on each member. That of any other level does not,
    and a table on a disk whose array keeps its superblock at the start is a leftover: then the
    disk is one volume.
    """
    size, sector = identity.size, identity.logical_sector
    found = None
    try:
        found = read_table(path, fd, size, sector, signature=signature.table)
    except UnreadableSource:
        raise
    except SourceError:
        member = read_disk_superblock(fd, size, sector, None)
        if member is None:
            raise
        return None, member
    member = read_disk_superblock(fd, size, sector, found.table if found else None)
    # An MBR without partitions is more likely the first sector of something else: exFAT on a
    # whole stick, or a physical volume of LVM on a disk that had a table once.
    if found is not None and found.table.kind is TableKind.MBR and not found.table.partitions:
        found = None
    if member is not None and not carries_table(member):
        found = None
    return found, member


def _check_span(fd: int, origin: str, filesystem: Filesystem | None, size: int) -> None:
    span = declared_size(fd, 0, filesystem.type) if filesystem else None
    if filesystem and span and span > size:
        raise TruncatedSource(
            f"{origin} is cut off: its {filesystem.type} filesystem spans {format_size(span)}, "
            f"but it has only {format_size(size)}"
        )


def _volumes(
    path: Path, fd: int, disk_id: str, size: int, found: ReadTable, largest: int
) -> Iterator[Volume]:
    content = sorted(
        (part for part in found.table.partitions if not part.is_extended),
        key=lambda part: part.offset,
    )
    position = 0
    gaps = 0
    for part in content:
        for offset, length in _kept(position, part.offset, found.structures, largest):
            gaps += offset > 0
            yield _between(disk_id, gaps, offset, length)
        yield Volume(
            id=f"{disk_id}/p{part.number}",
            role=VolumeRole.PARTITION,
            offset=part.offset,
            length=part.length,
            partition=part.number,
            filesystem=_filesystem(path, fd, part.offset, part.length),
        )
        position = part.end
    for offset, length in _kept(position, size, found.structures, largest):
        gaps += offset > 0
        yield _between(disk_id, gaps, offset, length)


def _filesystem(path: Path, fd: int, offset: int, length: int) -> Filesystem | None:
    """Return what a partition holds. A member of md is that, whatever else it looks like.

    With metadata 0.90 and 1.0 the filesystem of a mirror begins where its members do, and ends
    before their superblocks: whoever takes it for the partition's own loses these.
    """
    superblock = read_superblock(fd, offset, length)
    if superblock is not None:
        return member_signature(superblock)
    return read_signature(path, offset, length).filesystem


def _between(disk_id: str, number: int, offset: int, length: int) -> Volume:
    if offset == 0:
        return Volume(f"{disk_id}/boot-area", VolumeRole.BOOT_AREA, 0, length)
    return Volume(f"{disk_id}/gap{number}", VolumeRole.GAP, offset, length)


def _kept(
    start: int, end: int, structures: tuple[tuple[int, int], ...], largest: int
) -> Iterator[tuple[int, int]]:
    """Yield the (offset, length) of unpartitioned space from `start` to `end` that is kept.

    All of it is, up to `largest` bytes.
    """
    if end - start <= largest:
        if end > start:
            yield start, end - start
        return
    edges = [(start, start + (_EDGE if start else _LARGE)), (end - _EDGE, end)]
    inside = [
        (max(offset, start), min(offset + length, end))
        for offset, length in structures
        if offset < end and offset + length > start
    ]
    first, last = -1, -1
    for low, high in sorted([*edges, *inside]):
        if low <= last:
            last = max(last, high)
            continue
        if first >= 0:
            yield first, last - first
        first, last = low, high
    yield first, last - first
