"""The Python packages that remetal needs on the rescue medium, as wheels for its Python.

They are chosen for CPython 3.11 on x86_64 whatever Python runs this, so that the medium can be
built anywhere.
"""

import importlib.metadata
import re
import shutil
import sys
from pathlib import Path
from typing import Final

from bootmedia.selection import PYTHON, UNWANTED_WHEEL_PATHS
from imager import process
from imager.errors import MediumError, NoRoom, ProgramError

# Oldest C library first; all run on the medium's glibc 2.36.
_PLATFORMS: Final = ("manylinux2014_x86_64", "manylinux_2_28_x86_64", "manylinux_2_34_x86_64")
_TIMEOUT: Final = 900.0  # seconds; a slow link is no reason to give up early


def requirements(modules: frozenset[str]) -> tuple[str, ...]:
    """Return what remetal's own metadata asks for to bring certain modules, in pip's form, sorted.

    Where this Python is of the medium's version, each is pinned to what is installed here, so
    that the medium carries what was tested.

    Args:
        modules: top-level names that the code on the medium imports, the standard library's
            among them. What only other code needs is left out.
    """
    bring = {
        _normal(distribution)
        for module, distributions in importlib.metadata.packages_distributions().items()
        if module in modules
        for distribution in distributions
    }
    same = f"{sys.version_info.major}.{sys.version_info.minor}" == PYTHON
    found = []
    for line in importlib.metadata.requires("remetal") or ():
        specifier, _, marker = line.partition(";")
        name = re.split(r"[^A-Za-z0-9._-]", specifier.strip(), maxsplit=1)[0]
        if "extra" not in marker and _normal(name) in bring:
            pinned = f"{name}=={importlib.metadata.version(name)}"
            found.append(pinned if same else specifier.strip())
    return tuple(sorted(found))


def _normal(name: str) -> str:
    """Return a distribution's name as packaging tools compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def install(wanted: tuple[str, ...], folder: Path) -> None:
    """Put the wanted packages and all they need into a folder, without what rescue never imports.

    Raises:
        MediumError: pip can't bring them.
        NoRoom: the disk is full.
    """
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-input"]
    argv += ["--disable-pip-version-check", "--target", str(folder), "--only-binary=:all:"]
    argv += ["--implementation=cp", f"--python-version={PYTHON}"]
    argv += [f"--platform={platform}" for platform in _PLATFORMS]
    try:
        process.run(*argv, *wanted, timeout=_TIMEOUT)
    except ProgramError as error:
        lines = error.stderr.strip().splitlines()
        if "No space left on device" in error.stderr:
            raise NoRoom(f"no room left for the medium's Python packages in {folder}") from error
        raise MediumError(
            f"the medium's Python packages can't be fetched: {' / '.join(lines[-2:])}",
            hint="Check that a Python package index can be reached (PIP_INDEX_URL for your own).",
        ) from error
    for pattern in UNWANTED_WHEEL_PATHS:
        for path in sorted(folder.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
