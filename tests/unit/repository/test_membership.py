"""Adding and removing recipients, revoking credentials: what each does and does not undo."""

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from imager.commands.key import key as key_group
from imager.errors import (
    ObjectDamaged,
    OutputExists,
    RecoveryKeyNeeded,
    UntrustedObject,
    UsageError,
)
from imager.repository import generations
from imager.repository.crypto.recipient import RecipientKey
from imager.repository.header import StatementKind
from imager.repository.keyring import LockedRecoveryKey, NamedRecipient
from imager.repository.repository import now
from imager.repository.retrieval import Unlocked, open_image
from imager.repository.session import Session
from imager.repository.statement import DrillBody, HoldBody, Signatory
from imager.upkeep import membership
from tests import independent_reader
from tests.conftest import Tiny

OLD = {"disk0/p1": b"patient records " * 4096}
NEW = {"disk0/p1": b"what came later " * 4096}


def add(tiny: Tiny, key: RecipientKey, label: str = "second") -> None:
    repository = tiny.open()
    membership.add_recipient(repository, Unlocked(repository, tiny.key), label, key.recipient)


def remove(tiny: Tiny, holder: RecipientKey, label: str) -> None:
    repository = tiny.open()
    plan = membership.plan_removal(repository, Unlocked(repository, holder), label)
    membership.remove_recipient(repository, plan)


def content(tiny: Tiny, key: RecipientKey, image: str) -> str:
    repository = tiny.open()
    opened = open_image(repository, image, Unlocked(repository, key), lambda _: None)
    return opened.machine.name


@pytest.fixture
def second() -> RecipientKey:
    return RecipientKey.generate()


def test_an_added_recipient_opens_old_and_new(
    tiny: Tiny, second: RecipientKey, tmp_path: Path
) -> None:
    old = tiny.add(OLD, tmp_path)
    packs = {path for path in tiny.path.rglob("*") if path.is_file()}
    add(tiny, second)
    changed = {path for path in tiny.path.rglob("*") if path.is_file()} - packs
    assert [path.name for path in changed] == ["2"]
    new = tiny.add(NEW, tmp_path)
    for key in (tiny.key, second):
        assert content(tiny, key, old) == content(tiny, key, new) == "tiny"


def test_a_removed_recipient_opens_older_images_only(
    tiny: Tiny, second: RecipientKey, tmp_path: Path
) -> None:
    old = tiny.add(OLD, tmp_path)
    add(tiny, second)
    remove(tiny, tiny.key, "second")
    new = tiny.add(NEW, tmp_path)
    assert content(tiny, tiny.key, old) == content(tiny, tiny.key, new) == "tiny"
    assert content(tiny, second, old) == "tiny"
    with pytest.raises(RecoveryKeyNeeded, match="does not open"):
        content(tiny, second, new)
    assert not Unlocked(tiny.open(), second).is_current
    locked = tmp_path / "key"
    LockedRecoveryKey.lock(tiny.key, "right one", "label", None).write(locked)
    for image in (old, new):
        summary, _ = independent_reader.read_image(tiny.path, image, locked, "right one", tmp_path)
        assert summary["machine_name"] == "tiny"
    LockedRecoveryKey.lock(second, "right one", "label", None).write(tmp_path / "second")
    with pytest.raises(AssertionError, match="removed"):
        independent_reader.read_image(tiny.path, new, tmp_path / "second", "right one", tmp_path)


def test_statements_of_before_stay_believed(
    tiny: Tiny, second: RecipientKey, tmp_path: Path
) -> None:
    image = tiny.add(OLD, tmp_path)
    repository = tiny.open()
    unlocked = Unlocked(repository, tiny.key)
    signer = Signatory(unlocked.secrets.signer)
    hold = repository.state(
        StatementKind.HOLD, HoldBody((image,), "", None, now()), signer, unlocked.keys.group
    )
    upkeep = repository.new_credential(unlocked.secrets, "keeper", StatementKind.UPKEEP)
    repository.publish(upkeep)
    drill = repository.state(
        StatementKind.DRILL,
        DrillBody(image, True, 1.0, now()),
        Signatory(upkeep.signer, upkeep.certificate),
        unlocked.keys.group,
    )
    add(tiny, second)
    remove(tiny, second, "test")
    assert {each.name for each in map(tiny.open().read_statement, (hold, drill))} == {hold, drill}
    forged = tiny.open().state(
        StatementKind.HOLD, HoldBody((image,), "x", None, now()), signer, unlocked.keys.group
    )
    with pytest.raises(UntrustedObject):
        tiny.open().read_statement(forged)


def test_a_removed_recipient_makes_no_generation_and_no_credential(
    tiny: Tiny, second: RecipientKey, tmp_path: Path
) -> None:
    """It still has the old signing key, and uses it without asking the program."""
    old = tiny.add(OLD, tmp_path)
    add(tiny, second)
    thief = Unlocked(tiny.open(), second)
    remove(tiny, tiny.key, "second")
    repository = tiny.open()
    forged = repository.new_credential(thief.secrets, "forged")
    with pytest.raises(UntrustedObject):
        repository.credential_keys(forged)
    body = generations.with_recipient(
        repository.trust.current,
        thief.secrets,
        "thief",
        RecipientKey.generate().recipient,
        now(),
    )
    data = generations.encode(body, thief.secrets.signer, repository.id, thief.keys.group)
    repository.backend.put_new("generations/4", [data])
    after = tiny.open()
    assert after.trust.current.number == 3
    assert [type(problem) for problem in after.trust.problems] == [UntrustedObject]
    assert content(tiny, tiny.key, old) == "tiny"
    with pytest.raises(UntrustedObject):
        tiny.add(NEW, tmp_path)


