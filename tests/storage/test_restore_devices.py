"""Restores to real block devices: what only a kernel can refuse, lose or keep from the past.

Loop devices stand in for disks; a filesystem that is too small below one makes it fail like a
dying disk.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from restored_disks import (
    ESP_AT,
    ROOT_AT,
    ROOT_SIZE,
    SIZE,
    Saved,
    digest,
    extracted,
    onto,
    probe,
    tree_in,
)

from imager import process
from imager.errors import TargetInUse
from imager.units import MIB
from restore import targets
from restore.bootrepair import esp
from restore.device import OpenTarget
from restore.target import Target, TargetKind


@contextmanager
def loop(path: Path, *options: str) -> Iterator[Path]:
    device = process.run("losetup", "--find", "--show", *options, path).strip()
    try:
        process.run("blockdev", "--setrw", device)  # who had it before may have left it read-only
        yield Path(device)
    finally:
        process.run("losetup", "--detach", device)


@contextmanager
def mounted(*words: object) -> Iterator[None]:
    process.run("mount", *map(str, words))
    try:
        yield
    finally:
        process.run("umount", str(words[-1]))


def noisy(path: Path, size: int = SIZE) -> Path:
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
    return path


def test_a_device_is_restored_and_verified(
    saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = noisy(tmp_path / "disk")
    with loop(disk) as device:
        words = ["--verify-written", "--yes"]
        assert saved.restore("uefi", *onto(device), *words) == 0
    shown = capsys.readouterr().out
    assert f"{device}: discard old content" in shown
    assert probe(disk).table == probe(saved.gpt).table
    scratch = [tmp_path / "before", tmp_path / "after"]
    for folder in scratch:
        folder.mkdir()
    tree = tree_in(disk, ROOT_AT, ROOT_SIZE, scratch[0])
    assert tree == tree_in(saved.gpt, ROOT_AT, ROOT_SIZE, scratch[1])


def test_a_larger_device_without_discard(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like a spinning disk: what is free keeps old noise, and yet no signature survives."""
    monkeypatch.setattr(targets, "_discards", lambda _: False)
    disk = tmp_path / "disk"
    size = 160 * MIB
    with disk.open("wb") as file:
        file.truncate(size)
        for offset in range(0, size, 4096):
            file.seek(offset)
            file.write(b"LABELONE" + bytes(16) + b"LVM2 001" + b"\xfc\x4e\x2b\xa9")
    with loop(disk) as device:
        assert saved.restore("uefi", *onto(device), "--yes") == 0
        assert "No problems found" in process.run("sgdisk", "--verify", device)
        seen = process.run("wipefs", "--noheadings", "--no-act", "--output", "TYPE", device)
    assert set(seen.split()) == {"gpt", "PMBR"}
    content = disk.read_bytes()
    assert content.count(b"EFI PART") == 2
    assert b"LABELONE" in content[ROOT_AT + 8 * MIB : ROOT_AT + ROOT_SIZE - 8 * MIB]
    for start, end in ((0, 8 * MIB), (size - 8 * MIB, size)):
        assert b"LABELONE" not in content[start:end]
    part = extracted(disk, ROOT_AT, ROOT_SIZE, tmp_path / "part")
    seen = process.run("wipefs", "--noheadings", "--no-act", "--output", "TYPE", part)
    assert seen.split() == ["ext4"]
    process.run("e2fsck", "-f", "-n", part)


