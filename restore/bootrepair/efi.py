"""Boot entries in the firmware of the machine that this runs on.

What is there is read from efivarfs, byte by byte; what changes goes through efibootmgr. What to
change is decided by `decide`, which touches nothing.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imager import process
from imager.errors import ProgramError
from imager.layout.firmware import BootEntry
from imager.probe.firmware import decode_boot_entry
from restore.boot_steps import Esp, SetBootEntries
from restore.bootrepair.esp import find_loaders, list_files
from restore.bootrepair.fallback import loader_names

_EFI: Final = Path("/sys/firmware/efi")
_GLOBAL: Final = "8be4df61-93ca-11d2-aa0d-00e098032b8c"  # EFI_GLOBAL_VARIABLE
_ENTRY: Final = re.compile(rf"Boot([0-9A-F]{{4}})-{_GLOBAL}")
_ATTRIBUTES: Final = 4  # bytes that efivarfs puts before each variable
# What those call their entries who don't name them after their directory.
_TITLES: Final = {"systemd": "Linux Boot Manager", "microsoft": "Windows Boot Manager"}
_TIMEOUT: Final = 60.0  # seconds; firmware may take its time to write its flash memory


@dataclass(frozen=True, slots=True)
class Changes:
    """What has to change in the firmware.

    Attributes:
        create: entries to make, in the order they are to be started.
        keep: numbers of entries that are there and wanted, by their place in the wanted order.
        delete: numbers of entries that repeat another one.
    """

    create: tuple[BootEntry, ...]
    keep: tuple[tuple[int, int], ...]
    delete: tuple[int, ...]


def started_by_uefi(efi: Path = _EFI) -> bool:
    """Return whether UEFI firmware started this system, so that its entries can be reached."""
    return (efi / "efivars").is_dir()


def decide(existing: Mapping[int, BootEntry], wanted: Sequence[BootEntry]) -> Changes:
    """Compare the entries of the firmware with the wanted ones.

    Two entries are the same when they start the same file from the same partition, whatever they
    are called. Of several that are the same as a wanted one, the lowest number stays.
    """
    by_key: dict[tuple[str, str], list[int]] = {}
    for number in sorted(existing):
        by_key.setdefault(_key(existing[number]), []).append(number)
    create: list[BootEntry] = []
    keep: list[tuple[int, int]] = []
    delete: list[int] = []
    seen: set[tuple[str, str]] = set()
    for place, entry in enumerate(wanted):
        key = _key(entry)
        if key in seen:
            continue
        seen.add(key)
        numbers = by_key.get(key, [])
        if numbers:
            keep.append((place, numbers[0]))
            delete.extend(numbers[1:])
        else:
            create.append(entry)
    return Changes(tuple(create), tuple(keep), tuple(sorted(delete)))


def new_order(
    old: Sequence[int], entries: Mapping[int, BootEntry], wanted: Sequence[BootEntry]
) -> tuple[int, ...]:
    """Return a boot order with the wanted entries first, and the others behind as they were."""
    numbers = {_key(entry): number for number, entry in sorted(entries.items(), reverse=True)}
    first = dict.fromkeys(numbers[_key(entry)] for entry in wanted if _key(entry) in numbers)
    return (*first, *(number for number in old if number not in first))


def set_boot_entries(step: SetBootEntries, efi: Path = _EFI) -> tuple[str, ...]:
    """Do what the step says, and return what was done.

    A failure is told, not raised: the disk is restored, and starts by its fall-back path.
    """
    notes: list[str] = []
    try:
        wanted = step.entries or tuple(find_entries(step))
        if not wanted:
            return ("no loader found below \\EFI: no boot entry was made",)
        changes = decide(_read_entries(efi), wanted)
        for number in changes.delete:
            process.run(
                "efibootmgr", "--bootnum", f"{number:04X}", "--delete-bootnum", timeout=_TIMEOUT
            )
            notes.append(f"removed entry {number:04X}, which repeated another one")
        for entry in changes.create:
            _create(entry, step.esps)
            notes.append(f'made entry "{entry.label}" for {entry.loader}')
        for place, number in changes.keep:
            notes.append(f'entry "{wanted[place].label}" is there as {number:04X}')
        order = new_order(_read_order(efi), _read_entries(efi), wanted)
        process.run(
            "efibootmgr",
            "--bootorder",
            ",".join(f"{number:04X}" for number in order),
            timeout=_TIMEOUT,
        )
        notes.append("boot order is now " + ", ".join(f"{number:04X}" for number in order))
    except ProgramError as error:
        notes.append(
            f"the firmware did not take the boot entry: {error.message}; "
            "the machine can start by its fall-back path"
        )
    return tuple(notes)


def find_entries(step: SetBootEntries) -> Iterator[BootEntry]:
    """Yield an entry for each loader on the partitions, called as its installer calls it.

    Raises:
        ProgramError: a partition holds no FAT that can be read.
    """
    for esp in step.esps:
        for loader in find_loaders(list_files(esp), loader_names(step.architecture)):
            title = _TITLES.get(loader.vendor.lower(), loader.vendor)
            yield BootEntry(title, esp.uuid, str(loader.path))


def _create(entry: BootEntry, esps: Sequence[Esp]) -> None:
    esp = next(esp for esp in esps if esp.uuid == entry.partition_uuid.upper())
    process.run(
        "efibootmgr",
        "--create-only",
        "--disk", esp.target.path,
        "--part", str(esp.number),
        "--label", entry.label,
        "--loader", entry.loader,
        timeout=_TIMEOUT,
    )  # fmt: skip


def _key(entry: BootEntry) -> tuple[str, str]:
    return entry.partition_uuid.upper(), entry.loader.replace("/", "\\").lower()


def _read_entries(efi: Path) -> dict[int, BootEntry]:
    entries = {}
    for path in (efi / "efivars").iterdir():
        name = _ENTRY.fullmatch(path.name)
        if name is not None and (entry := decode_boot_entry(_read(path))) is not None:
            entries[int(name[1], 16)] = entry
    return entries


def _read_order(efi: Path) -> tuple[int, ...]:
    data = _read(efi / "efivars" / f"BootOrder-{_GLOBAL}")
    return tuple(int.from_bytes(data[at : at + 2], "little") for at in range(0, len(data) - 1, 2))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()[_ATTRIBUTES:]
    except OSError:
        return b""
