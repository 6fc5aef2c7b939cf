"""Which files of this machine belong together: those of a Debian package, or of one tree."""

import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imager.units import MIB

_BLOCK: Final = 4096
_DPKG_LISTS: Final = Path("/var/lib/dpkg/info")
_TREE: Final = 4 * MIB  # what no package owns is taken by trees of at most this size


@dataclass(frozen=True, slots=True, order=True)
class Group:
    """Files that are installed, and so lie, together.

    Attributes:
        name: of the package, or where the tree is.
        paths: of files and links on this machine, in order.
        size: bytes of the blocks that they need.
    """

    name: str
    paths: tuple[str, ...]
    size: int


def groups_below(roots: Iterable[Path], largest: int, but: Path) -> list[Group]:
    """Return the groups that the files below some folders make, in order of their names.

    Args:
        roots: the folders; nothing that is mounted in them is entered.
        largest: bytes; larger files are left out.
        but: a folder that is not entered.
    """
    owners = _owners()
    sizes: dict[str, int] = {}
    members: defaultdict[str, list[str]] = defaultdict(list)
    loose: defaultdict[str, int] = defaultdict(int)  # bytes in trees, of what no package owns
    for root in roots:
        for path in paths_below(root, but):
            size = size_of(path)
            if size is None or size > largest or path in sizes:
                continue
            sizes[path] = size
            if path in owners:
                members[f"package {owners[path]}"].append(path)
            else:
                for parent in Path(path).parents:
                    loose[str(parent)] += size
    for path in sizes:
        if path not in owners:
            members[_tree(path, loose)].append(path)
    return [
        Group(name, tuple(sorted(paths)), sum(sizes[path] for path in paths))
        for name, paths in sorted(members.items())
    ]


def paths_below(root: Path, but: Path | None = None) -> Iterator[str]:
    """Yield the files and links below a folder in order; nothing mounted there, and no folder `but`."""
    for where, below, names in os.walk(root):
        below[:] = sorted(
            name
            for name in below
            if Path(where, name) != but and not os.path.ismount(Path(where, name))
        )
        for name in sorted({*names, *(name for name in below if Path(where, name).is_symlink())}):
            yield f"{where}/{name}"


def size_of(path: str) -> int | None:
    """Return the bytes that a file's blocks need, 0 for a link, None for anything else."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    if stat.S_ISREG(status.st_mode):
        return -(-status.st_size // _BLOCK) * _BLOCK
    return 0 if stat.S_ISLNK(status.st_mode) else None


def _tree(path: str, loose: dict[str, int]) -> str:
    """Return the highest tree around a path that is not too large, else its directory."""
    found = str(Path(path).parent)
    for parent in Path(path).parents:
        if loose[str(parent)] > _TREE:
            break
        found = str(parent)
    return found


def _owners() -> dict[str, str]:
    """Return the package of each file, where there is a dpkg."""
    owners = {}
    for listing in sorted(_DPKG_LISTS.glob("*.list")):
        for path in listing.read_text(errors="replace").splitlines():
            owners[path] = listing.stem
    return owners
