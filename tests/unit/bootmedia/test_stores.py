"""What is put on the medium for repositories on the network, and what is refused."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from bootmedia import stores
from bootmedia.config import MediumConfig
from imager.errors import ConfigError, WrongPassphrase
from imager.repository import ssh_key
from tests.stores.ssh import make_key

PHRASE = "four random words here"


def _no_question(question: str) -> str:
    raise AssertionError(question)


@pytest.fixture
def host_key(tmp_path: Path) -> str:
    make_key(tmp_path / "host")
    return " ".join((tmp_path / "host.pub").read_text().split()[:2])


def _certificate(days: int) -> bytes:
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "our own")])
    end = datetime.now(UTC) + timedelta(days=days)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name)
    builder = builder.public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(end - timedelta(days=400)).not_valid_after(end)
    return builder.sign(key, None).public_bytes(Encoding.PEM)


@pytest.mark.parametrize(
    "location",
    [
        "/mnt/images",
        "ssh://backup@10.0.0.5/srv/images",
        "sftp://backup@10.0.0.5:2222/srv/images",
        "s3://bucket/repo?endpoint=https://store.example",
    ],
)
def test_places_that_mean_the_same_everywhere(location: str, host_key: str) -> None:
    lines = (f"10.0.0.5 {host_key}", f"[10.0.0.5]:2222 {host_key}")
    for host_keys in ((), lines):
        stores.check_repositories(MediumConfig(repositories=(location,), host_keys=host_keys))


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("gopher://host/repo", "can't be reached by this version"),
        ("mirror:/etc/remetal/sites.toml", "is a file on this machine"),
        ("ssh://10.0.0.5/srv/images", "does not say who logs in"),
        ("ssh://backup:secret@10.0.0.5/srv/images", "holds no password"),
        ("ssh://backup@10.0.0.5", "names no host and folder"),
        ("s3://bucket/repo?endpoint=http://store.example", "without TLS"),
        ("s3://Bucket/repo", "no name of a bucket"),
        ("ssh://backup@alias/srv/images", "alias of this machine's ~/.ssh/config"),
        ("ssh://backup@10.0.0.6/srv/images", "holds no key of 10.0.0.6"),
        ("ssh://backup@10.0.0.5:2222/srv/images", "holds no key of [10.0.0.5]:2222"),
    ],
)
def test_places_that_would_fail_at_the_rescued_machine(
    location: str,
    said: str,
    host_key: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text("Host alias\n  Hostname 10.0.0.5\n")
    config = MediumConfig(repositories=(location,), host_keys=(f"10.0.0.5 {host_key}",))
    with pytest.raises(ConfigError) as caught:
        stores.check_repositories(config)
    assert said in caught.value.message


def test_host_keys_come_from_lines_or_a_file(tmp_path: Path, host_key: str) -> None:
    line = f"10.0.0.5 {host_key}"
    (tmp_path / "known_hosts").write_text(f"# ours\n\n{line}\n")
    for host_keys in ((line,), str(tmp_path / "known_hosts")):
        assert stores.known_hosts(MediumConfig(host_keys=host_keys)) == f"{line}\n".encode()
    assert stores.known_hosts(MediumConfig()) is None


@pytest.mark.parametrize(
    "line", ["10.0.0.5", "10.0.0.5 ssh-ed25519 AAAA", "10.0.0.5 ssh-ed25519 ????", "@revoked x y z"]
)
def test_lines_that_are_no_host_keys(line: str) -> None:
    with pytest.raises(ConfigError, match="is no host key"):
        stores.check_repositories(MediumConfig(host_keys=(line,)))


def test_files_that_are_not_there() -> None:
    with pytest.raises(ConfigError, match="`host-keys`: /none can't be read"):
        stores.known_hosts(MediumConfig(host_keys="/none"))
    with pytest.raises(ConfigError, match="`authorities`: /none can't be read"):
        stores.authorities(MediumConfig(authorities=Path("/none")))
    with pytest.raises(ConfigError, match="`ssh-key`: /none can't be read"):
        stores.store_keys(MediumConfig(ssh_key=Path("/none")), _no_question)
    with pytest.raises(ConfigError, match="`store-credentials`: /none can't be read"):
        stores.store_keys(MediumConfig(store_credentials=Path("/none")), _no_question)


def test_certificates(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(_certificate(30))
    assert stores.authorities(MediumConfig(authorities=path)) == path.read_bytes()
    path.write_bytes(_certificate(-1))
    with pytest.raises(ConfigError, match="CN=our own is over since"):
        stores.authorities(MediumConfig(authorities=path))
    path.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="holds no certificates"):
        stores.authorities(MediumConfig(authorities=path))
    assert stores.authorities(MediumConfig()) is None


def test_a_key_without_a_passphrase_is_taken_as_it_is(tmp_path: Path) -> None:
    make_key(tmp_path / "key")
    keys = stores.store_keys(MediumConfig(ssh_key=tmp_path / "key"), _no_question)
    assert keys is not None
    assert keys.ssh_key == (tmp_path / "key").read_bytes()
    assert keys.credentials is None


def test_the_passphrase_of_a_key_is_asked_for(tmp_path: Path) -> None:
    make_key(tmp_path / "key", PHRASE)
    config = MediumConfig(ssh_key=tmp_path / "key")
    keys = stores.store_keys(config, lambda _: PHRASE)
    assert keys is not None
    assert keys.ssh_key is not None
    assert not ssh_key.is_locked(keys.ssh_key)
    with pytest.raises(WrongPassphrase):
        stores.store_keys(config, lambda _: "another")


def test_what_is_no_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("-----BEGIN RSA PRIVATE KEY-----\n")
    with pytest.raises(ConfigError, match="no private key in OpenSSH's form") as caught:
        stores.store_keys(MediumConfig(ssh_key=tmp_path / "key"), _no_question)
    assert "ssh-keygen" in caught.value.hint


def test_one_profile_of_the_credentials_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "credentials"
    path.touch(mode=0o600)
    own = "[default]\naws_access_key_id = ID\naws_secret_access_key = own%secret\n"
    path.write_text(f"{own}[other]\naws_access_key_id = B\naws_secret_access_key = foreign\n")
    keys = stores.store_keys(MediumConfig(store_credentials=path), _no_question)
    assert keys is not None
    assert keys.credentials is not None
    assert b"own%secret" in keys.credentials
    assert b"foreign" not in keys.credentials
    path.write_text(f"{own}aws_session_token = short\n")
    with pytest.raises(ConfigError, match="holds a session"):
        stores.store_keys(MediumConfig(store_credentials=path), _no_question)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="others can read"):
        stores.store_keys(MediumConfig(store_credentials=path), _no_question)


def test_nothing_to_show() -> None:
    assert stores.store_keys(MediumConfig(), _no_question) is None
