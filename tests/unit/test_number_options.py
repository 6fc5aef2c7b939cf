"""Numbers that make no sense on the command line are said at once, and nothing is written."""

import pytest

from imager import console
from imager.errors import ObjectDamaged
from imager.repository.header import StatementKind
from imager.repository.repository import now
from imager.repository.retrieval import Unlocked
from imager.repository.statement import RemovalBody, Signatory
from tests.conftest import Tiny


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prune", "--max-waste", "nan"], "--max-waste"),
        (["prune", "--max-waste", "inf"], "--max-waste"),
        (["prune", "--max-waste", "-1"], "--max-waste"),
        (["prune", "--quarantine", "50000d"], "49710 days at most"),
        (["prune", "--quarantine", "9999999d"], "--quarantine"),
        (["prune", "--keep-within", "9999999d"], "--keep-within"),
        (["prune", "--keep-last", "-1"], "--keep-last"),
        (["parity", "--overhead", "nan"], "overhead"),
        (["parity", "--overhead", "inf"], "--overhead"),
        (["parity", "--overhead", "0"], "--overhead"),
        (["check", "--budget", "nan"], "--budget"),
        (["check", "--budget", "-30m"], "--budget"),
        (["hold", "latest", "--reason", "r", "--for", "9999999d"], "--for"),
        (["hold", "latest", "--reason", "r", "--for", "0d"], "holds nothing"),
        (["hold", "latest"], "--reason"),
        (["hold", "--reason", "r"], "which images"),
    ],
)
def test_is_a_usage_error(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    verb, *rest = words
    before = sorted(tiny.path.rglob("*"))
    assert console.run([verb, str(tiny.path), *rest]) == 2
    assert said in capsys.readouterr().err
    assert sorted(tiny.path.rglob("*")) == before


def test_no_statement_is_written_that_nobody_could_read(tiny: Tiny) -> None:
    repository = tiny.open()
    secrets = Unlocked(repository, tiny.key).secrets
    body = RemovalBody((), (), 1 << 33, now())
    with pytest.raises(ObjectDamaged, match="impossible quarantine"):
        repository.state(StatementKind.CONDEMNED, body, Signatory(secrets.signer), secrets.group)
    assert not list(repository.backend.list("removals/"))
