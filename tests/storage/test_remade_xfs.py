"""An XFS that is made anew on this kernel: its format, and every file with all that is known of it."""

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from kernel_mounts import facts, fill, loop, mounted

from imager import process
from imager.errors import VerificationFailed
from imager.units import GIB, MIB
from restore.recreate import xfs
from restore.recreate.xfs import compare_files, copy_files, format_of, mkfs_words

UUID = "2f6b7c10-94d1-4b0e-b5a3-8c1d2e3f4a77"
FORMATS: dict[str, tuple[str, ...]] = {
    "default": (),
    "old": ("-m", "reflink=0,bigtime=0,inobtcount=0,rmapbt=0", "-i", "sparse=0,nrext64=0"),
    "small-blocks": ("-b", "size=1024", "-i", "size=512", "-n", "size=8192"),
    "large-sectors": ("-s", "size=4096", "-m", "rmapbt=1"),
    "without-checksums": ("-m", "crc=0", "-n", "ftype=1"),
}


def blank(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def shape(device: Path) -> dict[tuple[str, str], int]:
    """What must be the same: all but the sizes that follow from the device's."""
    found = dict(format_of(process.run("xfs_db", "-r", "-c", "info", device)))
    for key in (("meta-data", "agcount"), ("meta-data", "agsize"), ("data", "blocks")):
        del found[key]
    return found


@pytest.mark.parametrize("words", FORMATS.values(), ids=FORMATS)
def test_a_smaller_one_has_the_format_of_the_larger(tmp_path: Path, words: tuple[str, ...]) -> None:
    with loop(blank(tmp_path / "old", GIB)) as old, loop(blank(tmp_path / "new", 400 * MIB)) as new:
        process.run("mkfs.xfs", "-q", *words, old)
        wanted = format_of(process.run("xfs_db", "-r", "-c", "info", old))
        process.run(
            "mkfs.xfs",
            "-q",
            "-f",
            "-K",
            *mkfs_words(wanted, 400 * MIB, 512),
            "-m",
            f"uuid={UUID}",
            new,
        )
        assert shape(new) == shape(old)
        process.run("xfs_repair", "-n", new)
        assert UUID in process.run("blkid", "-p", new)


def test_for_larger_sectors_it_has_such(tmp_path: Path) -> None:
    with loop(blank(tmp_path / "old", GIB)) as old, loop(blank(tmp_path / "new", 400 * MIB)) as new:
        process.run("mkfs.xfs", "-q", old)
        wanted = format_of(process.run("xfs_db", "-r", "-c", "info", old))
        process.run("mkfs.xfs", "-q", "-f", *mkfs_words(wanted, 400 * MIB, 4096), new)
        assert shape(new)["meta-data", "sectsz"] == 4096


@pytest.mark.parametrize("length", [300 * MIB, 512 * MIB, 4 * GIB])
def test_a_log_that_was_large_fits_into_the_smaller_one(tmp_path: Path, length: int) -> None:
    with (
        loop(blank(tmp_path / "old", 64 * GIB)) as old,
        loop(blank(tmp_path / "new", length)) as new,
    ):
        process.run("mkfs.xfs", "-q", "-l", "size=2000m", old)
        wanted = format_of(process.run("xfs_db", "-r", "-c", "info", old))
        process.run("mkfs.xfs", "-q", *mkfs_words(wanted, length, 512), new)
        process.run("xfs_repair", "-n", new)


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """One with files of all kinds, and an empty one."""
    with ExitStack() as stack:
        places = []
        for name in ("old", "new"):
            device = stack.enter_context(loop(blank(tmp_path / f"{name}.img", 400 * MIB)))
            process.run("mkfs.xfs", "-q", device)
            places.append(stack.enter_context(mounted(device, tmp_path / name, "nouuid")))
        old, new = places
        fill(old)
        process.run("chattr", "-R", "-p", "4711", old / "d0")
        process.run("chattr", "+P", old / "d0")
        process.run("xfs_io", "-c", "extsize 65536", old / "d2")
        for flag in "iadA":
            (old / f"flag-{flag}").write_text(flag)
            process.run("chattr", f"+{flag}", old / f"flag-{flag}")
        with (old / "swapfile").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 8 * MIB)
        os.utime(old / "swapfile", ns=(10**18, 10**18 + 1))
        os.setxattr(old / "text", "trusted.ours", b"root alone")
        os.setxattr(old / "text", "security.capability", b"\1\0\0\2\0\4\0\0\0\0\0\0" + bytes(8))
        process.run("chown", "12345:54321", old / "text")
        for name in ("text", "d1", "flag-i"):
            process.run("chattr", "-i", old / name)
            os.setxattr(old / name, "security.selinux", b"system_u:object_r:etc_t:s0\0")
        process.run("chattr", "+i", old / "flag-i")
        (old / "text").chmod(0o4711)
        yield old, new
        for flagged in (path for place in places for path in place.glob("flag-*")):
            process.run("chattr", "-ia", flagged)


def said(path: Path) -> tuple[str, str]:
    return process.run("lsattr", "-d", "-p", path).split()[0], process.run(
        "xfs_io", "-r", "-c", "extsize", path
    ).split()[0]


def test_every_file_is_copied_with_all_that_is_known_of_it(both: tuple[Path, Path]) -> None:
    old, new = both
    assert copy_files(old, new) == ()
    number = compare_files(old, new, "it", contents=True)
    assert number > 400
    assert facts(new) == facts(old)
    for name in ("d0", "d2", "d0/file4", "flag-i", "flag-a", "flag-d", "flag-A"):
        assert said(new / name) == said(old / name)
    assert (new / "swapfile").stat().st_blocks * 512 >= 8 * MIB, "a swap file has no holes"
    assert (new / "sparse").stat().st_blocks * 512 < MIB


def test_how_far_it_is_is_told_meanwhile(
    both: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xfs, "_LOOK", 0.01)
    old, new = both
    (old / "large").write_bytes(os.urandom(64 * MIB))
    told: list[str] = []
    is_told = threading.Event()

    def tell(text: str) -> None:
        told.append(text)
        is_told.set()

    with xfs.watched("disk0/p3", old, new, tell):
        (new / "large").write_bytes((old / "large").read_bytes()[: 40 * MIB])
        process.run("sync", "--file-system", new)
        assert is_told.wait(60)
    assert re.fullmatch(r"files of disk0/p3: about \d+ % of \d.*/s, .* left", told[0])


def _content(place: Path) -> None:
    status = (place / "text").stat()
    with (place / "text").open("r+b") as file:
        file.write(b"other")
    os.utime(place / "text", ns=(status.st_atime_ns, status.st_mtime_ns))


def _more(place: Path) -> None:
    status = place.stat()
    (place / "more").touch()
    os.utime(place, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": _content,
    "time": lambda place: os.utime(place / "text", ns=(0, 1)),
    "mode": lambda place: (place / "text").chmod(0o644),
    "owner": lambda place: os.chown(place / "text", 1, 1),
    "attribute": lambda place: os.removexattr(place / "text", "trusted.ours"),
    "flag": lambda place: process.run("chattr", "-d", place / "flag-d"),
    "missing": lambda place: (place / "fifo").unlink(),
    "more": _more,
    "link": lambda place: (place / "second-name").unlink(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_not_the_same_is_found(
    both: tuple[Path, Path], change: Callable[[Path], object]
) -> None:
    old, new = both
    copy_files(old, new)
    change(new)
    with pytest.raises(VerificationFailed):
        compare_files(old, new, "it", contents=True)
