from pathlib import Path

import pytest

from imager.errors import SecretError, UnsupportedFormat, WrongPassphrase
from imager.repository import ssh_key
from imager.repository.store_keys import StoreKeys
from tests.stores.ssh import make_key

PHRASE = "four random words here"


def test_what_was_sealed_comes_back_under_its_passphrase_only() -> None:
    sealed = StoreKeys(b"a private key", b"[default]").seal(PHRASE)
    opened = StoreKeys.unseal(sealed, PHRASE)
    assert (opened.ssh_key, opened.credentials) == (b"a private key", b"[default]")
    with pytest.raises(WrongPassphrase, match="keys of the stores"):
        StoreKeys.unseal(sealed, "four other words here")


def test_nothing_shows_in_the_file_or_in_words() -> None:
    keys = StoreKeys(b"a private key", None)
    assert b"private key" not in keys.seal(PHRASE)
    assert "private key" not in repr(keys)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", SecretError),
        (b"{}", SecretError),
        (b"x" * (1 << 21), SecretError),
        (StoreKeys(b"k").seal(PHRASE).replace(b'"version":1', b'"version":2'), UnsupportedFormat),
        (
            StoreKeys(b"k").seal(PHRASE).replace(b'"iterations":4', b'"iterations":4000000'),
            UnsupportedFormat,
        ),
        (StoreKeys(b"k").seal(PHRASE).replace(b'"sealed":"', b'"sealed":"AAAA'), WrongPassphrase),
    ],
)
def test_other_files_are_told(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        StoreKeys.unseal(data, PHRASE)


def test_a_private_key_and_its_passphrase(tmp_path: Path) -> None:
    make_key(tmp_path / "open")
    data = (tmp_path / "open").read_bytes()
    assert not ssh_key.is_locked(data)
    make_key(tmp_path / "locked", PHRASE)
    locked = (tmp_path / "locked").read_bytes()
    assert ssh_key.is_locked(locked)
    with pytest.raises(WrongPassphrase):
        ssh_key.unlocked(locked, "another")
    opened = ssh_key.unlocked(locked, PHRASE)
    assert not ssh_key.is_locked(opened)
    with pytest.raises(SecretError, match="no private key in OpenSSH's form"):
        ssh_key.is_locked(b"-----BEGIN RSA PRIVATE KEY-----\n")
