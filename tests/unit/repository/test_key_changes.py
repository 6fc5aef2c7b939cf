"""What is said while a change of keys is agreed to, what can't be read then, and what is in the way."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from imager.commands import key_credentials, key_recipients
from imager.commands.key import key as key_group
from imager.errors import ObjectDamaged, OutputExists, UsageError
from imager.repository.crypto.recipient import RecipientKey
from imager.repository.header import StatementKind
from imager.repository.keyring import LockedRecoveryKey
from imager.repository.repository import Repository, now
from imager.repository.retrieval import Unlocked
from imager.repository.standing import read_standing
from imager.repository.statement import (
    Certificate,
    HoldBody,
    ReleaseBody,
    RemovalBody,
    Signatory,
)
from imager.upkeep import membership
from tests.conftest import Tiny

CONTENT = {"disk0/p1": b"patient records " * 4096}


@pytest.fixture
def opens(tiny: Tiny, tmp_path: Path) -> list[object]:
    secret = tmp_path / "phrase"
    secret.write_text("right one")
    LockedRecoveryKey.lock(tiny.key, "right one", "label", None).write(tmp_path / "key")
    return ["--recovery-key", tmp_path / "key", "--passphrase-file", secret]


def run(*args: object) -> tuple[int, dict]:
    done = CliRunner().invoke(key_group, [str(each) for each in (*args, "--json")])
    return done.exit_code, json.loads(done.stdout) if done.stdout else {}


def add_second(tiny: Tiny) -> None:
    repository = tiny.open()
    membership.add_recipient(
        repository,
        Unlocked(repository, tiny.key),
        "second",
        RecipientKey.generate().recipient,
    )


def hold(tiny: Tiny, image: str, signatory: Signatory | None = None) -> str:
    repository = tiny.open()
    unlocked = Unlocked(repository, tiny.key)
    return repository.state(
        StatementKind.HOLD,
        HoldBody((image,), "court", None, now()),
        signatory or Signatory(unlocked.secrets.signer),
        unlocked.keys.group,
    )


def keeper(tiny: Tiny, *, published: bool = True) -> tuple[Signatory, Repository]:
    repository = tiny.open()
    unlocked = Unlocked(repository, tiny.key)
    made = repository.new_credential(unlocked.secrets, "keeper", StatementKind.UPKEEP)
    if published:
        repository.publish(made)
    return Signatory(made.signer, made.certificate), repository


def rot(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def test_what_is_said_until_it_is_agreed_to_stays_believed(tiny: Tiny, tmp_path: Path) -> None:
    old = tiny.add(CONTENT, tmp_path)
    add_second(tiny)
    repository = tiny.open()
    plan = membership.plan_removal(repository, Unlocked(repository, tiny.key), "second")
    name = hold(tiny, old)
    other = tiny.open()
    unlocked = Unlocked(other, tiny.key)
    credential = other.new_credential(unlocked.secrets, "web9")
    other.publish(credential)
    image = Tiny(tiny.path, tiny.key, credential).add({"a": b"x" * 5000}, tmp_path, "web9")
    revocation = membership.plan_revocation(other, unlocked, "test machine", "stolen")
    membership.revoke(other, revocation)
    assert membership.remove_recipient(repository, plan) == ()
    after = tiny.open()
    assert [each.id for each in read_standing(after).holds] == [name.rpartition("/")[2]]
    assert {each.id for each in after.images(unlocked.keys)[0]} == {old, image}
    assert list(after.trust.revocations) == [revocation.body.credential]


def test_what_slips_through_is_named(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tiny.add(CONTENT, tmp_path)
    add_second(tiny)
    repository = tiny.open()
    plan = membership.plan_removal(repository, Unlocked(repository, tiny.key), "second")
    write = membership._write
    said: list[str] = []

    def late(*args: object) -> None:
        said.append(hold(tiny, old))
        write(*args)

    monkeypatch.setattr(membership, "_write", late)
    assert membership.remove_recipient(repository, plan) == tuple(said)


def test_a_change_of_recipients_meanwhile_stops_a_removal(tiny: Tiny) -> None:
    add_second(tiny)
    repository = tiny.open()
    unlocked = Unlocked(repository, tiny.key)
    plan = membership.plan_removal(repository, unlocked, "second")
    membership.add_recipient(repository, unlocked, "third", RecipientKey.generate().recipient)
    with pytest.raises(OutputExists, match="at the same time"):
        membership.remove_recipient(repository, plan)


def test_an_image_made_until_a_revocation_is_agreed_to_stays(tiny: Tiny, tmp_path: Path) -> None:
    repository = tiny.open()
    plan = membership.plan_revocation(
        repository, Unlocked(repository, tiny.key), "test machine", "stolen"
    )
    image = tiny.add(CONTENT, tmp_path)
    done = membership.revoke(repository, plan)
    assert done.body.accepted == (f"images/{image}",)
    assert len(tiny.open().images(Unlocked(repository, tiny.key).keys)[0]) == 1


def test_a_removal_stops_at_what_can_not_be_read(
    tiny: Tiny, tmp_path: Path, opens: list[object]
) -> None:
    image = tiny.add(CONTENT, tmp_path)
    add_second(tiny)
    name = hold(tiny, image)
    rot(tiny.path / name)
    code, shown = run("remove", tiny.path, "second", "--yes", *opens)
    assert code == ObjectDamaged.exit_code
    assert name in shown["error"]["message"]
    assert "remetal repair" in shown["error"]["hint"]
    rot(tiny.path / name)
    rot(tiny.path / "images" / image)
    code, shown = run("remove", tiny.path, "second", "--yes", *opens)
    assert code == ObjectDamaged.exit_code
    assert image in shown["error"]["message"]
    rot(tiny.path / "images" / image)
    assert run("remove", tiny.path, "second", "--yes", *opens)[0] == 0
    assert len(read_standing(tiny.open()).holds) == 1


def test_junk_of_a_stranger_does_not_stop_a_removal(
    tiny: Tiny, tmp_path: Path, opens: list[object]
) -> None:
    image = tiny.add(CONTENT, tmp_path)
    add_second(tiny)
    stranger = Signatory(tiny.credential.signer, tiny.credential.certificate)
    hold(tiny, image, stranger)
    (tiny.path / "statements" / "junk").write_bytes(b"junk")
    assert run("remove", tiny.path, "second", "--yes", *opens)[0] == 0


def test_a_credential_that_was_never_published_is_listed_and_revoked(
    tiny: Tiny, tmp_path: Path, opens: list[object]
) -> None:
    image = tiny.add(CONTENT, tmp_path)
    signatory, _ = keeper(tiny, published=False)
    hold(tiny, image, signatory)
    _, listed = run("list", tiny.path, *opens)
    assert "keeper" in {each["name"] for each in listed["credentials"]}
    assert run("revoke", tiny.path, "keeper", "--reason", "stolen", "--yes", *opens)[0] == 0


def test_a_credential_is_known_before_its_file_exists(
    tiny: Tiny, tmp_path: Path, opens: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    publish = Repository.publish

    def watched(self: Repository, credential: object) -> None:
        seen.append((tmp_path / "new").exists())
        publish(self, credential)

    monkeypatch.setattr(Repository, "publish", watched)
    assert run("credential", tiny.path, tmp_path / "new", "--name", "web", *opens)[0] == 0
    assert seen == [False]
    before = len(list((tiny.path / "statements").iterdir()))
    code, _ = run("credential", tiny.path, tmp_path / "no" / "new", "--name", "w", *opens)
    assert code == 50
    assert len(list((tiny.path / "statements").iterdir())) == before


@pytest.mark.parametrize("name", ["revocations/x", "generations/~", "generations/9"])
def test_junk_does_not_stop_a_revocation(
    tiny: Tiny, tmp_path: Path, opens: list[object], name: str
) -> None:
    tiny.add(CONTENT, tmp_path)
    path = tiny.path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"junk")
    args = ("revoke", tiny.path, "test machine", "--reason", "stolen", "--yes")
    assert run(*args, *opens)[0] == 0
    trust = tiny.open().trust
    assert len(trust.revocations) == 1
    (problem,) = trust.problems
    assert name in problem.message
    assert f"remove {name} from the storage" in problem.hint


def test_a_next_generation_that_is_not_believed_stops_a_revocation(
    tiny: Tiny, opens: list[object]
) -> None:
    (tiny.path / "generations").mkdir()
    (tiny.path / "generations" / "2").write_bytes(b"RMTLSTMT" + b"junk" * 40)
    code, shown = run("revoke", tiny.path, "test machine", "--reason", "x", "--yes", *opens)
    assert code != 0
    assert "remove generations/2 from the storage" in shown["error"]["hint"]
    assert "remetal repair" in shown["error"]["hint"]


def test_a_revocation_has_the_name_of_its_bytes(tiny: Tiny) -> None:
    repository = tiny.open()
    plan = membership.plan_revocation(
        repository, Unlocked(repository, tiny.key), "test machine", "stolen"
    )
    membership.revoke(repository, plan)
    (path,) = (tiny.path / "revocations").iterdir()
    path.rename(path.with_name("0" * 64))
    trust = tiny.open().trust
    assert not trust.revocations
    assert "other bytes" in trust.problems[0].message


def test_what_an_upkeep_credential_said_is_counted(
    tiny: Tiny, tmp_path: Path, opens: list[object]
) -> None:
    image = tiny.add(CONTENT, tmp_path)
    signatory, repository = keeper(tiny)
    group = Unlocked(repository, tiny.key).keys.group
    held = hold(tiny, image)
    released = ReleaseBody((held.rpartition("/")[2],), now())
    repository.state(StatementKind.RELEASE, released, signatory, group)
    condemned = RemovalBody((image,), (), 3600, now())
    repository.state(StatementKind.CONDEMNED, condemned, signatory, group)
    args = [str(each) for each in ("revoke", tiny.path, "keeper", "--reason", "x", *opens)]
    done = CliRunner().invoke(key_group, [*args, "--dry-run"])
    assert "can't capture" not in done.stdout
    assert "1 release, 1 condemnation" in done.stdout
    args[2] = "test machine"
    done = CliRunner().invoke(key_group, [*args, "--dry-run"])
    assert "can't capture any more" in done.stdout
    assert "1 image that it signed so far stays believed" in done.stdout


def test_what_a_removal_does_not_undo_is_said(tiny: Tiny, opens: list[object]) -> None:
    add_second(tiny)
    args = [str(each) for each in ("remove", tiny.path, "second", "--dry-run", *opens)]
    done = CliRunner().invoke(key_group, args)
    assert "opens no image" not in done.stdout
    assert "shares with older" in done.stdout
    assert "remetal key list" in done.stdout


def test_a_few_digits_name_nobody(tiny: Tiny, opens: list[object]) -> None:
    identity = _certificate(tiny).id.hex()
    revoke = ("revoke", tiny.path)
    rest = ("--reason", "x", "--dry-run", *opens)
    assert run(*revoke, identity[:3], *rest)[0] == UsageError.exit_code
    assert run(*revoke, identity[:4], *rest)[0] == 0
    add_second(tiny)
    first = tiny.open().trust.current.body.recipients[0].id
    assert run("remove", tiny.path, first[:3], "--dry-run", *opens)[0] == UsageError.exit_code
    assert run("remove", tiny.path, first[:4], "--dry-run", *opens)[0] == 0


def _certificate(tiny: Tiny) -> Certificate:
    return tiny.open().trust.certificate(tiny.credential.certificate, "the credential")


def test_nobody_is_asked_without_a_terminal(tiny: Tiny, opens: list[object]) -> None:
    add_second(tiny)
    args = [str(each) for each in ("remove", tiny.path, "second", *opens)]
    done = CliRunner().invoke(key_group, args)
    assert isinstance(done.exception, UsageError)
    assert "--yes" in done.exception.hint
    assert key_credentials.agree is key_recipients.agree


def test_a_change_of_keys_meanwhile_stops_a_revocation(tiny: Tiny) -> None:
    add_second(tiny)
    repository = tiny.open()
    unlocked = Unlocked(repository, tiny.key)
    plan = membership.plan_revocation(repository, unlocked, "test machine", "stolen")
    membership.remove_recipient(repository, membership.plan_removal(repository, unlocked, "second"))
    with pytest.raises(OutputExists, match="at the same time"):
        membership.revoke(repository, plan)
    assert not tiny.open().trust.problems
