"""A filesystem that is mounted for a while."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imager import process


@contextmanager
def mounted(kind: str, device: Path, options: str) -> Iterator[Path]:
    """Mount a filesystem at a folder of its own.

    Args:
        kind: as mount calls it.
        device: that has it.
        options: beside `noatime`, separated by commas.

    Yields:
        Where it is mounted.

    Raises:
        ProgramError: it can't be mounted, or not unmounted in the end.
    """
    with tempfile.TemporaryDirectory(prefix="remetal-") as folder:
        process.run("mount", "-t", kind, "-o", f"noatime,{options}", device, folder)
        try:
            yield Path(folder)
        finally:
            process.run("umount", folder)
