"""What fitting an image to disks of another size takes: who is too small, and the steps."""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from imager.blockdev import BlockDisk
from imager.errors import RemetalError, TargetError, UsageError
from imager.layout.disk import Disk, Volume, VolumeRole
from imager.layout.firmware import FirmwareKind
from imager.layout.machine import Machine
from imager.layout.partition_table import PartitionTable, TableKind
from imager.probe.structure import StructureError
from imager.units import MIB
from restore import fit
from restore.boot_code import disks_with_boot_code
from restore.circumstances import Wishes
from restore.fit import Fitted
from restore.fit_steps import (
    CorrectBootSector,
    GrowFilesystem,
    RemakeFat,
    RemakeSwap,
    RemakeXfs,
    ShrinkFilesystem,
    WriteTable,
)
from restore.group_planner import ContentStep, Piece, PlacedGroup, logical_places
from restore.least_size import least_size
from restore.linear_group import fit as fit_group
from restore.linear_group import least_length
from restore.match import sector_on, unlike
from restore.runs import Image
from restore.saved_group import SavedGroup
from restore.saved_volume import SavedVolume
from restore.sector_size import Part, on_sectors
from restore.target import Place, Stretch, Target, TargetKind

LAST: Final = "last"

_MBR: Final = 512  # bytes of it, whatever the sectors are
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
        self._groups: dict[str, SavedGroup | str] = {}

    def problem(self, saved: Disk, disk: BlockDisk) -> RemetalError | None:
        """Return why a target can't take a saved disk; None if it can. For `restore.match`.

        Raises:
            ObjectDamaged, ObjectMissing: the repository can't give what the image names.
        """
        plain = unlike(saved, disk)
        if plain is None:
            return None
        try:
            fitted = self._fitted(saved, disk)
        except TargetError as error:
            if not self._wishes.fit:
                hint = f"{plain.hint} It would not do with --fit either: {error.message}."
                return type(plain)(plain.message, hint=hint)
            return type(error)(f"{plain.message}: {error.message}", hint=error.hint)
        if self._wishes.fit:
            return None
        places = [place.describe() for place in fitted.places]
        places += [place.describe() for place in logical_places(fitted)]
        places += [f"{volume} is made anew, file by file" for volume in fitted.remade]
        what = "; ".join(places)
        plain.hint = (
            f"The data would fit: with --fit, {what or 'only unused space is left out'}. "
            "Nothing was written."
        )
        plain.would_fit = True
        return plain

    def fitted(self, saved: Disk, disk: BlockDisk) -> Fitted:
        """Return how a saved disk comes on a target.

        Args:
            saved: the disk.
            disk: the target, about which `problem` finds none.

        Raises:
            TargetTooSmall: the data does not fit.
            TargetError: it can't be fitted, or what shall grow can't.
        """
        return self._fitted(saved, disk) if self._wishes.fit else self._grown(saved, disk)

    def _fitted(self, saved: Disk, disk: BlockDisk) -> Fitted:
        size, sector = disk.identity.size, sector_on(saved, disk)
        same_sectors = sector == saved.identity.logical_sector
        if size < saved.identity.size or not (same_sectors or fit.has_room_for_gpt(saved, size)):
            fitted = self._shrunk(saved, size)
        else:
            fitted = self._grown(saved, disk)
        if same_sectors:
            return fitted
        has_boot_code = saved.id in self._with_boot_code
        return on_sectors(saved, fitted, disk.identity, self._parts, has_boot_code=has_boot_code)

    @cached_property
    def _with_boot_code(self) -> frozenset[str]:
        return disks_with_boot_code(self._image)

    def _grown(self, saved: Disk, disk: BlockDisk) -> Fitted:
        size = disk.identity.size
        layers = self._image.machine.layers
        wanted = self._wishes.grow
        if wanted == LAST:
            wanted = fit.last_of(saved) if size > saved.identity.size else None
        names = logical_names(self._image.machine)
        logical = wanted.rpartition("/")[2] if wanted in names else None
        place = names.get(wanted, wanted) if wanted is not None else None
        if place not in {volume.id for volume in saved.volumes}:
            return fit.exact(saved)
        fitted = fit.grow(saved, size, layers, place, self._rigid)
        return self._with_groups(saved, fitted, logical)

    def _shrunk(self, saved: Disk, size: int) -> Fitted:
        layers = self._image.machine.layers
        fitted = fit.shrink(saved, size, layers, self._least_of, self._rigid)
        return self._with_groups(saved, fitted, None)

    def _least_of(self, volume: Volume) -> int:
        if volume.id not in self._least:
            found = self._group_in(volume) if _kind(volume) == fit.PHYSICAL else None
            if isinstance(found, SavedGroup):
                least = least_length(found.group, found.least)
                self._least[volume.id] = min(volume.length, least)
            else:
                self._least[volume.id] = least_size(self._image, volume)
        return self._least[volume.id]

    def _group_in(self, volume: Volume) -> SavedGroup | str:
        """Return the group of a physical volume, or why it has none that can be laid out anew."""
        if volume.id not in self._groups:
            try:
                self._groups[volume.id] = SavedGroup(self._image, volume)
            except StructureError as error:
                self._groups[volume.id] = f"a physical volume of LVM is kept whole where {error}"
        return self._groups[volume.id]

    def _parts(self, volume: Volume) -> Sequence[Part] | str:
        if _kind(volume) != fit.PHYSICAL:
            return [(volume.id, volume.filesystem, SavedVolume(self._image, volume.id))]
        found = self._group_in(volume)
        if isinstance(found, str):
            return found
        group = found.group.name
        return [(f"LV {group}/{name}", held, part) for name, held, part in found.parts()]

    def _rigid(self, volume: Volume) -> str | None:
        found = self._group_in(volume)
        return found if isinstance(found, str) else None

    def _with_groups(self, saved: Disk, fitted: Fitted, grows: str | None) -> Fitted:
        """Return a fitted disk with the groups on physical volumes that got another length."""
        volumes = {volume.id: volume for volume in saved.volumes}
        groups = []
        for place in fitted.places:
            volume = volumes[place.volume]
            if _kind(volume) != fit.PHYSICAL or place.length == place.saved_length:
                continue
            found = self._group_in(volume)
            assert isinstance(found, SavedGroup)  # noqa: S101  else it would have kept its length
            if grows is not None:
                _check_grows(found, grows)
            group = fit_group(
                volume.id, found.group, place.length, found.filesystems, found.least, grows
            )
            found.check(group)
            groups.append(group)
        return replace(fitted, groups=tuple(groups))


