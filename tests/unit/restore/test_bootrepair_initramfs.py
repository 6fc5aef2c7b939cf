"""Names are read from every kind of initramfs; what can't be read is said, never taken for empty."""

from pathlib import Path

import pytest
from initramfs_files import PACKERS, archive

from imager import process
from restore.bootrepair.initramfs import UnknownContent, file_names

MICROCODE = ["kernel/x86/microcode/GenuineIntel.bin"]
MODULES = ["usr/lib/modules/6.1/kernel/nvme.ko.xz", "init"]


def names(path: Path, data: bytes) -> list[str]:
    path.write_bytes(data)
    return [name for name in file_names(path) if name != "kernel"]


@pytest.mark.parametrize("packer", PACKERS)
def test_names_in_each_compression(packer: str, tmp_path: Path) -> None:
    assert names(tmp_path / "i", PACKERS[packer](archive(MODULES))) == MODULES


@pytest.mark.parametrize("packer", PACKERS)
def test_microcode_comes_before_the_rest(packer: str, tmp_path: Path) -> None:
    """The early archive ends with zeros up to a sector."""
    early = archive(MICROCODE, 70_001)
    early += bytes(-len(early) % 512)
    late = PACKERS[packer](archive(MODULES))
    assert names(tmp_path / "i", early + late) == MICROCODE + MODULES
    assert names(tmp_path / "i", early + late + bytes(300)) == MICROCODE + MODULES


def test_archives_follow_one_another_compressed_or_not(tmp_path: Path) -> None:
    parts = [PACKERS["gzip"](archive(["a"])), archive(["b"]), PACKERS["zstd"](archive(["c"]))]
    assert names(tmp_path / "i", b"".join(parts)) == ["a", "b", "c"]


@pytest.mark.parametrize("packer", ["gzip", "xz", "zstd"])
def test_parallel_packers_write_one_archive_as_several_streams(packer: str, tmp_path: Path) -> None:
    data = archive(MODULES, 100_000)
    cut = PACKERS[packer](data[:50_001]) + PACKERS[packer](data[50_001:])
    assert names(tmp_path / "i", cut) == MODULES


def test_large_files_are_passed_over(tmp_path: Path) -> None:
    large = archive(["large"], 3_000_001) + archive(["small"])
    assert names(tmp_path / "i", PACKERS["gzip"](large)) == ["large", "small"]


def test_what_busybox_packs_is_read(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/file.ko").write_bytes(b"1234567")
    process.run(
        "busybox", "cpio", "-o", "-H", "newc", "-F", "made",
        stdin=b"deep\ndeep/file.ko\n", cwd=tmp_path,
    )  # fmt: skip
    assert list(file_names(tmp_path / "made")) == ["deep", "deep/file.ko"]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x02\x21\x4c\x18" + b"x" * 100, id="lz4, which nothing here unpacks"),
        pytest.param(b"#!/bin/sh\n", id="no archive"),
        pytest.param(archive(MODULES)[:-200], id="cut off"),
        pytest.param(PACKERS["gzip"](archive(MODULES))[:-30], id="cut off, compressed"),
        pytest.param(PACKERS["zstd"](archive(MODULES))[:-5], id="cut off, zstd"),
        pytest.param(PACKERS["xz"](b"no archive at all"), id="compressed, and no archive"),
        pytest.param(archive(MODULES) + b"070701zzzz" * 30, id="broken header"),
        pytest.param(archive(["squashfs-root.img"]), id="all in a filesystem of its own"),
    ],
)
def test_what_cannot_be_read_is_no_empty_initramfs(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(UnknownContent):
        names(tmp_path / "i", data)