def test_a_half_good_device_gets_what_differs(saved: Saved, tmp_path: Path) -> None:
    disk = noisy(tmp_path / "disk")
    with loop(disk) as device:
        assert saved.restore("uefi", *onto(device), "--yes") == 0
    right = disk.read_bytes()
    noise = os.urandom(MIB)
    with disk.open("r+b") as file:
        for place in (0, ROOT_AT + 8192, ROOT_AT + 3 * MIB, SIZE - MIB):
            file.seek(place)
            file.write(noise)
    with loop(disk) as device:
        words = ["--delta", "--verify-written", "--yes"]
        assert saved.restore("uefi", *onto(device), *words) == 0
        assert "No problems found" in process.run("sgdisk", "--verify", device)
    repaired = disk.read_bytes()
    different = [
        place
        for place in range(0, SIZE, 4096)
        if repaired[place : place + 4096] != right[place : place + 4096]
    ]
    # In free space, where the noise stays, and where the loader was copied to again.
    different = [place for place in different if not ESP_AT <= place < ROOT_AT]
    assert all(repaired[place : place + 4096] in noise for place in different)
    part = extracted(disk, ROOT_AT, ROOT_SIZE, tmp_path / "part")
    process.run("e2fsck", "-f", "-n", part)


def test_a_device_in_use_is_refused(
    saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk, folder = tmp_path / "disk", tmp_path / "mounted"
    folder.mkdir()
    process.run("mke2fs", "-q", "-t", "ext4", disk, f"{SIZE // 1024}k")
    before = digest(disk)
    with loop(disk) as device:
        with mounted("-o", "ro,noload", device, folder):
            assert saved.restore("uefi", "--map", f"disk0={device}", "--yes") == 42
            assert f"mounted read-only on {folder}" in capsys.readouterr().err
        assert saved.restore("uefi", "--map", f"disk0={disk}", "--yes") == 42
        assert str(device) in capsys.readouterr().err
    assert digest(disk) == before


def test_a_device_claimed_after_the_plan_is_refused(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = noisy(tmp_path / "disk")
    before = digest(disk)
    claims: list[int] = []
    check_room = targets.check_room
    with loop(disk) as device:

        def claim(plan: object) -> None:
            check_room(plan)  # type: ignore[arg-type]
            claims.append(os.open(device, os.O_RDONLY | os.O_EXCL))

        monkeypatch.setattr(targets, "check_room", claim)
        assert saved.restore("uefi", *onto(device), "--yes") == 42
        os.close(claims.pop())
    assert digest(disk) == before


def test_a_read_only_device_is_refused(
    saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = noisy(tmp_path / "disk")
    before = digest(disk)
    with loop(disk, "--read-only") as device:
        assert saved.restore("uefi", "--map", f"disk0={device}", "--yes") == 40
    assert "read-only" in capsys.readouterr().err
    assert digest(disk) == before


def test_the_device_below_the_repository_is_refused(
    saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also when its filesystem is reached through a second loop device."""
    disk, folder = tmp_path / "disk", tmp_path / "mounted"
    folder.mkdir()
    process.run("mke2fs", "-q", "-t", "ext4", disk, f"{2 * SIZE // 1024}k")
    with loop(disk) as device, mounted(device, folder):
        process.run("cp", "-r", saved.repository, folder / "repository")
        moved = Saved(saved.folder, folder / "repository", saved.gpt, saved.mbr)
        assert moved.restore("uefi", "--map", f"disk0={device}", "--yes") in {42, 44}
    assert str(device) in capsys.readouterr().err


def test_the_rescue_medium_is_refused(
    saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "stick"
    with disk.open("wb") as file:
        file.truncate(SIZE)
        file.seek(32768)
        file.write(b"\x01CD001\x01\0" + b" " * 32 + b"REMETAL".ljust(32))
    before = digest(disk)
    with loop(disk) as device:
        assert saved.restore("uefi", "--map", f"disk0={device}", "--yes") == 44
    assert "rescue medium" in capsys.readouterr().err
    assert digest(disk) == before


def test_a_dying_device_is_named_with_the_place(
    saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    with mounted("-t", "tmpfs", "-o", f"size={24 * MIB}", "tmpfs", folder):
        disk = folder / "disk"
        with disk.open("wb") as file:
            file.truncate(SIZE)
        with loop(disk) as device:
            assert saved.restore("uefi", "--map", f"disk0={device}", "--yes") == 46
            error = capsys.readouterr().err
            assert f"{device} (disk0)" in error
            assert "Input/output error" in error or "No space left" in error
            assert process.run("blkid", "-p", device, accept=(0, 2)) == "", "nothing to start from"


def test_a_bit_lost_below_the_kernels_cache_is_found(
    saved: Saved,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The disk says it has written, and has not: only reading the disk itself can tell."""
    disk = noisy(tmp_path / "disk")
    flush = OpenTarget.flush
    place = ROOT_AT + 1024  # the superblock of ext4

    def flush_and_lose(self: OpenTarget) -> None:
        flush(self)
        with disk.open("r+b") as file:  # the last time after all content was written
            file.seek(place)
            file.write(b"\xff")
            os.fsync(file.fileno())

    monkeypatch.setattr(OpenTarget, "flush", flush_and_lose)
    with loop(disk, "--direct-io=on") as device:
        assert saved.restore("uefi", *onto(device), "--yes", "--verify-written") == 47
    assert f"at byte {ROOT_AT} of the disk differ" in capsys.readouterr().err
    with pytest.raises(Exception, match="sfdisk"):
        process.run("sfdisk", "--json", disk)


def test_mtools_reads_names_without_code_pages(saved: Saved, tmp_path: Path) -> None:
    """As on the rescue medium, which leaves the C library's code pages out."""
    code_pages = Path("/usr/lib/x86_64-linux-gnu/gconv")
    if not code_pages.is_dir():
        pytest.skip("no code pages here to be hidden")
    command = f"mount -t tmpfs none {code_pages} && mdir -b -i {saved.gpt}@@{ESP_AT} ::/EFI"
    listing = process.run("unshare", "--mount", "sh", "-c", command, env=esp._ENVIRONMENT)
    assert listing.strip() == "::/EFI/debian/"


def held(device: Path) -> bool:
    """Whether somebody has a device for itself."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_EXCL))
    except OSError as error:
        assert error.errno == errno.EBUSY
        return True
    return False


def opened_target(device: Path, kind: TargetKind) -> OpenTarget:
    return OpenTarget(Target("disk0", device, kind, SIZE, SIZE, 512, None, None, "", ""))


def test_a_lent_device_can_be_claimed_and_comes_back(tmp_path: Path) -> None:
    with loop(noisy(tmp_path / "disk")) as device:
        with opened_target(device, TargetKind.DEVICE) as opened:
            opened.write(0, b"x" * MIB)
            assert held(device)
            with opened.lend() as lent:
                assert lent == device
                assert not held(device)
                with lent.open("r+b") as file:
                    assert file.read(MIB) == b"x" * MIB
                    file.write(b"y" * MIB)
            assert held(device)
            found = bytearray(2 * MIB)
            opened.read_into(0, memoryview(found))
            assert found == b"x" * MIB + b"y" * MIB
        assert not held(device)


def test_a_lent_device_that_somebody_keeps_is_named(tmp_path: Path) -> None:
    with (
        loop(noisy(tmp_path / "disk")) as device,
        opened_target(device, TargetKind.DEVICE) as opened,
    ):
        with pytest.raises(TargetInUse, match=str(device)), opened.lend() as lent:
            taken = os.open(lent, os.O_RDWR | os.O_EXCL)
        os.close(taken)


def test_a_lent_file_is_a_block_device_for_a_while(tmp_path: Path) -> None:
    path = noisy(tmp_path / "disk.raw")
    with opened_target(path, TargetKind.FILE) as opened:
        with opened.lend() as lent:
            assert lent.is_block_device()
            with lent.open("r+b") as file:
                file.write(b"z" * MIB)
        found = bytearray(MIB)
        opened.read_into(0, memoryview(found))
    assert found == b"z" * MIB
    assert str(path) not in process.run("losetup", "--list", "--output", "BACK-FILE")
