"""What is shown and asked around keys."""

from pathlib import Path

import click
import pytest
import shamir_mnemonic
from click.testing import CliRunner

from imager.commands import init as init_module
from imager.commands.images import images
from imager.commands.secrets import load_upkeep, recovery_options, upkeep_option
from imager.console import Output
from imager.errors import CredentialNeeded, NoRoom, SecretError, UsageError
from imager.repository import shares
from imager.repository.crypto.recipient import RecipientKey
from imager.repository.keyring import LockedRecoveryKey, NamedRecipient
from imager.repository.repository import Repository
from imager.repository.retrieval import Unlocked
from imager.upkeep import membership, paper
from restore.commands.drill import drill
from restore.console_ui.dialogue import Dialogue
from restore.console_ui.repositories import Found
from restore.console_ui.terminal import LeaveToShell, Terminal
from restore.medium import Medium
from tests.conftest import Tiny

KEY = RecipientKey(bytes(range(32)))
EVIL = "evil\x1b[2J\x1b]0;pwn\x07\x9b1m\x7f\r"


def test_names_do_not_steer_the_screen(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.add({"disk0/p1": b"x" * 5000}, tmp_path, EVIL)
    (tmp_path / "credential").unlink(missing_ok=True)
    tiny.credential.write(tmp_path / "credential")
    args = [str(tiny.path), "--credential", str(tmp_path / "credential")]
    shown = CliRunner().invoke(images, args).output
    assert "evil" in shown
    out = Output()
    out.say(f"{EVIL}\nsecond line")
    out.remark(EVIL)
    said = capsys.readouterr()
    assert "second line" in said.out.splitlines()
    for text in (shown, said.out, said.err):
        assert not set("\x1b\x07\x9b\x7f\r") & set(text)


def test_a_drill_offers_no_pages() -> None:
    assert "recovery_pages" not in {each.name for each in drill.params}


@pytest.mark.parametrize("fixed", [{"iteration_exponent": 1}, {"extendable": False}])
def test_shares_of_another_form_are_refused(fixed: dict[str, object]) -> None:
    form = {"iteration_exponent": 0, "extendable": True, **fixed}
    (made,) = shamir_mnemonic.generate_mnemonics(1, [(2, 3)], KEY.seed, **form)
    with pytest.raises(SecretError, match="no page"):
        shares.parse(made[0])


def test_a_label_on_a_page_is_one_plain_line(tmp_path: Path) -> None:
    pages = shares.split(KEY, 2, 2)
    told = {"recipient": "r", "repository": None, "today": "t"}
    _, text, *_ = paper.write(tmp_path / "p", pages, label="Müller & Sons'\nkey", **told)
    assert "# Key: Müller & Sons' key" in text.read_text().splitlines()
    assert shares.read_pages(text.read_text()).missing == 1


def test_init_refuses_the_same_recipient_twice(tmp_path: Path) -> None:
    NamedRecipient("board", KEY.recipient).write(tmp_path / "a.pub")
    args = [str(tmp_path / "r"), "--keys-dir", str(tmp_path / "keys")]
    args += ["--recovery-recipient", str(tmp_path / "a.pub")] * 2
    done = CliRunner().invoke(init_module.init, args)
    assert isinstance(done.exception, UsageError)
    assert not (tmp_path / "r").exists()


def test_init_keeps_the_keys_of_a_repository_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise NoRoom("no room left")

    monkeypatch.setattr(Repository, "publish", full)
    NamedRecipient("board", KEY.recipient).write(tmp_path / "a.pub")
    args = [str(tmp_path / "r"), "--keys-dir", str(tmp_path / "keys")]
    args += ["--recovery-recipient", str(tmp_path / "a.pub")]
    done = CliRunner().invoke(init_module.init, args)
    assert isinstance(done.exception, NoRoom)
    assert (tmp_path / "r" / "config").exists()
    assert list((tmp_path / "keys").iterdir())


def test_who_was_added_again_is_not_removed(tiny: Tiny) -> None:
    for step in ("add", "remove", "add"):
        repository = tiny.open()
        unlocked = Unlocked(repository, tiny.key)
        if step == "add":
            membership.add_recipient(repository, unlocked, "second", KEY.recipient)
        else:
            plan = membership.plan_removal(repository, unlocked, "second")
            membership.remove_recipient(repository, plan)
    assert tiny.open().trust.current.body.revoked == ()


def test_a_key_of_another_version_is_told_and_asked_for_again(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    LockedRecoveryKey.lock(tiny.key, "right one", "label", None).write(tmp_path / "key")
    text = (tmp_path / "key").read_text().replace('"version": 1', '"version": 2')
    (tmp_path / "new.key").write_text(text)
    answers = iter(["1", "shell"])
    monkeypatch.setattr(click, "prompt", lambda *_, **__: next(answers))
    dialogue = Dialogue(Terminal(Output()), Medium("title", "1", (), None))
    with pytest.raises(LeaveToShell):
        dialogue._unlock(tiny.open(), Found((), (tmp_path / "new.key",)))
    assert "another version" in capsys.readouterr().out


def test_what_is_typed_wins_over_the_environment(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.credential.write(tmp_path / "capture.credential")
    LockedRecoveryKey.lock(tiny.key, "right one", "label", None).write(tmp_path / "key")
    (tmp_path / "phrase").write_text("right one")

    @click.command()
    @upkeep_option
    @recovery_options
    def verb(
        upkeep_credential: Path | None, recovery_key: Path | None, passphrase_file: Path | None
    ) -> None:
        args = (upkeep_credential, recovery_key, passphrase_file)
        signatory, _ = load_upkeep(Output(), tiny.open(), *args)
        click.echo(bool(signatory.certificate))

    monkeypatch.setenv("REMETAL_UPKEEP_CREDENTIAL", str(tmp_path / "capture.credential"))
    args = ["--recovery-key", str(tmp_path / "key"), "--passphrase-file", str(tmp_path / "phrase")]
    done = CliRunner().invoke(verb, args)
    assert (done.exception, done.output) == (None, "False\n")
    done = CliRunner().invoke(verb, [])
    assert isinstance(done.exception, CredentialNeeded)
