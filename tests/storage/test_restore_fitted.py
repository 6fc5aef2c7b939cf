"""A machine with a GPT, an ESP, an ext4 and swap comes back on disk files of another size.

The program that shrinks works here on a file: the kernels that the tests run on have no device mapper.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from restored_disks import ESP_AT, ESP_SIZE, ROOT_AT, ROOT_SIZE, SIZE, Saved, digest, probe, tree_in

from imager import process
from imager.errors import TargetTooSmall
from imager.units import MIB
from restore.device import OpenTarget
from restore.execute import filesystem
from restore.fit_steps import ShrinkFilesystem
from restore.runs import Image, each_part

SWAP_SIZE = 16 * MIB


def blank(path: Path, size: int) -> Path:
    path.write_bytes(b"\xa5" * size)
    return path


def restore(saved: Saved, target: Path, *words: str) -> int:
    return saved.restore("uefi", "--map", f"disk0={target}", "--yes", "--verify-written", *words)


def partitions(path: Path) -> list[tuple[int, int]]:
    table = probe(path).table
    assert table is not None
    return [(part.offset // MIB, part.length // MIB) for part in table.partitions]


def bytes_of(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def test_without_fit_a_smaller_disk_is_refused_with_what_would_do(
    saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = blank(tmp_path / "small.raw", 110 * MIB)
    before = digest(target)
    capsys.readouterr()
    assert restore(saved, target, "--json") == TargetTooSmall.exit_code
    error = json.loads(capsys.readouterr().out)["error"]
    assert "The data would fit: with --fit, disk0/p3 (swap" in error["hint"]
    assert f"moves from byte {94 * MIB} to byte {93 * MIB}" in error["hint"]
    assert digest(target) == before


@pytest.mark.parametrize(("size", "swap_at"), [(112, 94), (110, 93)])
def test_unused_space_is_left_out_first(
    saved: Saved, tmp_path: Path, size: int, swap_at: int
) -> None:
    target = blank(tmp_path / "small.raw", size * MIB)
    assert restore(saved, target, "--fit") == 0
    assert partitions(target) == [(1, 32), (33, 60), (swap_at, 16)]
    old, new = probe(saved.gpt).table, probe(target).table
    assert old is not None
    assert new is not None
    for one, other in zip(old.partitions, new.partitions, strict=True):
        assert (one.uuid, one.name, one.type) == (other.uuid, other.name, other.type)
    process.run("sfdisk", "--verify", target)
    assert bytes_of(target, 0, 440) == bytes_of(saved.gpt, 0, 440)
    # Here no filesystem shrinks: partitions are the same, to the byte of what was used.
    (tmp_path / "old").mkdir()
    assert tree_in(target, ROOT_AT, ROOT_SIZE, tmp_path) == tree_in(
        saved.gpt, ROOT_AT, ROOT_SIZE, tmp_path / "old"
    )
    listing = process.run("mdir", "-/", "-b", "-i", f"{target}@@{ESP_AT}")
    assert "SHIMX64.EFI" in listing.upper()
    assert bytes_of(target, swap_at * MIB, 4096) == bytes_of(saved.gpt, 94 * MIB, 4096)


def shrink_on_a_file(scratch: Path) -> Callable[..., tuple[str, ...]]:
    """Put the front from the target and the rest from the image together, and shrink that."""

    def shrink(step: ShrinkFilesystem, image: Image, opened: OpenTarget) -> tuple[str, ...]:
        whole = scratch / "whole"
        volume = next(each for _, each in image.machine.volumes() if each.id == step.volume)
        with whole.open("wb") as file:
            file.truncate(step.saved_length)
            for runs in each_part(image, volume):
                for offset, identity in zip(runs.data_offsets.tolist(), runs.data_ids, strict=True):
                    file.seek(offset)
                    file.write(image.chunks([identity.tobytes()])[identity.tobytes()])
            file.seek(0)
            file.write(bytes_of(step.target.path, step.offset, step.length))
        process.run("e2fsck", "-fp", whole)
        process.run("resize2fs", "-f", whole, f"{step.length // 512}s")
        opened.write(step.offset, bytes_of(whole, 0, step.length))
        opened.flush()
        return ()

    return shrink


def test_ext4_shrinks_and_every_file_is_there(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "check_shrinkable", lambda *_: None)
    monkeypatch.setattr(filesystem, "shrink", shrink_on_a_file(tmp_path))
    target = blank(tmp_path / "small.raw", 108 * MIB)
    assert restore(saved, target, "--fit") == 0
    assert partitions(target) == [(1, 32), (33, 58), (91, 16)]
    assert ESP_AT + ESP_SIZE == ROOT_AT
    assert bytes_of(target, 91 * MIB, 4096) == bytes_of(saved.gpt, 94 * MIB, 4096)
    (tmp_path / "old").mkdir()
    assert tree_in(target, ROOT_AT, 58 * MIB, tmp_path) == tree_in(
        saved.gpt, ROOT_AT, ROOT_SIZE, tmp_path / "old"
    )


def test_what_does_not_fit_says_what_was_counted_and_writes_nothing(
    saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = blank(tmp_path / "small.raw", 60 * MIB)
    before = digest(target)
    capsys.readouterr()
    assert restore(saved, target, "--fit", "--json") == TargetTooSmall.exit_code
    error = json.loads(capsys.readouterr().out)["error"]
    assert "bytes are missing. Counted were disk0/p1 (vfat" in error["message"]
    assert "disk0/p2 (ext4" in error["message"]
    assert digest(target) == before


def test_fit_alone_changes_nothing_on_a_disk_as_large(saved: Saved, tmp_path: Path) -> None:
    target = tmp_path / "same.raw"
    with target.open("wb") as file:
        file.truncate(SIZE)
    assert restore(saved, target, "--fit") == 0
    other = tmp_path / "other.raw"
    assert restore(saved, other) == 0
    for start, end in ((0, ESP_AT), (ROOT_AT, SIZE)):  # a loader was copied, at another time
        assert bytes_of(target, start, end - start) == bytes_of(other, start, end - start)
