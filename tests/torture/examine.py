"""What is left of a repository: which images are there, and whether they are what they say."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from imager.errors import RemetalError
from imager.repository import pack as pack_format
from imager.repository.retrieval import OpenImage, Unlocked
from imager.repository.volume_map import FREE, ZERO, chunk_ids
from imager.upkeep.check import check
from tests.torture.operations import Operation, opened
from tests.torture.world import World

_TROUBLES: Final = ("findings", "broken", "damaged")
_HASHED: Final = ("packs", "indexes", "images", "statements", "removals", "parity")


@dataclass(slots=True)
class Verdict:
    """What is wrong, in words, by how bad it is.

    Attributes:
        lost: machines whose finished image is gone or does not restore bit-exact.
        lies: what says something that is not so.
        again: what was sent again although it had arrived.
        errors: other failures.
    """

    lost: list[str] = field(default_factory=list)
    lies: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.lies or self.again or self.errors)


def examine(
    world: World, operation: Operation, root: Path, scratch: Path, claim: dict[str, str] | None
) -> Verdict:
    """Look at what is left, run the operation once more, and look again.

    Args:
        world: whose template it was.
        operation: that was tortured.
        root: the repository that is left.
        scratch: for a source.
        claim: what the operation said it had done; None when it failed or was killed.
    """
    verdict = Verdict()
    if claim is not None and any(claim.get(name) for name in _TROUBLES):
        claim = None  # it said itself that not all is well
    _look(world, operation, root, verdict, settled=claim is not None, when="")
    if claim is not None:
        _keep_word(world, operation, root, claim, verdict)
    arrived = _arrived(world, root)
    try:
        operation.run(world, root, scratch)
    except RemetalError as error:
        verdict.errors.append(f"the next run fails: {error.message}")
        return verdict
    if operation.adds:
        _count_again(world, root, arrived, verdict)
    _look(world, operation, root, verdict, settled=True, when=" after the next run")
    left = operation.goal(world, root)
    if left:
        verdict.lies.append(f"after the next run: {left}")
    return verdict


def _look(
    world: World, operation: Operation, root: Path, verdict: Verdict, *, settled: bool, when: str
) -> None:
    repository, keys = opened(world, root)
    images, problems = repository.images(keys)
    verdict.lies += [f"{problem.name}: {problem.error.message}{when}" for problem in problems]
    index, problems = repository.load_index(keys)
    unlocked = Unlocked(repository, world.key)
    damaged = operation.begins_damaged and not settled
    if not damaged:
        verdict.lies += [f"{problem.name}: {problem.error.message}{when}" for problem in problems]
    there = set()
    for image in images:
        machine = image.summary.machine_name
        there.add(image.id)
        try:
            found = _content(OpenImage(repository, image, unlocked, index, lambda _: None))
        except RemetalError as error:
            if not damaged:
                kind = verdict.lost if image.id in world.images.values() else verdict.lies
                kind.append(f"image of {machine}: {error.message}{when}")
            continue
        if found != world.content[machine]:
            verdict.lies.append(f"image of {machine} restores to something else{when}")
    for machine, image_id in world.images.items():
        if image_id not in there and machine != operation.removes:
            verdict.lost.append(f"image of {machine} is not there{when}")
    if damaged:
        return
    verdict.lies += [f"{name} has other bytes than it says{when}" for name in _false_names(root)]
    report = check(repository, keys, lambda _: None)
    verdict.lies += [f"check: {f.name}: {f.message}{when}" for f in report.findings]


def _content(image: OpenImage) -> bytes:
    runs = image.map("disk")
    chunks = dict(image.chunks([row.tobytes() for row in chunk_ids(runs)]))
    pieces = []
    for row in runs:
        identity = row["id"].tobytes()
        blank = identity in {ZERO, FREE}
        pieces.append(bytes(int(row["length"])) if blank else chunks[identity])
    return b"".join(pieces)


def _false_names(root: Path) -> list[str]:
    found = []
    for folder in _HASHED:
        for path in (root / folder).rglob("*"):
            # The name of an image is the hash of its signed part; reading it checks that.
            if path.is_file() and folder != "images":
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                if digest != path.name:
                    found.append(path.relative_to(root).as_posix())
    return found


def _keep_word(
    world: World, operation: Operation, root: Path, claim: dict[str, str], verdict: Verdict
) -> None:
    if operation.adds and not (root / "images" / claim["image"]).is_file():
        verdict.lies.append(f"capture reported image {claim['image'][:12]}, which is not there")
    left = operation.goal(world, root)
    if left:
        verdict.lies.append(f"it reported success, but: {left}")


def _arrived(world: World, root: Path) -> set[bytes]:
    """Return the ids of all chunks in whole packs, as the packs themselves tell."""
    repository, keys = opened(world, root)
    found: set[bytes] = set()
    for entry in repository.backend.list(pack_format.PREFIX):
        try:
            _, rows = pack_format.read_directory(
                repository.backend, entry.name, entry.size, keys.directory_key, repository.id
            )
        except RemetalError:
            continue
        found.update(row["id"].tobytes() for row in rows)
    return found


def _count_again(world: World, root: Path, arrived: set[bytes], verdict: Verdict) -> None:
    """Find chunks that were in a pack before the run and lie in more packs after it."""
    repository, keys = opened(world, root)
    seen: dict[bytes, int] = {}
    for entry in repository.backend.list(pack_format.PREFIX):
        _, rows = pack_format.read_directory(
            repository.backend, entry.name, entry.size, keys.directory_key, repository.id
        )
        for row in rows:
            identity = row["id"].tobytes()
            seen[identity] = seen.get(identity, 0) + 1
    twice = [identity for identity in arrived if seen.get(identity, 0) > 1]
    if twice:
        verdict.again.append(f"{len(twice)} chunks that had arrived were sent again")
