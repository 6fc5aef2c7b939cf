"""Filesystems get another size on their place of a target, by their own programs.

A loop device on a part of the target stands in for device-mapper's, which this host need not have;
`test_guest_shrink` has the real ones.
"""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from disk_files import noise
from kernel_mounts import loop, mounted

from imager import process
from imager.errors import (
    ObjectDamaged,
    ProgramError,
    TargetError,
    TargetTooSmall,
    VerificationFailed,
)
from imager.layout.disk import Disk, DiskIdentity, Volume, VolumeRole
from imager.layout.firmware import Firmware, FirmwareKind
from imager.layout.machine import Machine
from imager.units import MIB
from restore.device import OpenTarget
from restore.device_mapper import Segment
from restore.fit_steps import GrowFilesystem, RemakeSwap, ShrinkFilesystem
from restore.recreate import filesystem
from restore.target import Target, TargetKind
from tests.guest import life

AT = MIB
MADE = {
    "ext4": (("mke2fs", "-q", "-t", "ext4"), 40 * MIB, 64 * MIB),
    "btrfs": (("mkfs.btrfs", "-q"), 300 * MIB, 340 * MIB),
    "xfs": (("mkfs.xfs", "-q"), 320 * MIB, 340 * MIB),
    "ntfs": (("mkntfs", "-q", "-F", "-f"), 40 * MIB, 64 * MIB),
}


@contextmanager
def part(_purpose: str, segments: Sequence[Segment], *, read_only: bool = False) -> Iterator[Path]:
    (segment,) = segments
    with loop(segment.device, segment.offset, segment.length, read_only=read_only) as device:
        yield device


@pytest.fixture(autouse=True)
def _loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "linear", part)


def target(path: Path) -> Target:
    size = path.stat().st_size
    return Target("disk0", path, TargetKind.FILE, size, size, 512, None, None, "", "")


def disk_with(
    kind: str, folder: Path, room: int, *, files: bool = True
) -> tuple[Path, dict[str, str]]:
    """Return a disk file that has a filesystem at `AT` with more room behind, and its files."""
    make, size, _ = MADE[kind]
    image, path = folder / "image", folder / "disk"
    with image.open("wb") as file:
        file.truncate(size)
    process.run(*make, image)
    state: dict[str, str] = {}
    if files:
        with loop(image) as device, mounted(device, folder / "place") as root:
            life.fill(root, 1, 30)
            state = life.state(root)
    path.write_bytes(noise(AT, 1) + image.read_bytes() + noise(room - size + MIB, 2))
    return path, state


@pytest.mark.parametrize("kind", ["ext4", "btrfs", "xfs", "ntfs"])
def test_it_grows_to_its_place_and_no_further(kind: str, tmp_path: Path) -> None:
    _, size, length = MADE[kind]
    path, state = disk_with(kind, tmp_path, length, files=kind != "ntfs")
    step = GrowFilesystem(target(path), "disk0/p1", kind, AT, length, size, 1)
    with OpenTarget(step.target) as opened:
        (said, *_) = filesystem.grow(step, opened)
    now = int(said.split()[3])
    assert length - 2 * MIB < now <= length
    data = path.read_bytes()
    assert data[:AT] == noise(AT, 1)
    assert data[AT + length :] == noise(length - size + MIB, 2)[-MIB:]
    if state:
        with loop(path, AT, length) as device, mounted(device, tmp_path / "place") as root:
            assert life.state(root) == state


