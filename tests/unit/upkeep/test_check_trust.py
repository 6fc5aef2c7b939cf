"""Check tells what nobody signed who counts from what is damaged, and what to do about each."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from imager import console
from imager.errors import ChecksFailed
from imager.repository.header import StatementKind
from imager.repository.image import PREFIX
from imager.repository.repository import now
from imager.repository.retrieval import Unlocked
from imager.repository.statement import HoldBody, Signatory
from imager.upkeep import membership
from tests.conftest import Tiny

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Check with a credential that nobody revokes."""
    repository = tiny.open()
    made = repository.new_credential(Unlocked(repository, tiny.key).secrets, "checker")
    repository.publish(made)
    made.write(tmp_path / "credential")

    def check(*options: str) -> tuple[int, str, str]:
        words = ["check", str(tiny.path), "--credential", str(tmp_path / "credential"), *options]
        try:
            code = console.run(words)
        except SystemExit as stop:
            code = int(str(stop.code))
        return code, *capsys.readouterr()

    return check


def revoke(tiny: Tiny, name: str) -> None:
    repository = tiny.open()
    unlocked = Unlocked(repository, tiny.key)
    membership.revoke(repository, membership.plan_revocation(repository, unlocked, name, "stolen"))


def test_an_image_of_a_revoked_credential_is_named_and_no_failure(
    tiny: Tiny, tmp_path: Path, run: Run
) -> None:
    tiny.add({"a": b"before" * 1000}, tmp_path)
    late = tiny.path / PREFIX / tiny.add({"a": b"after" * 1000}, tmp_path)
    data = late.read_bytes()
    late.unlink()
    revoke(tiny, "test machine")
    late.write_bytes(data)
    code, said, _ = run()
    assert code == 0
    assert f"images/{late.name}: images/{late.name} was signed by the credential" in said
    assert "1 objects are ignored" in said
    assert "All is well." in said
    report = json.loads(run("--ciphertext", "--json")[1])
    assert (report["images"], report["findings"]) == (1, [])
    assert [each["object"] for each in report["ignored"]] == [f"images/{late.name}"]


def test_a_hold_of_a_revoked_credential_is_named_and_no_failure(
    tiny: Tiny, tmp_path: Path, run: Run
) -> None:
    image = tiny.add({"a": b"content" * 1000}, tmp_path)
    repository = tiny.open()
    unlocked = Unlocked(repository, tiny.key)
    made = repository.new_credential(unlocked.secrets, "keeper", StatementKind.UPKEEP)
    repository.publish(made)
    revoke(tiny, "keeper")
    body = HoldBody((image,), "mine", None, now())
    signatory = Signatory(made.signer, made.certificate)
    name = repository.state(StatementKind.HOLD, body, signatory, unlocked.keys.group)
    code, said, _ = run()
    assert code == 0
    assert name in said


def test_a_statement_that_nobody_signed_is_a_failure_that_is_said_truly(
    tiny: Tiny, tmp_path: Path, run: Run
) -> None:
    repository = tiny.open()
    unlocked = Unlocked(repository, tiny.key)
    made = repository.new_credential(unlocked.secrets, "keeper", StatementKind.UPKEEP)
    repository.publish(made)
    image = tiny.add({"a": b"content" * 1000}, tmp_path)
    body = HoldBody((image,), "mine", None, now())
    certificate = made.certificate[:-1] + bytes([made.certificate[-1] ^ 1])
    signatory = Signatory(made.signer, certificate)
    name = repository.state(StatementKind.HOLD, body, signatory, unlocked.keys.group)
    code, said, error = run()
    assert code == ChecksFailed.exit_code
    assert name in said
    assert "1 objects are signed by nobody who counts here" in error
    assert "remove it from the storage; if a key generation was lost, `remetal repair" in error


def test_what_is_damaged_besides_is_to_be_repaired(tiny: Tiny, tmp_path: Path, run: Run) -> None:
    image = tiny.path / PREFIX / tiny.add({"a": b"content" * 1000}, tmp_path)
    image.write_bytes(image.read_bytes()[:-1])
    code, _, error = run()
    assert code == ChecksFailed.exit_code
    assert f"Run `remetal repair {tiny.path}`." in error
    assert "untrusted" not in error
