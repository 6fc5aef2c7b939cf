"""Restores of volume groups of LVM onto disks of another size: the plan, and what lies where.

What changes filesystems is replaced here: it needs a kernel with device mapper.
"""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from linear_groups import EXTENT, IDENTIFIER, PHYSICAL, START, head_of, size_in, text_of
from memory_image import MemoryImage, cut_after, disk, image_of, machine
from restoring import go, old, plan_for

from imager import process
from imager.blockdev import open_disk
from imager.errors import LinkError, TargetError, TargetTooSmall, UsageError
from imager.layout.disk import Volume, VolumeRole
from imager.layout.filesystem import Filesystem
from imager.layout.layers import Layers
from imager.layout.lvm import LogicalVolume, PhysicalVolume, VolumeGroup
from imager.probe.lvm_label import read_label, read_text
from imager.probe.partition_table import read_table
from imager.units import KIB, MIB
from restore import execute as execution
from restore import saved_group, windows
from restore.circumstances import Wishes
from restore.fit_steps import GrowFilesystem, RemakeSwap, ShrinkFilesystem, WriteGroup
from restore.linear_group import read_group
from restore.saved_group import Joined
from restore.saved_volume import SavedVolume
from restore.steps import Resume

EXTENTS = 60
SIZE, SMALLER, LARGER = 63 * MIB, 35 * MIB, 80 * MIB
FIT = Wishes(fit=True)
# Of each logical volume its runs; 20 extents are free.
VOLUMES = {"root": [(0, 8), (40, 6)], "swap": [(8, 8)], "var": [(50, 10), (20, 6), (46, 2)]}
KINDS = {"root": "ext4", "swap": "swap", "var": "xfs"}
LEAST = {"root": 5 * MIB, "swap": 4 * MIB}
TABLE = "label: gpt\n1 : start=2048, size=124928, type=V\n"


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Stand for the programs that look into filesystems and change them; return what was called."""
    made: list[tuple[str, str]] = []

    def noted(step: ShrinkFilesystem | GrowFilesystem | RemakeSwap, *_: object) -> tuple[str, ...]:
        made.append((step.name, step.subject))
        return ()

    monkeypatch.setattr(execution.filesystem, "check_shrinkable", lambda *_: None)
    for name in ("shrink", "grow", "remake_swap"):
        monkeypatch.setattr(execution.filesystem, name, noted)

    def held(part: Joined) -> Filesystem:
        name = bytes(part.read(0, 16)).rstrip(b"\0").decode()
        return Filesystem(KINDS[name], f"uuid-of-{name}")

    monkeypatch.setattr(saved_group, "_held", held)
    least = {KINDS[name]: length for name, length in LEAST.items()}
    monkeypatch.setattr(saved_group, "least_within", lambda kind, part: least.get(kind, part.size))
    monkeypatch.setattr(windows, "WINDOW", 8)
    return made


def content_of(name: str) -> bytes:
    extents = sum(count for _, count in VOLUMES[name])
    return (name.encode().ljust(16, b"\0") + os.urandom(extents * EXTENT))[: extents * EXTENT]


def image_on_lvm(
    folder: Path, text: str | None = None, *, whole: bool = False
) -> tuple[MemoryImage, dict[str, bytes]]:
    """An image of a disk with a group, in chunks that end within extents, and its volumes."""
    contents = {name: content_of(name) for name in VOLUMES}
    physical = bytearray(START + EXTENTS * EXTENT)
    text = text or text_of(VOLUMES, EXTENTS)
    physical[:START] = head_of(text, EXTENTS)
    used: set[int] = set()
    for name, runs in VOLUMES.items():
        position = 0
        for first, count in runs:
            here = contents[name][position : position + count * EXTENT]
            physical[START + first * EXTENT : START + (first + count) * EXTENT] = here
            position += count * EXTENT
            used.update(range(first, first + count))
    parts: list[bytes | tuple[str, int]] = [bytes(physical[:START])]
    extent = 0
    while extent < EXTENTS:
        end = extent
        while end < EXTENTS and (end in used) == (extent in used):
            end += 1
        if extent in used:
            low, high = START + extent * EXTENT, START + end * EXTENT
            size = 300 * KIB
            parts += [bytes(physical[at : min(at + size, high)]) for at in range(low, high, size)]
        else:
            parts.append(("free", (end - extent) * EXTENT))
        extent = end
    uuid = PHYSICAL
    logical = tuple(
        LogicalVolume(name, f"uuid-of-{name}", len(contents[name]), ("linear",), True)
        for name in VOLUMES
    )
    member = Filesystem("LVM2_member", uuid)
    place = "disk0/whole" if whole else "disk0/p1"
    group = VolumeGroup(
        "system", "CyOv", EXTENT, (PhysicalVolume(uuid, place, len(physical)),), logical
    )
    layers = Layers(volume_groups=(group,))
    if whole:
        volume = Volume(place, VolumeRole.WHOLE_DISK, 0, len(physical), None, member)
        saved = disk(size=len(physical), volumes=(volume,))
        return image_of(replace(machine(saved), layers=layers), {place: parts}), contents
    blank = folder / "saved.raw"
    blank.write_bytes(b"")
    os.truncate(blank, SIZE)
    process.run("sfdisk", blank, stdin=TABLE.encode())
    with open_disk(blank) as fd:
        found = read_table(blank, fd, SIZE, 512, signature="dos")
    assert found is not None
    head, end_of_disk = blank.read_bytes()[:MIB], blank.read_bytes()[62 * MIB :]
    blank.unlink()
    volumes = (
        Volume("disk0/boot-area", VolumeRole.BOOT_AREA, 0, MIB),
        Volume("disk0/p1", VolumeRole.PARTITION, MIB, 61 * MIB, 1, member),
        Volume("disk0/gap1", VolumeRole.GAP, 62 * MIB, MIB),
    )
    saved = replace(disk(size=SIZE, volumes=volumes), table=found.table)
    content = {"disk0/boot-area": [head], "disk0/p1": parts, "disk0/gap1": [end_of_disk]}
    return image_of(replace(machine(saved), layers=layers), content), contents


def there(path: Path, offset: int) -> tuple[dict[str, bytes], int]:
    """What lies in the logical volumes of a restored disk, and the number of extents."""
    data = path.read_bytes()
    with open_disk(path) as fd:
        label = read_label(fd, offset, len(data) - offset)
        text = read_text(fd, offset, len(data) - offset, label.metadata[0])
    assert label.size == size_in(data[offset : offset + START])
    group = read_group(text, IDENTIFIER)
    start = offset + START
    return {
        volume.name: b"".join(
            data[start + run.first * EXTENT : start + run.end * EXTENT] for run in volume.runs
        )
        for volume in group.volumes
    }, group.extents_in(label.size)


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_every_volume_has_its_bytes_where_the_new_metadata_says(
    tmp_path: Path, calls: list[tuple[str, str]], verify: bool, whole: bool
) -> None:
    image, contents = image_on_lvm(tmp_path, whole=whole)
    path = old(tmp_path, SMALLER)
    plan = go(image, path, replace(FIT, verify_written=verify))
    offset = 0 if whole else MIB
    found, extents = there(path, offset)
    assert extents == (SMALLER - (0 if whole else 2 * MIB)) // MIB - 1
    assert found["var"] == contents["var"]
    assert len(found["swap"]) == 4 * MIB
    missing = 18 + 4 + 14 - extents
    assert len(found["root"]) == (14 - missing) * MIB
    assert found["root"] == contents["root"][: len(found["root"])]
    assert calls == [("shrink", "LV system/root"), ("remake-swap", "LV system/swap")]
    assert plan.is_fitted
    data = path.read_bytes()
    assert data.count(b"seqno = 9\n") == 1
    assert b"seqno = 8\n" not in data[offset : offset + START]


def test_what_shrinks_is_read_from_where_its_segments_lay(tmp_path: Path) -> None:
    image, contents = image_on_lvm(tmp_path)
    plan = plan_for(image, old(tmp_path, SMALLER), wishes=FIT, as_devices=True)
    (step,) = (each for each in plan.steps if isinstance(each, ShrinkFilesystem))
    assert step.logical is not None
    part = Joined(SavedVolume(image, "disk0/p1"), step.logical.saved)
    assert part.size == step.saved_length
    assert part.read(0, part.size) == contents["root"]
    assert part.read(8 * MIB - 5, 10) == contents["root"][8 * MIB - 5 : 8 * MIB + 5]
    assert sum(each.length for each in step.stretches) == step.length


def test_the_plan_says_of_each_volume_what_becomes_of_it(tmp_path: Path) -> None:
    image, _ = image_on_lvm(tmp_path)
    path = old(tmp_path, SMALLER)
    plan = plan_for(image, path, wishes=FIT, as_devices=True)
    lines = " ".join(" ".join(plan.lines()).split()).replace(f"{path}: ", "")
    for sentence in GOLDEN.strip().splitlines():
        assert sentence in lines
    names = [step.name for step in plan.steps]
    assert names.index("shrink") < names.index("write-group") < names.index("write-table")
    document = plan.document()
    assert [place.get("name", place["volume"]) for place in document["targets"][0]["places"]] == [
        "disk0/p1",
        "system/root",
        "system/swap",
        "system/var",
    ]
    (group,) = (step for step in document["steps"] if step["step"] == "write-group")
    assert group["text"].startswith("write-group") or group["group"] == "system"


GOLDEN = """
disk0/p1 (LVM2_member) shrinks from 61.0 MiB to 33.0 MiB (34603008 bytes)
LV system/root (ext4) shrinks from 14.0 MiB to 10.0 MiB (10485760 bytes) and moves extents 40 to 41 of disk0/p1 to 26 to 27
LV system/swap (swap) shrinks from 8.0 MiB to 4.0 MiB (4194304 bytes)
write the label and the metadata of VG system for disk0/p1 of 34603008 bytes with 32 extents, as change 9, to bytes 1048576 to 2097151; names and UUIDs stay
"""


def test_a_group_grows_with_one_of_its_volumes(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    image, contents = image_on_lvm(tmp_path)
    path = old(tmp_path, LARGER)
    plan = go(image, path, Wishes(grow="system/var"))
    found, extents = there(path, MIB)
    assert extents == 77
    assert found["root"] == contents["root"]
    assert found["swap"] == contents["swap"]
    assert found["var"].startswith(contents["var"])
    assert len(found["var"]) == (77 - 14 - 8) * MIB
    assert calls == [("grow", "LV system/var")]
    names = [step.name for step in plan.steps]
    assert names.index("check-table") < names.index("grow")


@pytest.mark.parametrize("wanted", ["last", "disk0/p1"])
def test_a_physical_volume_grows_and_its_new_extents_are_free(
    tmp_path: Path, calls: list[tuple[str, str]], wanted: str
) -> None:
    image, contents = image_on_lvm(tmp_path)
    path = old(tmp_path, LARGER)
    go(image, path, Wishes(grow=wanted))
    assert there(path, MIB) == (contents, 77)
    assert calls == []


def test_what_holds_nothing_that_grows_is_refused(tmp_path: Path) -> None:
    image, _ = image_on_lvm(tmp_path)
    with pytest.raises(UsageError, match="system/home") as caught:
        plan_for(image, old(tmp_path, LARGER), wishes=Wishes(grow="system/home"), as_devices=True)
    assert "system/root, system/swap, system/var" in caught.value.hint


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ('type = "striped"', 'type = "raid1"', "LV root is not linear, but raid1"),
        ('"VISIBLE"]', '"VISIBLE", "PVMOVE"]', "LV root is pvmove"),
    ],
)
def test_a_group_of_other_kinds_is_refused_and_nothing_is_written(
    tmp_path: Path, before: str, after: str, why: str
) -> None:
    image, _ = image_on_lvm(tmp_path, text_of(VOLUMES, EXTENTS).replace(before, after, 1))
    path = old(tmp_path, SMALLER)
    with pytest.raises(TargetTooSmall, match=f"a physical volume of LVM is kept whole where {why}"):
        go(image, path, FIT)
    with pytest.raises(TargetError, match=f"can't grow: .*{why}"):
        plan_for(image, old(tmp_path, LARGER), wishes=Wishes(grow="last"), as_devices=True)
    assert path.read_bytes() == b"\xa5" * LARGER


def test_a_group_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    image, _ = image_on_lvm(tmp_path)
    with pytest.raises(TargetTooSmall, match="bytes are missing"):
        plan_for(image, old(tmp_path, 29 * MIB), wishes=FIT, as_devices=True)


def test_a_cut_restore_of_a_group_goes_on(tmp_path: Path) -> None:
    image, contents = image_on_lvm(tmp_path)
    path = old(tmp_path, SMALLER)
    with pytest.raises(LinkError):
        go(cut_after(image, 60), path, FIT)
    with open_disk(path) as fd, pytest.raises(Exception, match="no label"):
        read_label(fd, MIB, SMALLER - MIB)
    plan = go(image, path, FIT)
    assert isinstance(plan.steps[0], Resume)
    assert plan.resume is not None
    assert plan.resume.done > 2
    found, _ = there(path, MIB)
    assert found["var"] == contents["var"]
    assert found["root"] == contents["root"][: len(found["root"])]


def test_old_signatures_at_the_ends_of_what_is_free_are_gone(tmp_path: Path) -> None:
    image, _ = image_on_lvm(tmp_path)
    path = old(tmp_path, LARGER)
    go(image, path, Wishes(grow="last"))
    data = path.read_bytes()
    assert not any(data[79 * MIB - 8 * MIB : 79 * MIB])
    assert any(data[64 * MIB : 70 * MIB]), "free space in the middle is left alone"
    assert any(isinstance(step, WriteGroup) for step in plan_steps(image, path))


def plan_steps(image: MemoryImage, path: Path) -> tuple[object, ...]:
    return plan_for(image, path, wishes=Wishes(grow="last"), as_devices=True).steps
