"""Sources: disks, raw and qcow2 files; read-only, whole, and held still while they are read."""

import fcntl
import json
import os
import random
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from restored_disks import Saved, digest

from imager import blockdev, process
from imager.capture import source as source_module
from imager.capture.pipeline import Pipeline
from imager.capture.source import default_disks, open_source, open_sources
from imager.errors import (
    NoSuchDisk,
    ProgramError,
    ProgramMissing,
    SourceError,
    SourceInUse,
    TruncatedSource,
    UsageError,
)
from imager.probe.machine import probe_machine
from imager.units import KIB, MIB

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="loop and FUSE mounts need root")
pytestmark = needs_root


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Return a disk with a filesystem, and islands of data."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
    process.run("sfdisk", "--quiet", path, stdin=b"label: gpt\nsize=32M\n")
    process.run("mke2fs", "-q", "-F", "-t", "ext4", "-E", f"offset={MIB}", path, "32M")
    rng = random.Random(4)
    with path.open("r+b") as file:
        for _ in range(20):
            os.pwrite(file.fileno(), rng.randbytes(70_000), rng.randrange(2 * MIB, 30 * MIB))
    return path


def convert(raw: Path, target: Path, *options: str) -> Path:
    process.run("qemu-img", "convert", "-O", "qcow2", *options, raw, target)
    return target


def fuse_mounts() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if " - fuse " in line and "remetal-" in line]


def before_each_volume(patch: pytest.MonkeyPatch, deed: Callable[[], None]) -> None:
    add_volume = Pipeline.add_volume

    def with_deed(*words: Any) -> Any:
        deed()
        return add_volume(*words)

    patch.setattr(Pipeline, "add_volume", with_deed)


class TestRaw:
    def test_written_to_meanwhile(
        self, raw: Path, saved: Saved, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def write() -> None:
            with raw.open("r+b") as file:
                file.write(b"\0")

        before_each_volume(monkeypatch, write)
        assert saved.capture(raw) == SourceInUse.exit_code

    def test_is_itself(self, raw: Path) -> None:
        with open_source(raw) as source:
            assert source.path == raw
            assert source.origin == str(raw)
            assert source.identity.size == 64 * MIB
            assert not source.of_this_machine

    def test_format_is_not_guessed(self, tmp_path: Path) -> None:
        path = tmp_path / "disk.qcow2"
        path.write_bytes(b"anything" * 512)
        with open_source(path) as source:
            assert source.path == path

    def test_no_machine_can_start_with_it_meanwhile(self, raw: Path) -> None:
        with open_source(raw), pytest.raises(ProgramError, match="lock"):
            process.run("qemu-io", "-f", "raw", "-c", "write 0 512", raw)
        process.run("qemu-io", "-f", "raw", "-c", "write 40M 512", raw)

    def test_machine_runs(self, raw: Path) -> None:
        with raw.open("r+b") as file:
            request = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 100, 2, 0)
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, request)
            with pytest.raises(SourceInUse, match="virtual machine") as caught, open_source(raw):
                pass
        assert "Stop the virtual machine" in caught.value.hint

    def test_empty(self, tmp_path: Path) -> None:
        (tmp_path / "empty").touch()
        with pytest.raises(SourceError, match="is empty"), open_source(tmp_path / "empty"):
            pass

    @pytest.mark.parametrize("kind", ["vmdk", "vdi", "vhdx", "vpc"])
    def test_other_formats(self, kind: str, tmp_path: Path) -> None:
        path = tmp_path / "disk"
        process.run("qemu-img", "create", "-q", "-f", kind, path, "16M")
        with (
            pytest.raises(SourceError, match="which can't be read here") as caught,
            open_source(path),
        ):
            pass
        assert "qemu-img convert" in caught.value.hint


