"""Which steps make the restored machine start, and what can't be done about it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from imager.layout.firmware import BootEntry, FirmwareKind
from imager.layout.layers import Layers
from imager.layout.machine import Machine, system_partitions
from imager.layout.mdraid import MEMBER_TYPE, MdArray
from imager.layout.partition_table import TableKind
from restore.boot_steps import (
    EFI_SUFFIXES,
    DiskDrivers,
    EnsureFallbackLoader,
    Esp,
    LogToEsp,
    MapCards,
    MapDisks,
    RepairInitramfs,
    SetBootEntries,
)
from restore.cards import CardMatch, crossed_names, free_cards, match_cards
from restore.circumstances import Surroundings, Wishes
from restore.steps import Step
from restore.target import Target, TargetKind

# What a Linux system may lie in.
_LINUX: Final = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "crypto_LUKS", "LVM2_member", MEMBER_TYPE}
)


def plan_boot(
    machine: Machine, targets: dict[str, Target], wishes: Wishes, surroundings: Surroundings
) -> tuple[tuple[Step, ...], tuple[str, ...], tuple[CardMatch, ...]]:
    """Return the steps that make the machine start, what can't be done about it, and its cards.

    Raises:
        UsageError: a network card that was named is not in the image, or not here.
    """
    is_for_here = all(target.kind is TargetKind.DEVICE for target in targets.values())
    cards = (
        match_cards(
            machine.cards, surroundings.cards, named=wishes.nics, linked=surroundings.linked
        )
        if is_for_here
        else ()
    )
    for_system = _plan_system(machine, targets, wishes, surroundings, cards)
    for_firmware, notes = _plan_firmware(machine, targets, wishes, surroundings)
    mapped = any(isinstance(step, MapCards) for step in for_system)
    return (
        (*for_system, *for_firmware),
        (*_card_notes(cards, wishes, mapped=mapped), *notes),
        cards,
    )


def _card_notes(cards: tuple[CardMatch, ...], wishes: Wishes, *, mapped: bool) -> Iterator[str]:
    """Say what becomes of cards that nothing is done for."""
    lost = [match.saved.title for match in cards if match.here is None]
    if lost:
        yield (
            f"No card here takes the place of {', '.join(lost)}: the machine comes back without. "
            "--nic (in an order: nics) says which one does."
        )
    if any(match.differs for match in cards) and not mapped:
        yield (
            "The network cards are not the saved ones, and the restored system is left as it is: it "
            "may come up without its network."
        )
    if wishes.nics and not mapped:
        yield "--nic has no effect: nothing about network cards is changed."


def _plan_system(
    machine: Machine,
    targets: dict[str, Target],
    wishes: Wishes,
    surroundings: Surroundings,
    cards: tuple[CardMatch, ...],
) -> tuple[Step, ...]:
    """Return the steps that make the restored system find its disks and its network cards."""
    is_for_here = all(target.kind is TargetKind.DEVICE for target in targets.values())
    contents = {
        volume.filesystem.type
        for disk, volume in machine.volumes()
        if disk.id in targets and volume.filesystem is not None
    }
    if not wishes.boot_repair or not is_for_here or not contents & _LINUX:
        return ()
    disks = tuple(
        DiskDrivers(
            targets[disk.id],
            disk.origin,
            surroundings.drivers.get(targets[disk.id].path, ()),
            disk.identity,
        )
        for disk in machine.disks
        if disk.id in targets
    )
    others = tuple(match for match in cards if match.differs)
    renamed = (MapDisks(disks),) if any(disk.is_renamed for disk in disks) else ()
    if not others:
        return (*renamed, RepairInitramfs(disks))
    crossed = crossed_names(cards, surroundings.cards)
    free = free_cards(cards, surroundings.cards)
    return (*renamed, MapCards(disks, others, free), RepairInitramfs(disks, crossed))


def _plan_firmware(
    machine: Machine, targets: dict[str, Target], wishes: Wishes, surroundings: Surroundings
) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    """Return the steps that make firmware find the machine."""
    if machine.firmware.kind is not FirmwareKind.UEFI:
        no_esp = "--log-to-esp has no effect: this machine has no EFI system partition."
        return (), (no_esp,) if wishes.log_to_esp else ()
    esps = tuple(
        Esp(targets[disk.id], part.number, (part.uuid or "").upper(), part.offset, part.length)
        for disk, part in system_partitions(machine.disks, machine.layers)
        if disk.id in targets and disk.table is not None and disk.table.kind is TableKind.GPT
    )
    uuids = {esp.uuid for esp in esps}
    saved = tuple(_here(entry, machine, esps) for entry in machine.firmware.boot_entries)
    entries = tuple(
        dict.fromkeys(entry for entry in saved if entry.partition_uuid.upper() in uuids)
    )
    if not esps:
        return (), ("This UEFI machine has no EFI system partition on its saved disks.",)
    steps: list[Step] = []
    notes: list[str] = []
    if machine.architecture in EFI_SUFFIXES:
        steps.extend(_fallbacks(machine, esps, entries))
    reason = _why_no_entries(esps, wishes, surroundings)
    if reason is not None:
        notes.append(reason)
    else:
        steps.append(SetBootEntries(entries, esps, machine.architecture))
        notes.extend(_lost([entry for entry in saved if entry not in entries], machine))
    if wishes.log_to_esp:
        alone = [esp for esp in esps if _mirror(machine.layers, esp) is None]
        if alone:
            steps.append(LogToEsp(alone[0]))
        else:
            notes.append(
                "--log-to-esp has no effect: the EFI system partition is mirrored, and its members "
                "must stay alike."
            )
    return tuple(steps), tuple(notes)


def _here(entry: BootEntry, machine: Machine, esps: tuple[Esp, ...]) -> BootEntry:
    """Return a boot entry of a partition that is left out as one of its mirror, if that is here."""
    wanted = entry.partition_uuid.upper()
    for disk, part in system_partitions(machine.disks, machine.layers):
        if (part.uuid or "").upper() == wanted:
            mirror = _mirror_at(machine.layers, disk.id, part.number)
            twins = [
                esp for esp in esps if mirror is not None and _mirror(machine.layers, esp) == mirror
            ]
            if twins and wanted not in {esp.uuid for esp in twins}:
                return replace(entry, partition_uuid=twins[0].uuid)
    return entry


def _lost(entries: list[BootEntry], machine: Machine) -> Iterator[str]:
    """Say which boot entries are not made again, and why."""
    saved = {
        (part.uuid or "").upper() for _, part in system_partitions(machine.disks, machine.layers)
    }
    left_out = [each.label for each in entries if each.partition_uuid.upper() in saved]
    elsewhere = [each.label for each in entries if each.partition_uuid.upper() not in saved]
    for labels, where in ((elsewhere, "not in the image"), (left_out, "left out")):
        if labels:
            yield (
                f"These saved boot entries start from disks that are {where} and are not made "
                f"again: {', '.join(labels)}."
            )


def _mirror(layers: Layers, esp: Esp) -> MdArray | None:
    """Return the array of md that an EFI system partition is part of, if any."""
    return _mirror_at(layers, esp.target.disk, esp.number)


def _mirror_at(layers: Layers, disk: str, number: int) -> MdArray | None:
    return layers.array_of(f"{disk}/p{number}") or layers.array_of(disk)


def _fallbacks(
    machine: Machine, esps: tuple[Esp, ...], entries: tuple[BootEntry, ...]
) -> Iterator[EnsureFallbackLoader]:
    started = {entry.partition_uuid.upper() for entry in entries}
    for esp in esps:
        # What is written to one member of a mirror is written to all of them, from the same place.
        mirror = _mirror(machine.layers, esp)
        alike = {
            other.uuid
            for other in esps
            if other == esp or (mirror is not None and mirror == _mirror(machine.layers, other))
        }
        if started and not started & alike:
            continue
        directories = (
            _efi_directory(entry) for entry in entries if entry.partition_uuid.upper() in alike
        )
        preferred = next((name for name in directories if name is not None), None)
        yield EnsureFallbackLoader(esp, machine.architecture, preferred)


def _efi_directory(entry: BootEntry) -> str | None:
    r"""Return NAME of a loader \EFI\NAME\FILE."""
    parts = entry.loader.strip("\\").split("\\")
    return parts[1] if len(parts) == 3 and parts[0].upper() == "EFI" else None


def _why_no_entries(
    esps: tuple[Esp, ...], wishes: Wishes, surroundings: Surroundings
) -> str | None:
    fallback = "The machine will start through its fall-back loader."
    if any(esp.target.kind is not TargetKind.DEVICE for esp in esps):
        return f"The target is a file: no firmware's boot entries are touched. {fallback}"
    if not wishes.boot_entries:
        return f"The boot entries of this machine's firmware are left alone. {fallback}"
    if not surroundings.uefi:
        return (
            "This system was started in BIOS mode and can't set the boot entry of a UEFI "
            f"machine. {fallback} If it does not: start the medium in UEFI mode and restore "
            "again, or add the entry in the firmware's menu."
        )
    return None
