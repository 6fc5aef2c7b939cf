"""bcache: disks that are cached, and the caches."""

from dataclasses import dataclass
from enum import StrEnum


class BcacheRole(StrEnum):
    """What a bcache device is."""

    BACKING = "backing"
    CACHE = "cache"


class BcacheState(StrEnum):
    """Whether a backing device is whole without its cache."""

    NONE = "none"  # no cache is attached
    CLEAN = "clean"  # all that was written is on it
    DIRTY = "dirty"  # some of it is in the cache only
    INCONSISTENT = "inconsistent"  # it ran without its cache while that held data


@dataclass(frozen=True, slots=True)
class BcacheDevice:
    """A backing or cache device.

    Attributes:
        place: id of the volume or md array that it is.
        role: backing or cache.
        uuid: of the device.
        set_uuid: of the set of caches; None for a backing device without one.
        state: of a backing device; None for a cache.
        writeback: what is written may stay in the cache; None for a cache.
    """

    place: str
    role: BcacheRole
    uuid: str
    set_uuid: str | None
    state: BcacheState | None = None
    writeback: bool | None = None

    @property
    def title(self) -> str:
        """How people call it: "bcache backing device"."""
        return f"bcache {self.role.value} device"
