from pathlib import Path

import pytest

from imager.repository.keyring import RecipientKey
from imager.repository.repository import Repository
from imager.repository.retrieval import OpenImage, Unlocked, open_image
from restore.drill.evidence import Difference
from restore.drill.same_bytes import compare_disks
from tests.conftest import Tiny

CONTENT = bytes(range(256)) * 4096


def _open(repository: Repository, reference: str, key: RecipientKey) -> OpenImage:
    return open_image(repository, reference, Unlocked(repository, key), lambda _: None)


@pytest.fixture
def image(tiny: Tiny, tmp_path: Path) -> OpenImage:
    content = {"disk0/whole": CONTENT + bytes(len(CONTENT)), "disk0/p1": CONTENT}
    return _open(tiny.open(), tiny.add(content, tmp_path), tiny.key)


@pytest.fixture
def disks(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "before", tmp_path / "after"
    for path in paths:
        path.write_bytes(CONTENT + bytes(len(CONTENT)) + CONTENT)
    return paths


def _change(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"!")


def test_equal_disks_do_not_differ(image: OpenImage, disks: tuple[Path, Path]) -> None:
    before, after = disks
    assert compare_disks(image, [before], [after], tables=True) == ()


@pytest.mark.parametrize(
    ("offset", "volume"),
    [
        (1, "disk0/whole"),
        (len(CONTENT) + 17, "disk0/whole"),  # where there must be zeros
        (2 * len(CONTENT) + 4097, "disk0/p1"),
    ],
)
def test_a_single_byte_is_found_and_named(
    image: OpenImage, disks: tuple[Path, Path], offset: int, volume: str
) -> None:
    before, after = disks
    _change(after, offset)
    where = f"differs from byte {offset} of the disk on"
    found = compare_disks(image, [before], [after], tables=True)
    assert found == (Difference(f"bytes / {volume}", "as captured", where),)


def test_a_disk_that_ends_too_soon_differs(image: OpenImage, disks: tuple[Path, Path]) -> None:
    before, after = disks
    after.write_bytes(before.read_bytes()[:-1])
    [found] = compare_disks(image, [before], [after], tables=True)
    assert found.fact == "bytes / disk0/p1"
