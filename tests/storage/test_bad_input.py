"""Bad input, as a person meets it: one clear sentence, an exit code of its own, nothing half-done."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from imager.errors import (
    ChecksFailed,
    CredentialNeeded,
    NoRoom,
    NoSuchDisk,
    NotARepository,
    NotConfirmed,
    ObjectDamaged,
    OutputExists,
    RecoveryKeyNeeded,
    RepositoryExists,
    SecretError,
    TargetTooSmall,
    TruncatedSource,
    UnknownImage,
    UsageError,
    WrongKey,
    WrongPassphrase,
)

MIB = 1 << 20


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def remetal(*words: str | Path, stdin: str = "") -> Result:
    done = subprocess.run(
        [sys.executable, "-m", "imager.console", *map(str, words)],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Result(done.returncode, done.stdout, done.stderr)


def fails(error: type, *words: str | Path, stdin: str = "") -> Result:
    """Run a verb that must fail in just this way: one sentence, then what to do."""
    result = remetal(*words, stdin=stdin)
    assert result.code == error.exit_code, result.out + result.err
    sentences = [line for line in result.err.splitlines() if line.startswith("remetal: ")]
    assert len(sentences) == 1, result.err
    return result


@dataclass(frozen=True)
class Place:
    """A repository with one image of a small real disk."""

    folder: Path
    repository: Path
    disk: Path
    image: str

    @property
    def recovery(self) -> tuple[str | Path, ...]:
        return (
            "--recovery-key",
            self.folder / "keys/recovery.key",
            "--passphrase-file",
            self.folder / "passphrase",
        )

    @property
    def credential(self) -> tuple[str | Path, ...]:
        return ("--credential", self.folder / "keys/capture.credential")


def make_disk(path: Path, content: Path) -> None:
    with path.open("wb") as file:
        file.truncate(64 * MIB)
    table = "label: gpt\nstart=1MiB, size=60MiB, type=linux\n"
    subprocess.run(["sfdisk", "-q", path], input=table, text=True, check=True)
    options = ["-q", "-F", "-t", "ext4", "-d", content, "-E", f"offset={MIB}"]
    subprocess.run(["mke2fs", *options, path, "60M"], check=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Place:
    tmp_path = tmp_path_factory.mktemp("made")
    content = tmp_path / "content"
    content.mkdir()
    (content / "letter").write_text("dear world\n" * 100_000)
    disk = tmp_path / "disk.img"
    make_disk(disk, content)
    (tmp_path / "passphrase").write_text("correct horse battery\n")
    repository = tmp_path / "repository"
    result = remetal(
        "init",
        repository,
        "--keys-dir",
        tmp_path / "keys",
        "--passphrase-file",
        tmp_path / "passphrase",
    )
    assert result.code == 0, result.err
    captured = remetal(
        "capture",
        repository,
        "--disk",
        disk,
        "--name",
        "small",
        "--credential",
        tmp_path / "keys/capture.credential",
        "--json",
    )
    assert captured.code == 0, captured.err
    return Place(tmp_path, repository, disk, json.loads(captured.out)["image"])


@pytest.fixture
def place(made: Place, tmp_path: Path) -> Place:
    """A copy of its own for each test."""
    folder = tmp_path / "place"
    subprocess.run(["cp", "-a", "--sparse=always", made.folder, folder], check=True)
    return Place(folder, folder / "repository", folder / "disk.img", made.image)


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A filesystem with room for almost nothing."""
    mounted = tmp_path / "full"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mounted], check=True)
    yield mounted
    subprocess.run(["umount", mounted], check=True)


def test_wrong_passphrase(place: Place) -> None:
    wrong = place.folder / "wrong"
    wrong.write_text("incorrect horse\n")
    result = fails(
        WrongPassphrase,
        "show",
        place.repository,
        "latest",
        *place.recovery[:2],
        "--passphrase-file",
        wrong,
    )
    assert "incorrect horse" not in result.err


def test_passphrase_needed_but_nobody_to_ask(place: Place) -> None:
    fails(UsageError, "show", place.repository, "latest", *place.recovery[:2])


def test_empty_passphrase_file(place: Place) -> None:
    fails(
        SecretError,
        "show",
        place.repository,
        "latest",
        *place.recovery[:2],
        "--passphrase-file",
        "/dev/null",
    )


def test_short_passphrase(tmp_path: Path) -> None:
    (tmp_path / "short").write_text("abc\n")
    place = tmp_path / "new"
    fails(SecretError, "init", place, "--passphrase-file", tmp_path / "short")
    assert not place.exists()


def test_not_a_repository(place: Place) -> None:
    fails(NotARepository, "images", place.folder / "nothing here", *place.credential)
    fails(NotARepository, "capture", place.folder / "keys", *place.credential)


def test_init_over_something(place: Place) -> None:
    before = (place.repository / "config").read_bytes()
    phrase = ("--passphrase-file", place.folder / "passphrase")
    fails(RepositoryExists, "init", place.repository, *phrase, "--keys-dir", place.folder / "other")
    fails(OutputExists, "init", place.folder / "new", *phrase, "--keys-dir", place.folder / "keys")
    assert (place.repository / "config").read_bytes() == before
    assert not list((place.folder / "other").glob("*"))
    assert not (place.folder / "new").exists()


