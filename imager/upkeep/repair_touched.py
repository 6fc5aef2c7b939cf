"""Which images, of which machines, need what could not be brought back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from imager.errors import RemetalError
from imager.repository import image as image_format
from imager.repository.configuration import CONFIG_NAME
from imager.repository.header import PackKind
from imager.repository.image import SealedImage
from imager.repository.index import Index, Location
from imager.repository.keyring import GroupKeys
from imager.repository.parity_object import BLOCK
from imager.repository.repository import Repository
from imager.repository.retrieval import MapReader
from imager.repository.volume_map import chunk_ids

_UNKNOWN: Final = "unknown machine"


@dataclass(frozen=True, slots=True)
class Touched:
    """An image that can't be restored whole.

    Attributes:
        image: its id.
        machine: the name of its machine.
        objects: what it needs and can't have.
    """

    image: str
    machine: str
    objects: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Broken:
    """An object that could not be brought back.

    Attributes:
        name: of the object.
        state: `damaged` or `missing`.
        bad_blocks: numbers of its damaged blocks of 64 KiB; None where nobody knows, then the
            whole object counts as lost.
    """

    name: str
    state: str
    bad_blocks: frozenset[int] | None


def touched_images(
    repository: Repository, keys: GroupKeys, broken: Mapping[str, Broken]
) -> list[Touched]:
    """Return the images that need what is broken, each with the objects it misses.

    An image of which every chunk has an intact copy somewhere is not among them. An image object
    that is itself broken is; its machine is not known any more.
    """
    found = [
        Touched(name.removeprefix(image_format.PREFIX), _UNKNOWN, (name,))
        for name in sorted(broken)
        if name.startswith(image_format.PREFIX)
    ]
    images, _ = repository.images(keys)
    index, _ = repository.load_index(keys)
    reader = MapReader(repository, keys, index, lambda _: None)
    for image in images:
        missing = _missing(image, reader, index, broken)
        if CONFIG_NAME in broken:
            missing.add(CONFIG_NAME)
        if missing:
            found.append(Touched(image.id, image.summary.machine_name, tuple(sorted(missing))))
    return found


def _missing(
    image: SealedImage, reader: MapReader, index: Index, broken: Mapping[str, Broken]
) -> set[str]:
    missing: set[str] = set()
    for volume in image.summary.volumes:
        try:
            rows = chunk_ids(reader.read(image.summary, volume.id))
        except RemetalError:
            missing.add(f"map of {volume.id}")
            continue
        for row in rows:
            places = index.locations_in(row.tobytes(), PackKind.DATA)
            names = [index.pack_name(place) for place in places]
            if not any(
                _is_readable(place, broken.get(name))
                for place, name in zip(places, names, strict=True)
            ):
                missing.update(names or [f"chunks of {volume.id}"])
    return missing


def _is_readable(place: Location, broken: Broken | None) -> bool:
    """Whether a blob, and the beginning of the pack that opens it, lie in intact blocks."""
    if broken is None:
        return True
    if broken.bad_blocks is None or 0 in broken.bad_blocks:
        return False
    first, last = place.offset // BLOCK, (place.offset + place.length - 1) // BLOCK
    return not any(block in broken.bad_blocks for block in range(first, last + 1))
