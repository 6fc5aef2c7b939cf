r"""Files on an EFI system partition of a target, through mtools.

mtools works on disks and disk files alike, at an offset, without a mount and without the kernel's
FAT driver. Paths have the form of UEFI, `\EFI\debian\shimx64.efi`, and their case does not matter.
"""

import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Final

from imager import process
from imager.errors import ProgramError, ProgramMissing
from restore.boot_steps import Esp

LOG_PATH: Final = "\\EFI\\remetal\\restore.log"

_ENVIRONMENT: Final = {
    # A disk's geometry need not fit the rules of floppies.
    "MTOOLS_SKIP_CHECK": "1",
    # Plain ASCII, which the C library knows by itself; other code pages need files of their own,
    # which the rescue medium leaves out. Names of loaders are ASCII.
    "DEFAULT_CODEPAGE": "367",
}
_TIMEOUT: Final = 120.0  # seconds


@dataclass(frozen=True, slots=True)
class Loader:
    r"""A boot loader below \EFI.

    Attributes:
        vendor: the directory below \EFI, such as "debian".
        path: of the file.
    """

    vendor: str
    path: PureWindowsPath


def list_files(esp: Esp) -> frozenset[PureWindowsPath]:
    r"""Return \EFI and all files and directories below; nothing when there is no such directory.

    Paths of this kind compare without regard to case.

    Raises:
        ProgramError: it is no FAT filesystem that can be read.
    """
    try:
        text = _mtools("mdir", esp, "-/", "-b", "::/EFI")
    except ProgramMissing:
        raise
    except ProgramError as error:
        if "not found" in error.stderr:
            return frozenset()
        raise
    found = [line.removeprefix("::") for line in text.splitlines() if line.startswith("::/")]
    return frozenset(PureWindowsPath(path) for path in ("/EFI", *found))


def find_loaders(files: Iterable[PureWindowsPath], names: Iterable[str]) -> tuple[Loader, ...]:
    r"""Return the loader of each directory below \EFI but BOOT, in alphabetical order.

    Args:
        files: what `list_files` returned.
        names: file names, the best first, relative to the vendor's directory.
    """
    ranks = {PureWindowsPath(name): rank for rank, name in enumerate(names)}
    best: dict[str, tuple[int, Loader]] = {}
    for path in files:
        vendor, inner = path.parts[2:3], PureWindowsPath(*path.parts[3:])
        if not vendor or vendor[0].upper() == "BOOT" or inner not in ranks:
            continue
        found = (ranks[inner], Loader(vendor[0], path))
        best[vendor[0]] = min(found, best.get(vendor[0], found), key=lambda ranked: ranked[0])
    return tuple(best[vendor][1] for vendor in sorted(best, key=str.lower))


def copy(esp: Esp, source: PureWindowsPath, destination: PureWindowsPath) -> None:
    """Copy a file on the partition, whole or not at all; directories are made when missing.

    Raises:
        ProgramError: it can't be read, or there is no room.
    """
    with tempfile.TemporaryDirectory(prefix="remetal-") as name:
        local = Path(name) / "file"
        _mtools("mcopy", esp, _unix(source), str(local))
        _put(esp, local, destination)


def write(esp: Esp, path: PureWindowsPath, data: bytes) -> None:
    """Write a file, over one that is there; directories are made when missing.

    Raises:
        ProgramError: there is no room, or it is no FAT filesystem that can be written.
    """
    with tempfile.TemporaryDirectory(prefix="remetal-") as name:
        local = Path(name) / "file"
        local.write_bytes(data)
        _put(esp, local, path)


def write_log(esp: Esp, text: str) -> tuple[str, ...]:
    """Leave a log on the partition; return notes when that fails, which is no reason to stop."""
    try:
        write(esp, PureWindowsPath(LOG_PATH), text.encode())
    except ProgramError as error:
        return (f"the log could not be left on the EFI system partition: {error.message}",)
    return ()


def _put(esp: Esp, local: Path, destination: PureWindowsPath) -> None:
    there = list_files(esp)
    for directory in [*reversed(destination.parents)][1:]:
        if directory not in there:
            _mtools("mmd", esp, _unix(directory))
    try:
        _mtools("mcopy", esp, "-o", str(local), _unix(destination))
    except ProgramError:
        with suppress(ProgramError):
            _mtools("mdel", esp, _unix(destination))
        raise


def _unix(path: PureWindowsPath) -> str:
    return "::" + path.as_posix()


def _mtools(program: str, esp: Esp, *words: str) -> str:
    image = f"{esp.target.path}@@{esp.offset}"
    return process.run(program, "-i", image, *words, env=_ENVIRONMENT, timeout=_TIMEOUT)