class TestQcow2:
    @pytest.mark.parametrize(
        "options",
        [
            (),
            ("-c",),
            ("-o", "compat=0.10"),
            ("-o", "cluster_size=4k"),
            ("-o", "cluster_size=2M"),
            ("-o", "extended_l2=on,cluster_size=64k"),
            ("-o", "compression_type=zstd", "-c"),
            ("-o", "preallocation=metadata"),
            ("-o", "lazy_refcounts=on"),
        ],
    )
    def test_reads_as_the_disk_in_it(
        self, options: tuple[str, ...], raw: Path, tmp_path: Path
    ) -> None:
        path = convert(raw, tmp_path / "an image, with a name?.qcow2", *options)
        before = path.read_bytes()
        with open_source(path) as source:
            assert source.path.read_bytes() == raw.read_bytes()
            assert source.identity.size == 64 * MIB
            machine = probe_machine([source], "vm")
            assert len(fuse_mounts()) == 1
        assert fuse_mounts() == []
        assert not source.path.parent.exists()
        assert path.read_bytes() == before
        (disk,) = machine.disks
        assert disk.origin == str(path)
        with open_source(raw) as plain:
            assert probe_machine([plain], "vm").disks[0].volumes == disk.volumes

    def test_can_not_be_written(self, raw: Path, tmp_path: Path) -> None:
        with open_source(convert(raw, tmp_path / "q")) as source:
            with pytest.raises(OSError, match=r"Permission denied|Read-only"):
                os.truncate(source.path, 0)
            assert source.path.stat().st_mode & 0o222 == 0

    def test_ends_with_an_error_too(self, raw: Path, tmp_path: Path) -> None:
        path = convert(raw, tmp_path / "q")
        with pytest.raises(UsageError), open_sources([path, path]):
            pass
        with pytest.raises(NoSuchDisk), open_source(path) as source:
            blockdev.identify(source.path / "missing")
        assert fuse_mounts() == []
        assert list(source.path.parent.parent.glob("remetal-*/q")) == []

    def test_cut_off_anywhere(self, raw: Path, tmp_path: Path) -> None:
        path = convert(raw, tmp_path / "q")
        size = path.stat().st_size
        rng = random.Random(8)
        for keep in [3, 50, 80, 70_000, size - 512, *(rng.randrange(size) for _ in range(12))]:
            cut = tmp_path / "cut"
            cut.write_bytes(path.read_bytes()[:keep])
            if keep < 4:
                continue
            with pytest.raises(TruncatedSource, match=r"cut off|ends at byte"), open_source(cut):
                pass

    def test_cut_off_and_compressed(self, raw: Path, tmp_path: Path) -> None:
        """Never wrong bytes: refused, or an error when what is missing is read."""
        path = convert(raw, tmp_path / "q", "-c")
        size = path.stat().st_size
        for keep in (size - 30_000, size // 2, size // 3):
            cut = tmp_path / "cut"
            cut.write_bytes(path.read_bytes()[:keep])
            with pytest.raises((SourceError, OSError)), open_source(cut) as source:
                source.path.read_bytes()
        assert fuse_mounts() == []

    def test_damaged(self, raw: Path, tmp_path: Path) -> None:
        path = convert(raw, tmp_path / "q")
        info = json.loads(process.run("qemu-img", "map", "--output=json", path))
        place = next(item["offset"] for item in info if item["data"])
        with path.open("r+b") as file:
            (l1,) = struct.unpack(">Q", os.pread(file.fileno(), 8, 40))
            (l2,) = struct.unpack(">Q", os.pread(file.fileno(), 8, l1))
            wrong = struct.pack(">Q", place + 512 | 1 << 63)
            os.pwrite(file.fileno(), wrong, l2 & 0xFFFFFFFFFFFE00)
        with pytest.raises(SourceError, match="is damaged"), open_source(path):
            pass

    def test_without_the_daemon(
        self, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = convert(raw, tmp_path / "q")
        monkeypatch.setattr(source_module, "_DAEMON", "qemu-storage-daemon-not-here")
        with pytest.raises(ProgramMissing) as caught, open_source(path):
            pass
        assert "qemu-storage-daemon-not-here" in caught.value.hint

    def test_encrypted(self, tmp_path: Path) -> None:
        path = tmp_path / "q"
        for left in reversed(range(10)):
            try:
                process.run(
                    "qemu-img", "create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=x",
                    "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
                    path, "16M",
                )  # fmt: skip
                break
            except ProgramError:  # it measures its own speed, and on a busy machine gives up
                if not left:
                    raise
        with pytest.raises(SourceError, match="is encrypted"), open_source(path):
            pass

    def test_external_data(self, tmp_path: Path) -> None:
        path = tmp_path / "q"
        options = f"data_file={tmp_path / 'data'}"
        process.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "16M")
        with pytest.raises(SourceError, match="another file"), open_source(path):
            pass

    def test_machine_runs(self, raw: Path, tmp_path: Path) -> None:
        path = convert(raw, tmp_path / "q")
        with path.open("r+b") as file:
            for byte in (100, 101, 201, 203):
                request = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
                fcntl.fcntl(file, fcntl.F_OFD_SETLK, request)
            with pytest.raises(SourceInUse), open_source(path):
                pass

    def test_no_machine_can_start_with_it_meanwhile(self, raw: Path, tmp_path: Path) -> None:
        path = convert(raw, tmp_path / "q")
        with open_source(path), pytest.raises(ProgramError, match="lock"):
            process.run("qemu-io", "-f", "qcow2", "-c", "write 0 512", path)


class TestChain:
    def overlay(self, path: Path, *options: str) -> Path:
        process.run("qemu-img", "create", "-q", "-f", "qcow2", *options, path)
        process.run("qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 3M 1M", path)
        return path

    @pytest.mark.parametrize("kind", ["raw", "qcow2"])
    def test_files_beside_it(self, kind: str, raw: Path, tmp_path: Path) -> None:
        base = raw if kind == "raw" else convert(raw, tmp_path / "base")
        path = self.overlay(tmp_path / "top", "-b", base.name, "-F", kind)
        expected = bytearray(raw.read_bytes())
        expected[3 * MIB : 4 * MIB] = b"\x5a" * MIB
        with open_source(path) as source:
            assert source.path.read_bytes() == expected

    def test_gone(self, raw: Path, tmp_path: Path) -> None:
        path = self.overlay(tmp_path / "top", "-b", raw.name, "-F", "raw")
        raw.rename(tmp_path / "moved")
        with pytest.raises(SourceError, match="which is not there"), open_source(path):
            pass

    def test_cut_off_below(self, raw: Path, tmp_path: Path) -> None:
        base = convert(raw, tmp_path / "base")
        path = self.overlay(tmp_path / "top", "-b", base.name, "-F", "qcow2")
        os.truncate(base, base.stat().st_size - 70_000)
        with pytest.raises(TruncatedSource, match="base is cut off"), open_source(path):
            pass

    @pytest.mark.parametrize("name", ["/etc/passwd", "../x/secret", "json:{}", "nbd://h/x"])
    def test_names_a_file_it_has_no_right_to(self, name: str, tmp_path: Path) -> None:
        """A guest can write such a header onto its own raw disk."""
        (tmp_path / "x").mkdir()
        (tmp_path / "images").mkdir()
        (tmp_path / "x" / "secret").write_bytes(b"s" * 4096)
        path = tmp_path / "images" / "disk.raw"
        process.run(
            "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "raw", path, "16M"
        )
        with pytest.raises(SourceError, match="is based on"), open_source(path):
            pass

    def test_link_out_of_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "base").symlink_to("/etc/passwd")
        path = tmp_path / "images" / "disk"
        process.run(
            "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "base", "-F", "raw", path, "16M"
        )
        with pytest.raises(SourceError, match="no file beside it"), open_source(path):
            pass

    def test_endless(self, tmp_path: Path) -> None:
        path = tmp_path / "disk"
        process.run(
            "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "disk", "-F", "qcow2", path,
            "16M",
        )  # fmt: skip
        with pytest.raises(SourceError), open_source(path):
            pass


