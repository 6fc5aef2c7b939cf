from pathlib import Path

import pytest

from bootmedia.config import MediumConfig, default_cache, read_config, recovery_key_content
from imager.errors import ConfigError
from imager.repository.crypto.recipient import RecipientKey
from imager.repository.keyring import LockedRecoveryKey


def _read(tmp_path: Path, text: str) -> MediumConfig:
    path = tmp_path / "medium.toml"
    path.write_text(text)
    return read_config(path)


def test_everything_may_be_left_out(tmp_path: Path) -> None:
    assert _read(tmp_path, "") == MediumConfig()


def test_every_value_arrives(tmp_path: Path) -> None:
    config = _read(
        tmp_path,
        """
        title = "Rescue of the north hospital"
        keyboard = "de-latin1"
        serial = "ttyS1,57600n8"
        menu-seconds = 10
        kernel-parameters = ["nomodeset", "pci=nomsi"]
        recovery-key = "keys/recovery.key"
        repositories = ["ssh://backup@10.0.0.5/srv/images", "/mnt/images of today"]
        host-keys = "keys/known_hosts"
        ssh-key = "keys/rescue"
        store-credentials = "/etc/store.credentials"
        authorities = "ca.pem"
        debian-sources = ["deb [trusted=yes] http://mirror.example/debian bookworm main"]

        [network]
        interface = "52:54:00:12:34:56"
        address = ["10.0.0.9/24", "2001:db8::9/64"]
        gateway = "10.0.0.1"
        dns = ["10.0.0.1", "10.0.0.2"]
        """,
    )
    assert config.title == "Rescue of the north hospital"
    assert config.serial_port == (1, 57600)
    assert config.menu_seconds == 10
    assert config.kernel_parameters == ("nomodeset", "pci=nomsi")
    assert config.recovery_key == tmp_path / "keys/recovery.key"
    assert len(config.repositories) == 2
    assert len(config.debian_sources) == 1
    assert config.host_keys == str(tmp_path / "keys/known_hosts")
    assert config.ssh_key == tmp_path / "keys/rescue"
    assert config.store_credentials == Path("/etc/store.credentials")
    assert config.authorities == tmp_path / "ca.pem"
    assert config.has_store_keys
    assert config.network.gateway == "10.0.0.1"
    assert len(config.network.name_servers) == 2


def test_no_serial_console(tmp_path: Path) -> None:
    assert _read(tmp_path, 'serial = "none"').serial_port is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('title = ""', "title"),
        ('title = "two\\nlines"', "title"),
        ("title = 7", "title"),
        (f'title = "{"x" * 61}"', "title"),
        ('serial = "COM1"', "serial"),
        ('keyboard = "de; reboot"', "keyboard"),
        ("menu-seconds = -1", "menu-seconds"),
        ('kernel-parameters = ["a b"]', "kernel-parameters"),
        ('kernel-parameters = ["\'"]', "kernel-parameters"),
        ('kernel-parameters = "nomodeset"', "kernel-parameters"),
        ('repositories = [""]', "repositories"),
        ('debian-sources = ["http://mirror.example"]', "debian-sources"),
        ("title = ", "can't be read"),
        ("ssh-key = 7", "ssh-key"),
        ("host-keys = 7", "host-keys"),
        ('network = "dhcp"', "network"),
        ('[network]\naddress = "10.0.0.9"', "address"),
        ('[network]\ngateway = "10.0.0.1"', "gateway"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        _read(tmp_path, text)
    assert "medium.toml" in caught.value.message


def test_unknown_field_suggests_the_known_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        _read(tmp_path, 'keybord = "de"')
    assert "keybord" in caught.value.message
    assert "`keyboard`" in caught.value.hint


def test_unknown_field_of_the_network_suggests_the_known_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        _read(tmp_path, '[network]\nadress = "10.0.0.9/24"')
    assert "adress" in caught.value.message
    assert "`address`" in caught.value.hint


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        read_config(tmp_path / "none.toml")


def test_a_locked_key_goes_onto_the_medium_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "recovery.key"
    LockedRecoveryKey.lock(RecipientKey.generate(), "secret", "test", None).write(path)
    assert recovery_key_content(MediumConfig(recovery_key=path)) == path.read_bytes()
    path.write_text("-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(ConfigError, match="no recovery key under a passphrase"):
        recovery_key_content(MediumConfig(recovery_key=path))


def test_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    monkeypatch.delenv("REMETAL_CACHE", raising=False)
    assert default_cache() == Path("/shared/remetal")
    monkeypatch.setenv("REMETAL_CACHE", "/own")
    assert default_cache() == Path("/own")
