"""`capture --forensic`: every sector of a disk, also of what is deleted or in no partition."""

import json
import os
from pathlib import Path

import pytest
from disk_files import noise
from restored_disks import Saved, digest

from imager import process
from imager.units import MIB

SIZE = 152 * MIB
RESIDUE = (40 * MIB, 130 * MIB, SIZE - 2 * MIB)  # free in ext4, in the gap, behind the gap


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ext4 with residue in its free blocks, swap with content, LUKS, and a gap of 78 MiB."""
    folder = tmp_path_factory.mktemp("forensic")
    path = folder / "disk.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
        for offset in RESIDUE:
            os.pwrite(file.fileno(), noise(MIB // 2, offset), offset)
        os.pwrite(file.fileno(), noise(4 * MIB, 1), 50 * MIB)
    table = (
        "label: dos\n"
        f"start=2048, size={48 * MIB // 512}, type=83\n"
        f"start={50 * MIB // 512}, size={4 * MIB // 512}, type=82\n"
        f"start={54 * MIB // 512}, size={18 * MIB // 512}, type=83\n"
    )
    process.run("sfdisk", "--quiet", "--wipe=never", path, stdin=table.encode())
    process.run(
        "mke2fs", "-q", "-F", "-t", "ext4", "-E", f"offset={MIB},nodiscard", path, f"{48 * 1024}k"
    )
    swap, luks = folder / "swap", folder / "luks"
    with path.open("rb") as file:
        swap.write_bytes(os.pread(file.fileno(), 4 * MIB, 50 * MIB))
    process.run("mkswap", swap)
    with luks.open("wb") as file:
        file.truncate(18 * MIB)
    process.run(
        "cryptsetup", "luksFormat", "--batch-mode", "--pbkdf", "pbkdf2",
        "--pbkdf-force-iterations", "1000", luks, stdin=b"a passphrase",
    )  # fmt: skip
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), swap.read_bytes(), 50 * MIB)
        os.pwrite(file.fileno(), luks.read_bytes(), 54 * MIB)
    return path


def test_what_the_plan_says(saved: Saved, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert saved.capture(disk, "--dry-run", "--json") == 0
    plain = json.loads(capsys.readouterr().out)
    assert saved.capture(disk, "--dry-run", "--json", "--forensic") == 0
    forensic = json.loads(capsys.readouterr().out)
    assert (plain["forensic"], forensic["forensic"]) == (False, True)
    assert [row["method"] for row in plain["volumes"]] == [
        "whole", "ext block bitmap", "whole", "swap header", "LUKS, closed", "whole", "whole",
    ]  # fmt: skip
    assert not any(row["reason"] for row in plain["volumes"])
    assert plain["read_bytes"] < 40 * MIB
    assert {row["method"] for row in forensic["volumes"]} == {"every sector"}
    assert forensic["read_bytes"] == SIZE
    assert saved.capture(disk, "--dry-run", "--forensic") == 0
    assert "every sector" in capsys.readouterr().out


def test_every_sector_comes_back(
    saved: Saved, disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert saved.capture(disk, "--name", "evidence", "--forensic") == 0
    assert saved.capture(disk, "--name", "everyday") == 0
    for name in ("evidence", "everyday"):
        assert saved.restore(name, "--map", f"disk0={tmp_path / name}", "--yes") == 0
    assert digest(tmp_path / "evidence") == digest(disk)
    for offset in RESIDUE[:2]:
        with (tmp_path / "everyday").open("rb") as file:
            assert os.pread(file.fileno(), MIB // 2, offset) == bytes(MIB // 2)
