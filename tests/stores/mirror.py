"""A mirror of two directories."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from imager.repository.backend.place import Access, Place
from tests.stores.store import Store


def write_mirror_file(path: Path, sites: dict[str, Place], copies: int = 1) -> Place:
    """Write the file of a mirror and return the place that it is."""
    lines = [f"copies = {copies}"]
    for name, place in sites.items():
        lines += ["[[site]]", f'name = "{name}"', f'location = "{place.location}"']
        for key, value in (
            ("ssh-key", place.access.ssh_key),
            ("known-hosts", place.access.known_hosts),
        ):
            if value is not None:
                lines.append(f'{key} = "{value}"')
    path.write_text("\n".join(lines) + "\n")
    return Place(f"mirror:{path}", Access())


class _Mirror:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def new_place(self) -> Place:
        folder = Path(mkdtemp(dir=self._folder))
        sites = {name: Place(str(folder / name), Access()) for name in ("one", "two")}
        return write_mirror_file(folder / "mirror.toml", sites)


@contextmanager
def mirror(folder: Path) -> Iterator[Store]:
    """Yield a store whose places are mirrors."""
    yield _Mirror(folder)
