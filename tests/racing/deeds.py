"""What processes do to a repository, by the words of the locking table."""

from pathlib import Path

from imager.repository.retrieval import OpenImage, Unlocked
from imager.repository.statement import Signatory
from imager.repository.volume_map import FREE, ZERO, chunk_ids
from imager.upkeep import parity as parity_work
from imager.upkeep import prune as prune_work
from imager.upkeep import repair as repair_work
from imager.upkeep.check import check as check_work
from imager.upkeep.check_report import Depth
from imager.upkeep.prune_execute import execute
from tests.conftest import Tiny
from tests.torture.world import age

EXPIRED = prune_work.DEFAULT_QUARANTINE + 60


def images(tiny: Tiny) -> dict[str, str]:
    """Return the ids of images by name of the machine; all must be readable."""
    repository = tiny.open()
    found, problems = repository.images(repository.credential_keys(tiny.credential))
    assert not problems, problems
    return {image.summary.machine_name: image.id for image in found}


def check(tiny: Tiny) -> list[str]:
    """Check everything, and return what was found."""
    repository = tiny.open()
    keys = repository.credential_keys(tiny.credential)
    unlocked = Unlocked(repository, tiny.key)
    report = check_work(repository, keys, lambda _: None, depth=Depth.FULL, unlocked=unlocked)
    return [f"{finding.name}: {finding.message}" for finding in report.findings]


def structure(tiny: Tiny) -> list[str]:
    """Check the structure, and return what was found."""
    repository = tiny.open()
    keys = repository.credential_keys(tiny.credential)
    report = check_work(repository, keys, lambda _: None, depth=Depth.STRUCTURE)
    return [f"{finding.name}: {finding.message}" for finding in report.findings]


def restore(tiny: Tiny, *machines: str) -> dict[str, bytes]:
    """Return the content of the first volume of every image, or of some, by name of the machine."""
    repository = tiny.open()
    unlocked = Unlocked(repository, tiny.key)
    found, problems = repository.images(unlocked.keys)
    assert not problems, problems
    index, _ = repository.load_index(unlocked.keys)
    content = {}
    for image in found:
        if machines and image.summary.machine_name not in machines:
            continue
        opened = OpenImage(repository, image, unlocked, index, lambda _: None)
        runs = opened.map(image.summary.volumes[0].id)
        chunks = dict(opened.chunks([row.tobytes() for row in chunk_ids(runs)]))
        content[image.summary.machine_name] = b"".join(
            bytes(int(row["length"]))
            if row["id"].tobytes() in {ZERO, FREE}
            else chunks[row["id"].tobytes()]
            for row in runs
        )
    return content


def prune(tiny: Tiny, unwanted: frozenset[str] = frozenset()) -> tuple[int, int]:
    """Prune, both phases; return how many packs were removed and condemned."""
    repository = tiny.open()
    keys = repository.credential_keys(tiny.credential)
    signatory = Signatory(Unlocked(repository, tiny.key).secrets.signer)
    made = prune_work.plan(repository, keys, unwanted, waste=0.0)
    execute(made, repository, keys, signatory, lambda _: None)
    return len(made.remove_packs), len(made.condemn_packs) + len(made.repack)


def repair(tiny: Tiny) -> list[str]:
    """Repair, and return what could not be brought back."""
    repository = tiny.open()
    backend = repository.backend
    made = repair_work.plan(
        backend, [], lambda r: r.credential_keys(tiny.credential), lambda _: None
    )
    result = repair_work.execute(backend, lambda r: r.credential_keys(tiny.credential), made)
    failed = [name for name, _ in result.failed]
    return [item.name for item in made.broken] + failed


def parity(tiny: Tiny) -> None:
    """Cover everything with parity."""
    repository = tiny.open()
    made = parity_work.plan(repository.backend, repository.id)
    parity_work.execute(repository.backend, repository.id, made, lambda _: None)


def end_quarantine(tiny: Tiny) -> None:
    """Let the quarantine of all that is condemned be over."""
    age(tiny.path / "removals", EXPIRED)


def packs(tiny: Tiny) -> set[str]:
    """Return the names of all packs."""
    return {entry.name for entry in tiny.open().backend.list("packs/")}


def pack_bytes(tiny: Tiny) -> int:
    """Return the size of all packs."""
    return sum(entry.size for entry in tiny.open().backend.list("packs/"))


def source(folder: Path, name: str) -> Path:
    """Return an empty directory for the source of a capture."""
    place = folder / f"source-{name}"
    place.mkdir()
    return place
