"""Plans are run on real files: what is written, what is left of the old content, what fails."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_image import MemoryImage, disk, identify, image_of, machine
from restoring import expected, plan_for, two_parts

from imager.errors import ObjectDamaged, TargetError, VerificationFailed
from restore import comparison, device, journal, runs, windows
from restore import execute as execution
from restore.circumstances import Wishes
from restore.execute import Outcome, execute
from restore.plan import Plan
from restore.runs import EDGE

MIB = 1 << 20


def run(
    image: MemoryImage, *targets: Path, verify: bool = True, size: int | None = None
) -> tuple[Plan, list[Outcome], int]:
    plan = plan_for(image, *targets, wishes=Wishes(verify_written=verify), size=size)
    outcomes: list[Outcome] = []
    moved: list[int] = []
    execute(
        plan, image, advance=moved.append, record=outcomes.append, measure=print, log=lambda: "log"
    )
    return plan, outcomes, sum(moved)


def shared_image() -> MemoryImage:
    """Two disks that share a chunk, which also comes twice on the first."""
    chunk, other, boot = os.urandom(8192), os.urandom(4096), b"B" * 512
    length = 2 * MIB - (1 << 17)
    return image_of(
        machine(two_parts("disk0", 2 * MIB), two_parts("disk1", 2 * MIB)),
        {
            "disk0/boot-area": [boot, ("zero", (1 << 16) - 512)],
            "disk0/p1": [chunk, other, ("zero", 4096), chunk, ("zero", length - 24576)],
            "disk1/p1": [("zero", 4096), chunk, ("free", length - 12288)],
        },
    )


def test_new_files_get_the_content_and_shared_chunks_are_fetched_once(tmp_path: Path) -> None:
    image = shared_image()
    targets = [tmp_path / "a.raw", tmp_path / "b.raw"]
    plan, outcomes, moved = run(image, *targets)
    for saved, path in zip(image.machine.disks, targets, strict=True):
        assert path.read_bytes() == expected(image, saved)
        assert path.stat().st_mode & 0o777 == 0o600
    assert image.asked == [2, 1]  # all content in one pass; boot areas in another
    assert moved == plan.written + plan.verified
    assert [(item.step, item.subject) for item in outcomes if item.step == "write"] == [
        ("write", "disk0/p1"),
        ("write", "disk1/p1"),
        ("write", "disk0/gap1"),
        ("write", "disk1/gap1"),
        ("write", "disk0/boot-area"),
        ("write", "disk1/boot-area"),
    ]


def test_nothing_of_an_old_file_is_left(tmp_path: Path) -> None:
    image = shared_image()
    targets = [tmp_path / "a.raw", tmp_path / "b.raw"]
    for path in targets:
        path.write_bytes(os.urandom(2 * MIB))
    run(image, *targets)
    for saved, path in zip(image.machine.disks, targets, strict=True):
        assert path.read_bytes() == expected(image, saved)


def test_a_restored_file_is_sparse(tmp_path: Path) -> None:
    image = image_of(
        machine(disk(size=64 * MIB)), {"disk0/whole": [b"x" * MIB, ("zero", 63 * MIB)]}
    )
    run(image, tmp_path / "a.raw")
    assert (tmp_path / "a.raw").stat().st_blocks * 512 < 3 * MIB


@pytest.mark.parametrize("window", [1, 2, 3])
def test_small_windows_write_the_same(
    tmp_path: Path, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "WINDOW", window)
    image = shared_image()
    targets = [tmp_path / "a.raw", tmp_path / "b.raw"]
    run(image, *targets)
    for saved, path in zip(image.machine.disks, targets, strict=True):
        assert path.read_bytes() == expected(image, saved)
    assert max(image.asked) <= window


RUN_OF_BLOCKS = st.one_of(
    st.tuples(st.just("zero"), st.integers(1, 40)),
    st.tuples(st.just("free"), st.integers(1, 40)),
    st.tuples(st.integers(0, 5), st.integers(1, 4)),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(parts=st.lists(RUN_OF_BLOCKS, min_size=1, max_size=30), segment=st.integers(1, 20))
def test_any_map_is_restored_and_verified(
    tmp_path: Path,
    parts: list[tuple[str | int, int]],
    segment: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(comparison, "_SEGMENT", segment * 4096)
    monkeypatch.setattr(runs, "_PART", segment)
    content: list[bytes | tuple[str, int]] = [
        (what, blocks * 4096) if isinstance(what, str) else bytes([what + 1]) * (blocks * 4096)
        for what, blocks in parts
    ]
    size = sum(blocks for _, blocks in parts) * 4096
    saved = disk(size=size)
    image = image_of(machine(saved), {"disk0/whole": content})
    path = tmp_path / "any.raw"
    path.unlink(missing_ok=True)
    _, _, moved = run(image, path)
    assert path.read_bytes() == expected(image, saved)
    free = sum(blocks * 4096 for what, blocks in parts if what == "free")
    assert size < 2 * EDGE  # so that all free space is near an end, is cleared and verified
    assert moved == 2 * size
    assert free <= size


def test_a_larger_file_keeps_its_size(tmp_path: Path) -> None:
    image = shared_image()
    small = replace(image, machine=replace(image.machine, disks=image.machine.disks[:1]))
    path = tmp_path / "a.raw"
    path.write_bytes(b"old" * MIB)
    run(small, path)
    assert path.read_bytes() == expected(image, image.machine.disks[0]) + bytes(MIB)


class Failing(MemoryImage):
    """Breaks in the middle of the content."""

    def stored(self, ids: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
        for number, found in enumerate(super().stored(ids)):
            if number == 1:
                raise ObjectDamaged("a pack is damaged")
            yield found


class Short(MemoryImage):
    """Gives fewer bytes than the map says."""

    def stored(self, ids: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
        for identity, data in super().stored(ids):
            yield identity, data[:-1]


@pytest.mark.parametrize(
    ("broken", "error"),
    [(Failing, ObjectDamaged), (Short, ObjectDamaged)],
)
def test_an_interrupted_restore_never_looks_finished(
    tmp_path: Path, broken: type[MemoryImage], error: type[Exception]
) -> None:
    made = shared_image()
    image = broken(made.machine, made.runs, made.store)
    old, new = tmp_path / "old.raw", tmp_path / "new.raw"
    old.write_bytes(b"\x55" * (2 * MIB))
    with pytest.raises(error):
        run(image, old, new)
    assert not new.exists(), "a file that the restore made is removed again"
    left, gap = old.read_bytes(), old.read_bytes()[-(1 << 16) :]
    boot = left[: journal.START] + left[journal.END : 1 << 16]
    assert not any(boot), "neither the old table nor the new one is there"
    assert gap == bytes(1 << 16)


@pytest.mark.parametrize("place", ["data", "zeros"])
def test_verification_names_disk_and_offset(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = shared_image()
    targets = [tmp_path / "a.raw", tmp_path / "b.raw"]
    # A disk that loses a bit: flipped behind the restorer's back, after the flush.
    wrong = (1 << 16) + (8192 + 100 if place == "data" else 12288 + 7)
    forget = device.OpenTarget.forget

    def forget_and_flip(self: device.OpenTarget) -> None:
        forget(self)
        with targets[0].open("r+b") as file:
            file.seek(wrong)
            file.write(b"\x01")

    monkeypatch.setattr(device.OpenTarget, "forget", forget_and_flip)
    with pytest.raises(VerificationFailed) as caught:
        run(image, *targets)
    start = (1 << 16) + (8192 if place == "data" else 12288)
    assert str(targets[0]) in caught.value.message
    assert f"byte {start} " in caught.value.message
    assert not targets[0].exists()


def test_without_verification_a_lost_bit_goes_unseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "verify_volume", lambda *_: pytest.fail("must not be called"))
    plan, outcomes, moved = run(shared_image(), tmp_path / "a", tmp_path / "b", verify=False)
    assert moved == plan.written
    assert not [item for item in outcomes if item.step == "verify"]


def test_a_target_that_changed_since_the_plan_is_not_touched(tmp_path: Path) -> None:
    image = shared_image()
    first, second = tmp_path / "a.raw", tmp_path / "b.raw"
    first.write_bytes(b"a" * (2 * MIB))
    second.write_bytes(b"b" * (2 * MIB))
    plan = plan_for(image, first, second, wishes=Wishes())
    second.write_bytes(b"b" * (3 * MIB))
    with pytest.raises(TargetError, match=r"b\.raw has 3145728 bytes now"):
        execute(plan, image, advance=print, record=print, measure=print, log=str)
    assert first.read_bytes() == b"a" * (2 * MIB), "the other target is as it was, too"


def test_a_file_that_appeared_since_the_plan_is_not_touched(tmp_path: Path) -> None:
    image = shared_image()
    first, second = tmp_path / "a.raw", tmp_path / "b.raw"
    plan = plan_for(image, first, second, wishes=Wishes())
    second.write_bytes(b"mine")
    with pytest.raises(TargetError, match="can't be made"):
        execute(plan, image, advance=print, record=print, measure=print, log=str)
    assert second.read_bytes() == b"mine"
    assert not first.exists()


def test_the_ids_of_the_memory_image_are_those_of_its_content() -> None:
    image = shared_image()
    assert all(identify(data) == identity for identity, data in image.store.items())
    assert all(one.end <= two.offset for one, two in pairwise(image.machine.disks[0].volumes))
