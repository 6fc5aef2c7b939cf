"""In which order `mke2fs -d` copies files, and so where they lie on the disk.

It copies in order of names, and writes a file's blocks under the first of its hard links. So a
directory that sorts first gets a link to every file, in the wanted order; it is removed again
from the finished filesystem.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from spec import Layout, LayoutOrder

DIRECTORY: Final = ".layout"  # sorts before every name at the top of a Debian root

_LINKS_PER_DIRECTORY: Final = 256  # lookups in a directory without index are linear
_DPKG_LISTS: Final = "var/lib/dpkg/info"


def link(content: Path, layout: Layout) -> tuple[list[str], list[str]]:
    """Add the links for an order to `content`.

    Args:
        content: what will be copied.
        layout: the order.

    Returns:
        The names to remove from the finished filesystem: links, and then their directories with
        the outermost last. Both are empty for the order of paths, which needs no help.
    """
    if layout.order is LayoutOrder.PATH:
        return [], []
    groups = list(_packages(content) if layout.order is LayoutOrder.PACKAGE else _singles(content))
    random.Random(layout.seed).shuffle(groups)  # noqa: S311 - repeatable on purpose
    links: list[str] = []
    directories: list[str] = []
    for number, path in enumerate(path for group in groups for path in group):
        directory = f"{DIRECTORY}/{number // _LINKS_PER_DIRECTORY:06d}"
        if number % _LINKS_PER_DIRECTORY == 0:
            (content / directory).mkdir(parents=True)
            directories.append(f"/{directory}")
        (content / directory / f"{number:08d}").hardlink_to(path)
        links.append(f"/{directory}/{number:08d}")
    return links, [*directories, f"/{DIRECTORY}"] if directories else []


def _files(content: Path) -> list[Path]:
    return sorted(path for path in content.rglob("*") if path.is_file() and not path.is_symlink())


def _singles(content: Path) -> Iterator[list[Path]]:
    for path in _files(content):
        yield [path]


def _packages(content: Path) -> Iterator[list[Path]]:
    """Yield the files of every package in its own order, and at last those of none."""
    left = dict.fromkeys(_files(content))
    for listing in sorted((content / _DPKG_LISTS).glob("*.list")):
        group = []
        for line in listing.read_text().splitlines():
            path = _merged(content, line)
            if path in left:
                del left[path]
                group.append(path)
        if group:
            yield group
    if left:
        yield list(left)


def _merged(content: Path, name: str) -> Path:
    """Return where a packaged file lies; dpkg still says /lib where that is a link to /usr/lib."""
    top, _, rest = name.strip("/").partition("/")
    place = content / top
    return (content / place.readlink() if place.is_symlink() else place) / rest
