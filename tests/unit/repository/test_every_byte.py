"""Flipping any one byte of any object: `check` says so, a restore does where it needs the byte, and nothing
wrong comes back.
"""

import random
from pathlib import Path

import numpy as np
import pytest

from imager.errors import RemetalError
from imager.repository.header import HEADER_SIZE, PackKind
from imager.repository.keyring import check_owner
from imager.repository.repository import Problem, Repository
from imager.repository.retrieval import Unlocked, open_image
from imager.repository.volume_map import are_chunks
from imager.upkeep.check import check
from imager.upkeep.check_report import Depth, Report
from tests.conftest import Tiny

CONTENT = {"disk0/p1": random.Random(7).randbytes(300) + b"words " * 1500 + bytes(100_000)}


def read_back(tiny: Tiny, expected_id: bytes, image: str, said: list[Problem]) -> dict[str, bytes]:
    repository = Repository.open(str(tiny.path))
    check_owner(expected_id, repository.id, "the key")
    opened = open_image(repository, image, Unlocked(repository, tiny.key), said.append)
    restored = {}
    for volume in opened.machine.disks[0].volumes:
        found = opened.map(volume.id)
        wanted = [row.tobytes() for row in found["id"][are_chunks(found)]]
        plain = dict(opened.chunks(wanted))
        restored[volume.id] = b"".join(
            plain.get(row["id"].tobytes(), bytes(int(row["length"]))) for row in found
        )
    return restored


def run_check(tiny: Tiny, expected_id: bytes) -> Report:
    repository = Repository.open(str(tiny.path))
    check_owner(expected_id, repository.id, "the key")
    unlocked = Unlocked(repository, tiny.key)
    return check(repository, unlocked.keys, lambda _: None, depth=Depth.CIPHERTEXT)


def objects(tiny: Tiny) -> list[Path]:
    return sorted(path for path in tiny.path.rglob("*") if path.is_file())


def names_image(error: RemetalError, image: str) -> bool:
    text = error.message + error.hint
    return image[:12] in text or "every image" in text


def check_names(tiny: Tiny, expected_id: bytes, image: str, place: str) -> None:
    try:
        report = run_check(tiny, expected_id)
    except RemetalError as error:
        assert names_image(error, image), place
    else:
        assert image in {name for finding in report.findings for name in finding.images}, place


def used_bytes(tiny: Tiny) -> dict[str, range]:
    """Return which bytes of each pack of chunks are blobs; they lie side by side."""
    repository = tiny.open()
    index, _ = repository.load_index(Unlocked(repository, tiny.key).keys)
    rows = np.concatenate(list(index.windows()))
    used = {}
    for pack in np.flatnonzero(index.of_kind[PackKind.DATA]).tolist():
        blobs = rows[rows["pack"] == pack]
        end = int((blobs["offset"] + blobs["length"]).max())
        used[index.name(pack).rpartition("/")[2]] = range(int(blobs["offset"].min()), end)
    return used


def test_flip_every_byte(tiny: Tiny, tmp_path: Path) -> None:
    image = tiny.add(CONTENT, tmp_path)
    expected_id = tiny.open().id
    assert read_back(tiny, expected_id, image, []) == CONTENT
    assert run_check(tiny, expected_id).findings == ()
    flips = 0
    used = used_bytes(tiny)
    for path in objects(tiny):
        original = path.read_bytes()
        statement = "statements" in path.parts
        in_pack = used.get(path.name, range(len(original)))
        for position in range(len(original)):
            damaged = bytearray(original)
            damaged[position] ^= 1 << position % 8
            path.write_bytes(damaged)
            place = f"{path.name[:16]} byte {position}"
            # That each byte is found is held without keys in test_check; here, that images are named.
            if position < HEADER_SIZE or position % 16 == 0:
                check_names(tiny, expected_id, image, place)
            said: list[Problem] = []
            try:
                restored = read_back(tiny, expected_id, image, said)
            except RemetalError as error:
                assert names_image(error, image), f"{place}: {error.message}"
            else:
                assert restored == CONTENT, place
                # What no chunk needs of a pack is for `check` to find.
                assert said or statement or position not in in_pack, f"{place} went by unsaid"
            flips += 1
        path.write_bytes(original)
    assert flips > 5000
    assert read_back(tiny, expected_id, image, []) == CONTENT


@pytest.mark.parametrize("kept", [0, 1, 63, 200])
def test_cut_every_object(tiny: Tiny, tmp_path: Path, kept: int) -> None:
    image = tiny.add(CONTENT, tmp_path)
    expected_id = tiny.open().id
    for path in objects(tiny):
        original = path.read_bytes()
        path.write_bytes(original[:kept])
        try:
            assert run_check(tiny, expected_id).findings
        except RemetalError as error:
            assert names_image(error, image)
        try:
            assert read_back(tiny, expected_id, image, []) == CONTENT
        except RemetalError as error:
            assert names_image(error, image), error.message
        path.write_bytes(original)


def test_losing_the_index_loses_nothing(tiny: Tiny, tmp_path: Path) -> None:
    image = tiny.add(CONTENT, tmp_path)
    for path in (tiny.path / "indexes").iterdir():
        path.unlink()
    assert read_back(tiny, tiny.open().id, image, []) == CONTENT
    findings = run_check(tiny, tiny.open().id).findings
    assert [finding.repairable for finding in findings] == [True]
