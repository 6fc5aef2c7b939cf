"""What images need, by their maps, of what is lost or damaged; and which images can't have it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from imager.errors import UntrustedObject
from imager.repository import generations
from imager.repository import image as image_format
from imager.repository import index as index_format
from imager.repository.backend.protocol import Entry
from imager.repository.configuration import CONFIG_NAME
from imager.repository.header import PackKind
from imager.repository.image import SealedImage
from imager.repository.index import Index
from imager.repository.keyring import GroupKeys
from imager.repository.parity_object import BLOCK
from imager.repository.repository import Problem, Repository
from imager.repository.retrieval import MapReader
from imager.repository.standing import seconds_of
from imager.upkeep.check_maps import Ids, MapWalk, Watched
from imager.upkeep.repair_scan import State

_UNKNOWN: Final = "unknown machine"
# With more packs than these in no index, an index was lost.
_MOST_UNLISTED: Final = 4096


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
        state: damaged, missing or unreadable.
        bad_blocks: numbers of its damaged blocks of 64 KiB; None where nobody knows, then the
            whole object counts as lost.
        reason: why it can't be read or brought back, where that is known.
    """

    name: str
    state: State
    bad_blocks: frozenset[int] | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Survey:
    """What the maps of all images say.

    Attributes:
        touched: images that can't be restored whole.
        missing: packs that indexes name and that are not there.
        needed: those of them that hold the only copies of something an image needs.
        is_sure: whether every image and map could be read and every chunk is in a pack that is
            known; else more may be needed.
        needs_index: whether packs that images need are named in no index.
        named: packs that the indexes name.
        images: those that can be read.
    """

    touched: tuple[Touched, ...]
    missing: frozenset[str]
    needed: frozenset[str]
    is_sure: bool
    needs_index: bool
    named: frozenset[str]
    images: tuple[SealedImage, ...]


def survey(repository: Repository, keys: GroupKeys, broken: Mapping[str, Broken]) -> Survey:
    """Walk the maps of all images, each shared node once.

    An image of which every chunk has an intact copy somewhere is not touched. An image object
    that is itself broken is; its machine is not known any more.

    Args:
        repository: as it is, or as it will be.
        keys: of the group.
        broken: what can't be had, by name.
    """
    index, _ = repository.load_index(keys)
    missing = frozenset(index.names(~repository.list_packs().has(index.digests)))
    lost: dict[str, Ids] = dict.fromkeys(missing)
    # Of maps each node is opened below, which says more than blocks do.
    for pack in np.flatnonzero(index.are(broken) & index.of_kind[PackKind.DATA]).tolist():
        name = index.name(pack)
        if name not in missing:
            lost[name] = _in_bad_blocks(index, pack, broken[name])
    is_unlisted = index.is_unlisted & ~index.are(lost)
    count = int(is_unlisted.sum())
    few = frozenset(index.names(is_unlisted)) if count <= _MOST_UNLISTED else frozenset()
    reader = MapReader(repository, keys, index, lambda _: None)
    walk = MapWalk(reader.load, index, Watched(index, lost, dict.fromkeys(few)))
    images, problems = repository.images(keys)
    touched = _unreadable(problems, broken, believes_all=not repository.trust.problems)
    is_sure = not touched
    needed: set[str] = set()
    needs_index = count > len(few)
    for image in images:
        needs = {CONFIG_NAME} & broken.keys()
        for volume in image.summary.volumes:
            below = walk.volume(volume)
            alone = below.alone & lost.keys()
            needs |= alone
            needed |= alone & missing
            needs_index |= bool(below.alone & few)
            if below.missing:
                needs.add(f"chunks of {volume.id}")
            if below.error is not None and not alone:
                needs.add(f"map of {volume.id}")
            is_sure &= below.error is None and not below.missing
        if needs:
            touched.append(_touched(image, needs))
    return Survey(
        tuple(touched),
        missing,
        frozenset(needed),
        is_sure,
        needs_index,
        frozenset(index.names(~index.is_unlisted)),
        tuple(images),
    )


def taken_at(image: SealedImage, latest: float, listed: Mapping[str, Entry]) -> float:
    """Return when the store took an image that was lost, as far as anybody can tell.

    That is what its summary says, which is by the clock of a machine; so it counts only within what
    the store knows: not later than when the image is known to have been there, and not earlier
    than the indexes that its capture wrote right before it.

    Args:
        image: the image.
        latest: seconds since the epoch by the store's clock.
        listed: all objects by name.
    """
    indexes = [index_format.PREFIX + digest for digest in image.summary.indexes]
    earliest = max((listed[n].modified for n in indexes if n in listed), default=0.0)
    return min(max(seconds_of(image.summary.finished), earliest), latest)


def _unreadable(
    problems: Collection[Problem], broken: Mapping[str, Broken], *, believes_all: bool
) -> list[Touched]:
    """Return images that can't be read; what nobody vouches for is no image."""
    found = {n: n for n in broken if n.startswith(image_format.PREFIX)}
    roots = sorted(n for n in broken if n.startswith(generations.PREFIX))
    for problem in problems:
        if not isinstance(problem.error, UntrustedObject):
            found.setdefault(problem.name, problem.name)
        elif not believes_all:
            found.setdefault(problem.name, ", ".join(roots) or problem.name)
    return [
        Touched(name.removeprefix(image_format.PREFIX), _UNKNOWN, (need,))
        for name, need in sorted(found.items())
    ]


def _touched(image: SealedImage, needs: Collection[str]) -> Touched:
    return Touched(image.id, image.summary.machine_name, tuple(sorted(needs)))


def _in_bad_blocks(index: Index, pack: int, broken: Broken) -> Ids:
    """Return the blobs of a pack that can't be read; None for all, as without its beginning."""
    blocks = broken.bad_blocks
    if blocks is None or 0 in blocks:
        return None
    bad = np.zeros(max(blocks, default=0) + 2, dtype=np.int64)
    bad[[block + 1 for block in blocks]] = 1
    before = np.cumsum(bad)
    found: set[bytes] = set()
    for rows in index.windows():
        mine = rows[rows["pack"] == pack]
        first = np.minimum(mine["offset"].astype(np.int64) // BLOCK, len(bad) - 1)
        ends = (mine["offset"].astype(np.int64) + mine["length"] - 1) // BLOCK + 1
        hurt = before[np.minimum(ends, len(bad) - 1)] > before[first]
        found.update(row.tobytes() for row in mine["id"][hurt])
    return frozenset(found)
