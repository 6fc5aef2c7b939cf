"""Damaged and lost key generations: all come back in one run, and keys that need them never abort."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from imager.commands import secrets as secrets_module
from imager.commands.check import check as check_command
from imager.commands.repair import repair as repair_command
from imager.errors import ChecksFailed, RepairIncomplete, UsageError, WrongKey
from imager.repository.crypto.recipient import RecipientKey
from imager.repository.keyring import Credential, LockedRecoveryKey
from imager.repository.retrieval import Unlocked
from imager.upkeep import membership, parity
from tests.conftest import Tiny
from tests.unit.upkeep.covered_repository import (
    content,
    cover,
    flip,
    no_keys,
    objects,
    packs_of,
    run,
)

PHRASE = "right one"


def exchange_keys(tiny: Tiny, label: str) -> None:
    """Make two generations: the second has another signing key."""
    repository = tiny.open()
    unlocked = Unlocked(repository, tiny.key)
    membership.add_recipient(repository, unlocked, label, RecipientKey.generate().recipient)
    repository = tiny.open()
    plan = membership.plan_removal(repository, Unlocked(repository, tiny.key), label)
    membership.remove_recipient(repository, plan)


@pytest.fixture
def late(covered: Tiny) -> Credential:
    """A credential that generation 5 vouches for."""
    exchange_keys(covered, "second")
    exchange_keys(covered, "third")
    repository = covered.open()
    credential = repository.new_credential(Unlocked(repository, covered.key).secrets, "late")
    repository.publish(credential)
    return credential


@pytest.fixture
def late_file(late: Credential, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    path = tmp_path / "late.credential"
    late.write(path)
    return path


def damage(tiny: Tiny) -> None:
    """All of them, in both ways, and the configuration."""
    (tiny.path / "config").unlink()
    for number in (2, 4):
        flip(tiny.path / "generations" / str(number), 90)
    for number in (3, 5):
        (tiny.path / "generations" / str(number)).unlink()


def invoke(command: object, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(each) for each in arguments])  # type: ignore[arg-type]


def test_all_come_back_from_parity_in_one_run(covered: Tiny, late: Credential) -> None:
    cover(covered, overhead=60)
    before = content(covered)
    damage(covered)
    assert run(covered, keys=no_keys) == ([], ())
    assert content(covered) == before


def test_all_come_back_from_a_copy_in_one_run(tiny: Tiny, tmp_path: Path) -> None:
    """Without parity: what is lost is not known, what is damaged is."""
    tiny.add({"disk0": b"some content" * 9000}, tmp_path, "one")
    for label in "abcdef":
        exchange_keys(tiny, label)
    copy = tmp_path / "copy"
    shutil.copytree(tiny.path, copy)
    before = content(tiny)
    for path in objects(tiny, "generations"):
        flip(path, 90)
    assert len(objects(tiny, "generations")) == 12
    assert run(tiny, copy, keys=no_keys) == ([], ())
    assert content(tiny) == before


def test_a_generation_behind_a_damaged_one_is_judged_too(covered: Tiny, late: Credential) -> None:
    """3 is only known to be damaged when 2 is back; 4 and 5 are intact all the while."""
    cover(covered, overhead=60)
    before = content(covered)
    flip(covered.path / "generations" / "2", 90)
    flip(covered.path / "generations" / "3", 90)
    assert run(covered, keys=no_keys) == ([], ())
    assert content(covered) == before


def cover_each(tiny: Tiny) -> None:
    """A group for the configuration and for each generation, and no other parity."""
    shutil.rmtree(tiny.path / "parity", ignore_errors=True)
    repository = tiny.open()
    entries = [
        entry
        for entry in repository.backend.list("")
        if entry.name == "config" or entry.name.startswith("generations/")
    ]
    groups = tuple(parity.NewGroup((entry,), 1) for entry in entries)
    plan = parity.ParityPlan(groups, (), (), (), (), frozenset())
    parity.execute(repository.backend, repository.id, plan, lambda _: None)


@pytest.fixture
def many(tiny: Tiny, tmp_path: Path) -> Tiny:
    """Thirteen generations, each in a parity group of its own."""
    tiny.add({"disk0": b"some content" * 9000}, tmp_path, "one")
    for label in "abcdef":
        exchange_keys(tiny, label)
    cover_each(tiny)
    return tiny


def test_groups_are_asked_again_when_more_can_be_judged(many: Tiny) -> None:
    before = content(many)
    (many.path / "config").unlink()
    shutil.rmtree(many.path / "generations")
    assert run(many, keys=no_keys) == ([], ())
    assert content(many) == before


def test_copies_are_asked_again_when_more_can_be_judged(many: Tiny, tmp_path: Path) -> None:
    """Parity only knows that they are lost; 10 is asked for before 2."""
    for path in objects(many, "parity"):
        flip(path, -1)
    copy = tmp_path / "copy"
    shutil.copytree(many.path, copy)
    shutil.rmtree(many.path / "generations")
    assert run(many, copy, keys=no_keys) == ([], ())
    assert len(objects(many, "generations")) == 12


def test_a_credential_of_a_later_generation_serves_in_the_same_run(
    covered: Tiny, late: Credential
) -> None:
    """The key opens what generation 5 vouches for, which is lost, and makes a lost index again."""
    cover_each(covered)
    damage(covered)
    shutil.rmtree(covered.path / "indexes")
    assert run(covered, keys=lambda repository: repository.credential_keys(late)) == ([], ())
    assert objects(covered, "indexes")


def test_a_generation_that_stays_lost_stops_neither_repair_nor_check(
    covered: Tiny, late_file: Path
) -> None:
    shutil.rmtree(covered.path / "parity")
    flip(covered.path / "generations" / "3", 90)
    shown = invoke(repair_command, covered.path, "--credential", late_file)
    assert isinstance(shown.exception, RepairIncomplete), shown.output
    assert "generations/3 is damaged" in shown.output
    shown = invoke(check_command, covered.path, "--ciphertext", "--credential", late_file)
    assert isinstance(shown.exception, ChecksFailed), shown.output
    assert "generations/3" in shown.output
    shown = invoke(check_command, covered.path, "--credential", late_file)
    assert isinstance(shown.exception, ChecksFailed), shown.output
    assert "generations/3" in shown.exception.message


def test_a_recovery_key_of_a_lost_generation(
    covered: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    shutil.rmtree(covered.path / "parity")
    second = RecipientKey.generate()
    repository = covered.open()
    unlocked = Unlocked(repository, covered.key)
    membership.add_recipient(repository, unlocked, "second", second.recipient)
    flip(covered.path / "generations" / "2", 90)
    LockedRecoveryKey.lock(second, PHRASE, "label", None).write(tmp_path / "key")
    (tmp_path / "phrase").write_text(PHRASE)
    options = ["--recovery-key", tmp_path / "key", "--passphrase-file", tmp_path / "phrase"]
    shown = invoke(check_command, covered.path, "--full", *options)
    assert isinstance(shown.exception, ChecksFailed), shown.output
    shown = invoke(repair_command, covered.path, *options)
    assert isinstance(shown.exception, RepairIncomplete), shown.output
    assert "generations/2 is damaged" in shown.output


def test_a_key_that_was_only_found_never_stops_a_repair(
    covered: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recovery key lies in its place, and there is no terminal to ask for its passphrase."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    key = secrets_module.default_folder(covered.open().id) / "recovery.key"
    key.parent.mkdir(parents=True)
    LockedRecoveryKey.lock(covered.key, PHRASE, "label", None).write(key)
    packs_of(covered, "one")[0].unlink()
    shown = invoke(repair_command, covered.path)
    assert shown.exit_code == 0, shown.output
    assert "going on without keys" in shown.output
    shown = invoke(repair_command, covered.path, "--recovery-key", key)
    assert isinstance(shown.exception, UsageError)
    other = Credential(bytes(16), covered.credential.group_secret, covered.credential.signer, b"")
    other.write(tmp_path / "other")
    shown = invoke(repair_command, covered.path, "--credential", tmp_path / "other")
    assert isinstance(shown.exception, WrongKey)


def test_a_passphrase_is_asked_for_once(
    covered: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def ask(question: str) -> str:
        asked.append(question)
        return PHRASE

    monkeypatch.setattr(secrets_module, "ask", ask)
    LockedRecoveryKey.lock(covered.key, PHRASE, "label", None).write(tmp_path / "key")
    shutil.rmtree(covered.path / "parity")
    shutil.rmtree(covered.path / "indexes")
    packs_of(covered, "one")[0].unlink()
    shown = invoke(repair_command, covered.path, "--recovery-key", tmp_path / "key")
    assert isinstance(shown.exception, RepairIncomplete), shown.output
    assert objects(covered, "indexes")
    assert len(asked) == 1
