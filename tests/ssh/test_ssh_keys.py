"""Which keys are shown over SSH, and which hosts are believed: as with ssh itself."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import paramiko
import pytest

from imager.errors import OBJECT_FAULTS, StoreRefused, StoreUnreachable, UntrustedHost
from imager.repository.backend import retry, ssh
from imager.repository.backend.opening import open_backend
from imager.repository.backend.place import Access, HostKey, Place
from imager.repository.backend.ssh import Address
from imager.repository.backend.ssh_hosts import HostKeys
from tests.ssh.conftest import Served
from tests.stores.ssh import make_key


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "PATIENCE", 2.0)
    monkeypatch.setattr(retry, "FIRST_PATIENCE", 0.5)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, where ssh keeps its files."""
    (tmp_path / "home" / ".ssh").mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return tmp_path / "home" / ".ssh"


@pytest.fixture
def agent(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    socket = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
    yield
    process.terminate()
    process.wait()


def lock(key: Path) -> None:
    """Put a key under a passphrase."""
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "a passphrase", "-f", key], check=True)


def default_key(served: Served, home: Path) -> Place:
    """Make the machine's key the one that ssh would show, and return the place without naming it."""
    for suffix in ("", ".pub"):
        (home / f"id_ed25519{suffix}").write_bytes(Path(f"{served.key}{suffix}").read_bytes())
    (home / "id_ed25519").chmod(0o600)
    return Place(served.place.location, replace(served.place.access, ssh_key=None))


@pytest.mark.usefixtures("agent")
def test_a_default_key_that_the_agent_holds_open(served: Served, home: Path) -> None:
    place = default_key(served, home)
    subprocess.run(["ssh-add", "-q", home / "id_ed25519"], check=True)
    lock(home / "id_ed25519")
    assert open_backend(place).get("config")


@pytest.mark.usefixtures("agent", "home")
def test_a_key_that_was_asked_for_and_that_the_agent_holds_open(served: Served) -> None:
    subprocess.run(["ssh-add", "-q", served.key], check=True)
    lock(served.key)
    assert served.backend.get("config")


@pytest.mark.usefixtures("agent")
def test_of_many_keys_in_the_agent_the_right_one_comes_first(
    served: Served, home: Path, tmp_path: Path
) -> None:
    """A host lets nobody show more than six."""
    place = default_key(served, home)
    for number in range(8):
        make_key(tmp_path / f"other-{number}")
        subprocess.run(["ssh-add", "-q", tmp_path / f"other-{number}"], check=True)
    subprocess.run(["ssh-add", "-q", home / "id_ed25519"], check=True)
    lock(home / "id_ed25519")
    assert open_backend(place).get("config")


@pytest.mark.usefixtures("home")
def test_a_passphrase_is_asked_for_once(served: Served) -> None:
    lock(served.key)
    asked: list[Path] = []

    def passphrase(path: Path) -> str:
        asked.append(path)
        return "a passphrase"

    access = replace(served.place.access, ssh_passphrase=passphrase)
    backend = open_backend(Place(served.place.location, access))
    assert backend.get("config")
    backend._channels._connection.drop()  # type: ignore[attr-defined]
    assert backend.get("config")
    assert asked == [served.key]


@pytest.mark.usefixtures("home")
def test_what_is_wrong_with_a_key_is_no_damage_of_an_object(served: Served) -> None:
    """Else `check` would call everything damaged when a key is moved away."""
    lock(served.key)
    with pytest.raises(StoreRefused, match="under a passphrase") as caught:
        served.backend.get("config")
    assert not isinstance(caught.value, OBJECT_FAULTS)
    served.key.chmod(0o644)
    with pytest.raises(StoreRefused, match="others can read"):
        served.backend.get("config")
    served.key.chmod(0o600)
    served.key.write_text("nonsense")
    with pytest.raises(StoreRefused, match="can't be read"):
        served.backend.get("config")


def test_default_keys_that_are_of_no_use_are_named(served: Served, home: Path) -> None:
    place = default_key(served, home)
    (home / "id_ed25519").chmod(0o644)
    with pytest.raises(StoreRefused, match="others can read"):
        open_backend(place).get("config")


def known(served: Served, tmp_path: Path, *lines: str) -> Place:
    path = tmp_path / "known"
    path.write_text("".join(lines))
    return Place(served.place.location, replace(served.place.access, known_hosts=path))


