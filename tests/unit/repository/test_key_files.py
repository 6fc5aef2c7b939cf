"""Files of keys and pages: whole, durable, never over anything, and a clear word when they can't be."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from imager.commands import key_pages
from imager.commands.images import images
from imager.commands.key import key as key_group
from imager.commands.secrets import CREDENTIAL_FILE, ask_pages, default_folder
from imager.console import Output
from imager.errors import (
    NoRoom,
    OutputError,
    OutputExists,
    RemetalError,
    SecretError,
    UntrustedObject,
    UsageError,
)
from imager.repository import keyring, shares
from imager.repository.crypto.recipient import RecipientKey
from imager.repository.keyring import LockedRecoveryKey
from imager.repository.retrieval import Unlocked
from imager.upkeep import membership, paper
from restore.console_ui.terminal import LeaveToShell, StartAgain, Terminal
from tests.conftest import Tiny

KEY = RecipientKey(bytes(range(32)))
PAGES = shares.split(KEY, 3, 5)
LINES = [" ".join(page.words) for page in PAGES]


@pytest.fixture
def phrase(tmp_path: Path) -> Path:
    (tmp_path / "phrase").write_text("right one")
    return tmp_path / "phrase"


def run(command: click.Command, *args: object) -> tuple[int, dict]:
    done = CliRunner().invoke(command, [str(each) for each in (*args, "--json")])
    return done.exit_code, json.loads(done.stdout) if done.stdout else {}


def write_pages(folder: Path) -> list[Path]:
    told = {"label": "key", "recipient": "r", "repository": None, "today": "today"}
    return paper.write(folder, PAGES, **told)


def test_places_that_take_no_file(tmp_path: Path, phrase: Path) -> None:
    LockedRecoveryKey.lock(KEY, "right one", "label", None).write(tmp_path / "key")
    (tmp_path / "pages").write_text("\n".join(LINES))
    secret = ["--passphrase-file", phrase]
    nowhere = tmp_path / "nowhere" / "x"
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    for args in (
        ["new", nowhere],
        ["join", "-o", nowhere, "--pages", tmp_path / "pages"],
        ["split", tmp_path / "key", "-o", "/proc/x"],
    ):
        code, shown = run(key_group, *args, *secret)
        assert code == OutputError.exit_code
        assert shown["error"]["id"] == "output"
    assert run(key_group, "new", dangling, *secret)[0] == OutputExists.exit_code
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "page-2-of-5.txt").symlink_to(tmp_path / "nowhere")
    args = ["split", tmp_path / "key", "-o", folder, *secret]
    assert run(key_group, *args)[0] == OutputExists.exit_code
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    ("place", "numbers", "error"),
    [
        ("taken", ("3", "5"), OutputExists),
        ("file/below", ("3", "5"), OutputError),
        ("dangling", ("3", "5"), OutputExists),
        ("new", ("6", "5"), UsageError),
        ("new", ("1", "5"), UsageError),
    ],
)
def test_what_can_not_be_split_is_said_before_the_passphrase_is_asked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    numbers: tuple[str, str],
    error: type[RemetalError],
) -> None:
    LockedRecoveryKey.lock(KEY, "right one", "label", None).write(tmp_path / "key")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "page-5-of-5.html").touch()
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    asked: list[str] = []
    monkeypatch.setattr(key_pages, "ask", lambda text: asked.append(text) or "right one")
    need, pages = numbers
    words = ["--need", need, "--pages", pages, "-o", tmp_path / place]
    code, _ = run(key_group, "split", tmp_path / "key", *words)
    assert code == error.exit_code
    assert not asked


def test_pages_go_into_a_folder_that_is_made(tmp_path: Path, phrase: Path) -> None:
    LockedRecoveryKey.lock(KEY, "right one", "label", None).write(tmp_path / "key")
    place = tmp_path / "some" / "where"
    args = ["split", tmp_path / "key", "-o", place, "--passphrase-file", phrase]
    assert run(key_group, *args)[0] == 0
    assert len(list(place.iterdir())) == 10


def test_half_a_split_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.link, []

    def full(*args: object, **options: object) -> None:
        calls.append(args)
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, "No space left on device", "x")
        real(*args, **options)

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(NoRoom):
        write_pages(tmp_path / "pages")
    assert list((tmp_path / "pages").iterdir()) == []


def test_a_key_file_is_whole_and_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    real = os.fsync

    def watched(descriptor: int) -> None:
        flushed.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    path = tmp_path / "key"
    keyring.write_new(path, b"text")
    assert len(flushed) == 2
    assert flushed[1] == str(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(OutputExists):
        keyring.write_new(path, b"other")
    assert [each.name for each in tmp_path.iterdir()] == ["key"]


def test_a_filesystem_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    keyring.write_new(tmp_path / "key", b"text")
    with pytest.raises(OutputExists):
        keyring.write_new(tmp_path / "key", b"other")
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"text"]


def page_with(word: str) -> list[str]:
    while True:
        for page in shares.split(KEY, 2, 16):
            if word in page.words:
                return list(page.words)


def test_a_word_of_a_page_is_no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([*page_with("again"), "", "/again", "/shell"])
    monkeypatch.setattr(click, "prompt", lambda *_, **__: next(answers))
    terminal = Terminal(Output(quiet=True))
    with pytest.raises(StartAgain):
        ask_pages(terminal.say, terminal.ask_words)
    with pytest.raises(LeaveToShell):
        terminal.ask_words("Next page")


def test_a_wrong_word_costs_its_line_only() -> None:
    first, said = PAGES[0].words, []
    typed = [" ".join(first[:10]), "academic remetal", " ".join(first[10:]), LINES[1], LINES[2]]
    answers = iter(typed)
    assert ask_pages(said.append, lambda _: next(answers)) == KEY
    assert any("word 12, 'remetal'" in line for line in said)


def test_what_is_wrong_in_a_file_of_pages_is_placed() -> None:
    second = " ".join([*PAGES[1].words[:20], "zzz", *PAGES[1].words[21:]])
    text = "\n".join(["# note", LINES[0], second, LINES[2]])
    with pytest.raises(SecretError, match=r"page 2 \(line 3\).*word 21"):
        shares.read_pages(text)


def test_a_revoked_credential_of_the_default_place(
    tiny: Tiny, tmp_path: Path, phrase: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    repository = tiny.open()
    folder = default_folder(repository.id)
    folder.mkdir(parents=True)
    tiny.credential.write(folder / CREDENTIAL_FILE)
    LockedRecoveryKey.lock(tiny.key, "right one", "label", None).write(folder / "recovery.key")
    plan = membership.plan_revocation(
        repository, Unlocked(repository, tiny.key), "test machine", "stolen"
    )
    membership.revoke(repository, plan)
    verbs: list[Callable[..., tuple[int, dict]]] = [
        lambda *rest: run(images, tiny.path, *rest),
        lambda *rest: run(key_group, "list", tiny.path, *rest),
    ]
    for verb in verbs:
        assert verb("--passphrase-file", phrase)[0] == 0
        code, _ = verb("--credential", folder / CREDENTIAL_FILE)
        assert code == UntrustedObject.exit_code
