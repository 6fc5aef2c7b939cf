"""An initramfs rebuilt by the restored system's own tool, with drivers it did not have.

The system is left as it was when that fails: the old initramfs comes back, and so do the settings.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from imager.errors import ProgramError
from imager.units import MIB
from restore.boot_steps import Driver
from restore.bootrepair.initramfs import UnknownContent, file_names
from restore.bootrepair.kernels import Kernel, modules_in
from restore.bootrepair.systems import System

KEPT: Final = ".before-remetal"

_TIMEOUT: Final = 1800.0  # seconds; a minute where a processor helps, many under emulation
_LISTING_TIMEOUT: Final = 600.0
_SPARE: Final = 16 * MIB
_LAST_LINES: Final = 12
_MARK: Final = "# Added by remetal: drivers of the disks that this machine was restored to.\n"
_TOOLS: Final = ("usr/sbin/{}", "usr/bin/{}", "sbin/{}", "bin/{}")


class NotRebuilt(Exception):
    """The initramfs is the old one. The message says why; `said` is what the tool said."""

    def __init__(self, message: str, said: str = "") -> None:
        super().__init__(message)
        self.said = said.splitlines()[-_LAST_LINES:]


@dataclass(frozen=True, slots=True)
class Tool:
    """How a distribution rebuilds an initramfs.

    Attributes:
        settings: file that names more modules.
        text: how one more module is written there; {} is its name.
        argv: the command; {version} and {path} are the kernel's and that of the initramfs.
    """

    settings: PurePosixPath
    text: str
    argv: tuple[str, ...]

    def command(self, version: str, path: PurePosixPath) -> tuple[str, ...]:
        """Return the command for a kernel."""
        return tuple(word.format(version=version, path=path) for word in self.argv)


_INITRAMFS_TOOLS: Final = Tool(
    PurePosixPath("/etc/initramfs-tools/modules"),
    "{}\n",
    ("update-initramfs", "-u", "-k", "{version}"),
)
_DRACUT: Final = Tool(
    PurePosixPath("/etc/dracut.conf.d/remetal-hardware.conf"),
    'add_drivers+=" {} "\n',
    ("dracut", "--force", "{path}", "{version}"),
)


def find_tool(system: System) -> Tool:
    """Return the tool that a system has.

    Raises:
        NotRebuilt: it is none that is known here.
    """
    if (
        _has(system, "update-initramfs")
        and system.inside(_INITRAMFS_TOOLS.settings.parent).is_dir()
    ):
        return _INITRAMFS_TOOLS
    if _has(system, "dracut"):
        return _DRACUT
    raise NotRebuilt("neither initramfs-tools nor dracut is there")


def modules_of(system: System, path: PurePosixPath, version: str) -> frozenset[str] | None:
    """Return the modules in an initramfs, or None where neither this nor the system can tell."""
    try:
        return modules_in(file_names(system.inside(path)), version)
    except UnknownContent:
        pass
    for program in ("lsinitrd", "lsinitramfs"):
        if _has(system, program):
            try:
                code, said = system.run(program, str(path), timeout=_LISTING_TIMEOUT)
            except ProgramError:
                continue
            if code == 0:
                # lsinitrd lists as `ls -l` does; the name comes last, and links behind it.
                names = (line.partition(" -> ")[0].split()[-1:] for line in said.splitlines())
                return modules_in((name for each in names for name in each), version)
    return None


def rebuild(
    system: System,
    tool: Tool,
    kernel: Kernel,
    path: PurePosixPath,
    modules: Sequence[str],
    drivers: Sequence[Driver],
    copies: Sequence[PurePosixPath] = (),
) -> str:
    """Rebuild a kernel's initramfs with the drivers it lacks, and return what became of the old one.

    Args:
        system: mounted for writing.
        tool: that it has.
        kernel: of the system.
        path: of its initramfs.
        modules: that it must get.
        drivers: what all of them are for; they must be served afterwards.
        copies: of the initramfs, which become copies of the new one.

    Raises:
        NotRebuilt: it could not be done; all is as it was.
        OSError: not even that.
    """
    initramfs, settings = system.inside(path), system.inside(tool.settings)
    size = initramfs.stat().st_size
    kept = initramfs.with_name(initramfs.name + KEPT)
    with ExitStack() as stack:
        # A tool writes the new one before it removes the old: there must be room for three.
        has_room = _free(initramfs.parent) > 3 * size + _SPARE
        if has_room:
            copy = kept
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="remetal-"))
            copy = Path(folder) / "initramfs"
        before = settings.read_bytes() if settings.exists() else None
        try:
            shutil.copy2(initramfs, copy)
            _add_settings(settings, before or b"", tool, modules)
            _make(system, tool, kernel, path, drivers)
            for each in copies:
                _renew(system.inside(each), initramfs)
        except BaseException:
            if copy.exists() and not _same(copy, initramfs, size):
                shutil.copy2(copy, initramfs)
            copy.unlink(missing_ok=True)
            _put_back(settings, before)
            raise
        finally:
            os.sync()
    return (
        f"the old one is beside it as {kept.name}"
        if has_room
        else "there was no room to keep the old one"
    )


def _make(
    system: System, tool: Tool, kernel: Kernel, path: PurePosixPath, drivers: Sequence[Driver]
) -> None:
    argv = tool.command(kernel.version, path)
    try:
        code, said = system.run(*argv, timeout=_TIMEOUT)
    except ProgramError as error:
        raise NotRebuilt(error.message, error.stderr) from error
    if code != 0:
        raise NotRebuilt(f"`{' '.join(argv)}` failed with exit code {code}", said)
    present = modules_of(system, path, kernel.version) or frozenset()
    lacking = kernel.lack(drivers, present).modules
    if lacking:
        raise NotRebuilt(f"what `{' '.join(argv)}` made lacks {', '.join(lacking)} again", said)


def _renew(copy: Path, new: Path) -> None:
    """Replace a copy of what was rebuilt, all or nothing."""
    partial = copy.with_name(f"{copy.name}.remetal")
    try:
        shutil.copyfile(new, partial)
        os.sync()
        partial.replace(copy)
    finally:
        partial.unlink(missing_ok=True)


def _add_settings(settings: Path, before: bytes, tool: Tool, modules: Sequence[str]) -> None:
    there = before.decode(errors="replace").splitlines(keepends=True)
    new = [line for line in map(tool.text.format, modules) if line not in there]
    if not new:
        return
    with settings.open("ab") as file:
        if before and not before.endswith(b"\n"):
            file.write(b"\n")
        mark = "" if _MARK in there else _MARK
        file.write("".join((mark, *new)).encode())


def _put_back(settings: Path, before: bytes | None) -> None:
    if before is None:
        settings.unlink(missing_ok=True)
    elif settings.read_bytes() != before:
        settings.write_bytes(before)


def _same(one: Path, other: Path, size: int) -> bool:
    if not other.exists() or other.stat().st_size != size:
        return False
    return one.read_bytes() == other.read_bytes()


def _free(folder: Path) -> int:
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize


def _has(system: System, program: str) -> bool:
    return any(system.inside(place.format(program)).is_file() for place in _TOOLS)
