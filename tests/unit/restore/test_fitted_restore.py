"""Restores onto disks of another size: the plan, what lies where, and what a cut leaves.

What changes filesystems is replaced here: it needs a kernel with device mapper.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from memory_image import MemoryImage, cut_after, disk, ext4, image_of, machine
from restoring import go, old, plan_for

from imager import blockdev, process
from imager.blockdev import open_disk
from imager.errors import LinkError, TargetError, TargetTooSmall, UsageError, VerificationFailed
from imager.layout.disk import Volume, VolumeRole
from imager.layout.filesystem import Filesystem
from imager.probe.partition_table import read_table
from restore import device, fit_planner, journal, windows
from restore import execute as execution
from restore.circumstances import Wishes
from restore.fit_planner import Fitter
from restore.fit_steps import GrowFilesystem, RemakeSwap, ShrinkFilesystem
from restore.match import Basis, Match, Survey, match
from restore.plan import Plan
from restore.runs import Image
from restore.steps import BeginJournal, Resume, VerifyVolume, WriteVolume

KIB, MIB = 1 << 10, 1 << 20
SIZE, SMALLER, LARGER = 64 * MIB, 44 * MIB, 80 * MIB
LEAST = 12 * MIB
FIT = Wishes(fit=True)
TABLE = """\
label: gpt
label-id: 8D2F64B1-77C0-4E0B-9C55-1A3E90D4F201
1 : start=2048, size=49152, type=L, uuid=0C6B1F5E-2D34-4C9A-8F11-5D7E21A90B01, name=root
2 : start=51200, size=32768, type=L, uuid=0C6B1F5E-2D34-4C9A-8F11-5D7E21A90B02, name=data
3 : start=83968, size=45056, type=S, uuid=0C6B1F5E-2D34-4C9A-8F11-5D7E21A90B03
"""


@dataclass
class Programs:
    """Stands for the programs that change filesystems."""

    calls: list[tuple[str, str]]
    look: Callable[[ShrinkFilesystem], None] = lambda _: None

    def check_shrinkable(self, step: ShrinkFilesystem, _: Image) -> None:
        self.calls.append(("check", step.volume))

    def shrink(self, step: ShrinkFilesystem, image: Image, _: device.OpenTarget) -> tuple[str, ...]:
        assert isinstance(image, MemoryImage)
        self.calls.append(("shrink", step.volume))
        self.look(step)
        return ()

    def grow(self, step: GrowFilesystem, _: device.OpenTarget) -> tuple[str, ...]:
        self.calls.append(("grow", step.volume))
        return ()

    def remake_swap(self, step: RemakeSwap, _: device.OpenTarget) -> tuple[str, ...]:
        self.calls.append(("swap", step.volume))
        return ()


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> Programs:
    made = Programs([])
    for name in ("check_shrinkable", "shrink", "grow", "remake_swap"):
        monkeypatch.setattr(execution.filesystem, name, getattr(made, name))
    # The slack for real filesystems is larger than these disks.
    monkeypatch.setattr(fit_planner, "least_size", lambda _, volume: min(volume.length, LEAST))
    monkeypatch.setattr(windows, "WINDOW", 8)
    return made


def image_with_a_gpt(folder: Path, script: str = TABLE, second: str = "exfat") -> MemoryImage:
    """Root of 24 MiB, exFAT or another of 16, swap of 22; chunks of 96 KiB, which end at no MiB."""
    blank = folder / "saved.raw"
    blank.write_bytes(b"")
    os.truncate(blank, SIZE)
    process.run("sfdisk", blank, stdin=script.encode())
    with open_disk(blank) as fd:
        found = read_table(blank, fd, SIZE, 512, signature="dos")
    assert found is not None
    head, end = blank.read_bytes()[:MIB], blank.read_bytes()[63 * MIB :]
    blank.unlink()
    volumes = (
        Volume("disk0/boot-area", VolumeRole.BOOT_AREA, 0, MIB),
        Volume("disk0/p1", VolumeRole.PARTITION, MIB, 24 * MIB, 1, ext4("root")),
        Volume("disk0/p2", VolumeRole.PARTITION, 25 * MIB, 16 * MIB, 2, Filesystem(second)),
        Volume("disk0/p3", VolumeRole.PARTITION, 41 * MIB, 22 * MIB, 3, Filesystem("swap", "5a")),
        Volume("disk0/gap1", VolumeRole.GAP, 63 * MIB, MIB),
    )
    saved = replace(disk(size=SIZE, volumes=volumes), table=found.table)
    chunks = [os.urandom(96 * KIB) for _ in range(24 * MIB // (96 * KIB))]
    data = [os.urandom(96 * KIB) for _ in range(20)]
    return image_of(
        machine(saved),
        {
            "disk0/boot-area": [head],
            "disk0/p1": chunks,
            "disk0/p2": [*data, ("free", 12 * MIB), ("zero", 4 * MIB - 20 * 96 * KIB)],
            "disk0/p3": [os.urandom(4 * KIB), ("free", 22 * MIB - 4 * KIB)],
            "disk0/gap1": [end],
        },
    )


def content(image: MemoryImage, volume: str) -> bytes:
    """What a volume holds, free space as zeros."""
    return b"".join(image.store.get(each, bytes(size)) for size, each in image.runs[volume])


def table_of(path: Path) -> dict[int, tuple[int, int]]:
    with open_disk(path) as fd:
        found = read_table(path, fd, path.stat().st_size, 512, signature="dos")
    assert found is not None
    return {
        part.number: (part.offset // MIB, part.length // MIB) for part in found.table.partitions
    }


def places(plan: Plan) -> dict[str, tuple[int, int]]:
    (target,) = plan.targets
    return {each.volume: (each.offset // MIB, each.length // MIB) for each in target.places}


@pytest.mark.parametrize("verify", [False, True])
def test_what_is_cut_is_written_up_to_the_byte_and_the_rest_moves(
    tmp_path: Path, programs: Programs, verify: bool
) -> None:
    image = image_with_a_gpt(tmp_path)
    path = old(tmp_path, SMALLER)

    def look(step: ShrinkFilesystem) -> None:
        found = path.read_bytes()
        assert (step.offset, step.length, step.saved_length) == (MIB, 14 * MIB, 24 * MIB)
        assert found[MIB : 15 * MIB] == content(image, "disk0/p1")[: 14 * MIB]
        assert not any(found[:MIB]), "neither a table nor a note that somebody could go on with"

    programs.look = look
    plan = go(image, path, replace(FIT, verify_written=verify))
    assert programs.calls == [
        ("check", "disk0/p1"),
        ("shrink", "disk0/p1"),
        ("swap", "disk0/p3"),
    ]
    assert table_of(path) == {1: (1, 14), 2: (15, 16), 3: (31, 12)}
    found = path.read_bytes()
    assert found[MIB : 15 * MIB] == content(image, "disk0/p1")[: 14 * MIB]
    assert found[15 * MIB : 15 * MIB + 20 * 96 * KIB] == content(image, "disk0/p2")[: 20 * 96 * KIB]
    assert plan.is_fitted
    assert plan.document()["fitted"]


def test_the_end_of_a_volume_that_moved_or_shrank_holds_nothing_old(tmp_path: Path) -> None:
    image = image_with_a_gpt(tmp_path)
    path = old(tmp_path, SMALLER)
    go(image, path, FIT)
    found = path.read_bytes()
    assert not any(found[42 * MIB : 43 * MIB]), "the new end of swap, which was free"
    assert not any(found[31 * MIB - 4 * MIB + 20 * 96 * KIB : 31 * MIB]), "the end of exFAT"


def test_what_takes_long_is_said_when_it_begins(tmp_path: Path) -> None:
    said: list[str] = []
    go(image_with_a_gpt(tmp_path), old(tmp_path, SMALLER), FIT, said.append)
    assert said == [
        "disk0/p1: can it become so small? Nothing is written yet ...",
        "disk0/p1: its ext4 is made smaller ...",
    ]


def test_the_plan_says_in_words_what_differs(tmp_path: Path) -> None:
    plan = plan_for(image_with_a_gpt(tmp_path), old(tmp_path, SMALLER), wishes=FIT, as_devices=True)
    text = " ".join(" ".join(plan.lines()).split())
    path = tmp_path / "disk.raw"
    for sentence in (
        'disk0/p1 (ext4 "root") shrinks from 24.0 MiB to 14.0 MiB (14680064 bytes)',
        "disk0/p2 (exfat) moves from byte 26214400 to byte 15728640",
        (
            "disk0/p3 (swap) shrinks from 22.0 MiB to 12.0 MiB (12582912 bytes) and moves from byte "
            "42991616 to byte 32505856"
        ),
        (
            f'{path}: write the beginning of disk0/p1 (ext4 "root", 14.0 MiB) to bytes 1048576 to '
            "15728639: 14680064 data, 0 zeros, 0 free"
        ),
        (
            f"{path}: shrink the ext4 of disk0/p1 from 25165824 to 14680064 bytes (14.0 MiB), at bytes "
            "1048576 to 15728639; what lies behind moves to the front"
        ),
        (
            f"{path}: make the swap area of disk0/p3 anew with its UUID: 12582912 bytes (12.0 MiB), at "
            "bytes 32505856 to 45088767"
        ),
        (
            f"{path}: write the GPT 8D2F64B1-77C0-4E0B-9C55-1A3E90D4F201 for this disk's size: "
            "partitions 1 at bytes 1048576 to 15728639, 2 at bytes 15728640 to 32505855, 3 at bytes "
            "32505856 to 45088767"
        ),
        f"{path}: check that it has the new GPT 8D2F64B1-77C0-4E0B-9C55-1A3E90D4F201 with 3",
        "disk0 is not what it was, byte by byte: a loader that finds its files by the numbers of",
    ):
        assert sentence in text
    assert "What lies between or behind" not in text, "the end of a GPT"
    assert [each["volume"] for each in plan.document()["targets"][0]["places"]] == [
        "disk0/p1",
        "disk0/p2",
        "disk0/p3",
    ]


def test_filesystems_shrink_after_all_is_written_and_read_back_and_before_the_table(
    tmp_path: Path,
) -> None:
    wishes = replace(FIT, verify_written=True)
    image = image_with_a_gpt(tmp_path)
    plan = plan_for(image, old(tmp_path, SMALLER), wishes=wishes, as_devices=True)
    names = [step.name for step in plan.steps]
    boot = next(
        number
        for number, step in enumerate(plan.steps)
        if isinstance(step, WriteVolume) and step.role is VolumeRole.BOOT_AREA
    )
    content_read = max(
        number
        for number, step in enumerate(plan.steps)
        if isinstance(step, VerifyVolume) and step.volume != "disk0/boot-area"
    )
    assert content_read < names.index("shrink") < boot < names.index("write-table")
    assert "relocate-backup-gpt" not in names
    assert names.index("write-table") < names.index("reread-table") < names.index("check-table")


def test_a_lost_bit_in_the_chunk_that_is_cut_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = image_with_a_gpt(tmp_path)
    path = old(tmp_path, SMALLER)
    forget = device.OpenTarget.forget

    def forget_and_flip(self: device.OpenTarget) -> None:
        forget(self)
        with path.open("r+b") as file:
            file.seek(15 * MIB - 1)
            byte = file.read(1)
            file.seek(15 * MIB - 1)
            file.write(bytes([byte[0] ^ 1]))

    monkeypatch.setattr(device.OpenTarget, "forget", forget_and_flip)
    with pytest.raises(VerificationFailed, match="written to disk0/p1"):
        go(image, path, replace(FIT, verify_written=True))


def test_a_cut_fitted_restore_goes_on_and_only_as_it_was_fitted(
    tmp_path: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = image_with_a_gpt(tmp_path)
    path = old(tmp_path, SMALLER)
    with pytest.raises(LinkError):
        go(cut_after(image, 100), path, FIT)
    assert programs.calls == [("check", "disk0/p1")]
    with monkeypatch.context() as other:
        other.setattr(fit_planner, "least_size", lambda _, volume: min(volume.length, 13 * MIB))
        otherwise = plan_for(image, path, wishes=FIT, as_devices=True)
        assert any(isinstance(step, BeginJournal) for step in otherwise.steps)
    plan = go(image, path, FIT)
    assert isinstance(plan.steps[0], Resume)
    assert plan.resume is not None
    assert plan.resume.done > 5
    found = path.read_bytes()
    assert found[MIB : 15 * MIB] == content(image, "disk0/p1")[: 14 * MIB]
    assert table_of(path) == {1: (1, 14), 2: (15, 16), 3: (31, 12)}


def test_a_cut_while_a_filesystem_shrinks_begins_anew(tmp_path: Path, programs: Programs) -> None:
    image = image_with_a_gpt(tmp_path)
    path = old(tmp_path, SMALLER)

    def fail(_: ShrinkFilesystem) -> None:
        raise LinkError("the link broke")

    programs.look = fail
    with pytest.raises(LinkError) as caught:
        go(image, path, FIT)
    assert "goes on" not in (caught.value.hint or "")
    assert journal.find(path, MIB) is None
    plan = plan_for(image, path, wishes=FIT, as_devices=True)
    assert plan.resume is None


def test_what_the_program_refuses_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise TargetTooSmall("it has to be checked first")

    monkeypatch.setattr(execution.filesystem, "check_shrinkable", refuse)
    image, path = image_with_a_gpt(tmp_path), old(tmp_path, SMALLER)
    with pytest.raises(TargetTooSmall):
        go(image, path, FIT)
    assert path.read_bytes() == b"\xa5" * SMALLER


def test_on_a_disk_as_large_fitting_changes_nothing(tmp_path: Path) -> None:
    image = image_with_a_gpt(tmp_path)
    path = old(tmp_path, SIZE)
    assert plan_for(image, path, wishes=FIT, as_devices=True) == plan_for(
        image, path, wishes=Wishes(), as_devices=True
    )


def test_what_grows_does_so_when_the_table_is_there(tmp_path: Path, programs: Programs) -> None:
    image = image_with_a_gpt(tmp_path, second="xfs")
    path = old(tmp_path, LARGER)
    plan = go(image, path, Wishes(grow="disk0/p2"))
    assert table_of(path) == {1: (1, 24), 2: (25, 32), 3: (57, 22)}
    assert programs.calls == [("grow", "disk0/p2")]
    assert places(plan) == {"disk0/p2": (25, 32), "disk0/p3": (57, 22)}
    names = [step.name for step in plan.steps]
    assert names.index("check-table") < names.index("grow")
    found = path.read_bytes()
    assert found[25 * MIB : 25 * MIB + 20 * 96 * KIB] == content(image, "disk0/p2")[: 20 * 96 * KIB]
    assert not any(found[49 * MIB : 57 * MIB]), "nothing old near the new end"


def test_the_last_volume_grows_only_on_a_larger_disk(tmp_path: Path, programs: Programs) -> None:
    image = image_with_a_gpt(tmp_path)
    plan = plan_for(image, old(tmp_path, SIZE), wishes=Wishes(grow="last"), as_devices=True)
    assert not plan.is_fitted
    path = old(tmp_path, LARGER)
    go(image, path, Wishes(grow="last"))
    assert programs.calls == [("swap", "disk0/p3")]
    assert table_of(path)[3] == (41, 38)


def test_a_volume_that_is_not_there_can_not_grow(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="disk0/p7") as caught:
        plan_for(
            image_with_a_gpt(tmp_path),
            old(tmp_path, LARGER),
            wishes=Wishes(grow="disk0/p7"),
            as_devices=True,
        )
    assert "disk0/p1, disk0/p2, disk0/p3" in caught.value.hint


def test_differences_are_not_written_to_a_fitted_disk(tmp_path: Path) -> None:
    image = image_with_a_gpt(tmp_path)
    with pytest.raises(TargetError, match="--delta"):
        plan_for(image, old(tmp_path, SMALLER), wishes=replace(FIT, delta=True), as_devices=True)
    plan_for(image, old(tmp_path, SIZE), wishes=replace(FIT, delta=True), as_devices=True)


def test_a_hybrid_mbr_is_refused(tmp_path: Path) -> None:
    image = image_with_a_gpt(tmp_path)
    (length, identity), *rest = image.runs["disk0/boot-area"]
    head = bytearray(image.store[identity])
    head[462 : 462 + 16] = (
        b"\0\0\2\0\x83\xff\xff\xff" + (2048).to_bytes(4, "little") + b"\0\x10\0\0"
    )
    changed = image_of(image.machine, {"disk0/boot-area": [bytes(head)]})
    hybrid = replace(
        image,
        runs={**image.runs, "disk0/boot-area": [*changed.runs["disk0/boot-area"], *rest]},
        store=image.store | changed.store,
    )
    assert length == MIB
    with pytest.raises(TargetError, match="hybrid MBR"):
        plan_for(hybrid, old(tmp_path, SMALLER), wishes=FIT, as_devices=True)


def test_a_name_that_sfdisk_would_read_otherwise_is_refused(tmp_path: Path) -> None:
    image = image_with_a_gpt(tmp_path)
    (saved,) = image.machine.disks
    assert saved.table is not None
    first, *others = saved.table.partitions
    table = replace(saved.table, partitions=(replace(first, name='a "b"'), *others))
    named = replace(image, machine=machine(replace(saved, table=table)))
    with pytest.raises(TargetError, match="a name that can't be written"):
        plan_for(named, old(tmp_path, SMALLER), wishes=FIT, as_devices=True)


def matched(image: MemoryImage, path: Path, wishes: Wishes) -> tuple[Match, ...]:
    here = replace(blockdev.identify(path), is_device=True)
    seen = Survey((here,), {}, {}, room=Fitter(image, wishes).problem)
    return match(image.machine, seen)


def test_without_fit_the_hint_says_what_would_shrink(tmp_path: Path) -> None:
    image, path = image_with_a_gpt(tmp_path), old(tmp_path, SMALLER)
    with pytest.raises(TargetTooSmall) as caught:
        matched(image, path, Wishes())
    assert caught.value.would_fit
    assert f"{20 * MIB} bytes too small for disk0" in caught.value.message
    assert 'with --fit, disk0/p1 (ext4 "root") shrinks from 24.0 MiB' in caught.value.hint
    (found,) = matched(image, path, FIT)
    assert found.basis is Basis.ONLY_ONE


@pytest.mark.parametrize("wishes", [Wishes(), FIT])
def test_what_would_not_fit_is_said_with_or_without_fit(tmp_path: Path, wishes: Wishes) -> None:
    image, path = image_with_a_gpt(tmp_path), old(tmp_path, 30 * MIB)
    with pytest.raises(TargetTooSmall) as caught:
        matched(image, path, wishes)
    assert not caught.value.would_fit
    said = f"{caught.value.message} {caught.value.hint}"
    assert "12582912 bytes are missing" in said
    assert "disk0/p2 (exfat) 16.0 MiB, since exFAT can't be made smaller" in said


def test_several_disks_that_are_too_small_say_that_the_data_would_fit(tmp_path: Path) -> None:
    image = image_with_a_gpt(tmp_path)
    here = replace(blockdev.identify(old(tmp_path, SMALLER)), is_device=True)
    other = replace(here, path=Path("/dev/other"), read_only=True)
    seen = Survey((here, other), {}, {}, room=Fitter(image, Wishes()).problem)
    with pytest.raises(TargetTooSmall, match="read-only") as caught:
        match(image.machine, seen)
    assert caught.value.would_fit
    assert "--fit" in caught.value.hint


def ntfs(folder: Path) -> MemoryImage:
    """As before, with an NTFS that moves, and says where it lies."""
    image = image_with_a_gpt(folder)
    (saved,) = image.machine.disks
    volumes = tuple(
        replace(volume, filesystem=Filesystem("ntfs")) if volume.id == "disk0/p2" else volume
        for volume in saved.volumes
    )
    sector = bytearray(512)
    sector[0x0B:0x0D] = (512).to_bytes(2, "little")
    sector[0x1C:0x20] = (51200).to_bytes(4, "little")
    sector[0x28:0x30] = (32767).to_bytes(8, "little")
    sector[510:] = b"\x55\xaa"
    block = bytes(sector) + os.urandom(4096 - 512)
    end = os.urandom(4096 - 512) + bytes(sector)
    made = image_of(
        machine(replace(saved, volumes=volumes)),
        {"disk0/p2": [block, ("free", 16 * MIB - 8192), end]},
    )
    runs = {**image.runs, "disk0/p2": made.runs["disk0/p2"]}
    return replace(image, machine=made.machine, runs=runs, store=image.store | made.store)


def test_the_boot_sector_of_an_ntfs_that_moved_says_so(tmp_path: Path) -> None:
    image, path = ntfs(tmp_path), old(tmp_path, SMALLER)
    plan = go(image, path, FIT)
    offset, length = places(plan)["disk0/p2"]
    assert (offset, length) == (15, 16)
    with path.open("rb") as file:
        for place in (offset * MIB, (offset + length) * MIB - 512):
            file.seek(place + 0x1C)
            assert int.from_bytes(file.read(4), "little") == offset * MIB // 512


def test_the_places_of_volumes_tell_restores_apart(tmp_path: Path) -> None:
    image = image_with_a_gpt(tmp_path)
    path = old(tmp_path, SMALLER)
    (target,) = plan_for(image, path, wishes=FIT, as_devices=True).targets
    exact = replace(target, places=())
    assert journal.fingerprint([target]) != journal.fingerprint([exact])
