"""Which steps make firmware find the restored machine, and what can't be done about it."""

from collections.abc import Iterator

from imager.layout.firmware import BootEntry, FirmwareKind
from imager.layout.layers import Layers
from imager.layout.machine import Machine, system_partitions
from imager.layout.mdraid import MdArray
from imager.layout.partition_table import TableKind
from restore.boot_steps import EFI_SUFFIXES, EnsureFallbackLoader, Esp, LogToEsp, SetBootEntries
from restore.circumstances import Surroundings, Wishes
from restore.steps import Step
from restore.target import Target, TargetKind


def plan_boot(
    machine: Machine, targets: dict[str, Target], wishes: Wishes, surroundings: Surroundings
) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    """Return the steps that make firmware find the machine, and what can't be done about it."""
    if machine.firmware.kind is not FirmwareKind.UEFI:
        no_esp = "--log-to-esp has no effect: this machine has no EFI system partition."
        return (), (no_esp,) if wishes.log_to_esp else ()
    esps = tuple(
        Esp(targets[disk.id], part.number, (part.uuid or "").upper(), part.offset, part.length)
        for disk, part in system_partitions(machine.disks, machine.layers)
        if disk.table is not None and disk.table.kind is TableKind.GPT
    )
    uuids = {esp.uuid for esp in esps}
    entries = tuple(
        entry for entry in machine.firmware.boot_entries if entry.partition_uuid.upper() in uuids
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
        lost = [entry.label for entry in machine.firmware.boot_entries if entry not in entries]
        if lost:
            notes.append(
                "These saved boot entries start from disks that are not in the image and are not "
                f"made again: {', '.join(lost)}."
            )
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


def _mirror(layers: Layers, esp: Esp) -> MdArray | None:
    """Return the array of md that an EFI system partition is part of, if any."""
    disk = esp.target.disk
    return layers.array_of(f"{disk}/p{esp.number}") or layers.array_of(disk)


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
