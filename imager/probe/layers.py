"""All layers of a machine, from the bytes of its disks."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from imager import blockdev
from imager.layout.disk import Disk, VolumeRole
from imager.layout.layers import Layers
from imager.layout.luks import LuksContainer
from imager.layout.mdraid import MEMBER_TYPE
from imager.probe import bcache, luks
from imager.probe.btrfs import read_pools
from imager.probe.lvm import read_groups
from imager.probe.mdraid import read_arrays, read_disk_superblock
from imager.probe.mdraid_superblock import MdSuperblock, read_superblock
from imager.probe.place import Place

_CONTENT = frozenset({VolumeRole.PARTITION, VolumeRole.WHOLE_DISK})


def read_layers(disks: Sequence[tuple[Path, Disk]]) -> Layers:
    """Return the layers on these disks.

    Volumes are looked into, and mirrors of md; what is striped or encrypted is not. Structures
    that are damaged are left out: the layout describes, and decides on no byte that is kept.

    Args:
        disks: each with the disk or disk file to read. What can't be read of it holds no layer.
    """
    with ExitStack() as stack:
        members: list[tuple[Place, MdSuperblock]] = []
        plain: list[Place] = []
        mirrored: set[str] = set()
        for path, disk in disks:
            fd = stack.enter_context(blockdev.open_disk(path))
            whole = _disk_member(path, fd, disk)
            if whole is not None:
                members.append(whole)
                if whole[1].uuid in mirrored:
                    continue  # its volumes are those of the disk that it mirrors
                mirrored.add(whole[1].uuid)
            for place in _volumes(path, fd, disk):
                superblock = _member_superblock(place)
                if superblock is None:
                    plain.append(place)
                else:
                    members.append((place, superblock))
        arrays = read_arrays(members)
        plain += [content for _, content in arrays if content is not None]
        return Layers(
            md=tuple(array for array, _ in arrays),
            luks=tuple(_containers(plain)),
            volume_groups=read_groups(plain),
            btrfs=read_pools(plain),
            bcache=tuple(found for place in plain if (found := bcache.read(place)) is not None),
        )


def _disk_member(path: Path, fd: int, disk: Disk) -> tuple[Place, MdSuperblock] | None:
    """Return a whole disk whose array carries the table; one without a table is a volume."""
    identity = disk.identity
    if disk.table is None:
        return None
    found = read_disk_superblock(fd, identity.size, identity.logical_sector, disk.table)
    if found is None:
        return None
    return Place(disk.id, path, fd, 0, identity.size, None), found


def _volumes(path: Path, fd: int, disk: Disk) -> Iterator[Place]:
    for volume in disk.volumes:
        if volume.role in _CONTENT:
            yield Place(volume.id, path, fd, volume.offset, volume.length, volume.filesystem)


def _member_superblock(place: Place) -> MdSuperblock | None:
    if place.filesystem is None or place.filesystem.type != MEMBER_TYPE:
        return None
    return read_superblock(place.fd, place.offset, place.length)


def _containers(places: Iterable[Place]) -> Iterator[LuksContainer]:
    for place in places:
        found = luks.read(place)
        if found is not None:
            yield found
