"""Files of settings of a restored system: found, read, and replaced whole or not at all."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Final

from imager.units import MIB
from restore.bootrepair.systems import inside

LARGEST: Final = MIB  # larger ones are none
COMMENTS: Final = ("#", ";")


def files_below(root: Path, folder: str) -> Iterator[tuple[PurePosixPath, Path]]:
    """Yield each file of settings below a folder: its path in the system, and where it is.

    Args:
        root: of the system.
        folder: in it, without a slash in front.
    """
    top = inside(root, folder)
    for file in sorted(top.rglob("*")):
        if not file.is_symlink() and file.is_file() and file.stat().st_size <= LARGEST:
            yield PurePosixPath("/", folder, file.relative_to(top)), file


def without_comments(text: str) -> str:
    """Return the lines of a file of settings that are no comments."""
    lines = text.splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(COMMENTS))


def replace_file(path: Path, data: bytes) -> None:
    """Give a file another content, all or nothing; owner, mode and extended attributes stay.

    Raises:
        OSError: it could not be done; the file is as it was, and nothing is left beside it.
    """
    status = path.stat()
    attributes = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    _put(path, data, (status.st_uid, status.st_gid), status.st_mode & 0o7777, attributes)


def make_file(path: Path, data: bytes) -> None:
    """Make a file of root's that all may read, with its folders.

    It gets the security label of its folder, which a system that enforces labels would have given
    it: this kernel may know none of its policy.

    Raises:
        OSError: it could not be done; nothing is left.
    """
    for folder in reversed([folder for folder in path.parents if not folder.exists()]):
        folder.mkdir(mode=0o755)
        for name, value in _label(folder.parent).items():
            os.setxattr(folder, name, value)
    _put(path, data, (0, 0), 0o644, _label(path.parent))


def _label(folder: Path) -> dict[str, bytes]:
    with suppress(OSError):
        return {"security.selinux": os.getxattr(folder, "security.selinux")}
    return {}


def _put(
    path: Path,
    data: bytes,
    owner: tuple[int, int],
    mode: int,
    attributes: Mapping[str, bytes],
) -> None:
    descriptor, name = tempfile.mkstemp(prefix=".remetal-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            os.fchown(descriptor, *owner)
            os.fchmod(descriptor, mode)
            for attribute, value in attributes.items():
                os.setxattr(descriptor, attribute, value)
            file.flush()
            os.fsync(descriptor)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
