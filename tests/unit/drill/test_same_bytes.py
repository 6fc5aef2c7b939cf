from pathlib import Path

import pytest

from imager.layout.layers import Layers
from imager.layout.mdraid import MdArray, MdMember, MdState, MdVersion
from imager.probe.mdraid_superblock import superblock_places
from imager.repository.keyring import RecipientKey
from imager.repository.repository import Repository
from imager.repository.retrieval import OpenImage, Unlocked, open_image
from imager.units import MIB
from restore.device import OpenTarget
from restore.drill.evidence import Difference
from restore.drill.same_bytes import compare_disks
from restore.recreate.mdraid import relocate_superblock
from restore.target import Target, TargetKind
from restore.without import ReducedArray, Without
from tests.conftest import Tiny
from tests.vectors import layer_files
from tests.vectors.layer_files import put

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


def test_of_a_member_that_was_changed_on_purpose_only_its_superblock_may_differ(
    tiny: Tiny, tmp_path: Path
) -> None:
    superblock = layer_files.volume("md-1.2-ext4")[: 64 * 1024]
    content = superblock + CONTENT
    made = _open(tiny.open(), tiny.add({"disk0/whole": content}, tmp_path), tiny.key)
    paths = tmp_path / "before", tmp_path / "after"
    for path in paths:
        path.touch()
        put(path, 0, "md-1.2-ext4")
        with path.open("r+b") as file:
            file.write(content)
    before, after = paths
    array = MdArray("md0", "u", "", "raid1", MdVersion.V1_2, 2, 0, True, False, ())
    member = MdMember("disk0/whole", 0, 0, MdState.ACTIVE, 2, True, 0)
    without = Without(arrays=(ReducedArray(array, (member,), 1, 9),))
    for place in (4096, 4296, 8191, 8192 + 39):  # and the head of the bitmap behind it
        _change(after, place)
        assert compare_disks(made, [before], [after], tables=True, without=without) == ()
        assert compare_disks(made, [before], [after], tables=True)
    for place in (4095, 8192 + 40):
        _change(after, place)
        found = compare_disks(made, [before], [after], tables=True, without=without)
        assert [each.after for each in found] == [f"differs from byte {place} of the disk on"]
        after.write_bytes(before.read_bytes())


def test_a_superblock_that_moved_to_the_end_of_a_larger_disk_is_no_difference(
    tiny: Tiny, tmp_path: Path
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.touch()
    put(before, 0, "md-1.0-vfat")
    content = before.read_bytes()
    member = MdMember("disk0/whole", 0, 0, MdState.ACTIVE, 2, True, 0)
    array = MdArray("md0", "u", "", "raid1", MdVersion.V1_0, 2, 0, True, False, (member,))
    layers = Layers(md=(array,))
    reference = tiny.add({"disk0/whole": content}, tmp_path, layers=layers)
    made = _open(tiny.open(), reference, tiny.key)
    after.write_bytes(content)
    with after.open("r+b") as file:
        file.truncate(len(content) + 3 * MIB)
    target = Target(
        *("disk0", after, TargetKind.FILE, len(content) + 3 * MIB, len(content), 512),
        *(None, None, "", ""),
    )
    with OpenTarget(target) as opened:
        relocate_superblock(opened, MdVersion.V1_0)
    assert compare_disks(made, [before], [after], tables=False) == ()
    place = dict(superblock_places(len(content)))[MdVersion.V1_0]
    for offset, named in ((place + 3 * MIB + 5000, place + 5000), (17, 17)):
        _change(after, offset)
        [found] = compare_disks(made, [before], [after], tables=False)
        assert found.after == f"differs from byte {named} of the disk on"
