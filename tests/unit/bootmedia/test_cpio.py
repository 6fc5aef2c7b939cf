import io
import stat
import subprocess
import tarfile
from pathlib import Path

import zstandard

from bootmedia import initramfs
from bootmedia.cpio import CpioWriter


def _unpack(archive: bytes, place: Path) -> None:
    place.mkdir()
    subprocess.run(
        ["cpio", "--extract", "--quiet", "--make-directories"], input=archive, cwd=place, check=True
    )


def _archive() -> bytes:
    sink = io.BytesIO()
    writer = CpioWriter(sink, 1_000_000_000)
    writer.folder("etc", 0o700)
    for size in range(9):  # every way an entry can be padded
        writer.file(f"etc/{'n' * (size + 1)}", b"x" * size)
    writer.link("etc/link", "n")
    writer.file("init", b"#!/bin/sh\n", 0o755)
    writer.close()
    return sink.getvalue()


def test_cpio_reads_it(tmp_path: Path) -> None:
    place = tmp_path / "out"
    _unpack(_archive(), place)
    assert stat.S_IMODE((place / "etc").stat().st_mode) == 0o700
    assert [(place / "etc" / ("n" * (n + 1))).stat().st_size for n in range(9)] == list(range(9))
    assert (place / "etc/link").readlink() == Path("n")
    assert stat.S_IMODE((place / "init").stat().st_mode) == 0o755


def test_equal_content_gives_equal_bytes() -> None:
    assert _archive() == _archive()


def test_a_tar_becomes_an_initramfs(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for folder in ("usr/bin", "dev", "var/log", "etc"):
        (tree / folder).mkdir(parents=True)
    (tree / "usr/bin/tool").write_bytes(b"tool" * 1000)
    (tree / "usr/bin/other-name").hardlink_to(tree / "usr/bin/tool")
    (tree / "var/log/old").write_text("old")
    (tree / "etc/hostname").write_text("builder")
    (tree / "bin").symlink_to("usr/bin")
    with tarfile.open(tmp_path / "root.tar", "w") as archive:
        archive.add(tree, ".")
    with tarfile.open(tmp_path / "root.tar") as archive:
        size = initramfs.pack_tar(archive, tmp_path / "out.zst", ("var/log", "etc/hostname"))
    assert size == 4000
    with (tmp_path / "out.zst").open("rb") as file:
        content = zstandard.ZstdDecompressor().stream_reader(file).read()
    place = tmp_path / "out"
    _unpack(content, place)
    assert (place / "bin").readlink() == Path("usr/bin")
    # A hard link becomes a symbolic one, whichever of the two names came first.
    tool, other = place / "usr/bin/tool", place / "usr/bin/other-name"
    assert {tool.is_symlink(), other.is_symlink()} == {True, False}
    file, link = (other, tool) if tool.is_symlink() else (tool, other)
    assert file.read_bytes() == b"tool" * 1000
    assert link.readlink() == Path(f"/usr/bin/{file.name}")
    assert (place / "var/log").is_dir()
    assert not (place / "var/log/old").exists()
    assert not (place / "etc/hostname").exists()


def test_the_kernel_can_decompress_it() -> None:
    packed = initramfs.compress(b"remetal" * (4 << 20))
    frame = zstandard.get_frame_parameters(packed)
    assert frame.window_size <= 8 << 20
    assert frame.has_checksum
