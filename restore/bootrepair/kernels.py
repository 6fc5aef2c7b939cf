"""What a kernel of the restored system needs for the disks of the machine it comes back on."""

import os
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from imager import process
from imager.errors import ProgramError
from restore.boot_steps import Driver
from restore.bootrepair.drivers import plain_name
from restore.bootrepair.systems import System

_PLACES = ("lib/modules", "usr/lib/modules")
# Where distributions keep the initramfs of a kernel; the first one that is there counts.
_INITRAMFS = (
    "boot/initrd.img-{}",
    "boot/initramfs-{}.img",
    "boot/initrd-{}",
    "boot/initrd-{}.img",
)
_KERNELS = ("boot/vmlinuz-{}", "boot/vmlinux-{}", "boot/Image-{}")
# As kernel-install lays it out, by machine-id and version, on the ESP or beside it.
_ENTRY_FOLDERS = ("boot", "efi", "boot/efi")
_ENTRY_INITRAMFS = ("initrd", "initramfs")


@dataclass(frozen=True, slots=True)
class Lack:
    """What an initramfs and its kernel do not have.

    Attributes:
        modules: that the initramfs must get: of the drivers themselves, not what those need in turn.
        absent: drivers that the kernel has neither as a module nor built in.
    """

    modules: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


class Kernel:
    """A kernel of a restored system, as its folder of modules describes it.

    Args:
        system: the restored system.
        folder: of its modules, with modules.dep.

    Raises:
        OSError: it can't be read.
    """

    def __init__(self, system: System, folder: Path) -> None:
        self.version = folder.name
        self._root = system.root
        self._needs: dict[str, frozenset[str]] = {}
        for line in _lines(folder / "modules.dep"):
            # The path of a module, a colon, and the paths of all that it needs, in full depth.
            path, _, needed = line.partition(":")
            self._needs[_module(path)] = frozenset(map(_module, (path, *needed.split())))
        self._built_in = frozenset(map(_module, _lines(folder / "modules.builtin")))

    def parts(self, module: str) -> frozenset[str] | None:
        """Return all modules that must be loaded for one; None where the kernel does not have it."""
        if module in self._built_in:
            return frozenset()
        return self._needs.get(module)

    def alternatives(self, modalias: str) -> tuple[str, ...]:
        """Return the modules, built in or not, that this kernel would load for a device."""
        if not modalias:
            return ()
        try:
            text = process.run(
                "modprobe", "--dirname", self._root, "--set-version", self.version,
                "--resolve-alias", modalias,
                accept=(0, 1),
            )  # fmt: skip
        except ProgramError:
            return ()
        return tuple(dict.fromkeys(map(plain_name, text.split())))

    def lack(self, drivers: Iterable[Driver], present: AbstractSet[str]) -> Lack:
        """Return what is missing.

        A device is served when its driver of here is there or built in, or another one that this
        kernel has for it: kernels differ in what they call a driver, and in what is built in.

        Args:
            drivers: of the disks that the system starts from.
            present: names of the modules in the initramfs.
        """
        modules: dict[str, None] = {}
        absent: dict[str, None] = {}
        for driver in drivers:
            own = self.parts(driver.name)
            # What is built into the kernel here and no module there is of no disk: a bus, a bridge.
            if driver.built_in if own is None else own <= present:
                continue
            others = {
                name: parts
                for name in self.alternatives(driver.modalias)
                if (parts := self.parts(name)) is not None
            }
            if any(parts <= present for parts in others.values()):
                continue
            if own is not None:
                modules[driver.name] = None
            elif others:
                modules.update(dict.fromkeys(others))
            else:
                absent[driver.name] = None
        return Lack(tuple(modules), tuple(absent))


def kernels(system: System) -> Iterator[Kernel]:
    """Yield the kernels that a system has modules of, in the order of their names."""
    folders: dict[str, Path] = {}
    for place in _PLACES:
        folder = system.inside(place)
        for each in sorted(folder.iterdir()) if folder.is_dir() else ():
            if (each / "modules.dep").is_file():
                folders.setdefault(each.name, each)
    for name in sorted(folders):
        yield Kernel(system, folders[name])


def find_initramfs(system: System, version: str) -> PurePosixPath | None:
    """Return the path of a kernel's initramfs within its system; None where there is none."""
    named = [PurePosixPath("/", form.format(version)) for form in _INITRAMFS]
    entries = [folder / name for folder in _entries(system, version) for name in _ENTRY_INITRAMFS]
    return next((path for path in (*named, *entries) if system.inside(path).is_file()), None)


def find_copies(system: System, version: str) -> tuple[PurePosixPath, ...]:
    """Return the paths of further copies of a kernel's initramfs: those that boot loader entries load."""
    first = find_initramfs(system, version)
    if first is None:
        return ()
    seen = [system.inside(first).stat()]
    copies = []
    for folder in _entries(system, version):
        for name in dict.fromkeys((first.name, *_ENTRY_INITRAMFS)):
            real = system.inside(folder / name)
            if real.is_file() and not any(os.path.samestat(real.stat(), each) for each in seen):
                seen.append(real.stat())
                copies.append(folder / name)
    return tuple(copies)


def has_kernel(system: System, version: str) -> bool:
    """Return whether a kernel itself is there, and not only modules that nobody removed."""
    named = [PurePosixPath("/", form.format(version)) for form in _KERNELS]
    entries = [folder / "linux" for folder in _entries(system, version)]
    return any(system.inside(path).is_file() for path in (*named, *entries))


def modules_in(names: Iterable[str], version: str) -> frozenset[str]:
    """Return the modules of a kernel among the names of files."""
    place = f"/modules/{version}/"
    return frozenset(_module(name) for name in names if place in f"/{name}" and _is_module(name))


def _entries(system: System, version: str) -> Sequence[PurePosixPath]:
    return [
        PurePosixPath("/", place, each.name, version)
        for place in _ENTRY_FOLDERS
        if (folder := system.inside(place)).is_dir()
        for each in sorted(folder.iterdir())
    ]


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.is_file() else []


def _is_module(path: str) -> bool:
    return ".ko" in PurePosixPath(path).suffixes


def _module(path: str) -> str:
    return plain_name(PurePosixPath(path).name.partition(".ko")[0])