def _kind(volume: Volume) -> str | None:
    return volume.filesystem.type if volume.filesystem is not None else None


def logical_names(machine: Machine) -> dict[str, str]:
    """Return the ids of physical volumes by the names of the logical volumes that may grow there.

    These are such as "system/root", of groups on one physical volume.
    """
    volumes = {volume.id for _, volume in machine.volumes()}
    return {
        f"{group.name}/{logical.name}": place
        for group in machine.layers.volume_groups
        if len(group.physical) == 1 and (place := group.physical[0].place) in volumes
        for logical in group.logical
        if logical.visible and place is not None
    }


def _check_grows(saved: SavedGroup, name: str) -> None:
    names = [volume.name for volume in saved.group.volumes]
    held = saved.filesystems[names.index(name)]
    kind = held.type if held is not None else None
    if kind not in fit.GROWS - {"ntfs"} | {fit.SWAP}:
        raise TargetError(
            f"LV {saved.group.name}/{name} can't grow: one with {kind or 'no known filesystem'} is "
            "not grown",
            hint="Restore without --grow, and enlarge it on the machine that came back; nothing was "
            "written.",
        )


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
    known += logical_names(machine)
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
        compares: what is made anew is compared, too.
    """

    image: Image
    saved: Disk
    fitted: Fitted
    target: Target
    compares: bool = False

    def pieces(self, volume: str) -> tuple[Piece, ...] | None:
        """Return what is written of a volume that does not come in one piece, if of it anything."""
        if volume in self.fitted.remade:
            return ()
        groups = [each for each in self._groups() if each.group.volume == volume]
        return tuple(groups[0].pieces()) if groups else None

    def after_content(self) -> Iterator[ContentStep]:
        """Yield what is done when the content is there, before tables and boot areas."""
        types = _partition_types(self.saved.table)
        for group in self._groups():
            yield from group.after_content()
        for volume in self.fitted.disk.volumes:
            if volume.id in self.fitted.remade:
                yield self._remake(volume)
        for place, volume in self._placed():
            if self.fitted.group_in(place.volume) or place.volume in self.fitted.remade:
                continue
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
        sector = self.saved.identity.logical_sector
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
        new_sector = self.target.logical_sector
        if new_sector == sector:
            return WriteTable(self.target, table, first_usable, entries)
        least = 2 + -(-entries * entry_size // new_sector)
        first_usable = max(-(-first_usable * sector // new_sector), least)
        if any(part.offset < first_usable * new_sector for part in table.partitions):
            raise self._not_for_another_size(
                f"the first partition of {self.saved.id} begins where a GPT in sectors of "
                f"{new_sector} bytes has its entries"
            )
        # Who looks for a table in sectors of the old size must not find one.
        old = Stretch(_MBR, boot_area.length - _MBR)
        return WriteTable(self.target, table, first_usable, entries, old)

    def after_table(self) -> Iterator[GrowFilesystem]:
        """Yield what is done when the new table is there."""
        for group in self._groups():
            yield from group.after_table()
        for place, volume in self._placed():
            if self.fitted.group_in(place.volume) or place.volume in self.fitted.remade:
                continue
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
        if self.target.logical_sector != self.saved.identity.logical_sector:
            yield (
                f"{self.target.path} has sectors of {self.target.logical_sector} bytes where "
                f"{self.saved.id} had {self.saved.identity.logical_sector}: what counts in them is "
                "made anew, everything else stays as it is."
            )
        is_bios = self.image.machine.firmware.kind is FirmwareKind.BIOS
        if is_bios and self.saved.table is not None and self.fitted.places:
            yield (
                f"{self.saved.id} is not what it was, byte by byte: a loader that finds its files by "
                "the numbers of blocks (LILO, extlinux), or Windows on a partition of an MBR that "
                "moves, has to be installed again."
            )

    def _remake(self, volume: Volume) -> RemakeFat | RemakeXfs:
        filesystem = volume.filesystem
        assert filesystem is not None  # noqa: S101  it is a FAT or an XFS
        if filesystem.type == fit.XFS:
            saved = next(each for each in self.saved.volumes if each.id == volume.id)
            return RemakeXfs(
                self.target,
                volume.id,
                volume.offset,
                volume.length,
                saved.length,
                self.saved.identity.logical_sector,
                filesystem.uuid,
                filesystem.label,
                self.compares,
            )
        return RemakeFat(
            self.target,
            volume.id,
            volume.offset,
            volume.length,
            self.saved.identity.logical_sector,
            filesystem.uuid,
            filesystem.label,
        )

    def _groups(self) -> Iterator[PlacedGroup]:
        for group in self.fitted.groups:
            offset = self.fitted.offset_of(group.volume)
            sector = self.saved.identity.logical_sector
            yield PlacedGroup(self.target, group, offset, sector, self.compares)

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
