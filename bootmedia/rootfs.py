"""The base of the rescue medium: Debian's root, kernel, boot loaders and Python packages.

Building it takes a minute or two and needs a Debian mirror, so it is kept in a cache under a hash
of all that decides its content. remetal itself is not part of it (see `layer`).
"""

import fcntl
import hashlib
import json
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from bootmedia import initramfs, selection, wheels
from bootmedia.templates import render
from imager import process
from imager.errors import MediumError, NoRoom, ProgramError, ProgramMissing

MARKER: Final = "/.disk/remetal"  # a file on every medium, by which the boot loader knows it
SITE_PACKAGES: Final = f"usr/local/lib/python{selection.PYTHON}/dist-packages"

_FORMAT: Final = 2  # of the cache folder
_PARTS: Final = "remetal-parts"  # folder in the root that the hook fills for us
_TIMEOUT: Final = 3600.0  # seconds; a slow mirror is no reason to give up early
_KEPT_UNUSED: Final = 30 * 24 * 3600.0  # seconds
_DESCRIPTION: Final = "base.json"
_INITRAMFS: Final = "initramfs.zst"
_COPIED: Final = (
    "vmlinuz",
    "shim.efi",
    "mok-manager.efi",
    "grub.efi",
    "eltorito.img",
    "boot_hybrid.img",
    "packages.txt",
)


@dataclass(frozen=True, slots=True)
class Base:
    """A base in the cache; its files are never changed.

    Attributes:
        folder: where its files are.
        key: the hash of what made it.
        kernel: version of the kernel, such as "6.1.0-56-amd64".
        keyboards: names that `loadkeys` knows.
        unpacked: bytes of all files when the kernel has unpacked it into memory.
        made: when it was fetched from Debian, in seconds since 1970.
    """

    folder: Path
    key: str
    kernel: str
    keyboards: tuple[str, ...]
    unpacked: int
    made: int

    def part(self, name: str) -> Path:
        """Return the path of one of its files, such as "vmlinuz" or "shim.efi"."""
        return self.folder / name

    @property
    def initramfs(self) -> Path:
        """The compressed archive of the root."""
        return self.folder / _INITRAMFS


def prepare(
    cache: Path,
    wanted: tuple[str, ...],
    sources: tuple[str, ...],
    step: Callable[[str], None],
    *,
    fresh: bool = False,
) -> Base:
    """Return the base from the cache, built first when it is not there.

    Several processes may call this at once: one builds, the others wait for it.

    Args:
        cache: folder of the cache; made when missing.
        wanted: Python packages, in pip's form.
        sources: lines of apt's sources.list; empty for Debian's own mirrors.
        step: called with a few words when a part of the work starts.
        fresh: build anew, with what Debian and the package index offer now.

    Raises:
        MediumError: Debian's packages or the Python packages can't be fetched.
        NoRoom: the cache or the temporary folder is full; nothing half-done is left.
    """
    hook = _hook()
    key = _key(hook, sources, wanted)
    folder = cache / f"medium-base-{key}"
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"medium-base-{key}.lock"):
        if fresh or not (folder / _DESCRIPTION).exists():
            with tempfile.TemporaryDirectory(dir=cache, prefix="medium-base-") as name:
                made = Path(name) / "base"
                made.mkdir()
                _build(made, Path(name), key, hook, sources, wanted, step)
                if folder.exists():
                    shutil.rmtree(folder)
                made.rename(folder)
                _forget_unused(cache)
        return _load(folder)


def _forget_unused(cache: Path) -> None:
    """Remove bases that nobody has used for a month; each is 100 MB."""
    for description in cache.glob(f"medium-base-*/{_DESCRIPTION}"):
        if time.time() - description.parent.stat().st_mtime > _KEPT_UNUSED:
            shutil.rmtree(description.parent)


def _hook() -> str:
    return render(
        "customize.sh.j2",
        parts=_PARTS,
        marker=MARKER,
        unpacked_packages=selection.UNPACKED_PACKAGES,
        module_patterns=selection.MODULE_PATTERNS,
        unwanted_patterns=selection.UNWANTED_PATTERNS,
        grub_modules=selection.GRUB_BIOS_MODULES,
        removed_paths=selection.REMOVED_PATHS,
        python=selection.PYTHON,
        stripped=[f"{SITE_PACKAGES}/{name}" for name in selection.STRIPPED_WHEELS],
    )


