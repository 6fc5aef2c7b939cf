"""Repositories that older versions wrote stay readable, for good.

Each folder `repository-*` was made by `make_repository.py` of its version and is never changed. It has
two machines, a revoked credential, a second recovery key, split pages, a hold, condemned objects
and parity.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from imager.repository.keyring import Credential, LockedRecoveryKey
from imager.repository.removals import read_removals
from imager.repository.repository import Repository
from imager.repository.retrieval import Unlocked, open_image
from imager.repository.shares import Pages
from imager.repository.standing import read_standing
from imager.repository.volume_map import FREE, ZERO
from imager.upkeep import repair

FOLDERS = sorted(Path(__file__).parent.glob("repository-*"))


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    copy = tmp_path / "old"
    shutil.copytree(request.param, copy)
    return copy


def unlock(old: Path, name: str) -> Unlocked:
    phrase = (old / "phrase").read_text().strip()
    key = LockedRecoveryKey.read(old / "keys" / name).unlock(phrase)
    return Unlocked(Repository.open(str(old / "repository")), key)


def digest(repository: Repository, image: str, unlocked: Unlocked) -> str:
    problems: list[object] = []
    opened = open_image(repository, image, unlocked, problems.append)
    assert not problems
    found = hashlib.sha256()
    for volume in opened.summary.volumes:
        runs = opened.map(volume.id)
        ids = [row["id"].tobytes() for row in runs]
        chunks = dict(opened.chunks([i for i in ids if i not in {ZERO, FREE}]))
        for identity, row in zip(ids, runs, strict=True):
            found.update(chunks.get(identity) or bytes(int(row["length"])))
    return found.hexdigest()


def test_there_is_one() -> None:
    assert FOLDERS


def test_layouts_with_and_without_layers(old: Path, request: pytest.FixtureRequest) -> None:
    """The first fixture was written before layouts knew any."""
    has_layers = request.node.callspec.params["old"].name != "repository-0.1.0"
    unlocked = unlock(old, "recovery.key")
    repository = Repository.open(str(old / "repository"))
    expected = json.loads((old / "expected.json").read_text())
    opened = [open_image(repository, image, unlocked, lambda _: None) for image in expected]
    found = [len(one.machine.layers.luks) for one in opened]
    assert found == ([0, 0, 1] if has_layers else [0, 0, 0])


@pytest.mark.parametrize("key", ["recovery.key", "second.key"])
def test_every_image_opens(old: Path, key: str) -> None:
    unlocked = unlock(old, key)
    repository = Repository.open(str(old / "repository"))
    expected = json.loads((old / "expected.json").read_text())
    assert {image: digest(repository, image, unlocked) for image in expected} == expected


def test_pages_open_images(old: Path) -> None:
    pages = Pages()
    for path in sorted((old / "pages").glob("*.txt"))[1:4]:
        pages.add(" ".join(re.findall(r"^\d+\. (\w+)$", path.read_text(), re.MULTILINE)))
    repository = Repository.open(str(old / "repository"))
    unlocked = Unlocked(repository, pages.key())
    expected = json.loads((old / "expected.json").read_text())
    image = next(iter(expected))
    assert digest(repository, image, unlocked) == expected[image]


def test_what_was_said_is_understood(old: Path) -> None:
    repository = Repository.open(str(old / "repository"))
    standing = read_standing(repository)
    assert [hold.reason for hold in standing.holds] == ["a test"]
    removals = read_removals(repository)
    assert removals.condemned
    assert (standing.problems, removals.problems, repository.trust.problems) == ((), (), ())
    assert len(repository.trust.generations) == 2
    assert len(repository.trust.revocations) == 1
    keys = repository.credential_keys(Credential.read(old / "keys" / "capture.credential"))
    images, problems = repository.images(keys)
    assert len(images) == 3
    assert not problems


def test_parity_brings_a_pack_back(old: Path) -> None:
    backend = Repository.open(str(old / "repository")).backend
    largest = max(backend.list("packs/"), key=lambda entry: entry.size)
    before = backend.get(largest.name)
    backend.delete(largest.name)
    made = repair.plan(backend, (), lambda _: None, lambda _: None)
    repair.execute(backend, lambda _: None, made)
    assert backend.get(largest.name) == before
