"""Disks that hold something of somebody else: refused untouched, unless they are named.

Loop devices have no serial number, so their size in bytes is what names them.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import killed
import pytest
from restored_disks import ROOT_AT, ROOT_SIZE, SIZE, Saved, digest, make_foreign, onto, place
from test_restore_devices import loop, noisy

from imager import process
from imager.units import MIB

FOREIGN = 49
NOTHING = "none of it is of this machine"


def noise_at_the_end(path: Path) -> Path:
    process.run("truncate", "-s", str(SIZE), path)
    with path.open("r+b") as file:
        file.seek(SIZE - MIB // 2)
        file.write(os.urandom(512))
    return path


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("make", "holds"),
    [
        (make_foreign, f"ext4 'data'; {NOTHING}"),
        (noisy, "something that can't be understood"),
        (noise_at_the_end, "something that can't be understood"),
    ],
)
def test_a_foreign_disk_is_refused_untouched_unless_it_is_named(
    make: Callable[[Path], Path],
    holds: str,
    saved: Saved,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk = make(tmp_path / "disk")
    before = digest(disk)
    with loop(disk) as device:
        bare = ["bios", "--map", f"disk0={device}"]
        assert saved.restore(*bare, "--dry-run", "--json") == 0
        (row,) = json.loads(capsys.readouterr().out)["plan"]["targets"]
        assert row["foreign"][-1] in holds
        assert saved.restore(*bare, "--yes") == FOREIGN
        shown = capsys.readouterr()
        assert holds in words(shown.out)
        assert holds in words(shown.err)
        assert f"--overwrite-serial {SIZE}" in words(shown.err)
        for typo in (str(SIZE - 1), str(device), "disk0"):
            assert saved.restore(*bare, "--yes", "--overwrite-serial", typo) == 2
            assert saved.restore(*bare, "--dry-run", "--overwrite-serial", typo) == 2
        assert saved.restore(*bare, "--yes", "--delta") == FOREIGN
        process.run("blockdev", "--flushbufs", device)
        assert digest(disk) == before
        assert saved.restore("bios", *onto(device), "--yes") == 0
    assert digest(disk) != before
    assert process.run("sfdisk", "--disk-id", disk).strip() == "0x1234abcd"


def test_blank_disks_and_the_disk_of_the_machine_are_not_foreign(
    saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also when all that is left of the old one is a filesystem below another table."""
    disk = tmp_path / "disk"
    process.run("truncate", "-s", str(SIZE), disk)
    moved = tmp_path / "moved"
    process.run("truncate", "-s", str(SIZE), moved)
    process.run("sfdisk", "--quiet", moved, stdin=f"label: gpt\nstart={ROOT_AT // 512}\n".encode())
    part = tmp_path / "part"
    with saved.gpt.open("rb") as file:
        file.seek(ROOT_AT)
        part.write_bytes(file.read(ROOT_SIZE))
    place(moved, ROOT_AT, part)
    with loop(disk) as device, loop(moved) as other:
        for _ in ("blank", "restored"):
            assert saved.restore("uefi", "--map", f"disk0={device}", "--yes") == 0
            assert NOTHING not in words(capsys.readouterr().out)
        assert saved.restore("uefi", "--map", f"disk0={other}", "--dry-run", "--json") == 0
        assert json.loads(capsys.readouterr().out)["plan"]["targets"][0]["foreign"] == []
        assert saved.restore("bios", "--map", f"disk0={device}", "--yes") == FOREIGN


def test_a_file_is_not_foreign(saved: Saved, tmp_path: Path) -> None:
    disk = make_foreign(tmp_path / "disk")
    assert saved.restore("bios", "--map", f"disk0={disk}", "--yes") == 0


def test_an_unfinished_restore_is_not_foreign_and_the_same_words_go_on(
    saved: Saved,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("restore.windows.WINDOW", killed.WINDOW)
    disk = make_foreign(tmp_path / "disk")
    with loop(disk) as device:
        bare = ["bios", "--map", f"disk0={device}"]
        assert killed.restore(saved, *bare, "--yes").code == FOREIGN
        whole = killed.restore(saved, "bios", *onto(device), "--yes")
        assert whole.code == 0
        process.run(
            "dd", f"if={make_foreign(tmp_path / 'again')}", f"of={device}", "bs=1M", "status=none"
        )
        moment = whole.operations * 2 // 3
        assert killed.restore(saved, "bios", *onto(device), "--yes", kill_at=moment).code == -9
        for line in (bare, ["bios", *onto(device)]):
            assert saved.restore(*line, "--dry-run", "--json") == 0
            plan = json.loads(capsys.readouterr().out)["plan"]
            assert plan["resumes"]
            assert plan["targets"][0]["foreign"] == []
        assert saved.restore(*bare, "--yes") == 0


@pytest.fixture
def types(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Type lines at a terminal, one after the other."""
    master, slave = os.openpty()
    with os.fdopen(slave, "r") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        yield lambda lines: (os.write(master, lines.encode()), None)[1]
    os.close(master)


@pytest.mark.parametrize("line", ["overwrite", "yes", "", str(SIZE + 1), str(SIZE)])
def test_at_a_terminal_its_name_is_typed(
    line: str,
    saved: Saved,
    tmp_path: Path,
    types: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk = make_foreign(tmp_path / "disk")
    before = digest(disk)
    with loop(disk) as device:
        types(f"{line}\n")
        agreed = line == str(SIZE)
        assert saved.restore("bios", "--map", f"disk0={device}") == (0 if agreed else 48)
        shown = words(capsys.readouterr().out)
        assert f"Type the size in bytes of {device} to overwrite it, anything else" in shown
        assert "Type overwrite" not in shown
        process.run("blockdev", "--flushbufs", device)
    assert (digest(disk) != before) is agreed


def test_at_a_terminal_who_named_it_before_types_the_word(
    saved: Saved, tmp_path: Path, types: Callable[[str], None]
) -> None:
    disk = make_foreign(tmp_path / "disk")
    with loop(disk) as device:
        for line, code in ((str(SIZE), 48), ("overwrite", 0)):
            types(f"{line}\n")
            assert saved.restore("bios", *onto(device)) == code