def _key(hook: str, sources: tuple[str, ...], wanted: tuple[str, ...]) -> str:
    made_of = [
        _FORMAT,
        initramfs.LEVEL,
        hook,
        sources,
        wanted,
        selection.SUITE,
        selection.PACKAGES,
        selection.EXCLUDED_PATHS,
        selection.NOT_PACKED,
        selection.UNWANTED_WHEEL_PATHS,
    ]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(
    made: Path,
    work: Path,
    key: str,
    hook: str,
    sources: tuple[str, ...],
    wanted: tuple[str, ...],
    step: Callable[[str], None],
) -> None:
    packages = work / "wheels"
    packages.mkdir()
    step("Python packages")
    wheels.install(wanted, packages)
    step("Debian root, kernel and boot loaders")
    tar = work / "root.tar"
    script = work / "customize"
    script.write_text(hook)
    script.chmod(0o755)
    work.chmod(0o755)  # without root, mmdebstrap works under another user id
    _bootstrap(tar, script, packages, sources)
    step("initramfs of the base")
    with tarfile.open(tar) as archive:
        for name in _COPIED:
            (made / name).write_bytes(_part(archive, name))
        unpacked = initramfs.pack_tar(
            archive, made / _INITRAMFS, drop=(_PARTS, *selection.NOT_PACKED)
        )
        base = Base(
            made,
            key,
            _part(archive, "kernel-version").decode(),
            tuple(_part(archive, "keyboards").decode().split()),
            unpacked,
            initramfs.build_time(),
        )
    description = {name: value for name, value in asdict(base).items() if name != "folder"}
    (made / _DESCRIPTION).write_text(json.dumps(description))


def _bootstrap(tar: Path, script: Path, packages: Path, sources: tuple[str, ...]) -> None:
    argv = ["mmdebstrap", "--variant=minbase", "--format=tar"]
    argv += [f"--include={','.join(selection.PACKAGES)}"]
    argv += ["--aptopt=Apt::Install-Recommends false"]
    argv += [f"--dpkgopt=path-exclude={pattern}" for pattern in selection.EXCLUDED_PATHS]
    argv += [f"--customize-hook=mkdir -p $1/{SITE_PACKAGES}"]
    argv += [f"--customize-hook=sync-in {packages} /{SITE_PACKAGES}"]
    argv += [f"--customize-hook={script}"]
    try:
        process.run(*argv, selection.SUITE, tar, *sources, timeout=_TIMEOUT)
    except ProgramMissing:
        raise
    except ProgramError as error:
        if "No space left on device" in error.stderr:
            raise NoRoom(
                f"no room left to build the rescue root in {tempfile.gettempdir()} or {tar.parent}"
            ) from error
        complaint = _complaint(error.stderr)
        hint = (
            "Check that a Debian mirror can be reached; `debian-sources` in the configuration "
            "names your own."
        )
        if "chroot mode" in complaint:
            hint = "Run this as root, or install the Debian package uidmap."
        raise MediumError(f"the rescue root can't be built: {complaint}", hint=hint) from error


def _complaint(stderr: str) -> str:
    """Return what went wrong out of the hundreds of lines that mmdebstrap writes."""
    lines = [line.strip() for line in stderr.splitlines()]
    errors = [line for line in lines if line.startswith(("E:", "W: Failed", "dpkg: error"))]
    return " / ".join((errors or lines)[:4])


def _part(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(f"./{_PARTS}/{name}")
    if file is None:
        raise MediumError(f"the rescue root was built without {name}")
    return file.read()


def _load(folder: Path) -> Base:
    description = json.loads((folder / _DESCRIPTION).read_text())
    os.utime(folder)  # says when it was last of use, to whoever cleans the cache
    return Base(
        folder,
        description["key"],
        description["kernel"],
        tuple(description["keyboards"]),
        description["unpacked"],
        description["made"],
    )
