"""Restores onto disks whose logical sectors have another size; loop devices stand in for them.

What is made anew, FAT, needs drivers that the kernels here lack: drills show it.
"""

import json
from pathlib import Path

import pytest
from restored_disks import SIZE, Saved, digest, extracted, make_tree, onto, place, probe
from test_restore_devices import loop, mounted, noisy

from imager import process
from imager.errors import TargetError
from imager.units import MIB

LARGE = ("--sector-size", "4096")
ROOT_AT, ROOT_SIZE, SWAP_AT = 2 * MIB, 90 * MIB, 92 * MIB


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with sectors of 512 bytes: ext4 with blocks of 4 KiB, and swap."""
    folder = tmp_path_factory.mktemp("sectors")
    make_tree(folder / "tree")
    path, root, swap = folder / "data.raw", folder / "root", folder / "swap"
    path.write_bytes(b"")
    process.run("truncate", "-s", str(SIZE), path)
    table = (
        f"label: gpt\nstart={ROOT_AT // 512}, size={ROOT_SIZE // 512}, type=linux, name=root\n"
        f"start={SWAP_AT // 512}, size={16 * MIB // 512}, type=swap, attrs=LegacyBIOSBootable\n"
    )
    process.run("sfdisk", "--quiet", path, stdin=table.encode())
    words = ("-q", "-t", "ext4", "-b", "4096", "-L", "root", "-d", folder / "tree")
    process.run("mke2fs", *words, root, f"{ROOT_SIZE // 1024}k")
    place(path, ROOT_AT, root)
    process.run("truncate", "-s", str(16 * MIB), swap)
    process.run("mkswap", "-L", "swap", swap)
    place(path, SWAP_AT, swap)
    return path


@pytest.fixture
def captured(saved: Saved, disk: Path) -> Saved:
    assert saved.capture(disk, "--name", "data") == 0
    return saved


def table_of(device: Path) -> dict[str, object]:
    found = json.loads(process.run("sfdisk", "--json", device))["partitiontable"]
    assert isinstance(found, dict)
    return found


def shown(part: Path, folder: Path, *options: str) -> str:
    """Mount what lies in a file as a device, and list all of it."""
    folder.mkdir()
    with loop(part, *options, "--read-only") as device, mounted("-o", "ro", device, folder):
        words = ("find", ".", "-printf", "%p %m %s %T@ %l\n", "-type", "f")
        return process.run(*words, "-exec", "sha256sum", "{}", "+", cwd=folder)


def test_a_gpt_is_written_for_larger_sectors_and_the_rest_stays(
    captured: Saved, disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = noisy(tmp_path / "disk")
    with loop(path, *LARGE) as device:
        assert captured.restore("data", *onto(device), "--fit", "--yes", "--verify-written") == 0
        found = table_of(device)
        assert "No problems found" in process.run("sgdisk", "--verify", device)
    plan = " ".join(capsys.readouterr().out.split())
    assert f"{device} has sectors of 4096 bytes where disk0 had 512" in plan
    assert found["sectorsize"] == 4096
    before = probe(disk).table
    assert before is not None
    parts = found["partitions"]
    assert isinstance(parts, list)
    for part, old in zip(parts, before.partitions, strict=True):
        assert (part["start"] * 4096, part["size"] * 4096) == (old.offset, old.length)
        assert (part["uuid"], part["type"], part.get("name", "")) == (old.uuid, old.type, old.name)
    assert parts[1]["attrs"] == "LegacyBIOSBootable"
    content = path.read_bytes()
    assert content[4096:4104] == b"EFI PART"
    assert content.count(b"EFI PART") == 2, "nothing is left of the table for other sectors"
    old = extracted(disk, ROOT_AT, ROOT_SIZE, tmp_path / "old")
    new = extracted(path, ROOT_AT, ROOT_SIZE, tmp_path / "new")
    process.run("e2fsck", "-fn", new)
    assert shown(new, tmp_path / "after", *LARGE) == shown(old, tmp_path / "before")
    assert content[SWAP_AT : SWAP_AT + 4096] == disk.read_bytes()[SWAP_AT : SWAP_AT + 4096]


def test_a_machine_with_larger_sectors_comes_on_smaller_ones(
    captured: Saved, disk: Path, tmp_path: Path
) -> None:
    large, back = noisy(tmp_path / "large"), noisy(tmp_path / "back")
    with loop(large, *LARGE) as device:
        assert captured.restore("data", *onto(device), "--fit", "--yes") == 0
        assert captured.capture(device, "--name", "large") == 0
    with loop(back) as device:
        assert captured.restore("large", *onto(device), "--fit", "--yes") == 0
        assert "No problems found" in process.run("sgdisk", "--verify", device)
    assert probe(back).table == probe(disk).table
    assert back.read_bytes().count(b"EFI PART") == 2
    process.run("e2fsck", "-fn", extracted(back, ROOT_AT, ROOT_SIZE, tmp_path / "root"))


def refusal(
    saved: Saved, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], *words: str
) -> dict[str, str]:
    """Restore onto larger sectors, which must be refused with nothing written."""
    path = noisy(tmp_path / "disk")
    before = digest(path)
    with loop(path, *LARGE) as device:
        capsys.readouterr()
        code = saved.restore(name, *onto(device), "--yes", "--json", *words)
    assert code == TargetError.exit_code
    assert digest(path) == before
    error = json.loads(capsys.readouterr().out)["error"]
    assert isinstance(error, dict)
    return error


def test_without_fit_other_sectors_are_refused_with_what_would_do(
    captured: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refusal(captured, "data", tmp_path, capsys)
    assert "has sectors of 4096 bytes, disk0 was saved from a disk with 512" in error["message"]
    assert "The data would fit: with --fit" in error["hint"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("uefi", "disk0/p2: ext4 asks the disk for 1024 bytes at a time"),
        ("bios", "its MBR counts in sectors"),
    ],
)
def test_what_would_not_work_there_is_refused(
    saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, why: str
) -> None:
    assert why in refusal(saved, name, tmp_path, capsys, "--fit")["message"]
    assert why in refusal(saved, name, tmp_path, capsys)["hint"]
