import json
from pathlib import Path

import pytest

from imager import process
from imager.errors import DrillError, UsageError
from restore.drill import fixture


def test_destroying_leaves_nothing_of_the_data_and_keeps_the_holes(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    process.run("sfdisk", disk, stdin=b"label: gpt\nstart=1MiB,size=32MiB,type=linux\n")
    with disk.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"patient file " * 10000)
    allocated = disk.stat().st_blocks
    done = fixture.destroy(disk)
    assert 130_000 < done < 4 << 20
    assert disk.stat().st_size == 64 << 20
    assert disk.stat().st_blocks <= allocated + 64
    content = disk.read_bytes()
    assert b"patient" not in content
    assert b"EFI PART" not in content
    assert content[510:512] != b"\x55\xaa"


def test_a_disk_that_shows_what_it_was_is_not_destroyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(16 << 20)
    process.run("mkfs.ext4", "-q", disk)
    monkeypatch.setattr(fixture.os, "pwrite", lambda *_: 0)
    with pytest.raises(DrillError, match="ext4"):
        fixture.destroy(disk)


def test_copies_are_equal_sparse_and_private(tmp_path: Path) -> None:
    disk = tmp_path / "pristine.raw"
    with disk.open("wb") as file:
        file.write(b"data" * 1024)
        file.truncate(32 << 20)
    given = fixture.FixtureDisk(disk, 32 << 20, "S1", fixture.Bus.VIRTIO, 512, None)
    (tmp_path / "work").mkdir()
    [copy] = fixture.copy_disks([given], tmp_path / "work", "machine")
    assert copy.read_bytes() == disk.read_bytes()
    assert copy.stat().st_blocks * 512 < 1 << 20
    assert copy.stat().st_mode & 0o777 == 0o600


def test_a_verb_s_answer_is_read(tmp_path: Path) -> None:
    phrase = tmp_path / "phrase"
    phrase.write_text("correct horse battery\n")
    words = ("--keys-dir", tmp_path / "keys", "--passphrase-file", phrase)
    made = fixture.remetal(fixture.Made, "init", tmp_path / "repository", *words)
    assert made.recovery_key.exists()
    assert made.credential.exists()


def test_a_builder_s_description_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = tmp_path / "vm-fixtures" / "build"
    builder.mkdir(parents=True)
    document = {
        "name": "ward",
        "uuid": "5b0e6c1a-93d7-4a52-8c1e-0f4a6d2b7e10",
        "firmware": "uefi",
        "memory_mib": 1024,
        "disks": [
            {
                "path": "/d.img",
                "size": 1,
                "serial": "S",
                "bus": "nvme",
                "sector": 512,
                "device": "/dev/nvme0n1",
            }
        ],
        "facts": str(tmp_path / "facts.json"),
        "manifest": str(tmp_path / "manifest.json"),
        "steps": [{"name": "debian", "seconds": 1.5}],
        "something": "new",
    }
    (builder / "__main__.py").write_text(f"print({json.dumps(json.dumps(document))})")
    (tmp_path / "facts.json").write_text('{"hostname": "ward"}')
    (tmp_path / "manifest.json").write_text("{}")
    monkeypatch.setattr(fixture, "_ROOT", tmp_path)
    built = fixture.build("ward", lambda _: None)
    assert built.disks[0].path == Path("/d.img")
    assert built.disks[0].bus is fixture.Bus.NVME
    assert built.disks[0].device == "/dev/nvme0n1"
    assert built.expected().facts == {"hostname": "ward"}


def test_an_unknown_machine_is_said_with_the_builder_s_words() -> None:
    heard: list[str] = []
    with pytest.raises(DrillError, match="no-such-machine"):
        fixture.build("no-such-machine", heard.append)
    assert heard


def test_a_verb_that_fails_speaks_for_itself(tmp_path: Path) -> None:
    with pytest.raises(DrillError, match="no repository"):
        fixture.remetal(fixture.Captured, "capture", tmp_path / "nothing")


def test_without_a_checkout_there_are_no_fixtures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixture, "_ROOT", tmp_path)
    with pytest.raises(UsageError, match="source checkout"):
        fixture.build("uefi-ext4", lambda _: None)
