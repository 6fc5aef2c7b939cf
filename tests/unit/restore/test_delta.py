"""Restores that write only what differs: any damage is repaired, nothing else is touched."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_image import MemoryImage, disk, image_of, machine
from restoring import expected, plan_for, two_parts

from imager.errors import ObjectDamaged, VerificationFailed, WriteFailed
from restore import comparison, journal, runs
from restore.circumstances import Wishes
from restore.device import OpenTarget
from restore.execute import Outcome, execute
from restore.runs import EDGE

MIB = 1 << 20
BLOCK = 4096
DELTA = Wishes(delta=True)


class Writes:
    """What was written to targets, as (offset, length)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.places: list[tuple[int, int]] = []
        write = OpenTarget.write

        def note(opened: OpenTarget, offset: int, *parts: bytes | memoryview) -> None:
            self.places.append((offset, sum(map(len, parts))))
            write(opened, offset, *parts)

        monkeypatch.setattr(OpenTarget, "write", note)

    @property
    def size(self) -> int:
        return sum(length for _, length in self.places)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Writes:
    return Writes(monkeypatch)


def run(image: MemoryImage, *targets: Path, wishes: Wishes = DELTA) -> list[Outcome]:
    plan = plan_for(image, *targets, wishes=wishes)
    outcomes: list[Outcome] = []
    moved: list[int] = []
    execute(
        plan,
        image,
        advance=moved.append,
        record=outcomes.append,
        measure=lambda _name, _stages: None,
        log=str,
    )
    assert sum(moved) == plan.compared + plan.written + plan.verified
    return outcomes


def parted() -> MemoryImage:
    """Thirty MiB: a boot area, data with free space in the middle, zeros, and a gap at the end."""
    size = 30 * MIB
    data: list[bytes | tuple[str, int]] = [os.urandom(16 * BLOCK) for _ in range(128)]
    data += [("free", 12 * MIB), ("zero", 9 * MIB)]
    rest = size - (1 << 17) - 8 * MIB - 21 * MIB
    return image_of(
        machine(two_parts("disk0", size)),
        {
            "disk0/boot-area": [b"B" * 512, ("zero", (1 << 16) - 512)],
            "disk0/p1": [*data, os.urandom(rest)],
            "disk0/gap1": [("zero", (1 << 16) - 512), b"G" * 512],
        },
    )


def whole() -> MemoryImage:
    """A filesystem without a table."""
    chunks = [os.urandom(64 * BLOCK) for _ in range(16)]
    return image_of(machine(disk(size=4 * MIB)), {"disk0/whole": chunks})


