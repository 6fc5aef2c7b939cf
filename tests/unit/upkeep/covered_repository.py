"""What tests of parity and repair share: two machines, damage, a repair, a restore."""

import random
from collections.abc import Callable
from pathlib import Path

from imager.repository.backend.directory import DirectoryBackend
from imager.repository.keyring import GroupKeys
from imager.repository.repository import Repository
from imager.repository.retrieval import Unlocked, open_image
from imager.repository.volume_map import chunk_ids
from imager.upkeep import parity, repair
from imager.upkeep.repair_images import Touched
from tests.conftest import Tiny

ONE = {"disk0": random.Random(1).randbytes(3 << 20)}
TWO = {"disk0": random.Random(2).randbytes(2 << 20)}


def cover(tiny: Tiny, overhead: float = parity.DEFAULT_OVERHEAD) -> parity.ParityOutcome:
    repository = tiny.open()
    plan = parity.plan(repository.backend, repository.id, overhead)
    return parity.execute(repository.backend, repository.id, plan, lambda _: None)


def keys_of(tiny: Tiny) -> Callable[[Repository], GroupKeys | None]:
    return lambda repository: repository.credential_keys(tiny.credential)


def no_keys(repository: Repository) -> None:
    return None


def run(
    tiny: Tiny, *copies: Path, keys: Callable[[Repository], GroupKeys | None] | None = None
) -> tuple[list[str], tuple[Touched, ...] | None]:
    backend = DirectoryBackend(tiny.path)
    others = [DirectoryBackend(copy) for copy in copies]
    keys = keys or keys_of(tiny)
    plan = repair.plan(backend, others, keys, lambda _: None)
    result = repair.execute(backend, keys, plan)
    assert result.failed == ()
    broken, touched = repair.touched_by(backend, plan, result, keys)
    return sorted(item.name for item in broken), touched


def restored(tiny: Tiny, machine: str) -> bytes:
    repository = tiny.open()
    opened = open_image(repository, machine, Unlocked(repository, tiny.key), lambda _: None)
    rows = opened.map("disk0")
    plain = dict(opened.chunks([row.tobytes() for row in chunk_ids(rows)]))
    parts = []
    for row in rows:
        found = plain.get(row["id"].tobytes())
        parts.append(bytes(int(row["length"])) if found is None else found)
    return b"".join(parts)


def content(tiny: Tiny) -> dict[str, bytes]:
    return {
        path.relative_to(tiny.path).as_posix(): path.read_bytes()
        for path in tiny.path.rglob("*")
        if path.is_file()
    }


def objects(tiny: Tiny, folder: str) -> list[Path]:
    return sorted(path for path in (tiny.path / folder).rglob("*") if path.is_file())


def packs_of(tiny: Tiny, machine: str) -> list[Path]:
    """The packs of data of a machine, by the session in their headers."""
    repository = tiny.open()
    image = repository.find_image(machine, repository.credential_keys(tiny.credential))
    return [
        path
        for path in objects(tiny, "packs")
        if path.read_bytes()[16:32] == image.header.session and path.read_bytes()[10] == 1
    ]


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x40
    path.write_bytes(data)
