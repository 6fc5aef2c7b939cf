"""From a real disk file through a real repository to other files: equal where it matters.

The verbs run as a person runs them, in this process; what they print and return is looked at too.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from restored_disks import (
    ESP_AT,
    ESP_SIZE,
    ROOT_AT,
    ROOT_SIZE,
    SIZE,
    Saved,
    digest,
    extracted,
    probe,
    tree_in,
)

from imager import process
from imager.units import GIB, MIB


def test_an_mbr_disk_comes_back_byte_for_byte_in_all_that_matters(
    saved: Saved, tmp_path: Path
) -> None:
    target = tmp_path / "bios.raw"
    assert saved.restore("bios", "--map", f"disk0={target}", "--yes") == 0
    assert digest(target) == digest(saved.mbr)  # its free space was zero, so all of it is equal
    assert target.stat().st_blocks * 512 < saved.mbr.stat().st_blocks * 512 + 4 * MIB


def test_a_gpt_disk_comes_back_and_free_space_does_not(saved: Saved, tmp_path: Path) -> None:
    target = tmp_path / "uefi.raw"
    assert saved.restore("uefi", "--map", f"disk0={target}", "--yes") == 0
    assert probe(target).table == probe(saved.gpt).table
    assert probe(target).volumes == probe(saved.gpt).volumes
    with target.open("rb") as new, saved.gpt.open("rb") as old:
        assert new.read(MIB) == old.read(MIB)
        for file in (new, old):
            file.seek(-MIB, os.SEEK_END)
        assert new.read() == old.read()
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    tree = tree_in(target, ROOT_AT, ROOT_SIZE, after)
    assert tree == tree_in(saved.gpt, ROOT_AT, ROOT_SIZE, before)
    assert "etc/hostname" in tree
    # Noise that was free is not in the image; had it been read, nearly all of the disk would be.
    assert target.stat().st_blocks * 512 < 60 * MIB
    label = process.run("blkid", "-p", "-O", str(94 * MIB), "-S", str(16 * MIB), target)
    assert 'LABEL="swap"' in label


def test_the_loader_is_copied_to_the_fallback_path(saved: Saved, tmp_path: Path) -> None:
    target = tmp_path / "uefi.raw"
    assert saved.restore("uefi", "--map", f"disk0={target}", "--yes") == 0
    for name in ("debian/shimx64.efi", "BOOT/BOOTX64.EFI"):
        process.run("mcopy", "-i", f"{target}@@{ESP_AT}", f"::/EFI/{name}", tmp_path)
    assert digest(tmp_path / "BOOTX64.EFI") == digest(saved.folder / "shimx64.efi")
    process.run("fsck.vfat", "-n", extracted(target, ESP_AT, ESP_SIZE, tmp_path / "esp"))


def test_the_log_is_left_on_the_restored_machine(saved: Saved, tmp_path: Path) -> None:
    target = tmp_path / "uefi.raw"
    words = ["--yes", "--log-to-esp"]
    assert saved.restore("uefi", "--map", f"disk0={target}", *words) == 0
    process.run("mcopy", "-i", f"{target}@@{ESP_AT}", "::/EFI/remetal/restore.log", tmp_path)
    text = (tmp_path / "restore.log").read_text()
    assert "write disk0/boot-area" in text
    assert "Restored; finished" in text
    assert "reads nothing back" in text


def test_a_larger_target_gets_its_backup_gpt_at_its_end(saved: Saved, tmp_path: Path) -> None:
    target = tmp_path / "larger.raw"
    with target.open("wb") as file:
        for _ in range(200):
            file.write(os.urandom(MIB))
    log = tmp_path / "restore.log"
    assert saved.restore("uefi", "--map", f"disk0={target}", "--yes", "--log", str(log)) == 0
    assert target.stat().st_size == 200 * MIB
    assert "No problems found" in process.run("sgdisk", "--verify", target)
    assert probe(target).table == probe(saved.gpt).table
    found = json.loads(process.run("sfdisk", "--json", target))["partitiontable"]
    assert found["lastlba"] == 200 * MIB // 512 - 34
    content = target.read_bytes()
    assert content.count(b"EFI PART") == 2, "no old header is left in the middle"
    assert "relocate-backup-gpt" in log.read_text()
    assert "Restored; finished" in log.read_text()


def test_no_signature_of_an_old_life_survives(saved: Saved, tmp_path: Path) -> None:
    """An old disk full of labels where the new filesystems have free space."""
    target = tmp_path / "old.raw"
    with target.open("wb") as file:
        file.truncate(SIZE)
        for offset in range(0, SIZE, 4096):
            file.seek(offset)
            file.write(b"LABELONE" + bytes(16) + b"LVM2 001")
            file.seek(offset + 1024)
            file.write(b"SKUL\xba\xbe\0\2" + b"\xfc\x4e\x2b\xa9")
    assert saved.restore("uefi", "--map", f"disk0={target}", "--yes") == 0
    for offset, size, kind in ((ESP_AT, ESP_SIZE, "vfat"), (ROOT_AT, ROOT_SIZE, "ext4")):
        seen = process.run("wipefs", "--noheadings", "--no-act", "--output", "TYPE",
                           extracted(target, offset, size, tmp_path / "part"))  # fmt: skip
        assert set(seen.split()) == {kind}
    assert b"LABELONE" not in target.read_bytes()


def test_dry_run_shows_what_runs_and_writes_nothing(
    saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "old.raw"
    target.write_bytes(os.urandom(MIB) * 130)
    before = digest(target)
    assert saved.restore("uefi", "--map", f"disk0={target}", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert digest(target) == before
    assert saved.restore("uefi", "--map", f"disk0={target}", "--yes") == 0
    assert capsys.readouterr().out.startswith(shown)
    assert saved.restore("uefi", "--map", f"disk0={tmp_path / 'new.raw'}", "--dry-run") == 0
    assert not (tmp_path / "new.raw").exists()


def test_json_is_one_document(
    saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "new.raw"
    assert saved.restore("bios", "--map", f"disk0={target}", "--yes", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["outcome"] == "restored"
    writes = [step for step in document["steps"] if step["name"] == "write"]
    assert {step["subject"] for step in writes} >= {"disk0/p1", "disk0/p5", "disk0/boot-area"}
    assert sum(step["bytes"] for step in writes) == document["plan"]["written_bytes"]
    assert saved.restore("bios", "--map", f"disk0={target}", "--json") == 2
    assert json.loads(capsys.readouterr().out)["error"]["id"] == "usage"


def test_a_damaged_file_is_repaired_and_little_is_written(
    saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "bios.raw"
    assert saved.restore("bios", "--map", f"disk0={target}", "--yes") == 0
    with target.open("r+b") as file:
        for place in (0, 5 * MIB, 61 * MIB, 70 * MIB):
            file.seek(place)
            file.write(os.urandom(5000))
    damaged = digest(target)
    words = ["--map", f"disk0={target}", "--delta"]
    assert saved.restore("bios", *words, "--dry-run") == 0
    assert "write what differs of disk0/p1" in " ".join(capsys.readouterr().out.split())
    assert digest(target) == damaged
    assert saved.restore("bios", *words, "--verify-written", "--yes", "--json") == 0
    assert digest(target) == digest(saved.mbr)
    document = json.loads(capsys.readouterr().out)
    written = sum(step["bytes"] for step in document["steps"] if step["name"] == "write")
    assert 0 < written < 4 * MIB
    assert [each["pass"] for each in document["passes"]] == ["compare", "write", "read back"]
    assert saved.restore("bios", *words, "--yes") == 0
    assert "nothing differs from the image" in capsys.readouterr().out
    assert digest(target) == digest(saved.mbr)


def test_stats_show_where_the_time_went(
    saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "bios.raw"
    words = ["--yes", "--verify-written", "--stats"]
    assert saved.restore("bios", "--map", f"disk0={target}", *words) == 0
    shown = capsys.readouterr().out
    for stage in ("fetch", "open", "write", "flush", "read", "compare"):
        assert f"\n  {stage} " in shown
    assert "busy" in shown


@pytest.mark.parametrize(
    ("target", "code", "words"),
    [
        ("small.raw", 41, "too small"),
        ("nowhere/new.raw", 45, "no folder"),
        ("repository/new.raw", 44, "lies in the repository"),
        (".", 31, "neither a disk nor a disk file"),
    ],
)
def test_refusals_come_before_the_first_write(
    saved: Saved,
    tmp_path: Path,
    target: str,
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = tmp_path / "small.raw"
    small.write_bytes(b"precious" * 1000)
    if target.startswith("repository"):
        tmp_path = saved.folder
    before = sorted(path for path in saved.repository.rglob("*"))
    assert saved.restore("uefi", "--map", f"disk0={tmp_path / target}", "--yes") == code
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert small.read_bytes() == b"precious" * 1000
    assert sorted(path for path in saved.repository.rglob("*")) == before


def test_without_yes_and_without_a_terminal_nothing_is_written(
    saved: Saved, tmp_path: Path
) -> None:
    target = tmp_path / "old.raw"
    target.write_bytes(os.urandom(MIB) * 128)
    before = digest(target)
    assert saved.restore("uefi", "--map", f"disk0={target}") == 48
    assert digest(target) == before


def test_a_log_that_can_not_be_written_is_known_before(saved: Saved, tmp_path: Path) -> None:
    target = tmp_path / "new.raw"
    words = ["--yes", "--log", "/proc/nothing/restore.log"]
    assert saved.restore("uefi", "--map", f"disk0={target}", *words) == 50
    assert not target.exists()


@pytest.fixture
def tiny_filesystem(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "tiny"
    folder.mkdir()
    process.run("mount", "-t", "tmpfs", "-o", f"size={8 * MIB}", "tmpfs", folder)
    yield folder
    process.run("umount", folder)


def test_a_full_filesystem_is_known_before(
    saved: Saved, tiny_filesystem: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tiny_filesystem / "new.raw"
    assert saved.restore("uefi", "--map", f"disk0={target}", "--yes") == 51
    assert "needs" in capsys.readouterr().err
    assert not target.exists()


def test_a_filesystem_that_fills_up_leaves_nothing_behind(
    saved: Saved,
    tiny_filesystem: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("restore.targets.check_room", lambda _: None)
    target = tiny_filesystem / "new.raw"
    assert saved.restore("uefi", "--map", f"disk0={target}", "--yes") == 46
    error = capsys.readouterr().err
    assert f"of {target} (disk0) failed: No space left on device" in error
    assert not target.exists()


def test_a_damaged_pack_never_gives_wrong_bytes(
    saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "repository"
    process.run("cp", "-r", saved.repository, repository)
    damaged = Saved(saved.folder, repository, saved.gpt, saved.mbr)
    # In all packs: two workers may have stored one chunk each in their own.
    for pack in (path for path in (repository / "packs").rglob("*") if path.is_file()):
        pack.chmod(0o600)
        with pack.open("r+b") as file:
            file.seek(pack.stat().st_size // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))
    codes = []
    for name in ("uefi", "bios"):
        target = tmp_path / f"{name}.raw"
        codes.append(damaged.restore(name, "--map", f"disk0={target}", "--yes"))
        assert target.exists() == (codes[-1] == 0)
    assert set(codes) <= {0, 15}
    assert 15 in codes
    assert "touched" in capsys.readouterr().err


def test_sparse_terabytes_cost_nothing(saved: Saved, tmp_path: Path) -> None:
    """A file far larger than the saved disk: only what was saved is written."""
    target = tmp_path / "huge.raw"
    with target.open("wb") as file:
        file.truncate(100 * GIB)
    assert saved.restore("uefi", "--map", f"disk0={target}", "--yes") == 0
    assert target.stat().st_blocks * 512 < 60 * MIB
    assert "No problems found" in process.run("sgdisk", "--verify", target)
