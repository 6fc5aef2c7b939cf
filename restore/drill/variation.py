"""How the machine that is restored onto differs from the one that was saved.

A drill without a variation restores onto disks like the saved ones. Each variation is what a person
meets on the worst day: another controller, disks in other slots, disks of another size, an old disk
of the same machine that was left plugged in.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from imager.units import MIB
from restore.drill.evidence import MISSING, Difference
from restore.drill.scenario import BlankDisk
from restore.drill.vm_spec import Bus
from restore.without import NOTHING, Without

_LARGER: Final = 1.1
_SMALLER: Final = 0.8
_OTHER_SECTOR: Final = {512: 4096, 4096: 512}
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
    NEW_DRIVERS = "new-drivers"  # another bus, of which the initramfs has no drivers: it is rebuilt
    NEW_NAMES = "new-names"  # another bus, where the machine's files name its disks as before
    REVERSED = "reversed"  # disks are attached in reverse order
    LARGER = "larger"  # every disk has a tenth more
    SMALLER = "smaller"  # every disk has a fifth less: refused
    SHRUNK = "shrunk"  # every disk has a fifth less, and the order says to fit
    OTHER_SECTORS = "other-sectors"  # of 4096 bytes instead of 512, or the other way; to be fitted
    STALE_DISK = "stale-disk"  # an old copy of a disk of this machine is attached, too
    ONE_DISK = "one-disk"  # only the first disk is there; the order leaves the others out
    REPOSITORY_DISK = "repository-disk"  # the repository lies on a disk of the same size
    POWER_CUTS = "power-cuts"  # the power fails again and again while the disks are written


# The order says to fit.
FITTED: Final = frozenset({Variation.SHRUNK, Variation.OTHER_SECTORS})


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a variation must lead to.

    Attributes:
        refusal: pattern of the error with which the restore must refuse, before it writes anything;
            None when the machine must come back.
        may_differ: facts that are not what they were, and rightly so: a pattern of their names, and
            one of what they are afterwards.
        same_tables: partition tables and boot areas are the captured ones, byte for byte.
    """

    refusal: str | None = None
    may_differ: tuple[tuple[str, str], ...] = ()
    same_tables: bool = True

    def unexpected(self, differences: Sequence[Difference]) -> tuple[Difference, ...]:
        """Return the differences that nothing explains."""
        return tuple(each for each in differences if not self._explains(each))

    def _explains(self, difference: Difference) -> bool:
        return any(
            re.fullmatch(fact, difference.fact) and re.fullmatch(value, difference.after)
            for fact, value in self.may_differ
        )


# Places and lengths of partitions and logical volumes, and the sizes of what is in them. resize2fs
# gives folders that it moves a newer time, so that hashes over many entries differ; then each entry
# is compared. One that has content has a second word: of files, every one is what it was.
_FITTED_FACTS: Final = (
    (r"partition_tables / [^/]+ / (lastlba|partitions / \d+ / (start|size))", r"\d+"),
    (r"block_devices / [^ ]+ / (PART_ENTRY_(OFFSET|SIZE)|FSSIZE|FSLASTBLOCK)", r"\d+"),
    (r"swaps / [^ ]+ / size", r"\d+"),
    # A row has the sizes: the one as it was is missing, and another one is there.
    (r"lvm / (pvs|vgs|lvs) / .+", rf"there|{re.escape(MISSING)}"),
    (r"files / \S+ / hashes / .+", r"[0-9a-f]{16}"),
    (r"file / \S+ / .+", r"[0-9a-f]{8}"),
)