@pytest.fixture
def device(raw: Path) -> Iterator[Path]:
    path = Path(process.run("losetup", "--find", "--show", "--partscan", raw).strip())
    process.run("partx", "--update", path, accept=(0, 1))
    yield path
    # After a test that failed, it may still be mounted.
    process.run("umount", "--quiet", "--all-targets", f"{path}p1", accept=(0, 1, 32))
    process.run("losetup", "--detach", path)


class TestDevice:
    def test_is_held_still(self, device: Path, raw: Path, tmp_path: Path) -> None:
        with open_source(device) as source:
            assert source.path == device
            assert not source.of_this_machine
            assert source.path.read_bytes() == raw.read_bytes()
            machine = probe_machine([source], "x")
            assert [volume.partition for volume in machine.disks[0].volumes] == [None, 1, None]
            with pytest.raises(ProgramError, match=r"busy|already mounted"):
                process.run("mount", f"{device}p1", tmp_path)
        process.run("mount", f"{device}p1", tmp_path)
        process.run("umount", tmp_path)

    def test_is_not_read_from_an_old_cache(self, device: Path) -> None:
        """The kernel keeps what it read of a disk as long as anybody has that open."""
        with device.open("rb") as holder:
            holder.read()
            with Path(f"{device}p1").open("r+b", buffering=0) as partition:
                partition.write(b"written through the partition" + bytes(483))
                os.fsync(partition.fileno())
            with open_source(device) as source, device.open("rb") as file:
                offset = probe_machine([source], "x").disks[0].volumes[1].offset
                found = os.pread(file.fileno(), 29, offset)
        assert found == b"written through the partition"

    def test_is_read_past_the_page_cache(
        self, device: Path, raw: Path, saved: Saved, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No worker reads through the cache, and what they read is right."""
        direct: list[bool] = []
        real = blockdev.read_into

        def read_into(fd: int, offset: int, buffer: memoryview) -> None:
            if threading.current_thread().name.startswith("work"):
                direct.append(bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT))
            real(fd, offset, buffer)

        monkeypatch.setattr(blockdev, "read_into", read_into)
        assert saved.capture(device, "--name", "device") == 0
        assert direct
        assert all(direct)
        copy = saved.folder / "copy"
        process.run("cp", raw, copy)
        assert saved.capture(copy, "--name", "file") == 0
        restored = []
        for name in ("device", "file"):
            target = saved.folder / name
            assert saved.restore(name, "--map", f"disk0={target}", "--yes") == 0
            restored.append(digest(target))
        assert restored[0] == restored[1]

    def test_what_waits_in_the_cache_of_a_partition(self, device: Path) -> None:
        with Path(f"{device}p1").open("r+b", buffering=0) as partition:
            partition.write(b"written, and not on the disk yet" + bytes(480))
            with open_source(device) as source, device.open("rb") as file:
                offset = probe_machine([source], "x").disks[0].volumes[1].offset
                found = os.pread(file.fileno(), 32, offset)
        assert found == b"written, and not on the disk yet"

    def test_mounted(self, device: Path, tmp_path: Path) -> None:
        point = tmp_path / "point"
        point.mkdir()
        process.run("mount", "-o", "ro", f"{device}p1", point)
        with open_source(device) as source:
            assert source.path == device
        process.run("mount", "-o", "remount,rw", point)
        try:
            with (
                pytest.raises(SourceInUse, match="is mounted read-write on") as caught,
                open_source(device),
            ):
                pass
        finally:
            process.run("umount", point)
        assert "rescue medium" in caught.value.hint
        assert f"umount {point}" in caught.value.hint

    def test_written_to_meanwhile(
        self,
        device: Path,
        saved: Saved,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A disk with a partition that is mounted read-only can't be claimed."""
        point = tmp_path / "point"
        point.mkdir()
        images = saved.repository / "images"
        before = set(images.iterdir())
        process.run("mke2fs", "-q", "-F", "-t", "ext4", f"{device}p1")
        process.run("mount", "-o", "ro", f"{device}p1", point)

        def write() -> None:
            if not (point / "new").exists():
                process.run("mount", "-o", "remount,rw", point)
                (point / "new").write_text("written meanwhile")
                process.run("mount", "-o", "remount,ro", point)

        try:
            with monkeypatch.context() as patch:
                before_each_volume(patch, write)
                assert saved.capture(device) == SourceInUse.exit_code
            assert "was written to while it was read; no image" in capsys.readouterr().err
            assert set(images.iterdir()) == before
            assert saved.capture(device) == 0
        finally:
            process.run("umount", point)

    def test_its_file_is_in_use(self, device: Path, raw: Path) -> None:
        with pytest.raises(SourceInUse, match="is attached read-write") as caught, open_source(raw):
            pass
        assert f"losetup -d {device}" in caught.value.hint

    def test_swap(self, device: Path) -> None:
        part = f"{device}p1"
        process.run("mkswap", part)
        process.run("swapon", part)
        try:
            with pytest.raises(SourceInUse, match="as swap") as caught, open_source(device):
                pass
        finally:
            process.run("swapoff", part)
        assert "swapoff -a" in caught.value.hint

    def test_another_program_claims_it(self, device: Path) -> None:
        fd = os.open(f"{device}p1", os.O_RDONLY | os.O_EXCL)
        try:
            with pytest.raises(SourceInUse, match="is claimed by"), open_source(device):
                pass
        finally:
            os.close(fd)


def test_several_all_or_none(raw: Path, tmp_path: Path) -> None:
    other = convert(raw, tmp_path / "other")
    with open_sources([raw, other]) as sources:
        assert [source.origin for source in sources] == [str(raw), str(other)]
    (tmp_path / "link").symlink_to(raw)
    with pytest.raises(UsageError, match="the same disk"), open_sources([raw, tmp_path / "link"]):
        pass
    with pytest.raises(NoSuchDisk), open_sources([other, tmp_path / "none"]):
        pass
    assert fuse_mounts() == []


def test_every_disk_but_the_one_below_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {disk.path for disk in blockdev.list_disks()}
    below = blockdev.disks_under(tmp_path)
    if here - below:
        assert set(default_disks([tmp_path])) <= here - below
    else:
        with pytest.raises(NoSuchDisk, match="holds the repository"):
            default_disks([tmp_path])
    iso = tmp_path / "medium"
    iso.write_bytes(bytes(32 * KIB) + b"\x01CD001\x01" + bytes(64 * KIB))
    monkeypatch.setattr(blockdev, "list_disks", lambda: (blockdev.identify(iso),))
    with pytest.raises(NoSuchDisk):
        source_module.default_disks([])
