"""Arrays that are restored without one of their disks start at once, in a guest with the real md."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from restored_disks import PASSPHRASE, Saved, run

from imager import process
from imager.repository.backend.place import Access, Place
from imager.repository.retrieval import OpenImage
from imager.units import MIB
from restore.drill.run import open_subject
from restore.drill.same_bytes import compare_disks
from restore.without import Without, judge
from tests.guest import layers
from tests.guest.guest import guest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SIZE = 160 * MIB
PART = 24  # MiB
LAYERS = Path(layers.__file__)
MODULES = (LAYERS, LAYERS.with_name("fewer_disks.py"))
# Number of a partition: metadata, level, disks, words for mdadm. A third disk of two is a spare.
SHAPES = {
    1: ("1.0", "1", 2, "--bitmap=none"),
    2: ("1.2", "1", 2, "--bitmap=internal"),
    3: ("0.90", "1", 2, "--bitmap=internal"),
    4: ("1.2", "5", 3, "--bitmap=internal"),
    5: ("0.90", "5", 3, ""),
    6: ("1.1", "1", 2, "--bitmap=none --spare-devices=1"),
}
ARRAYS = [str(number) for number in SHAPES]


@dataclass(frozen=True)
class Came:
    """What the guest saw.

    Attributes:
        files: of each array before.
        seen: as `fewer_disks.examine` returns it.
        saved: the three disks.
        restored: two of them as they were restored, in the same order.
        opened: the image.
    """

    files: dict[str, dict[str, str]]
    seen: dict[str, dict[str, dict[str, object]]]
    saved: list[Path]
    restored: list[Path]
    opened: OpenImage


def blank(folder: Path, name: str) -> Path:
    disk = folder / name
    with disk.open("wb") as file:
        file.truncate(SIZE)
    table = "label: gpt\n" + f"size={PART}M, type=R\n" * len(ARRAYS)
    process.run("sfdisk", "--quiet", disk, stdin=table.encode())
    return disk


@pytest.fixture(scope="module")
def came(tmp_path_factory: pytest.TempPathFactory) -> Came:
    folder = tmp_path_factory.mktemp("fewer")
    disks = [blank(folder, f"old{number}") for number in range(3)]
    made = guest().run(
        f"import fewer_disks\nprint(fewer_disks.make({SHAPES}), flush=True)\n",
        disks,
        folder / "make",
        modules=MODULES,
        timeout=900,
    )
    opened, restored = restore(folder, disks)
    unmarked = [folder / f"unmarked{number}" for number in (0, 2)]
    for number, copy in zip((0, 2), unmarked, strict=True):
        process.run("cp", "--sparse=always", disks[number], copy)
    stale = folder / "stale"
    process.run("cp", "--sparse=always", disks[1], stale)
    kept = [folder / f"kept{number}" for number in (0, 2)]
    for disk, copy in zip(restored, kept, strict=True):
        process.run("cp", "--sparse=always", disk, copy)
    seen = guest().run(
        f"import fewer_disks\nprint(fewer_disks.examine({SHAPES}), flush=True)\n",
        [*restored, *unmarked, stale],
        folder / "examine",
        modules=MODULES,
        timeout=900,
    )
    return Came(json.loads(made), json.loads(seen), disks, kept, opened)


def restore(folder: Path, disks: list[Path]) -> tuple[OpenImage, list[Path]]:
    """Capture all disks and restore without the second, by the verbs themselves."""
    (folder / "passphrase").write_text(PASSPHRASE + "\n")
    saved = Saved(folder, folder / "repository", disks[0], disks[1])
    words = ["--keys-dir", str(folder / "keys"), "--passphrase-file", str(folder / "passphrase")]
    assert run(["init", str(saved.repository), *words]) == 0
    others = [word for disk in disks[1:] for word in ("--disk", str(disk))]
    assert saved.capture(disks[0], *others, "--name", "arrays") == 0
    restored = [folder / f"new{number}" for number in (0, 2)]
    maps = [
        word
        for number, disk in zip((0, 2), restored, strict=True)
        for word in ("--map", f"disk{number}={disk}")
    ]
    words = ["arrays", *maps, "--leave-out", "disk1", "--yes", "--verify-written"]
    assert saved.restore(*words) == 0
    place = Place(str(saved.repository), Access())
    subject = open_subject(place, "arrays", folder / "keys" / "recovery.key", PASSPHRASE)
    return subject.opened, restored


@pytest.mark.parametrize("number", ARRAYS)
def test_it_starts_at_once_with_what_was_in_it(came: Came, number: str) -> None:
    found = came.seen["marked"][number]
    state = found["state"]
    assert isinstance(state, dict)
    assert state["array_state"] in {"clean", "read-auto", "active", "active-idle"}
    assert state["degraded"] == "1"
    assert found["files"] == found["again"] == came.files[number]


@pytest.mark.parametrize("number", ["1", "2", "3", "4", "5"])
def test_without_the_note_it_would_wait(came: Came, number: str) -> None:
    state = came.seen["unmarked"][number]["state"]
    assert isinstance(state, dict)
    assert state["array_state"] == "inactive"


@pytest.mark.parametrize("number", ARRAYS)
def test_the_disk_that_was_left_out_counts_as_old(came: Came, number: str) -> None:
    """It appears first, and is put aside when a restored member comes."""
    found = came.seen["beside"][number]
    state = found["state"]
    assert isinstance(state, dict)
    assert state["array_state"] != "inactive"
    assert found["stale"] is None or found["stale"] != state
    assert found["files"] == came.files[number]


def test_it_rebuilds_onto_a_spare(came: Came) -> None:
    settled = came.seen["marked"]["6"]["settled"]
    assert isinstance(settled, dict)
    assert settled["degraded"] == "0"


@pytest.mark.parametrize("number", ARRAYS)
def test_mdadm_examines_it(came: Came, number: str) -> None:
    said = came.seen["examined"][number]
    assert isinstance(said, str)
    assert re.search(r"Checksum : \w+ - correct", said)
    metadata, _, disks, _ = SHAPES[int(number)]
    if metadata == "0.90":
        assert re.search(rf"Working Devices : {disks - 1}\n", said)
        assert re.search(r"Failed Devices : 1\n", said)
        assert re.search(r"^ +1 +1 +0 +0 +1 +faulty removed$", said, re.MULTILINE)
    else:
        shown = "A" + "." + "A" * (disks - 2)
        assert re.search(rf"Array State : {re.escape(shown)} ", said)


def test_nothing_but_superblocks_and_bitmaps_differs(came: Came) -> None:
    image = came.opened
    without = judge(image.machine, {"disk1"}, ())
    before = [came.saved[0], came.saved[2]]
    assert compare_disks(image, before, came.restored, tables=True, without=without) == ()
    changed = compare_disks(
        image, before, came.restored, tables=True, without=Without(without.disks)
    )
    members = [f"bytes / {member.place}" for each in without.arrays for member in each.members]
    assert sorted(each.fact for each in changed) == sorted(members)
    assert len(members) == 3 * 1 + 2 * 2 + 2