AS_IT_WAS: Final = Expectation()
_EXPECTATIONS: Final = {
    # The end of a GPT goes with the end of the disk.
    Variation.LARGER: Expectation(
        may_differ=((r"partition_tables / [^/]+ / lastlba", r"\d+"),), same_tables=False
    ),
    # A rebuilt initramfs, with the old one beside it, and what tells the tool of the drivers.
    Variation.NEW_DRIVERS: Expectation(
        may_differ=(
            (r"bytes / [^/]+/p\d+", ".*"),
            (r"files / / / (bytes|files|hashes / (boot|etc))", ".*"),
            (r"file / / / (/boot|/boot/initrd\.img-\S+|/etc/initramfs-tools/modules)", ".*"),
            # And its copy, where systemd-boot starts it.
            (r"files / /boot/efi / (bytes|files|hashes / .+)", ".*"),
            (r"file / /boot/efi / /boot/efi/[0-9a-f]{32}/\S+", ".*"),
        )
    ),
    # What names disks, and how the kernel was told of its root; the folders of these files.
    Variation.NEW_NAMES: Expectation(
        may_differ=(
            (r"bytes / [^/]+/p\d+", ".*"),
            (r"command_line", r".*root=(PART)?UUID=.*"),
            (r"files / / / (bytes|hashes / (boot|etc))", ".*"),
            (r"file / / / (/etc|/etc/fstab|/boot/grub(/grub\.cfg)?)", ".*"),
            (r"file / / / /etc/initramfs-tools/conf\.d(/resume)?", ".*"),
        )
    ),
    Variation.SMALLER: Expectation(refusal=r"too small"),
    Variation.SHRUNK: Expectation(may_differ=_FITTED_FACTS, same_tables=False),
    # And what counts in sectors: the table, and FAT, with as many bits as its clusters need.
    Variation.OTHER_SECTORS: Expectation(
        may_differ=(
            *_FITTED_FACTS,
            (r"partition_tables / [^/]+ / (sectorsize|firstlba)", r"\d+"),
            (r"block_devices / [^ ]+ / BLOCK_SIZE", "512|4096"),
            (r"block_devices / [^ ]+ / VERSION", r"FAT(12|16|32)"),
            (r"block_devices / [^ ]+ / SEC_TYPE", rf"msdos|{re.escape(MISSING)}"),
        ),
        same_tables=False,
    ),
}


def expectation(variation: Variation, without: Without = NOTHING) -> Expectation:
    """Return what must come of a drill with a variation.

    Args:
        variation: in what the machine differs.
        without: what is left out.
    """
    known = _EXPECTATIONS.get(variation, AS_IT_WAS)
    return replace(known, may_differ=(*known.may_differ, *_explained(without)))


def _explained(without: Without) -> Iterator[tuple[str, str]]:
    """Yield the facts that are others on fewer disks: what is missing is not there, and only that."""
    nothing = re.escape(MISSING)
    for disk in without.disks:
        if disk.table is not None:
            table = f"(?i:{re.escape(disk.table.id)})"
            yield f"partition_tables / (0x)?{table} / .*", nothing
            yield rf"block_devices / {table}(/\d+)? / .*", nothing
            if any(part.uuid for part in disk.table.partitions):
                yield r"boot_entries / \d+ / .*", nothing
    for reduced in without.arrays:
        digits = reduced.array.uuid.replace("-", "")
        array = "arrays / " + ":".join(digits[at : at + 8] for at in range(0, 32, 8))
        yield rf"{array} / roles / \d+", nothing
        yield f"{array} / degraded", str(reduced.array.disks - reduced.active)


def vary(disks: Sequence[BlankDisk], variation: Variation) -> tuple[BlankDisk, ...]:
    """Return the disks of a drill as a variation has them; their order stays.

    Args:
        disks: like the saved ones.
        variation: what changes.
    """
    match variation:
        case Variation.OTHER_BUS | Variation.NEW_DRIVERS | Variation.NEW_NAMES:
            return tuple(replace(disk, bus=_OTHER_BUS[disk.bus], wwn=None) for disk in disks)
        case Variation.LARGER:
            return tuple(replace(disk, size=_scaled(disk.size, _LARGER)) for disk in disks)
        case Variation.SMALLER | Variation.SHRUNK:
            return tuple(replace(disk, size=_scaled(disk.size, _SMALLER)) for disk in disks)
        case Variation.OTHER_SECTORS:
            return tuple(replace(disk, sector=_OTHER_SECTOR[disk.sector]) for disk in disks)
        case Variation.ONE_DISK:
            return tuple(disks[:1])
        case _:
            return tuple(disks)


def cuts(name: str, number: int = 10) -> tuple[float, ...]:
    """Return when the power fails: shares of what is to be written, rising; the same for a name."""
    chance = random.Random(name)  # noqa: S311  repeatable on purpose
    return tuple(sorted(chance.uniform(0.02, 0.95) for _ in range(number)))


def _scaled(size: int, factor: float) -> int:
    return int(size * factor) // MIB * MIB
