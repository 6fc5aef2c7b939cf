"""Directories of the host."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from imager.repository.backend.place import Access, Place
from tests.stores.store import Store


class _Directory:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def new_place(self) -> Place:
        return Place(f"{mkdtemp(dir=self._folder)}/store", Access())


@contextmanager
def directory(folder: Path) -> Iterator[Store]:
    """Yield a store that makes directories below a folder."""
    yield _Directory(folder)
