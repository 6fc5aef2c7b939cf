r"""The fall-back path: \EFI\BOOT\BOOTX64.EFI, which firmware starts when it has no boot entry.

A new mainboard knows no entries; a machine that was restored to it starts by this path alone.
"""

from pathlib import PureWindowsPath
from typing import Final

from imager.errors import ProgramError
from restore.boot_steps import EFI_SUFFIXES, EnsureFallbackLoader, fallback_path
from restore.bootrepair.esp import Loader, copy, find_loaders, list_files

# The best first; {} is the architecture as UEFI writes it in file names. shim comes before the
# GRUB it starts, since only shim is trusted by firmware that checks signatures.
_LOADERS: Final = (
    "shim{}.efi",
    "grub{}.efi",
    "systemd-boot{}.efi",
    "Boot\\bootmgfw.efi",
    "bootmgfw.efi",
)
# What shim starts from its own directory: GRUB, and the manager of the owner's keys.
_COMPANIONS: Final = ("grub{}.efi", "mm{}.efi")


def loader_names(architecture: str) -> tuple[str, ...]:
    """Return the file names of loaders for an architecture, the best first."""
    return tuple(name.format(EFI_SUFFIXES[architecture]) for name in _LOADERS)


def ensure(step: EnsureFallbackLoader) -> tuple[str, ...]:
    """Do what the step says, and return what was done.

    A failure is told, not raised: the disk is restored, and a boot entry may start it.
    """
    destination = PureWindowsPath(fallback_path(step.architecture))
    try:
        files = list_files(step.esp)
        if destination in files:
            return (f"{destination} is there, nothing to do",)
        loader = _choose(find_loaders(files, loader_names(step.architecture)), step.preferred)
        if loader is None:
            return (f"no loader found below \\EFI: {destination} is still missing",)
        copied = []
        for source, target in _copies(loader, files, destination, step.architecture):
            copy(step.esp, source, target)
            copied.append(f"copied {source} to {target}")
    except ProgramError as error:
        return (f"{destination} could not be made: {error.message}",)
    return tuple(copied)


def _choose(loaders: tuple[Loader, ...], preferred: str | None) -> Loader | None:
    for loader in loaders:
        if preferred is not None and loader.vendor.lower() == preferred.lower():
            return loader
    return loaders[0] if loaders else None


def _copies(
    loader: Loader,
    files: frozenset[PureWindowsPath],
    destination: PureWindowsPath,
    architecture: str,
) -> list[tuple[PureWindowsPath, PureWindowsPath]]:
    """Return (from, to) of every file to copy; what firmware starts comes last."""
    copies = []
    if loader.path.name.lower().startswith("shim"):
        for name in _COMPANIONS:
            companion = loader.path.with_name(name.format(EFI_SUFFIXES[architecture]))
            target = destination.with_name(companion.name)
            if companion in files and target not in files:
                copies.append((companion, target))
    return [*copies, (loader.path, destination)]
