"""`remetal repair` at its edges: rehearsals, copies that are none, statements nobody needs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from imager.commands.check import check as check_command
from imager.commands.repair import repair as repair_command
from imager.errors import ChecksFailed, NotARepository, UsageError
from imager.repository.backend.directory import DirectoryBackend
from imager.repository.crypto.recipient import RecipientKey
from imager.repository.header import StatementKind
from imager.repository.repository import Repository, now
from imager.repository.retrieval import Unlocked
from imager.repository.statement import RemovalBody, Signatory
from tests.conftest import Tiny
from tests.torture.world import age
from tests.unit.upkeep.covered_repository import content, flip, no_keys, objects, packs_of, run


@pytest.fixture(autouse=True)
def no_keys_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))


def repair(*arguments: object) -> Result:
    return CliRunner().invoke(repair_command, [str(each) for each in arguments])


def lose_pack(tiny: Tiny) -> None:
    packs_of(tiny, "one")[0].unlink()


def lose_parity(tiny: Tiny) -> None:
    objects(tiny, "parity")[0].unlink()


def lose_too_much(tiny: Tiny) -> None:
    for path in packs_of(tiny, "one")[:5]:
        path.unlink()


@pytest.mark.parametrize("damage", [lose_pack, lose_parity, lose_too_much])
def test_a_rehearsal_ends_as_a_check_does(covered: Tiny, damage: Callable[[Tiny], None]) -> None:
    shown = repair(covered.path, "--dry-run")
    assert shown.exit_code == 0
    assert "All is well" in shown.stdout
    damage(covered)
    before = content(covered)
    shown = repair(covered.path, "--dry-run")
    assert isinstance(shown.exception, ChecksFailed)
    shown = repair(covered.path, "--dry-run", "--json")
    assert json.loads(shown.stdout)["error"]["exit_code"] == ChecksFailed.exit_code
    assert content(covered) == before


def test_a_rehearsal_names_images(covered: Tiny, tmp_path: Path) -> None:
    lose_too_much(covered)
    covered.credential.write(tmp_path / "credential")
    shown = repair(covered.path, "--dry-run", "--json", "--credential", tmp_path / "credential")
    assert [each["machine"] for each in json.loads(shown.stdout)["touched"]] == ["one"]


def test_a_copy_must_be_one(covered: Tiny, tmp_path: Path) -> None:
    """Refused before any object is read, also when what is lost would be brought back anyway."""
    copy = tmp_path / "copy"
    shutil.copytree(covered.path, copy)
    lose_pack(covered)
    other = tmp_path / "other"
    Repository.create(
        str(other), [("x", RecipientKey.generate().recipient)], lambda _repository, _secrets: None
    )
    before = content(covered)
    empty = tmp_path / "empty"
    empty.mkdir()
    for wrong in (tmp_path / "nowhere", empty):
        shown = repair(covered.path, "--from", copy, "--from", wrong)
        assert isinstance(shown.exception, NotARepository), shown.output
        assert str(wrong) in shown.exception.message
    shown = repair(covered.path, "--from", other)
    assert isinstance(shown.exception, UsageError), shown.output
    assert f"{other} is another repository" in shown.exception.message
    assert content(covered) == before
    (copy / "config").write_bytes((other / "config").read_bytes())
    assert repair(covered.path, "--from", copy).exit_code == 0, "its other objects say whose it is"


@pytest.fixture
def condemned(covered: Tiny) -> str:
    """The name of a statement that condemns, which has rotted."""
    repository = covered.open()
    unlocked = Unlocked(repository, covered.key)
    name = repository.state(
        StatementKind.CONDEMNED,
        RemovalBody((), (packs_of(covered, "one")[0].name,), 3600, now()),
        Signatory(unlocked.secrets.signer),
        unlocked.keys.group,
    )
    flip(covered.path / name, 90)
    return name


@pytest.mark.parametrize("depth", [[], ["--ciphertext"]])
def test_a_rotten_removal_is_no_damage(
    covered: Tiny, condemned: str, tmp_path: Path, depth: list[str]
) -> None:
    covered.credential.write(tmp_path / "credential")
    options = [*depth, "--credential", str(tmp_path / "credential")]
    shown = CliRunner().invoke(check_command, [str(covered.path), *options])
    assert shown.exit_code == 0, shown.output
    assert condemned in shown.stdout
    assert "All is well" in shown.stdout


def test_a_rotten_removal_goes_when_it_is_a_day_old(covered: Tiny, condemned: str) -> None:
    path = covered.path / condemned
    for arguments in (["--dry-run"], []):
        shown = repair(covered.path, *arguments)
        assert shown.exit_code == 0, shown.output
        assert "have rotted" in shown.stdout
        assert path.exists()
    age(covered.path / "removals", 25 * 3600)
    assert repair(covered.path, "--dry-run").exit_code == 0
    assert path.exists()
    assert repair(covered.path).exit_code == 0
    assert not path.exists()
    assert "have rotted" not in repair(covered.path).stdout


def test_a_rotten_removal_comes_back_from_a_copy(
    covered: Tiny, condemned: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(covered.path, copy)
    flip(copy / condemned, 90)
    assert run(covered, copy, keys=no_keys) == ([], ())
    assert (covered.path / condemned).read_bytes() == (copy / condemned).read_bytes()


def test_a_removal_that_can_t_be_read_is_a_finding(
    covered: Tiny, condemned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows that it is rotten, and the store may be failing."""
    flip(covered.path / condemned, 90)
    get = DirectoryBackend.get

    def refuse(self: DirectoryBackend, name: str) -> bytes:
        if name == condemned:
            raise ChecksFailed("Input/output error")
        return get(self, name)

    monkeypatch.setattr(DirectoryBackend, "get", refuse)
    shown = CliRunner().invoke(check_command, [str(covered.path), "--ciphertext"])
    assert isinstance(shown.exception, ChecksFailed)
    assert condemned in shown.stdout
