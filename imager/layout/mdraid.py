"""md arrays (Linux software RAID) and the places of their members."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from imager.layout.filesystem import Filesystem

# What libblkid calls a member.
MEMBER_TYPE: Final = "linux_raid_member"


class MdVersion(StrEnum):
    """Version of the metadata; it also says where on a member the superblock lies."""

    V0_90 = "0.90"  # near the end
    V1_0 = "1.0"  # near the end
    V1_1 = "1.1"  # at the start
    V1_2 = "1.2"  # 4 KiB from the start


# Versions whose superblock is found by counting from the end of the member.
AT_END: Final = frozenset({MdVersion.V0_90, MdVersion.V1_0})


class MdState(StrEnum):
    """What a member is to its array, as its own superblock says."""

    ACTIVE = "active"
    REBUILDING = "rebuilding"  # has a role, and not all of its data yet
    SPARE = "spare"
    FAULTY = "faulty"
    JOURNAL = "journal"


@dataclass(frozen=True, slots=True)
class MdMember:
    """One member of an array.

    Attributes:
        place: id of the volume that it is; of the disk, where it is a whole disk whose array
            carries the partition table.
        number: of the device in the array, which it keeps for good.
        role: its place among the disks of the array, from 0 on; None for a spare and the like.
        state: active, spare, ...
        events: how many changes of the array it has seen; members differ when one missed some.
        clean: no write was on its way when its superblock was written.
        data_offset: bytes from the start of the member to the array's data.
    """

    place: str
    number: int
    role: int | None
    state: MdState
    events: int
    clean: bool
    data_offset: int


@dataclass(frozen=True, slots=True)
class MdArray:
    """An array, of which some members may lie on disks that are not captured.

    Attributes:
        id: unique in the machine: "md0", "md1", ...; not the kernel's name.
        uuid: as libblkid writes it.
        name: as in the superblock, such as "host:boot"; empty with metadata 0.90.
        level: "linear", "raid0", "raid1", "raid4", "raid5", "raid6", "raid10", or "level N" where
            it is another one.
        version: of the metadata.
        disks: how many members it has when it is whole, spares not counted.
        chunk: bytes of a stripe on one member; 0 where the level has none.
        bitmap: it keeps a write-intent bitmap on its members.
        degraded: a member was missing or failed, as the newest superblock says.
        members: in order of number.
        filesystem: what lies in the array; None where it can't be known (any level but RAID1) or
            there is nothing.
    """

    id: str
    uuid: str
    name: str
    level: str
    version: MdVersion
    disks: int
    chunk: int
    bitmap: bool
    degraded: bool
    members: tuple[MdMember, ...]
    filesystem: Filesystem | None = None

    @property
    def title(self) -> str:
        """How people call it: "RAID1 md 'boot' (metadata 1.2)"."""
        own = self.name.rpartition(":")[2] or self.uuid[:8]
        return f"{self.level.upper()} md '{own}' (metadata {self.version.value})"

    @property
    def absent(self) -> int:
        """How many of its disks have no member here."""
        return self.disks - len({member.role for member in self.members} - {None})

    @property
    def is_sound(self) -> bool:
        """Whether all members here are active, clean and have seen the same changes."""
        return len({member.events for member in self.members}) == 1 and all(
            member.state is MdState.ACTIVE and member.clean for member in self.members
        )
