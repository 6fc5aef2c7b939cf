"""What lies between the volumes of a machine and its filesystems.

A layer names where its parts lie by the id of a volume, of a whole disk, or of the md array that
they are in. What is encrypted or striped is not looked into, and the layout has nothing there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from imager.layout.bcache import BcacheDevice, BcacheRole, BcacheState
from imager.layout.btrfs import BtrfsPool
from imager.layout.disk import Disk, VolumeRole
from imager.layout.luks import LuksContainer
from imager.layout.lvm import VolumeGroup
from imager.layout.mdraid import AT_END, MdArray, MdMember, MdState

# What libblkid calls the layers that are told of by themselves.
LAYER_TYPES: Final = frozenset({"LVM2_member", "crypto_LUKS", "bcache"})


@dataclass(frozen=True, slots=True)
class Layers:
    """All layers of a machine.

    Attributes:
        md: arrays.
        luks: containers.
        volume_groups: of LVM.
        btrfs: filesystems on several devices.
        bcache: backing and cache devices.
    """

    md: tuple[MdArray, ...] = ()
    luks: tuple[LuksContainer, ...] = ()
    volume_groups: tuple[VolumeGroup, ...] = ()
    btrfs: tuple[BtrfsPool, ...] = ()
    bcache: tuple[BcacheDevice, ...] = ()

    def array_of(self, place: str) -> MdArray | None:
        """Return the array that has a member at a place."""
        for array in self.md:
            if any(member.place == place for member in array.members):
                return array
        return None

    def array_at_end(self, disk: Disk) -> MdArray | None:
        """Return the array that finds a disk without partitions by counting from the disk's end."""
        whole = (volume.id for volume in disk.volumes if volume.role is VolumeRole.WHOLE_DISK)
        arrays = (self.array_of(place) for place in (disk.id, *whole))
        return next((each for each in arrays if each and each.version in AT_END), None)

    def describe(self, place: str) -> tuple[str, ...]:
        """Say what a volume, disk or array carries, from the outermost layer inwards."""
        return tuple(self._describe(place))

    def _describe(self, place: str) -> Iterator[str]:
        for array in self.md:
            for member in array.members:
                if member.place == place:
                    yield _member(array, member)
                    yield from _inside(array)
                    yield from self._describe(array.id)
        yield from (container.title for container in self.luks if container.place == place)
        for group in self.volume_groups:
            if any(part.place == place for part in group.physical):
                yield f"physical volume of {group.title}"
        for pool in self.btrfs:
            if any(part.place == place for part in pool.members):
                yield f"device of {pool.title}"
        yield from (device.title for device in self.bcache if device.place == place)

    def lacking(self) -> tuple[str, ...]:
        """Say by name what of the layers is on none of the captured disks."""
        return tuple(self._lacking())

    def _lacking(self) -> Iterator[str]:
        for array in self.md:
            if array.absent > 0:
                here = array.disks - array.absent
                state = " and was degraded" if array.degraded else ""
                yield (
                    f"{array.title} has {array.disks} disks{state}, and only {here} of its members "
                    f"{'is' if here == 1 else 'are'} on the captured disks"
                )
        for group in self.volume_groups:
            for part in group.missing:
                yield (
                    f"{group.title} needs the physical volume {part.uuid}, which is on none of the "
                    "captured disks"
                )
        for pool in self.btrfs:
            if pool.absent > 0:
                yield (
                    f"{pool.title} has only {pool.devices - pool.absent} of them on the captured "
                    "disks"
                )
        caches = {device.set_uuid for device in self.bcache if device.role is BcacheRole.CACHE}
        for device in self.bcache:
            if device.role is BcacheRole.BACKING and device.set_uuid not in {None, *caches}:
                yield (
                    f"the cache of the {device.title} {device.place} (set {device.set_uuid}) is on "
                    "none of the captured disks"
                )

    def torn(self) -> tuple[BcacheDevice, ...]:
        """Return the bcache backing devices of which a part is in a cache that is not here."""
        caches = {device.set_uuid for device in self.bcache if device.role is BcacheRole.CACHE}
        return tuple(
            device
            for device in self.bcache
            if device.state is BcacheState.DIRTY and device.set_uuid not in caches
        )


def _member(array: MdArray, member: MdMember) -> str:
    if member.role is None:
        return f"{member.state.value} member of {array.title}"
    state = "" if member.state is MdState.ACTIVE else f", {member.state.value}"
    return f"member {member.role + 1} of {array.disks} of {array.title}{state}"


def _inside(array: MdArray) -> Iterator[str]:
    """Say which filesystem an array holds; what else it holds is a layer of its own."""
    inside = array.filesystem
    if inside is not None and inside.type not in LAYER_TYPES:
        yield f"holding {inside.title}"