@pytest.mark.parametrize("place", [70, 200, -1])
def test_a_damaged_generation_stops_captures_and_no_restore(
    tiny: Tiny, second: RecipientKey, tmp_path: Path, place: int
) -> None:
    old = tiny.add(OLD, tmp_path)
    add(tiny, second)
    path = tiny.path / "generations" / "2"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    assert content(tiny, tiny.key, old) == "tiny"
    with pytest.raises((UntrustedObject, ObjectDamaged)):
        tiny.add(NEW, tmp_path)


def test_two_changes_at_once_one_wins(tiny: Tiny, second: RecipientKey) -> None:
    repository, other = tiny.open(), tiny.open()
    unlocked = Unlocked(repository, tiny.key)
    membership.add_recipient(repository, unlocked, "second", second.recipient)
    with pytest.raises(OutputExists, match="at the same time"):
        membership.add_recipient(other, unlocked, "third", RecipientKey.generate().recipient)
    assert [entry.label for entry in tiny.open().trust.current.body.recipients] == [
        "test",
        "second",
    ]


def test_nobody_is_left_out_or_doubled(tiny: Tiny, second: RecipientKey) -> None:
    with pytest.raises(UsageError, match="last recipient"):
        remove(tiny, tiny.key, "test")
    with pytest.raises(UsageError, match="already"):
        add(tiny, tiny.key, "other")
    with pytest.raises(UsageError, match="already"):
        add(tiny, second, "test")
    with pytest.raises(UsageError, match="no recipients"):
        remove(tiny, tiny.key, "nobody")


def test_a_generation_without_recipients_is_refused(tiny: Tiny) -> None:
    repository = tiny.open()
    unlocked = Unlocked(repository, tiny.key)
    body = msgspec.structs.replace(repository.trust.current.body, generation=2, recipients=())
    data = generations.encode(body, unlocked.secrets.signer, repository.id, unlocked.keys.group)
    repository.backend.put_new("generations/2", [data])
    after = tiny.open().trust
    assert after.current.number == 1
    assert after.problems


def test_a_revoked_credential(tiny: Tiny, tmp_path: Path) -> None:
    old = tiny.add(OLD, tmp_path)
    before = tiny.open()
    plan = membership.plan_revocation(
        before, Unlocked(before, tiny.key), "test machine", "it was taken over"
    )
    membership.revoke(before, plan)
    with pytest.raises(UntrustedObject, match="was revoked"):
        tiny.add(NEW, tmp_path)
    behind = _Behind(tiny.path, tiny.key, tiny.credential, before)
    with pytest.raises(UntrustedObject, match="was revoked"):
        behind.add(NEW, tmp_path)
    with pytest.MonkeyPatch.context() as patch:  # a program that does not look again
        patch.setattr(Session, "_check_relied_packs", lambda _: None)
        late = behind.add(NEW, tmp_path)
    assert content(tiny, tiny.key, old) == "tiny"
    with pytest.raises(UntrustedObject, match="was revoked"):
        content(tiny, tiny.key, late)
    repository = tiny.open()
    unlocked = Unlocked(repository, tiny.key)
    with pytest.raises(UsageError, match="no credentials"):
        membership.plan_revocation(repository, unlocked, "test machine", "again")


class _Behind(Tiny):
    """Opens the repository as it was."""

    def __init__(self, *args: object) -> None:
        *first, repository = args
        super().__init__(*first)
        object.__setattr__(self, "_repository", repository)

    def open(self) -> object:
        return self._repository


def run(*args: object) -> tuple[int, dict]:
    done = CliRunner().invoke(key_group, [str(each) for each in (*args, "--json")])
    return done.exit_code, json.loads(done.stdout) if done.stdout else {}


def test_verbs(tiny: Tiny, second: RecipientKey, tmp_path: Path) -> None:
    tiny.add(OLD, tmp_path)
    secret = tmp_path / "phrase"
    secret.write_text("right one")
    LockedRecoveryKey.lock(tiny.key, "right one", "label", None).write(tmp_path / "key")
    opens = ["--recovery-key", tmp_path / "key", "--passphrase-file", secret]
    NamedRecipient("board", second.recipient).write(tmp_path / "board.pub")
    assert run("add", tiny.path, "--recipient", tmp_path / "board.pub", *opens)[0] == 0
    keeper = tmp_path / "keeper"
    assert run("credential", tiny.path, keeper, "--name", "k", "--upkeep", *opens)[0] == 0
    _, listed = run("list", tiny.path, *opens)
    assert [(each["label"], each["generation"]) for each in listed["recipients"]] == [
        ("test", 1),
        ("board", 2),
    ]
    assert {(each["name"], each["kind"], each["images"]) for each in listed["credentials"]} == {
        ("test machine", "capture", 1),
        ("k", "upkeep", 0),
    }
    for what in (["remove", tiny.path, "board"], ["revoke", tiny.path, "k", "--reason", "gone"]):
        _, before = run("list", tiny.path, *opens)
        code, shown = run(*what, "--dry-run", *opens)
        assert code == 0
        assert shown["not_undone"]
        assert run("list", tiny.path, *opens)[1] == before
        assert run(*what, "--yes", *opens)[0] == 0
    _, listed = run("list", tiny.path, *opens)
    assert [each["label"] for each in listed["recipients"]] == ["test"]
    assert listed["removed_recipients"] == [second.recipient.id.hex()]
    assert [each["reason"] for each in listed["credentials"] if each["name"] == "k"] == ["gone"]
