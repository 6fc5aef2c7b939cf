"""What fitting an image to disks of another size takes: who is too small, and the steps."""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from imager.blockdev import BlockDisk
from imager.errors import RemetalError, TargetError, TargetTooSmall, UsageError
from imager.layout.disk import Disk, Volume, VolumeRole
from imager.layout.firmware import FirmwareKind
from imager.layout.machine import Machine
from imager.layout.partition_table import PartitionTable, TableKind
from imager.units import MIB
from restore import fit
from restore.circumstances import Wishes
from restore.fit import Fitted
from restore.fit_steps import (
    CorrectBootSector,
    GrowFilesystem,
    RemakeSwap,
    ShrinkFilesystem,
    WriteTable,
)
from restore.least_size import least_size
from restore.match import too_small
from restore.runs import Image
from restore.saved_volume import SavedVolume
from restore.target import Place, Target, TargetKind

LAST: Final = "last"

_PROTECTIVE: Final = 0xEE
# Of a GPT header: signature, first usable sector, number and size of entries (UEFI 2.10, 5.3.2).
_GPT_SIGNATURE: Final = b"EFI PART"
_COUNTS_SECTORS: Final = frozenset({"vfat", "ntfs"})
_ESP_TYPES: Final = frozenset({"C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "ef"})


class Fitter:
    """Fits the disks of an image to targets, as far as that is wished. Remembers what it has counted.

    Args:
        image: the opened image.
        wishes: what was asked for.
    """

    def __init__(self, image: Image, wishes: Wishes) -> None:
        self._image = image
        self._wishes = wishes
        self._least: dict[str, int] = {}

    def problem(self, saved: Disk, disk: BlockDisk) -> RemetalError | None:
        """Return why a target has no room for a saved disk; None if it has. For `restore.match`.

        Raises:
            ObjectDamaged, ObjectMissing: the repository can't give what the image names.
        """
        plain = too_small(saved, disk)
        if plain is None:
            return None
        try:
            fitted = self._shrunk(saved, disk.identity.size)
        except TargetError as error:
            if not self._wishes.fit:
                hint = f"{plain.hint} A smaller one (--fit) would not do: {error.message}."
                return TargetTooSmall(plain.message, hint=hint)
            return type(error)(f"{plain.message}: {error.message}", hint=error.hint)
        if self._wishes.fit:
            return None
        what = "; ".join(place.describe() for place in fitted.places)
        plain.hint = (
            f"The data would fit: with --fit, {what or 'only unused space is left out'}. "
            "Nothing was written."
        )
        plain.would_fit = True
        return plain

    def fitted(self, saved: Disk, size: int) -> Fitted:
        """Return how a saved disk comes on a target.

        Args:
            saved: the disk.
            size: bytes of the target.

        Raises:
            TargetTooSmall: the data does not fit.
            TargetError: it can't be fitted, or what shall grow can't.
        """
        if size < saved.identity.size and self._wishes.fit:
            return self._shrunk(saved, size)
        wanted = self._wishes.grow
        if wanted == LAST:
            wanted = fit.last_of(saved) if size > saved.identity.size else None
        if wanted is None or wanted not in {volume.id for volume in saved.volumes}:
            return fit.exact(saved)
        return fit.grow(saved, size, self._image.machine.layers, wanted)

    def _shrunk(self, saved: Disk, size: int) -> Fitted:
        return fit.shrink(saved, size, self._image.machine.layers, self._least_of)

    def _least_of(self, volume: Volume) -> int:
        if volume.id not in self._least:
            self._least[volume.id] = least_size(self._image, volume)
        return self._least[volume.id]


def check_wishes(machine: Machine, wishes: Wishes) -> None:
    """Make sure that what shall grow is there.

    Raises:
        UsageError: the image has no such volume, or --delta was asked for as well.
    """
    known = [
        volume.id
        for _, volume in machine.volumes()
        if volume.role in {VolumeRole.PARTITION, VolumeRole.WHOLE_DISK}
    ]
    if wishes.grow is not None and wishes.grow not in {LAST, *known}:
        raise UsageError(
            f"this image has no volume {wishes.grow} that could grow",
            hint=f"It has {', '.join(known)}; {LAST} means the last one of each larger disk.",
        )


@dataclass(frozen=True, slots=True)
class FittedDisk:
    """A disk that comes on a target otherwise than it was saved.

    Attributes:
        image: the opened image.
        saved: the disk.
        fitted: how it comes.
        target: on what.
    """

    image: Image
    saved: Disk
    fitted: Fitted
    target: Target

    def after_content(self) -> Iterator[ShrinkFilesystem | RemakeSwap | CorrectBootSector]:
        """Yield what is done when the content is there, before tables and boot areas."""
        types = _partition_types(self.saved.table)
        for place, volume in self._placed():
            filesystem = volume.filesystem
            kind = filesystem.type if filesystem is not None else ""
            if filesystem is not None and kind == fit.SWAP and place.length != place.saved_length:
                yield RemakeSwap(
                    self.target,
                    place.volume,
                    place.offset,
                    place.length,
                    filesystem.uuid,
                    filesystem.label,
                )
            elif place.length < place.saved_length:
                yield ShrinkFilesystem(
                    self.target,
                    place.volume,
                    kind,
                    place.offset,
                    place.length,
                    place.saved_length,
                )
            is_esp = types.get(volume.partition) in _ESP_TYPES
            if place.offset != place.saved_offset and kind in _COUNTS_SECTORS and not is_esp:
                yield CorrectBootSector(
                    self.target,
                    place.volume,
                    kind,
                    place.saved_offset,
                    place.offset,
                    place.length,
                )

    def table_step(self) -> WriteTable | None:
        """Return the step that writes the new table; None where the saved one does.

        Raises:
            TargetError: this table can't be written for another size.
        """
        table = self.fitted.disk.table
        if table is None or not self.fitted.has_new_table:
            return None
        self._check_names(table)
        sector = self.target.logical_sector
        if self.target.kind is not TargetKind.DEVICE and sector != 512:
            raise TargetError(
                f"{self.target.path} is of another size than {self.saved.id}, which has sectors of "
                f"{sector} bytes: its partition table can't be written into a file",
                hint=f"Name a file of exactly {self.target.saved_size} bytes; nothing was written.",
            )
        if table.kind is TableKind.MBR:
            return WriteTable(self.target, table)
        boot_area = self.saved.volumes[0]
        if boot_area.role is not VolumeRole.BOOT_AREA or boot_area.length < 2 * sector:
            raise self._unreadable()
        head = SavedVolume(self.image, boot_area.id).read(0, 2 * sector)
        if {head[450 + 16 * entry] for entry in range(4)} - {0, _PROTECTIVE}:
            raise self._not_for_another_size(
                f"{self.saved.id} has a hybrid MBR beside its GPT, which can't be fitted"
            )
        header = head[sector:]
        (first_usable,) = struct.unpack_from("<Q", header, 40)
        entries, entry_size = struct.unpack_from("<II", header, 80)
        if not header.startswith(_GPT_SIGNATURE) or entries * entry_size > MIB - sector:
            raise self._unreadable()
        return WriteTable(self.target, table, first_usable, entries)

    def after_table(self) -> Iterator[GrowFilesystem]:
        """Yield what is done when the new table is there."""
        for place, volume in self._placed():
            kind = volume.filesystem.type if volume.filesystem is not None else ""
            if place.length > place.saved_length and kind != fit.SWAP:
                yield GrowFilesystem(
                    self.target,
                    place.volume,
                    kind,
                    place.offset,
                    place.length,
                    place.saved_length,
                    volume.partition,
                )

    def notes(self) -> Iterator[str]:
        """Yield what a person must know about it."""
        named = [
            volume.id
            for volume in self.saved.volumes
            # The end of a GPT is written anew, and nobody misses it.
            if volume.id in self.fitted.dropped and volume.offset < self.target.saved_size - MIB
        ]
        if named:
            yield (
                f"What lies between or behind the partitions of {self.saved.id} ({', '.join(named)}) "
                "and belongs to none of them is left out."
            )
        is_bios = self.image.machine.firmware.kind is FirmwareKind.BIOS
        if is_bios and self.saved.table is not None and self.fitted.places:
            yield (
                f"{self.saved.id} is not what it was, byte by byte: a loader that finds its files by "
                "the numbers of blocks (LILO, extlinux), or Windows on a partition of an MBR that "
                "moves, has to be installed again."
            )

    def _placed(self) -> Sequence[tuple[Place, Volume]]:
        volumes = {volume.id: volume for volume in self.saved.volumes}
        return [(place, volumes[place.volume]) for place in self.fitted.places]

    def _check_names(self, table: PartitionTable) -> None:
        for part in table.partitions:
            if not part.name.isprintable() or set(part.name) & {'"', "\\"}:
                raise self._not_for_another_size(
                    f"partition {part.number} of {self.saved.id} has a name that can't be written: "
                    f"{part.name!r}"
                )

    def _unreadable(self) -> TargetError:
        return self._not_for_another_size(
            f"the first GPT of {self.saved.id} is not where it must be, and can't be fitted"
        )

    def _not_for_another_size(self, why: str) -> TargetError:
        size = self.target.saved_size
        return TargetError(why, hint=f"Take a disk of exactly {size} bytes; nothing was written.")


def with_places(machine: Machine, disks: Iterable[Disk]) -> Machine:
    """Return a machine with some of its disks as they come on their targets."""
    placed = {disk.id: disk for disk in disks}
    return replace(machine, disks=tuple(placed.get(disk.id, disk) for disk in machine.disks))


def _partition_types(table: PartitionTable | None) -> dict[int | None, str]:
    return {part.number: part.type for part in table.partitions} if table is not None else {}
