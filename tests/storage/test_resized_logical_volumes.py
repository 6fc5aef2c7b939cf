"""Filesystems in logical volumes of several segments get another size, by their own programs.

Files on loop devices stand in for device-mapper's and nbd's, which this host need not have;
`test_guest_fitted_lvm` has the real ones.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from disk_files import noise
from kernel_mounts import loop, mounted

from imager import process
from imager.units import MIB
from restore.device import OpenTarget
from restore.device_mapper import Segment
from restore.fit_steps import GrowFilesystem, ShrinkFilesystem
from restore.nbd import Content
from restore.recreate import content, filesystem
from restore.target import LogicalPlace, Stretch, Target, TargetKind
from tests.guest import life

SAVED = (Stretch(50 * MIB, 40 * MIB), Stretch(5 * MIB, 30 * MIB), Stretch(100 * MIB, 26 * MIB))
SIZE = 130 * MIB
LENGTH = 60 * MIB
HERE = (Stretch(40 * MIB, 25 * MIB), Stretch(3 * MIB, 30 * MIB), Stretch(70 * MIB, 5 * MIB))
MORE = (*HERE[:2], Stretch(70 * MIB, 9 * MIB), Stretch(33 * MIB, 3 * MIB))


def copy(source: Path, offset: int, target: Path, at: int, length: int) -> None:
    with source.open("rb") as one, target.open("r+b") as other:
        one.seek(offset)
        other.seek(at)
        other.write(one.read(length))
        other.flush()
        os.fsync(other.fileno())


@contextmanager
def joined(
    _purpose: str, segments: Sequence[Segment], *, read_only: bool = False
) -> Iterator[Path]:
    """Let a copy of the segments be one device, and copy it back."""
    with TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        whole.write_bytes(b"")
        position = 0
        for each in segments:
            copy(each.device, each.offset, whole, position, each.length)
            position += each.length
        with loop(whole, read_only=read_only) as device:
            yield device
        position = 0
        for each in segments if not read_only else ():
            copy(whole, position, each.device, each.offset, each.length)
            position += each.length


@dataclass
class Served:
    failure: Exception | None = None


@contextmanager
def attached(content: Content, _sector: int) -> Iterator[tuple[Path, Served]]:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "served"
        file.write_bytes(content.read(0, content.size))
        with loop(file) as device:
            yield device, Served()


class Volume:
    """The saved physical volume: a file."""

    def __init__(self, image: Path, _volume: str) -> None:
        self._path = image
        self.size = image.stat().st_size

    def read(self, offset: int, length: int) -> bytearray:
        with self._path.open("rb") as file:
            file.seek(offset)
            return bytearray(file.read(length))


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "linear", joined)
    monkeypatch.setattr(filesystem, "attached", attached)
    monkeypatch.setattr(content, "SavedVolume", Volume)


def filled(folder: Path) -> tuple[Path, dict[str, str]]:
    """Return an ext4 that is in use most of all behind what it keeps, and its files."""
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(sum(each.length for each in SAVED))
    process.run("mke2fs", "-q", "-t", "ext4", image)
    with loop(image) as device, mounted(device, folder / "place") as root:
        life.fill(root, 5, 20)
        for number in range(80):
            try:
                (root / f"big {number}").write_bytes(noise(2 * MIB, number))
            except OSError:
                (root / f"big {number}").unlink()
                break
        os.sync()
        for other in range(number * 2 // 3):
            (root / f"big {other}").unlink(missing_ok=True)
        state = files_in(root)
    assert sum(name.startswith("big") for name in state) > 3
    return image, state


def files_in(root: Path) -> dict[str, str]:
    """Return the state of files; resize2fs gives folders a newer time."""
    return {
        name: said for name, said in life.state(root).items() if not said.startswith("4")
    }  # fmt: skip


def content_in(path: Path, stretches: Sequence[Stretch]) -> bytes:
    data = path.read_bytes()
    return b"".join(data[each.offset : each.offset + each.length] for each in stretches)


def test_it_shrinks_and_grows_on_its_segments_and_every_file_is_there(tmp_path: Path) -> None:
    image, state = filled(tmp_path)
    whole = image.read_bytes()
    physical = bytearray(noise(SIZE, 1))
    target = bytearray(noise(90 * MIB, 2))
    position = 0
    for each in SAVED:
        physical[each.offset : each.offset + each.length] = whole[position : position + each.length]
        position += each.length
    position = 0
    for each in HERE:
        target[each.offset : each.offset + each.length] = whole[position : position + each.length]
        position += each.length
    saved, path = tmp_path / "saved", tmp_path / "disk"
    saved.write_bytes(physical)
    path.write_bytes(target)
    size = len(target)
    disk = Target("disk0", path, TargetKind.FILE, size, size, 512, None, None, "", "")
    place = LogicalPlace("disk0/p2", "system/root", "ext4", SAVED, HERE, ())
    step = ShrinkFilesystem(
        disk, "disk0/p2", "ext4", HERE[0].offset, LENGTH, place.saved_length, place
    )
    filesystem.check_shrinkable(step, saved)  # type: ignore[arg-type]  a stand-in reads it
    with OpenTarget(disk) as opened:
        notes = filesystem.shrink(step, saved, opened)  # type: ignore[arg-type]
    assert "the filesystem has 629" in notes[0]
    assert files_in_copy(path, HERE, tmp_path) == state
    grown = LogicalPlace("disk0/p2", "system/root", "ext4", HERE, MORE, ())
    more = GrowFilesystem(
        disk, "disk0/p2", "ext4", MORE[0].offset, grown.length, LENGTH, None, grown
    )
    with OpenTarget(disk) as opened:
        assert f"the filesystem has {grown.length} bytes now" in filesystem.grow(more, opened)
    assert files_in_copy(path, MORE, tmp_path) == state
    after, between = path.read_bytes(), [0, 3, 36, 40, 65, 70, 79, 90]
    for low, high in zip(between[::2], between[1::2], strict=True):
        assert after[low * MIB : high * MIB] == target[low * MIB : high * MIB]


def files_in_copy(path: Path, stretches: Sequence[Stretch], folder: Path) -> dict[str, str]:
    copied = folder / "copy"
    copied.write_bytes(content_in(path, stretches))
    process.run("e2fsck", "-fn", copied)
    with loop(copied) as device, mounted(device, folder / "place") as root:
        return files_in(root)
