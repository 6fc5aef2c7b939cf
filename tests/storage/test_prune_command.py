"""`remetal prune`, `hold` and `release` as a user runs them, on real repositories."""

import json
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from imager.layout.firmware import Firmware, FirmwareKind
from imager.layout.machine import Machine
from imager.repository import image as image_format
from imager.repository.header import Magic
from imager.repository.image import Manifest
from imager.repository.keyring import Credential
from imager.repository.repository import Repository
from imager.repository.session import Session
from imager.upkeep.prune import DEFAULT_QUARANTINE

PHRASE = "three words here"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "phrase").write_text(PHRASE + "\n")
    run(tmp_path, "init", "repo", "--keys-dir", "keys")
    return tmp_path


def run(place: Path, *words: str, code: int = 0) -> str:
    environment = {
        **os.environ,
        "REMETAL_PASSPHRASE_FILE": str(place / "phrase"),
        "XDG_CONFIG_HOME": str(place / "config"),
        "XDG_CACHE_HOME": str(place / "cache"),
    }
    if words[0] in {"prune", "hold", "release"}:
        words = (*words, "--recovery-key", "keys/recovery.key")
    found = subprocess.run(
        [sys.executable, "-m", "imager.console", *words],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == code, found.stdout + found.stderr
    return found.stdout


def capture(place: Path, name: str) -> str:
    (place / "disk").write_bytes(os.urandom(2_000_000))
    text = run(
        place, "capture", "repo", "--disk", "disk", "--name", name,
        "--credential", "keys/capture.credential", "--json",
    )  # fmt: skip
    found: str = json.loads(text)["image"]
    return found


def age(folder: Path, seconds: float) -> None:
    for path in folder.iterdir():
        when = path.stat().st_mtime - seconds
        os.utime(path, (when, when))


def images(place: Path) -> set[str]:
    return {path.name for path in (place / "repo" / "images").iterdir()}


def test_dry_run_shows_what_a_run_does(place: Path) -> None:
    old, new = capture(place, "web"), capture(place, "web")
    before = sorted(path for path in (place / "repo").rglob("*"))
    plan = json.loads(run(place, "prune", "repo", "--keep-last", "1", "--dry-run", "--json"))
    assert plan["result"] is None
    assert sorted(path for path in (place / "repo").rglob("*") if "incoming" not in str(path)) == [
        path for path in before if "incoming" not in str(path)
    ]
    text = run(place, "prune", "repo", "--keep-last", "1", "--dry-run")
    assert re.search(rf"{old[:12]} .*remove +beyond every rule", text)
    assert re.search(rf"{new[:12]} .*keep +newest of web", text)
    done = json.loads(run(place, "prune", "repo", "--keep-last", "1", "--json"))
    assert done["condemn"]["images"] == plan["condemn"]["images"] == [old]
    assert done["condemn"]["packs"] == plan["condemn"]["packs"]
    assert images(place) == {old, new}
    age(place / "repo" / "removals", DEFAULT_QUARANTINE + 1)
    assert "1 images and" in run(place, "prune", "repo", "--keep-last", "1")
    assert images(place) == {new}


def test_a_held_image_stays_until_it_is_released(place: Path) -> None:
    old, new = capture(place, "web"), capture(place, "web")
    run(place, "hold", "repo", old[:8], "--reason", "court case 12")
    assert "hold: court case 12" in run(place, "prune", "repo", "--keep-last", "1")
    held = json.loads(run(place, "hold", "repo", "--json"))["holds"][0]
    assert held["images"] == [old]
    run(place, "release", "repo", held["hold"][:6])
    run(place, "prune", "repo", "--keep-last", "1")
    age(place / "repo" / "removals", DEFAULT_QUARANTINE + 1)
    run(place, "prune", "repo", "--keep-last", "1")
    assert images(place) == {new}


def test_a_hold_that_can_not_be_read_stops_a_prune(place: Path) -> None:
    old, _ = capture(place, "web"), capture(place, "web")
    run(place, "hold", "repo", old[:8], "--reason", "court case 12", "--json")
    held = json.loads(run(place, "hold", "repo", "--json"))["holds"][0]["hold"]
    path = place / "repo" / "statements" / held
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    run(place, "prune", "repo", "--keep-last", "1", code=18)
    assert not (place / "repo" / "removals").exists()


def test_held_in_quarantine_an_image_is_rescued(place: Path) -> None:
    old, new = capture(place, "web"), capture(place, "web")
    run(place, "prune", "repo", "--keep-last", "1")
    run(place, "hold", "repo", old[:8], "--reason", "wait", "--for", "30d")
    age(place / "repo" / "removals", DEFAULT_QUARANTINE + 1)
    text = run(place, "prune", "repo", "--keep-last", "1")
    assert "1 images and" in text
    assert images(place) == {old, new}


def test_immutable_files_go_when_somebody_lifts_that(place: Path, ext4: Path) -> None:
    shutil.move(place / "repo", ext4 / "repo")
    (place / "repo").symlink_to(ext4 / "repo")
    old, new = capture(place, "web"), capture(place, "web")
    run(place, "prune", "repo", "--keep-last", "1")
    age(place / "repo" / "removals", DEFAULT_QUARANTINE + 1)
    subprocess.run(["chattr", "-R", "+i", ext4 / "repo" / "images"], check=True)
    text = run(place, "prune", "repo", "--keep-last", "1", "--dry-run")
    assert "Not wanted, and kept by the store: 1 images and 0 packs, until somebody lifts" in text
    locked = json.loads(run(place, "prune", "repo", "--keep-last", "1", "--json"))["locked"]
    assert locked == [{"object": f"images/{old}", "until": None}]
    assert images(place) == {old, new}
    subprocess.run(["chattr", "-R", "-i", ext4 / "repo" / "images"], check=True)
    run(place, "prune", "repo", "--keep-last", "1")
    age(place / "repo" / "removals", DEFAULT_QUARANTINE + 1)
    run(place, "prune", "repo", "--keep-last", "1")
    assert images(place) == {new}


def test_a_capture_credential_can_not_prune(place: Path) -> None:
    capture(place, "web")
    text = subprocess.run(
        [sys.executable, "-m", "imager.console", "prune", "repo", "--upkeep-credential", "keys/capture.credential"],
        cwd=place, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert text.returncode == 23
    assert "capture credential" in text.stderr


def test_nonsense_is_refused(place: Path) -> None:
    run(place, "prune", "repo", "--quarantine", "5m", code=2)
    run(place, "prune", "repo", "--quarantine", "soon", code=2)
    run(place, "prune", "repo", "--keep-last", "0", code=2)
    run(place, "hold", "repo", "latest", code=2)
    run(place, "release", "repo", "0000", code=16)


def test_a_thousand_forged_images_age_nothing_out(place: Path) -> None:
    """A credential was taken over, and its clock says 2099."""
    first = capture(place, "web")
    repository = Repository.open(str(place / "repo"))
    attacker = Credential.read(place / "keys" / "capture.credential")
    now = datetime.now(UTC)
    older = [now - timedelta(days=days) for days in (400, 300, 200, 130, 100, 80, 30, 2)]
    honest = add_images(repository, attacker, first, older)
    for image, when in zip(honest, older, strict=True):
        os.utime(place / "repo" / "images" / image, (when.timestamp(), when.timestamp()))
    before = json.loads(run(place, "prune", "repo", "--dry-run", "--json"))
    far = datetime(2099, 1, 1, tzinfo=UTC)
    add_images(repository, attacker, first, [far + timedelta(hours=n) for n in range(1000)])
    after = json.loads(run(place, "prune", "repo", "--json"))
    kept = {item["image"]: item["keep"] for item in after["images"]}
    assert len(kept) == 1000 + len(honest) + 1
    assert all(kept[image] for image in [*honest, first])
    assert all(item["keep"] for item in before["images"])
    assert any("1000 images of web" in text and "2099" in text for text in after["observations"])
    assert not after["condemn"]["images"]


def add_images(
    repository: Repository, credential: Credential, like: str, claims: list[datetime]
) -> list[str]:
    """Add images with the content of one that is there, signed, and finished when they claim."""
    keys = repository.credential_keys(credential)
    summary = next(image.summary for image in repository.images(keys)[0] if image.id == like)
    machine = Machine(summary.machine_id, "web", "x86_64", Firmware(FirmwareKind.BIOS), ())
    manifest = Manifest(machine, {}, "test")
    session = Session(repository, credential)
    found = []
    for claim in claims:
        stamp = claim.strftime("%Y-%m-%dT%H:%M:%SZ")
        image_id, data = image_format.encode(
            session._header(Magic.IMAGE, 0, len(session._envelope)),
            session._envelope,
            msgspec.structs.replace(summary, started=stamp, finished=stamp),
            manifest,
            keys.directory_key,
            session._manifest_key,
            credential.certificate,
            credential.signer,
        )
        repository.backend.put_new(image_format.PREFIX + image_id, [data])
        found.append(image_id)
    return found
