"""The part of a check that needs the group's keys: does everything that images need lie there?

Beside a prune things vanish while they are looked at. What was found is believed only if nothing
vanished meanwhile from the listings of images, indexes and removals; else it is looked at anew.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from imager.errors import OBJECT_FAULTS, ObjectMissing, RemetalError
from imager.repository import generations
from imager.repository import image as image_format
from imager.repository import index as index_format
from imager.repository import pack as pack_format
from imager.repository import statement as statements
from imager.repository.configuration import CONFIG_NAME, repository_id
from imager.repository.image import SealedImage
from imager.repository.index import Index, Segment
from imager.repository.keyring import GroupKeys
from imager.repository.names import is_object
from imager.repository.removals import is_rotten, read_removals
from imager.repository.repository import Problem, Repository
from imager.repository.retrieval import MapReader
from imager.upkeep.check_ciphertext import Judge
from imager.upkeep.check_maps import MapWalk, Watched
from imager.upkeep.check_report import Bad, Fault, Finding, fault_of

_ATTEMPTS: Final = 10
# With more packs than these in no index, an index was lost: all images count as touched.
_MOST_ORPHANS: Final = 4096
_HASH: Final = slice(-64, None)


@dataclass(slots=True)
class Structure:
    """What was found.

    Attributes:
        images: those that can be read.
        count: of images, readable or not.
        objects: how many objects were verified.
        findings: everything wrong, by name of the object or map.
        orphans: packs that no index names, with their sizes.
        rotten_removals: statements of removals that have rotted, which is no damage.
    """

    images: list[SealedImage]
    count: int = 0
    objects: int = 0
    findings: dict[str, Finding] = field(default_factory=dict)
    orphans: dict[str, int] = field(default_factory=dict)
    rotten_removals: set[str] = field(default_factory=set)

    def add(
        self,
        name: str,
        problem: RemetalError | str,
        images: Iterable[SealedImage],
        fault: Fault = Fault.DAMAGED,
        *,
        repairable: bool = False,
        writer: str = "",
    ) -> None:
        """Note a finding; the first one of a name stays."""
        message = problem if isinstance(problem, str) else problem.message
        touched = list(images)
        self.findings.setdefault(
            name,
            Finding(
                name,
                message,
                tuple(sorted({image.id for image in touched})),
                repairable,
                tuple(sorted({image.summary.machine_name for image in touched})),
                fault,
                writer,
            ),
        )


def examine(repository: Repository, keys: GroupKeys, bad: Mapping[str, Bad]) -> Structure:
    """Check the structure, and tell which images need what is known to be bad.

    Args:
        repository: what to check.
        keys: of the group.
        bad: objects whose bytes were read and are wrong.
    """
    for _ in range(_ATTEMPTS):
        before = _removable(repository)
        found = _Examination(repository, keys, bad).run()
        if not found.findings or before <= _removable(repository):
            break
    return found


def _removable(repository: Repository) -> set[str]:
    folders = (image_format.PREFIX, index_format.PREFIX, statements.REMOVALS)
    return {entry.name for folder in folders for entry in repository.backend.list(folder)}


class _Examination:
    """One look at everything."""

    def __init__(self, repository: Repository, keys: GroupKeys, bad: Mapping[str, Bad]) -> None:
        self._repository = repository
        self._keys = keys
        images, problems = repository.images(keys)
        self._found = Structure(images, len(images), len(images))
        self._bad = dict(bad)
        self._listed: set[str] = set()
        for problem in problems:
            if not isinstance(problem.error, ObjectMissing):
                fault = fault_of(problem.error)
                self._found.count += fault is not Fault.DISOWNED
                identity = problem.name.removeprefix(image_format.PREFIX)
                self._found.findings[problem.name] = Finding(
                    problem.name, problem.error.message, (identity,), fault=fault
                )

    def run(self) -> Structure:
        self._check_roots()
        self._check_statements()
        self._check_indexes()
        index, problems = self._repository.load_index(self._keys)
        for problem in problems:
            is_pack = problem.name.startswith(pack_format.PREFIX)
            if is_pack and not isinstance(problem.error, ObjectMissing):
                self._bad.setdefault(problem.name, Bad(problem.name, problem.error.message))
        packs = self._check_sizes(index)
        self._check_maps(index)
        self._found.objects += sum(name not in self._bad for name in packs)
        self._add_rest()
        return self._found

    def _check_roots(self) -> None:
        """Look at the configuration and the generations, which every image depends on."""
        images = self._found.images
        backend = self._repository.backend
        if repository_id(backend.get(CONFIG_NAME)) == self._keys.repository:
            self._found.objects += 1
        else:
            message = "the configuration is not the one the key knows"
            self._found.add(CONFIG_NAME, message, images)
        judge = Judge(self._repository, ())
        for entry in backend.list(generations.PREFIX):
            try:
                problem = judge.look(entry.name, backend.get(entry.name))
            except OBJECT_FAULTS as error:
                problem = Bad(entry.name, error.message)
            if problem is None:
                self._found.objects += 1
            else:
                self._found.add(entry.name, problem.message, images)

    def _check_statements(self) -> None:
        signed: defaultdict[str, list[SealedImage]] = defaultdict(list)
        for image in self._found.images:
            signed[hashlib.sha256(image.certificate.encoded).hexdigest()].append(image)
        for folder in (statements.PREFIX, statements.REMOVALS, statements.REVOCATIONS):
            for entry in self._repository.backend.list(folder):
                try:
                    self._repository.read_statement(entry.name)
                    self._found.objects += 1
                except ObjectMissing:
                    continue
                except OBJECT_FAULTS as error:
                    if folder == statements.REMOVALS and is_rotten(
                        self._repository.backend, entry.name
                    ):
                        self._found.rotten_removals.add(entry.name)
                        continue
                    # Images carry their certificate themselves, so they stay trusted without it.
                    touched = signed[entry.name[_HASH]]
                    fault = fault_of(error)
                    self._found.add(entry.name, error, touched, fault, repairable=True)

    def _check_indexes(self) -> None:
        writers: defaultdict[str, list[SealedImage]] = defaultdict(list)
        for image in self._found.images:
            for digest in image.summary.indexes:
                writers[index_format.PREFIX + digest].append(image)
        backend, keys = self._repository.backend, self._keys
        for entry in backend.list(index_format.PREFIX):
            try:
                segment = Segment.decode(
                    backend.get(entry.name), entry.name, keys.directory_key, self._repository.id
                )
            except ObjectMissing:
                continue
            except OBJECT_FAULTS as error:
                self._found.add(entry.name, error, writers[entry.name], repairable=True)
            else:
                self._found.objects += 1
                self._listed.update(pack_format.object_name(digest) for digest, _ in segment.packs)

    def _check_sizes(self, index: Index) -> set[str]:
        """Note packs that are gone or cut off; return the names of all that are there."""
        listed = self._repository.backend.list(pack_format.PREFIX)
        sizes = {entry.name: entry.size for entry in listed if is_object(entry.name)}
        # What was read, found bad and removed since is no concern any more, unless an image needs it.
        for name in list(self._bad):
            if name.startswith(pack_format.PREFIX) and name not in sizes:
                del self._bad[name]
        for pack, needed in enumerate(index.sizes_needed().tolist()):
            name = index.name(pack)
            if name not in sizes:
                self._bad[name] = Bad(name, "this pack is missing", Fault.MISSING)
            elif sizes[name] < needed:
                self._bad.setdefault(name, Bad(name, "this pack was cut off"))
        self._found.orphans = {n: size for n, size in sizes.items() if n not in self._listed}
        return set(sizes)

    def _check_maps(self, index: Index) -> None:
        before: set[str] | None = None
        # Reading maps finds damage in packs of maps; then it is asked again who needs these.
        while before is None or before != set(self._bad):
            before = set(self._bad)
            touched, alone, broken = self._walk_maps(index)
        for (volume, message), images in broken.items():
            self._found.add(f"map of {volume}: {message}", message, images)
        vanishing = {name for r in read_removals(self._repository).removed for name in r.packs}
        for name, problem in sorted(self._bad.items()):
            if not name.startswith(pack_format.PREFIX):
                continue
            gone = problem.fault is Fault.MISSING
            if gone and (not touched[name] or (name in vanishing and not alone[name])):
                continue
            writer = self._writer(problem) if problem.fault is Fault.LIE else ""
            self._found.add(
                name,
                problem.message,
                touched[name],
                problem.fault,
                repairable=not alone[name],
                writer=writer,
            )
        self._check_orphans(alone)

    def _walk_maps(
        self, index: Index
    ) -> tuple[
        defaultdict[str, list[SealedImage]],
        defaultdict[str, list[SealedImage]],
        defaultdict[tuple[str, str], list[SealedImage]],
    ]:
        def warn(problem: Problem) -> None:
            self._bad.setdefault(problem.name, Bad(problem.name, problem.error.message))

        packs = {n: b.ids for n, b in self._bad.items() if n.startswith(pack_format.PREFIX)}
        orphans = {n for n in self._found.orphans if n not in packs}
        few = orphans if len(orphans) <= _MOST_ORPHANS else set()
        reader = MapReader(self._repository, self._keys, index, warn)
        walk = MapWalk(reader.load, index, Watched(index, packs, dict.fromkeys(few)))
        touched: defaultdict[str, list[SealedImage]] = defaultdict(list)
        alone: defaultdict[str, list[SealedImage]] = defaultdict(list)
        broken: defaultdict[tuple[str, str], list[SealedImage]] = defaultdict(list)
        for image in self._found.images:
            for volume in image.summary.volumes:
                below = walk.volume(volume)
                for name in below.packs:
                    touched[name].append(image)
                for name in below.alone:
                    alone[name].append(image)
                if below.error is not None:
                    broken[volume.id, below.error.message].append(image)
                if below.missing:
                    broken[volume.id, "chunks are in no pack"].append(image)
        return touched, alone, broken

    def _check_orphans(self, alone: Mapping[str, list[SealedImage]]) -> None:
        needed = {name for name in self._found.orphans if alone.get(name)} - set(self._bad)
        images = [image for name in sorted(needed) for image in alone[name]]
        count = len(needed)
        if len(self._found.orphans) > _MOST_ORPHANS:
            images, count = self._found.images, len(self._found.orphans)
        if images:
            message = f"{count} packs that images need are named in no index"
            self._found.add(index_format.PREFIX, message, images, Fault.UNINDEXED, repairable=True)
        for name in needed:
            del self._found.orphans[name]

    def _writer(self, problem: Bad) -> str:
        for image in self._found.images:
            if image.header.session == problem.session:
                return f"{image.certificate.name} (machine {image.summary.machine_name})"
        return "unknown: no image of that capture is left"

    def _add_rest(self) -> None:
        """Add what was found bad in objects that are not packs, where nothing above saw it."""
        for name, problem in self._bad.items():
            if name.startswith(pack_format.PREFIX):
                continue
            images = self._found.images if name == CONFIG_NAME else []
            self._found.add(name, problem.message, images, problem.fault, repairable=not images)