def put(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def restored(image: MemoryImage, path: Path) -> bytes:
    """Make the file as it shall be; return its content."""
    content = expected(image, image.machine.disks[0])
    path.write_bytes(content)
    return content


def test_where_nothing_differs_nothing_is_written(tmp_path: Path, writes: Writes) -> None:
    image = parted()
    path = tmp_path / "a.raw"
    content = restored(image, path)
    put(path, 13 * MIB, b"free space is nobody's business")
    outcomes = run(image, path)
    assert path.read_bytes()[: 13 * MIB] == content[: 13 * MIB]
    assert writes.places == []
    assert image.asked == []
    (note,) = [note for outcome in outcomes for note in outcome.notes]
    assert "nothing differs" in note


def test_of_a_damaged_chunk_only_the_damaged_blocks_are_written(
    tmp_path: Path, writes: Writes
) -> None:
    image = parted()
    path = tmp_path / "a.raw"
    content = restored(image, path)
    start = (1 << 16) + 3 * MIB
    put(path, start + 5 * BLOCK, b"\0" * 100)
    put(path, start + 9 * BLOCK - 1, b"\0\0")
    outcomes = run(image, path)
    assert path.read_bytes() == content
    middle = [place for place in writes.places if MIB <= place[0] < 29 * MIB]
    assert middle == [(start + 5 * BLOCK, BLOCK), (start + 8 * BLOCK, 2 * BLOCK)]
    assert writes.size < 4.2 * MIB  # both ends, twice
    written = {outcome.subject: outcome.bytes for outcome in outcomes if outcome.step == "write"}
    assert 3 * BLOCK <= written["disk0/p1"] < 2.2 * MIB


def test_only_chunks_that_are_needed_are_fetched(tmp_path: Path) -> None:
    image = parted()
    path = tmp_path / "a.raw"
    restored(image, path)
    put(path, 5 * MIB, b"\1" * 100)
    run(image, path)
    # One chunk, and those of both ends: fifteen chunks and the last one; then boot area and gap.
    assert image.asked == [1 + 15 + 1, 1, 1]


def test_what_must_be_zero_is_made_zero(tmp_path: Path, writes: Writes) -> None:
    image = parted()
    path = tmp_path / "a.raw"
    content = restored(image, path)
    put(path, 24 * MIB, b"\1")
    put(path, EDGE + 16, b"\1")  # free, and just inside of what is cleared
    run(image, path)
    assert path.read_bytes() == content
    assert writes.size < 4.4 * MIB


def test_what_can_not_be_read_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = parted()
    path = tmp_path / "a.raw"
    content = restored(image, path)
    bad = range(5 * MIB, 5 * MIB + BLOCK)
    bad_zeros = range(24 * MIB, 24 * MIB + BLOCK)
    put(path, bad.start, b"\1" * BLOCK)
    put(path, bad_zeros.start, b"\1" * BLOCK)
    read_into = OpenTarget.read_into

    def refuse(opened: OpenTarget, offset: int, buffer: memoryview) -> None:
        for broken in (bad, bad_zeros):
            if offset < broken.stop and broken.start < offset + len(buffer):
                raise VerificationFailed("read error")
        read_into(opened, offset, buffer)

    monkeypatch.setattr(OpenTarget, "read_into", refuse)
    run(image, path)
    assert path.read_bytes() == content


def test_a_larger_target_keeps_no_label_at_its_end(tmp_path: Path, writes: Writes) -> None:
    image = parted()
    path = tmp_path / "a.raw"
    content = restored(image, path)
    with path.open("ab") as file:
        file.write(b"x" * (20 * MIB))
    run(image, path)
    assert path.read_bytes() == content + b"x" * (12 * MIB) + bytes(8 * MIB)
    assert writes.size == 8 * MIB


def test_a_new_file_is_written_whole(tmp_path: Path) -> None:
    image = parted()
    path = tmp_path / "new.raw"
    plan = plan_for(image, path, wishes=DELTA)
    assert plan.compared == 0
    assert any("nothing to compare yet" in note for note in plan.notes)
    run(image, path)
    assert path.read_bytes() == expected(image, image.machine.disks[0])


def test_the_plan_says_so(tmp_path: Path) -> None:
    image = parted()
    path = tmp_path / "a.raw"
    path.write_bytes(bytes(40 * MIB))
    plan = plan_for(image, path, wishes=replace(DELTA, verify_written=True))
    assert [step.name for step in plan.steps] == [
        *["compare"] * 3,
        "clear-outside",
        "invalidate",
        *["write", "verify"] * 3,
    ]
    text = " ".join(" ".join(plan.lines()).split())
    assert "compare 17956864 bytes of disk0/p1 with the image; write nothing yet" not in text
    assert "of disk0/p1 with the image; write nothing yet" in text
    assert "only if anything differs: erase the table" in text
    assert "zeros over bytes 33554432 to 41943039, where they are not zero" in text
    assert "write what differs of disk0/p1" in text
    assert "free space of these disks" in text
    assert "and writes what differs. At most: Writes" in text
    assert all(line.isascii() for line in plan.lines())
    assert plan.document()["compared_bytes"] == plan.compared == plan.written


class Failing(MemoryImage):
    """Breaks after some chunks, the last of the disk first."""

    whole = 1

    def stored(self, ids: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
        for number, identity in enumerate(ids):
            if number == self.whole:
                raise ObjectDamaged("a pack is damaged")
            yield identity, self.store[identity]


@pytest.mark.parametrize("wishes", [DELTA, Wishes()])
@pytest.mark.parametrize("make", [parted, whole])
def test_interrupted_it_never_looks_finished(tmp_path: Path, make: object, wishes: Wishes) -> None:
    assert callable(make)
    image = make()
    path = tmp_path / "a.raw"
    content = restored(image, path)
    size = len(content)
    for place in (3 * MIB, size - 100_000):
        put(path, place, b"\1" * 100)
    for whole_chunks in (0, 1):
        broken = Failing(image.machine, image.runs, image.store)
        broken.whole = whole_chunks
        with pytest.raises(ObjectDamaged):
            run(broken, path, wishes=wishes)
        left = path.read_bytes()
        head = left[: journal.START] + left[journal.END : 1 << 16]
        assert not any(head), "neither the old table nor the new one"
        assert left[-512:] == bytes(512) or make is whole
    # It goes on from there.
    run(image, path, wishes=DELTA)
    assert path.read_bytes() == content


def test_a_write_that_fails_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = parted()
    path = tmp_path / "a.raw"
    restored(image, path)
    put(path, 3 * MIB, b"\1" * 100)
    write = OpenTarget.write

    def fail(opened: OpenTarget, offset: int, *parts: bytes | memoryview) -> None:
        if 3 * MIB - (1 << 16) <= offset < 4 * MIB:
            raise WriteFailed("the disk is gone")
        write(opened, offset, *parts)

    monkeypatch.setattr(OpenTarget, "write", fail)
    with pytest.raises(WriteFailed, match="the disk is gone"):
        run(image, path)
    assert path.read_bytes()[: 1 << 16] == bytes(1 << 16)


PART = st.one_of(
    st.tuples(st.sampled_from(["zero", "free"]), st.integers(1, 400)),
    st.tuples(st.integers(0, 5), st.integers(1, 40)),
)
DAMAGE = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 40_000), st.booleans()), max_size=8)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    parts=st.lists(PART, min_size=1, max_size=20),
    damage=DAMAGE,
    segment=st.integers(1, 20),
    has_table=st.booleans(),
)
def test_any_damage_is_repaired(
    tmp_path: Path,
    parts: list[tuple[str | int, int]],
    damage: list[tuple[float, int, bool]],
    segment: int,
    has_table: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(comparison, "_SEGMENT", segment * BLOCK)
    monkeypatch.setattr(runs, "_PART", segment)
    content: list[bytes | tuple[str, int]] = [
        (what, blocks * BLOCK)
        if isinstance(what, str)
        else bytes([what + 1]) * (blocks * BLOCK - 1) + bytes([blocks])
        for what, blocks in parts
    ]
    length = sum(blocks for _, blocks in parts) * BLOCK
    if has_table:
        saved = two_parts("disk0", length + (1 << 17))
        image = image_of(
            machine(saved),
            {"disk0/p1": content, "disk0/boot-area": [b"B" * 512, ("zero", (1 << 16) - 512)]},
        )
    else:
        saved = disk(size=length)
        image = image_of(machine(saved), {"disk0/whole": content})
    path = tmp_path / "any.raw"
    right = expected(image, saved)
    path.write_bytes(right)
    for where, size, is_zero in damage:
        at = int(where * (len(right) - 1))
        put(path, at, (b"\0" if is_zero else b"\xaa") * min(size, len(right) - at))
    before = path.read_bytes()
    run(image, path, wishes=Wishes(delta=True, verify_written=True))
    after = path.read_bytes()
    free = expected(image, saved, free=b"\1")
    defined = [index for index in range(0, len(right), 512) if free[index] == right[index]]
    assert all(after[i : i + 512] == right[i : i + 512] for i in defined)
    if before == right:
        assert after == right