@pytest.fixture
def line(served: Served) -> str:
    return served.sshd.known_hosts.read_text()


def test_a_host_key_that_was_revoked(served: Served, tmp_path: Path, line: str) -> None:
    name, kind, key = line.split()
    for names in (name, "*"):
        place = known(served, tmp_path, line, f"@revoked {names} {kind} {key}\n")
        with pytest.raises(UntrustedHost, match="was revoked"):
            open_backend(place).get("config")


def test_two_keys_of_one_sort_are_both_known(served: Served, tmp_path: Path, line: str) -> None:
    """As while a host's key is exchanged."""
    make_key(tmp_path / "new")
    kind, key, _ = (tmp_path / "new.pub").read_text().split()
    name = line.split(maxsplit=1)[0]
    for lines in ((line, f"{name} {kind} {key}\n"), (f"{name} {kind} {key}\n", line)):
        assert open_backend(known(served, tmp_path, *lines)).get("config")


@pytest.mark.parametrize(
    ("names", "is_known"),
    [
        ("[127.0.0.*]:*", True),
        ("[127.0.0.?]:PORT,other", True),
        ("*,![127.0.0.1]:PORT", False),
        ("127.0.0.1", False),
        ("@cert-authority *", False),
        ("|1|nonsense|", False),
    ],
)
def test_patterns_of_hosts(
    served: Served, tmp_path: Path, line: str, names: str, is_known: bool
) -> None:
    _, kind, key = line.split()
    place = known(
        served, tmp_path, f"{names.replace('PORT', str(served.sshd.port))} {kind} {key}\n"
    )
    if is_known:
        assert open_backend(place).get("config")
    else:
        with pytest.raises(UntrustedHost, match="nobody vouches"):
            open_backend(place).get("config")


def test_hashed_names(served: Served, tmp_path: Path, line: str) -> None:
    place = known(served, tmp_path, line)
    subprocess.run(
        ["ssh-keygen", "-q", "-H", "-f", tmp_path / "known"], check=True, capture_output=True
    )
    assert "127.0.0.1" not in (tmp_path / "known").read_text()
    assert open_backend(place).get("config")


def test_an_alias_is_known_by_the_host_it_stands_for(served: Served, home: Path, line: str) -> None:
    """ssh looks known_hosts up by HostName, so whoever reached the host with it is not asked anew."""
    (home / "config").write_text(
        f"Host images\n HostName 127.0.0.1\n Port {served.sshd.port}\n User root\n"
        "Host other\n HostName 127.0.0.1\n HostKeyAlias vault\n"
    )
    (home / "known_hosts").write_text(line)
    access = Access(ssh_key=served.key)
    assert open_backend(Place(f"ssh://images{served.tiny.path}", access)).get("config")
    assert Address.parse("ssh://other:77/x").known_as == "vault"


def test_a_line_that_was_left_open_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "known"
    path.write_text("# my hosts")
    key = paramiko.Ed25519Key.from_private_key_file(str(_new_key(tmp_path)))
    asked: list[HostKey] = []
    access = Access(known_hosts=path, confirm=lambda shown: asked.append(shown) or True)
    for _ in range(2):
        HostKeys("a", access).check(key)
        HostKeys("b", access).check(key)
    assert path.read_text().splitlines() == [
        "# my hosts",
        *(f"{host} ssh-ed25519 {key.get_base64()}" for host in "ab"),
    ]
    assert [shown.host for shown in asked] == ["a", "b"]


def _new_key(folder: Path) -> Path:
    make_key(folder / "host")
    return folder / "host"


def test_a_cut_while_logging_in_is_no_refusal(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sshd that is restarted just now must not end a capture."""
    log_in = paramiko.Transport.auth_publickey
    cut = []

    def cut_once(transport: paramiko.Transport, user: str, key: paramiko.PKey) -> list[str]:
        if not cut:
            cut.append(True)
            transport.sock.shutdown(2)
        found: list[str] = log_in(transport, user, key)
        return found

    monkeypatch.setattr(paramiko.Transport, "auth_publickey", cut_once)
    assert served.backend.get("config")
    assert cut


def test_silence_while_logging_in_is_no_refusal(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "CONNECT_SECONDS", 1.0)
    monkeypatch.setattr(paramiko.auth_handler.AuthHandler, "auth_publickey", lambda *_: None)
    with pytest.raises(StoreUnreachable, match="says nothing any more"):
        served.backend.get("config")
