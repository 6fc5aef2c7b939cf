"""What each key can and cannot do."""

import ast
from pathlib import Path

import pytest

import imager
from imager.errors import (
    CredentialNeeded,
    ObjectDamaged,
    OutputExists,
    RecoveryKeyNeeded,
    UntrustedObject,
    WrongKey,
    WrongPassphrase,
)
from imager.repository.configuration import Secrets
from imager.repository.crypto.recipient import RecipientKey
from imager.repository.crypto.signing import Signer
from imager.repository.keyring import Credential, LockedRecoveryKey, NamedRecipient, check_owner
from imager.repository.repository import Repository
from imager.repository.retrieval import OpenImage, Unlocked, open_image
from imager.repository.volume_map import are_chunks
from tests.conftest import Tiny

CONTENT = {"disk0/p1": b"patient records " * 4096}


def ids(opened: OpenImage) -> list[bytes]:
    found = opened.map("disk0/p1")
    return [row.tobytes() for row in found["id"][are_chunks(found)]]


def test_recovery_key_opens(tiny: Tiny, tmp_path: Path) -> None:
    image = tiny.add(CONTENT, tmp_path)
    repository = tiny.open()
    opened = open_image(repository, image, Unlocked(repository, tiny.key), lambda _: None)
    plain = b"".join(dict(opened.chunks(ids(opened))).values())
    assert plain[:16] == b"patient records "


def test_another_recovery_key_does_not(tiny: Tiny) -> None:
    with pytest.raises(RecoveryKeyNeeded):
        Unlocked(tiny.open(), RecipientKey.generate())


def test_two_recipients_both_open(tmp_path: Path) -> None:
    keys = [RecipientKey.generate(), RecipientKey.generate()]
    held: list[Credential] = []

    def keep(repository: Repository, secrets: Secrets) -> None:
        held.append(repository.new_credential(secrets, "machine"))

    path = tmp_path / "repository"
    named = [(f"key {number}", key.recipient) for number, key in enumerate(keys)]
    Repository.create(str(path), named, keep)
    image = Tiny(path, keys[0], held[0]).add(CONTENT, tmp_path)
    for key in keys:
        repository = Repository.open(str(path))
        opened = open_image(repository, image, Unlocked(repository, key), lambda _: None)
        assert dict(opened.chunks(ids(opened)))


def test_a_credential_lists_but_holds_nothing_that_opens(tiny: Tiny, tmp_path: Path) -> None:
    """All that a captured machine has is the credential's file and the repository's bytes."""
    image = tiny.add(CONTENT, tmp_path)
    repository = tiny.open()
    keys = repository.credential_keys(tiny.credential)
    sealed = repository.find_image(image, keys)
    assert sealed.summary.machine_name == "tiny"
    for secret in (keys.secret, keys.directory_key, keys.chunk_id_key, keys.map_id_key):
        with pytest.raises(ObjectDamaged):
            sealed.open_manifest(secret)
    with pytest.raises(RecoveryKeyNeeded):
        Unlocked(repository, RecipientKey(tiny.credential.signer.private))


def test_only_retrieval_opens_chunks_and_only_with_a_recovery_key() -> None:
    """No module but `retrieval` and `chunk` names what opens blobs of data.

    Inside `retrieval`, chunk keys are derived in one function, from a session key, which only
    `Unlocked` returns; and `Unlocked` is made from a recipient's private key.
    """
    root = Path(imager.__file__).parent
    for path in [*root.rglob("*.py"), *root.parent.glob("restore/**/*.py")]:
        text = path.read_text("utf-8")
        module = path.relative_to(root.parent).as_posix()
        names = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
        if "Opener" in names:
            assert module == "imager/repository/retrieval.py"
        if "open_envelope" in text:
            assert module in {
                "imager/repository/retrieval.py",
                "imager/repository/envelope.py",
            }
    tree = ast.parse((root / "repository/retrieval.py").read_text("utf-8"))
    users = [
        function.name
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and "derive.CHUNK" in ast.unparse(function)
    ]
    assert users == ["_opener"]
    constructor = next(
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name == "Unlocked"
    ).body[1]
    assert "key: RecipientKey" in ast.unparse(constructor)


def test_wrong_passphrase(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "key"
    LockedRecoveryKey.lock(tiny.key, "right one", "label", None).write(path)
    assert path.stat().st_mode & 0o777 == 0o600
    locked = LockedRecoveryKey.read(path)
    assert locked.unlock("right one") == tiny.key
    with pytest.raises(WrongPassphrase):
        locked.unlock("wrong one")
    with pytest.raises(OutputExists):
        locked.write(path)


def test_public_part(tiny: Tiny, tmp_path: Path) -> None:
    locked = LockedRecoveryKey.lock(tiny.key, "right one", "label", None)
    locked.write(tmp_path / "key")
    NamedRecipient("label", locked.recipient).write(tmp_path / "key.pub")
    for name in ("key", "key.pub"):
        assert NamedRecipient.read(tmp_path / name).recipient == tiny.key.recipient
    with pytest.raises(RecoveryKeyNeeded):
        LockedRecoveryKey.read(tmp_path / "key.pub")
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(RecoveryKeyNeeded):
        NamedRecipient.read(tmp_path / "junk")


def test_composed_and_decomposed_passphrases_are_one(tiny: Tiny) -> None:
    locked = LockedRecoveryKey.lock(tiny.key, "schl\u00fcssel", "label", None)
    assert locked.unlock("schlu\u0308ssel") == tiny.key


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b'{"format": "remetal credential"}'])
def test_files_that_are_no_keys(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(RecoveryKeyNeeded):
        LockedRecoveryKey.read(path)
    with pytest.raises(CredentialNeeded):
        Credential.read(path)


def test_keys_of_another_repository(tiny: Tiny) -> None:
    with pytest.raises(WrongKey):
        check_owner(b"\1" * 16, tiny.open().id, "the key")
    check_owner(None, tiny.open().id, "a key made before any repository")


def test_an_image_signed_by_a_stranger_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    """A stranger who knows the group secret, but was never vouched for."""
    stranger = Credential(
        tiny.credential.repository,
        tiny.credential.group_secret,
        Signer.generate(),
        tiny.credential.certificate,
    )
    image = Tiny(tiny.path, tiny.key, stranger).add(CONTENT, tmp_path)
    repository = tiny.open()
    with pytest.raises(UntrustedObject):
        repository.find_image(image, repository.credential_keys(tiny.credential))


def test_an_exchanged_configuration_is_noticed(tiny: Tiny, tmp_path: Path) -> None:
    """Who owns the storage puts their own recipients in: machines must not seal to them."""
    other = RecipientKey.generate()
    fake = tmp_path / "fake"
    Repository.create(str(fake), [("thief", other.recipient)], lambda *_: None)
    (tiny.path / "config").write_bytes((fake / "config").read_bytes())
    with pytest.raises((WrongKey, ObjectDamaged)):
        tiny.add(CONTENT, tmp_path)