def test_a_swap_area_keeps_its_name(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(noise(12 * MIB, 3))
    uuid = "0b4f2a52-3a0e-4f3c-9c1e-1d5d6a3b0c11"
    step = RemakeSwap(target(path), "disk0/p3", AT, 10 * MIB, uuid, "more memory")
    with OpenTarget(step.target) as opened:
        assert filesystem.remake_swap(step, opened) == ()
    said = process.run("blkid", "-p", "-o", "export", "-O", str(AT), "-S", str(10 * MIB), path)
    assert {"TYPE=swap", f"UUID={uuid}", "LABEL=more\\ memory"} <= set(said.splitlines())
    header = path.read_bytes()[AT:][1024:1032]
    assert int.from_bytes(header[4:], "little") == 10 * MIB // 4096 - 1  # its last page
    assert path.read_bytes()[:AT] == noise(12 * MIB, 3)[:AT]
    assert path.read_bytes()[11 * MIB :] == noise(12 * MIB, 3)[11 * MIB :]


def test_a_damaged_filesystem_is_named_with_what_its_program_says(tmp_path: Path) -> None:
    path, _ = disk_with("ext4", tmp_path, 40 * MIB)
    with path.open("r+b") as file:
        file.seek(AT + 2 * MIB)
        file.write(noise(12 * MIB, 5))  # inode tables and more
    step = GrowFilesystem(target(path), "disk0/p1", "ext4", AT, 40 * MIB, 40 * MIB, 1)
    with OpenTarget(step.target) as opened, pytest.raises(ProgramError, match="e2fsck") as caught:
        filesystem.grow(step, opened)
    assert "INCONSISTENCY" in caught.value.message


# --- shrinking: what is asked before, and who is blamed for a failure ---


@dataclass
class Server:
    """What serves the rest of a volume."""

    failure: Exception | None = None


@dataclass
class Image:
    """All that is asked of an image before anything is read."""

    machine: Machine

    def map_from(self, _volume_id: str, _start: int) -> Iterator[tuple[int, np.ndarray]]:
        raise AssertionError


@dataclass
class Shrinking:
    """A filesystem that shall shrink, and the device that stands for all of it."""

    step: ShrinkFilesystem
    image: Image
    server: Server


@pytest.fixture
def shrinking(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Shrinking:
    kind = getattr(request, "param", "ext4")
    _, size, _ = MADE[kind]
    path, _ = disk_with(kind, tmp_path, size, files=kind != "ntfs")
    volume = Volume("disk0/p1", VolumeRole.PARTITION, AT, size)
    disk = Disk("disk0", "/dev/sda", DiskIdentity(size + AT, 512), None, (volume,))
    machine = Machine("6e0f", "web1", "x86_64", Firmware(FirmwareKind.BIOS), (disk,))
    step = ShrinkFilesystem(target(path), "disk0/p1", kind, AT, size - 8 * MIB, size)
    server = Server()

    @contextmanager
    def attached(_content: object, sector: int) -> Iterator[tuple[Path, Server]]:
        assert sector == 512
        with loop(path, AT, size) as device:
            yield device, server

    @contextmanager
    def linear(
        purpose: str, segments: Sequence[Segment], *, read_only: bool = False
    ) -> Iterator[Path]:
        if len(segments) == 2:
            segments = [Segment(segments[0].device, AT, size)]
        with part(purpose, segments, read_only=read_only) as device:
            yield device

    monkeypatch.setattr(filesystem, "attached", attached)
    monkeypatch.setattr(filesystem, "linear", linear)
    return Shrinking(step, Image(machine), server)


@pytest.mark.parametrize("shrinking", ["ext4", "ntfs"], indirect=True)
def test_what_fits_is_shrunk_and_checked(shrinking: Shrinking) -> None:
    filesystem.check_shrinkable(shrinking.step, shrinking.image)
    with OpenTarget(shrinking.step.target) as opened:
        (said, *_) = filesystem.shrink(shrinking.step, shrinking.image, opened)
    now = int(said.split()[3])
    assert shrinking.step.length - MIB < now <= shrinking.step.length


@pytest.mark.parametrize("shrinking", ["ext4", "btrfs", "ntfs"], indirect=True)
def test_its_own_program_says_before_that_it_does_not_fit(shrinking: Shrinking) -> None:
    step = shrinking.step
    small = ShrinkFilesystem(
        step.target, step.volume, step.filesystem, AT, 2 * MIB, step.saved_length
    )
    with pytest.raises(TargetError, match=f"the {step.filesystem} of disk0/p1 can") as caught:
        filesystem.check_shrinkable(small, shrinking.image)
    assert isinstance(caught.value, TargetTooSmall) == (step.filesystem != "ntfs")
    assert "nothing was written" in caught.value.hint


@pytest.mark.parametrize("is_noticed", [True, False])
def test_a_read_that_failed_is_the_reason(
    shrinking: Shrinking, is_noticed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = ObjectDamaged("image 9e038e47 is touched: a pack is damaged")

    def resize(_device: Path, _size: int | None) -> tuple[str, ...]:
        shrinking.server.failure = fault
        if is_noticed:
            raise ProgramError(("resize2fs",), 1, "Input/output error")
        return ()

    means = filesystem._Means(filesystem._least_ext, resize, filesystem._check_ext)
    monkeypatch.setitem(filesystem._MEANS, "ext4", means)
    with OpenTarget(shrinking.step.target) as opened:
        with pytest.raises(ObjectDamaged) as caught:
            filesystem.shrink(shrinking.step, shrinking.image, opened)
        assert caught.value is fault


def test_a_filesystem_that_did_not_shrink_is_found(
    shrinking: Shrinking, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = filesystem._Means(filesystem._least_ext, lambda *_: (), filesystem._check_ext)
    monkeypatch.setitem(filesystem._MEANS, "ext4", idle)
    wanted = pytest.raises(VerificationFailed, match="41943040 bytes, and its place 33554432")
    with OpenTarget(shrinking.step.target) as opened, wanted:
        filesystem.shrink(shrinking.step, shrinking.image, opened)


@pytest.mark.usefixtures("interruptible")
def test_a_stop_request_takes_all_down(
    shrinking: Shrinking, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resize(_device: Path, _size: int | None) -> tuple[str, ...]:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError

    means = filesystem._Means(filesystem._least_ext, resize, filesystem._check_ext)
    monkeypatch.setitem(filesystem._MEANS, "ext4", means)
    with OpenTarget(shrinking.step.target) as opened, pytest.raises(KeyboardInterrupt):
        filesystem.shrink(shrinking.step, shrinking.image, opened)
    assert str(shrinking.step.target.path) not in process.run("losetup", "--list")
