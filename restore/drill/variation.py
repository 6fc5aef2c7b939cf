"""How the machine that is restored onto differs from the one that was saved.

A drill without a variation restores onto disks like the saved ones. Each variation is what a person
meets on the worst day: another controller, disks in other slots, disks of another size, an old disk
of the same machine that was left plugged in.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from imager.units import MIB
from restore.drill.evidence import Difference
from restore.drill.scenario import BlankDisk
from restore.drill.vm_spec import Bus

_LARGER: Final = 1.1
_SMALLER: Final = 0.8
_OTHER_BUS: Final = {
    Bus.VIRTIO: Bus.NVME,
    Bus.NVME: Bus.VIRTIO,
    Bus.SCSI: Bus.VIRTIO,
    Bus.SATA: Bus.SCSI,
    Bus.USB: Bus.VIRTIO,
}


class Variation(StrEnum):
    """What is not as it was."""

    SAME = "same"
    OTHER_BUS = "other-bus"  # virtio becomes NVMe and so on: other kernel names, other drivers
    REVERSED = "reversed"  # disks are attached in reverse order
    LARGER = "larger"  # every disk has a tenth more
    SMALLER = "smaller"  # every disk has a fifth less: refused
    STALE_DISK = "stale-disk"  # an old copy of a disk of this machine is attached, too
    REPOSITORY_DISK = "repository-disk"  # the repository lies on a disk of the same size
    POWER_CUTS = "power-cuts"  # the power fails again and again while the disks are written


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a variation must lead to.

    Attributes:
        refusal: pattern of the error with which the restore must refuse, before it writes anything;
            None when the machine must come back.
        may_differ: pattern of the facts that are not what they were, and rightly so.
    """

    refusal: str | None = None
    may_differ: str | None = None

    def unexpected(self, differences: Sequence[Difference]) -> tuple[Difference, ...]:
        """Return the differences that nothing explains."""
        pattern = self.may_differ
        if pattern is None:
            return tuple(differences)
        return tuple(each for each in differences if not re.fullmatch(pattern, each.fact))


AS_IT_WAS: Final = Expectation()
_EXPECTATIONS: Final = {
    # The end of a GPT goes with the end of the disk.
    Variation.LARGER: Expectation(may_differ=r"partition_tables / [^/]+ / lastlba"),
    Variation.SMALLER: Expectation(refusal=r"too small"),
}


def expectation(variation: Variation) -> Expectation:
    """Return what must come of a drill with a variation."""
    return _EXPECTATIONS.get(variation, AS_IT_WAS)


def vary(disks: Sequence[BlankDisk], variation: Variation) -> tuple[BlankDisk, ...]:
    """Return the disks of a drill as a variation has them; their order stays.

    Args:
        disks: like the saved ones.
        variation: what changes.
    """
    match variation:
        case Variation.OTHER_BUS:
            return tuple(replace(disk, bus=_OTHER_BUS[disk.bus], wwn=None) for disk in disks)
        case Variation.LARGER:
            return tuple(replace(disk, size=_scaled(disk.size, _LARGER)) for disk in disks)
        case Variation.SMALLER:
            return tuple(replace(disk, size=_scaled(disk.size, _SMALLER)) for disk in disks)
        case _:
            return tuple(disks)


def cuts(name: str, number: int = 10) -> tuple[float, ...]:
    """Return when the power fails: shares of what is to be written, rising; the same for a name."""
    chance = random.Random(name)  # noqa: S311  repeatable on purpose
    return tuple(sorted(chance.uniform(0.02, 0.95) for _ in range(number)))


def _scaled(size: int, factor: float) -> int:
    return int(size * factor) // MIB * MIB
