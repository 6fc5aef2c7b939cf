"""What a plan depends on besides the image and the disks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from imager.layout.network import NetworkCard
from restore.boot_steps import Driver
from restore.journal import Found
from restore.marks import Carried


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a person decided.

    Attributes:
        verify_written: read everything back that was written.
        delta: write only what differs from the image.
        anew: begin from the start, also where an interrupted restore could be resumed.
        boot_entries: set boot entries in the firmware of the machine that this runs on.
        boot_repair: give the restored system the drivers of the machine that this runs on, and the
            names of its network cards.
        log_to_esp: leave the log on the restored machine.
        leave_out: ids or serials of saved disks that are not restored.
        fit: shrink what has room where a target is smaller than the saved disk (`restore.fit`), and
            make anew what counts in sectors where those have another size (`restore.sector_size`).
        grow: id of a volume that takes the free space behind it on a larger disk, or group and name of
            a logical one, "system/root"; "last" is the last one of each larger disk; None: nothing
            grows.
        nics: saved network card → card here, where a person says which one takes its place.
    """

    verify_written: bool = False
    delta: bool = False
    anew: bool = False
    boot_entries: bool = False
    boot_repair: bool = False
    log_to_esp: bool = False
    leave_out: tuple[str, ...] = ()
    fit: bool = False
    grow: str | None = None
    nics: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the system that runs the restore can do.

    Attributes:
        uefi: it was started by UEFI firmware, whose boot entries it can reach.
        discards: devices that accept discards.
        twins: notes on disks that stay and carry the same as the machine.
        journals: of interrupted restores, by the saved disk whose target holds one.
        carried: what is on the targets that could be foreign, by saved disk.
        drivers: that each target device is reached through.
        cards: network cards that are here.
        linked: names of those that have a link.
    """

    uefi: bool = False
    discards: frozenset[Path] = frozenset()
    twins: tuple[str, ...] = ()
    journals: Mapping[str, Found] = field(default_factory=dict)
    carried: Mapping[str, Carried] = field(default_factory=dict)
    drivers: Mapping[Path, tuple[Driver, ...]] = field(default_factory=dict)
    cards: tuple[NetworkCard, ...] = ()
    linked: tuple[str, ...] = ()