def test_unknown_image(place: Place) -> None:
    result = fails(UnknownImage, "show", place.repository, "cafe", *place.recovery)
    assert "remetal images" in result.err


def test_no_such_disk(place: Place) -> None:
    words = ("capture", place.repository, *place.credential)
    fails(NoSuchDisk, *words, "--disk", place.folder / "none.img")
    fails(NoSuchDisk, *words, "--disk", "/dev/none")


def test_truncated_disk_file(place: Place) -> None:
    with place.disk.open("r+b") as file:
        file.truncate(30 * MIB)
    fails(TruncatedSource, "capture", place.repository, *place.credential, "--disk", place.disk)
    listed = json.loads(remetal("images", place.repository, *place.credential, "--json").out)
    assert [image["image"] for image in listed["images"]] == [place.image]


def test_credential_can_not_restore(place: Place) -> None:
    target = place.folder / "target.img"
    result = fails(
        RecoveryKeyNeeded,
        "restore",
        place.repository,
        "latest",
        "--map",
        f"disk0={target}",
        "--yes",
        "--recovery-key",
        place.credential[1],
    )
    assert "can add images but cannot open them" in result.err
    assert not target.exists()


def test_nothing_that_captures(place: Place) -> None:
    fails(
        CredentialNeeded,
        "capture",
        place.repository,
        "--disk",
        place.disk,
        "--credential",
        place.folder / "keys/recovery.key",
    )


def test_keys_of_another_repository(place: Place) -> None:
    other = place.folder / "other"
    phrase = ("--passphrase-file", place.folder / "passphrase")
    assert remetal("init", other, *phrase, "--keys-dir", place.folder / "other keys").code == 0
    fails(WrongKey, "capture", other, "--disk", place.disk, *place.credential)
    fails(WrongKey, "show", other, "latest", *place.recovery)


def test_corrupted_pack(place: Place) -> None:
    packs = sorted((place.repository / "packs").rglob("*"), key=lambda path: path.stat().st_size)
    with packs[-1].open("r+b") as file:
        file.seek(packs[-1].stat().st_size // 2)
        file.write(b"rot" * 1000)
    found = remetal("check", place.repository, "--ciphertext", *place.credential)
    assert found.code == ChecksFailed.exit_code
    assert place.image[:12] in found.out
    target = place.folder / "target.img"
    result = fails(
        ObjectDamaged,
        "restore",
        place.repository,
        "latest",
        "--map",
        f"disk0={target}",
        "--yes",
        *place.recovery,
    )
    assert place.image[:12] in result.err


def test_target_too_small(place: Place) -> None:
    target = place.folder / "target.img"
    with target.open("wb") as file:
        file.truncate(63 * MIB)
    before = target.read_bytes()
    fails(
        TargetTooSmall,
        "restore",
        place.repository,
        "latest",
        "--map",
        f"disk0={target}",
        "--yes",
        *place.recovery,
    )
    assert target.read_bytes() == before


def test_no_answer_is_no(place: Place) -> None:
    target = place.folder / "target.img"
    words = ("restore", place.repository, "latest", "--map", f"disk0={target}", *place.recovery)
    for answer in ("", "\n" * 40, "y\n", "no\n"):
        result = remetal(*words, stdin=answer)
        assert result.code == NotConfirmed.exit_code, result.err
        assert not target.exists()


def test_no_room_in_the_repository(place: Place, full: Path) -> None:
    noise = place.folder / "noise.img"
    with noise.open("wb") as file, Path("/dev/urandom").open("rb") as source:
        file.write(source.read(8 * MIB))
    phrase = ("--passphrase-file", place.folder / "passphrase")
    keys = place.folder / "full keys"
    assert remetal("init", full / "repository", *phrase, "--keys-dir", keys).code == 0
    credential = ("--credential", keys / "capture.credential")
    words = ("capture", full / "repository", *credential, "--disk")
    fails(NoRoom, *words, noise)
    listed = json.loads(remetal("images", full / "repository", *credential, "--json").out)
    assert listed == {"images": [], "problems": []}
    assert not list((full / "repository/incoming").iterdir())
    assert remetal("check", full / "repository", *credential).code == 0


def test_errors_as_json(place: Place) -> None:
    result = remetal("show", place.repository, "cafe", *place.recovery, "--json")
    assert result.code == UnknownImage.exit_code
    error = json.loads(result.out)["error"]
    assert error["id"] == UnknownImage.id
    assert error["exit_code"] == result.code
    assert error["hint"]


def test_json_of_a_failed_check_is_one_document(place: Place) -> None:
    (place.repository / "indexes").joinpath("0" * 64).write_bytes(b"junk")
    result = remetal("check", place.repository, *place.credential, "--json")
    document = json.loads(result.out)
    assert document["error"]["exit_code"] == result.code == ChecksFailed.exit_code
    assert document["findings"]
