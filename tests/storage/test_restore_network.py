"""Restores from repositories on the network: what a person at the rescued machine is led through."""

import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from functools import partial
from pathlib import Path

import click
import pytest
from restored_disks import PASSPHRASE, SIZE, Saved, digest

from imager.blockdev import BlockDisk
from imager.console import Output
from imager.errors import ConfigError, SecretError, StoreRefused, StoreUnreachable, WrongPassphrase
from imager.layout.disk import DiskIdentity
from imager.network_settings import NetworkSettings
from imager.repository.backend.endpoint import Endpoint
from imager.repository.store_keys import StoreKeys
from restore import clock, network, unattended
from restore.console_ui import stores
from restore.console_ui.dialogue import Dialogue
from restore.console_ui.repositories import Found
from restore.console_ui.stores import ChooseAnother, Stores
from restore.console_ui.terminal import Terminal
from restore.medium import RUN, AtEnd, Medium, read_medium
from restore.network import Check
from restore.store_access import StoreAccess
from restore.unattended import REPORT
from tests.stores.ssh import Sshd, free_port, make_key, running

_REACHED = Check("TCP", is_right=True, text="it answers")
_PHRASE = "four random words here"


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def location(saved: Saved, sshd: Sshd) -> str:
    if not (sshd.folder / "rescue").exists():
        sshd.serve(sshd.new_key("rescue"), saved.repository, "--read-only")
    return sshd.place("ssh", sshd.folder / "rescue", saved.repository).location


@pytest.fixture
def medium(sshd: Sshd, location: str, tmp_path: Path) -> Medium:
    """What lies on a medium: the location, the host key, and a key under the passphrase."""
    sealed = tmp_path / "store.keys"
    sealed.write_bytes(StoreKeys((sshd.folder / "rescue").read_bytes()).seal(PASSPHRASE))
    return Medium("Rescue", "1", (location,), known_hosts=sshd.known_hosts, store_keys=sealed)


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's network stays as it is, and so does /run."""
    monkeypatch.setattr(network, "is_up", lambda: True)
    monkeypatch.setattr(network, "need", partial(network.need, patience=0.0))
    monkeypatch.setattr(network, "diagnose", lambda *_, **__: (_REACHED,))
    for module in (stores, unattended):
        monkeypatch.setattr(module, "StoreAccess", lambda m: StoreAccess(m, tmp_path / "opened"))


class Person:
    """Types one line after the other; a line may look at what is shown first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *lines: str | Callable[[], str]) -> None:
        self._lines = list(lines)
        self.passphrases: list[str] = []
        monkeypatch.setattr(click, "prompt", self._prompt)
        for module in ("restore.console_ui.stores", "imager.commands.secrets"):
            monkeypatch.setattr(f"{module}.ask", self._passphrase)

    def _prompt(self, _: str, **__: object) -> str:
        if not self._lines:
            raise click.Abort
        line = self._lines.pop(0)
        return line if isinstance(line, str) else line()

    def _passphrase(self, question: str) -> str:
        self.passphrases.append(question)
        return self._prompt(question)


def _stores(medium: Medium) -> Stores:
    return Stores(Terminal(Output()), medium)


def test_one_passphrase_opens_the_store_and_the_image(
    saved: Saved,
    medium: Medium,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "target.raw"
    target.write_bytes(b"old".ljust(SIZE, b"\0"))
    identity = DiskIdentity(SIZE, 512, serial="one")
    disk = BlockDisk(target, identity, (), read_only=False, removable=False, is_device=False)
    monkeypatch.setattr("imager.blockdev.list_disks", lambda: (disk,))

    def number() -> str:
        shown = capsys.readouterr().out.splitlines()
        return next(line.split()[0] for line in shown if "  bios, " in line)

    person = Person(
        monkeypatch,
        "1",  # the repository on the network
        PASSPHRASE,
        "1",  # the recovery key
        number,
        "",  # the rest of the plan
        "",
        "overwrite",
        "reboot",
    )
    found = Found((), (saved.folder / "keys" / "recovery.key",))
    dialogue = Dialogue(Terminal(Output()), medium, lambda _: found, tmp_path / "log")
    assert dialogue.run() is AtEnd.REBOOT
    assert digest(target) == digest(saved.mbr)
    assert person.passphrases == ["Passphrase of the keys to the stores"]
    opened = tmp_path / "opened" / "ssh-key"
    assert opened.stat().st_mode & 0o777 == 0o600
    assert opened.parent.stat().st_mode & 0o777 == 0o700


def test_a_wrong_passphrase_is_asked_for_again_and_not_for_ever(
    medium: Medium,
    location: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Person(monkeypatch, "wrong", PASSPHRASE)
    assert _stores(medium).open(location, Found()).backend.location == location
    assert "does not open the keys of the stores; try again" in capsys.readouterr().out
    Person(monkeypatch, "wrong", "wrong", "wrong")
    with pytest.raises(WrongPassphrase):
        _stores(medium).open(location, Found())


def test_a_host_that_nobody_vouches_for_is_confirmed_by_a_person_or_not_used(
    medium: Medium,
    location: str,
    sshd: Sshd,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    unknown = Medium("Rescue", "1", (location,), store_keys=medium.store_keys)
    for answer in ("y", "no", "YES"):
        Person(monkeypatch, PASSPHRASE, answer)
        with pytest.raises(Exception, match="nobody vouches for"):
            _stores(unknown).open(location, Found())
    Person(monkeypatch, PASSPHRASE, "yes")
    assert _stores(unknown).open(location, Found()).images is not None
    assert "SHA256:" in capsys.readouterr().out


def test_another_host_key_than_the_mediums_is_refused(
    medium: Medium, location: str, sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_key(tmp_path / "other")
    public = " ".join((tmp_path / "other.pub").read_text().split()[:2])
    known = tmp_path / "known"
    known.write_text(f"[127.0.0.1]:{sshd.port} {public}\n")
    changed = Medium("Rescue", "1", (location,), known_hosts=known, store_keys=medium.store_keys)
    Person(monkeypatch, PASSPHRASE, "yes")
    with pytest.raises(Exception, match="shows another host key"):
        _stores(changed).open(location, Found())


def test_a_key_on_a_stick_serves_where_the_medium_has_none(
    sshd: Sshd, location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_key(tmp_path / "stick", _PHRASE)
    sshd.serve(tmp_path / "stick", Path(location.partition(str(sshd.port))[2]), "--read-only")
    (tmp_path / "stick").chmod(0o755)  # what a stick with FAT shows
    bare = Medium("Rescue", "1", known_hosts=sshd.known_hosts)
    Person(monkeypatch, "1", _PHRASE)
    opened = _stores(bare).open(location, Found(ssh_keys=(tmp_path / "stick",)))
    assert opened.backend.location == location
    Person(monkeypatch, "other")
    with pytest.raises(ChooseAnother):
        _stores(bare).open(location, Found())


def test_a_key_on_a_stick_serves_where_nobody_knows_the_passphrase(
    medium: Medium, location: str, sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Found(ssh_keys=(sshd.folder / "rescue",))
    Person(monkeypatch, "2")
    assert _stores(medium).open(location, found).backend.location == location
    Person(monkeypatch, "1", PASSPHRASE)
    assert _stores(medium).open(location, found).backend.location == location


def test_a_medium_with_keys_of_other_stores_only(
    medium: Medium, location: str, sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert medium.store_keys is not None
    medium.store_keys.write_bytes(StoreKeys(None, b"[default]").seal(PASSPHRASE))
    person = Person(monkeypatch, PASSPHRASE, "path", str(sshd.folder / "rescue"))
    assert _stores(medium).open(location, Found()).backend.location == location
    assert len(person.passphrases) == 1


def test_a_key_that_the_server_does_not_know_is_said(
    sshd: Sshd, location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_key(tmp_path / "stranger")
    bare = Medium("Rescue", "1", known_hosts=sshd.known_hosts)
    leading = _stores(bare)
    Person(monkeypatch, "path", str(tmp_path / "stranger"))
    with pytest.raises(StoreRefused, match="does not let root in"):
        leading.open(location, Found())
    Person(monkeypatch, "path", str(sshd.folder / "rescue"))
    assert leading.open(location, Found()).backend.location == location


def test_what_is_missing_is_shown_until_it_is_there(
    medium: Medium,
    location: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers = [
        (Check("link", is_right=False, text="no network card has a link", advice="Plug it in."),),
        (
            Check("link", is_right=True, text="up on eno1"),
            Check("address", is_right=False, text="no DHCP server", advice="Type it."),
        ),
        (_REACHED,),
    ]
    brought_up: list[NetworkSettings] = []
    is_up = iter([False, False, False])
    monkeypatch.setattr(network, "diagnose", lambda *_, **__: answers.pop(0))
    monkeypatch.setattr(network, "is_up", lambda: next(is_up))

    def bring_up(settings: NetworkSettings) -> None:
        brought_up.append(settings)
        if len(brought_up) == 1:
            raise ConfigError("this machine has no network card eno7")

    monkeypatch.setattr(network, "bring_up", bring_up)
    monkeypatch.setattr(network, "take_down", lambda: None)
    monkeypatch.setattr(network, "cards", lambda: (network.Card("eno1", "52:54:00:1", True),))
    typed = ("10.0.0.9", "none", "none", "10.0.0.9/24", "10.0.0.1", "none")
    Person(monkeypatch, "retry", "address", *typed, PASSPHRASE)
    _stores(medium).open(location, Found())
    assert [str(settings.address) for settings in brought_up] == ["()", "()", "10.0.0.9/24"]
    shown = capsys.readouterr().out
    assert "no network card eno7" in shown
    assert "link  NO: no network card has a link" in shown
    assert "Plug it in." in shown
    assert "with the length of its prefix" in shown


def _order(share: Path, saved: Saved, **fields: object) -> dict[str, object]:
    share.mkdir(exist_ok=True)
    (share / "recovery.key").write_bytes((saved.folder / "keys" / "recovery.key").read_bytes())
    (share / "passphrase").write_text(PASSPHRASE + "\n")
    document = {
        "image": "bios",
        "recovery_key": "recovery.key",
        "passphrase_file": "passphrase",
        "maps": {"disk0": str(share.parent / "target.raw")},
        **fields,
    }
    (share / "job.json").write_text(json.dumps(document))
    return document


def _carry_out(share: Path, medium: Medium) -> dict[str, object]:
    unattended.run(Output(), share, medium, lambda: None)
    report: dict[str, object] = json.loads((share / REPORT).read_text())
    return report


def test_an_order_opens_what_lies_on_the_medium(
    saved: Saved, medium: Medium, location: str, tmp_path: Path
) -> None:
    _order(tmp_path / "share", saved, repository=location)
    report = _carry_out(tmp_path / "share", medium)
    assert report["outcome"] == "restored", report["error"]
    assert digest(tmp_path / "target.raw") == digest(saved.mbr)


def test_an_order_brings_its_own_keys_and_trusts_nobody_else(
    saved: Saved, sshd: Sshd, location: str, tmp_path: Path
) -> None:
    share = tmp_path / "share"
    _order(share, saved, repository=location, ssh_key="ssh.key", known_hosts="known")
    (share / "ssh.key").write_bytes((sshd.folder / "rescue").read_bytes())
    (share / "known").write_text("")
    report = _carry_out(share, Medium("Rescue", "1"))
    assert isinstance(report["error"], dict)
    assert report["error"]["id"] == "untrusted-host"
    (share / "known").write_bytes(sshd.known_hosts.read_bytes())
    assert _carry_out(share, Medium("Rescue", "1"))["outcome"] == "restored"


def test_an_order_says_what_is_missing_on_the_way(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(network, "is_up", lambda: True)
    monkeypatch.setattr(network, "need", partial(network.need, patience=0.0))
    share = tmp_path / "share"
    _order(share, saved, repository=f"ssh://root@127.0.0.1:{free_port()}/srv/images")
    report = _carry_out(share, Medium("Rescue", "1"))
    assert isinstance(report["error"], dict)
    assert report["error"]["id"] == "store-unreachable"


@pytest.mark.parametrize("network_field", ["dhcp", {"address": "10.0.0.9"}, {"adress": "x"}])
def test_an_order_with_odd_settings_is_none(
    saved: Saved, tmp_path: Path, network_field: object
) -> None:
    share = tmp_path / "share"
    _order(share, saved, repository="ssh://backup@10.0.0.5/r", network=network_field)
    report = _carry_out(share, Medium("Rescue", "1"))
    assert isinstance(report["error"], dict)
    assert report["error"]["id"] == "config"


@pytest.fixture
def timekeeper() -> Iterator[Callable[[float], Endpoint]]:
    """A web server whose clock is off by some seconds."""
    servers: list[http.server.HTTPServer] = []

    def start(seconds: float) -> Endpoint:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response_only(403)
                self.send_header("Date", formatdate(time.time() + seconds, usegmt=True))
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        servers.append(http.server.HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return Endpoint("127.0.0.1", servers[-1].server_port, is_signed_by_time=True)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_clock_is_set_only_when_a_person_says_so(
    timekeeper: Callable[[float], Endpoint],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    was_set: list[float] = []
    monkeypatch.setattr(clock, "set_clock", was_set.append)
    bare = _stores(Medium("Rescue", "1"))
    bare._compare_clocks(timekeeper(60))
    ahead = timekeeper(86400)
    Person(monkeypatch, "", "yes", "keep")
    bare._compare_clocks(ahead)
    assert was_set == []
    assert "Nobody vouches for that time" in capsys.readouterr().out
    Person(monkeypatch, "other")
    with pytest.raises(ChooseAnother):
        bare._compare_clocks(ahead)
    Person(monkeypatch, "set")
    bare._compare_clocks(ahead)
    assert was_set == [pytest.approx(time.time() + 86400, abs=10)]


def test_an_order_sets_the_clock_only_when_it_says_so(
    saved: Saved,
    timekeeper: Callable[[float], Endpoint],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    was_set: list[float] = []
    monkeypatch.setattr(clock, "set_clock", was_set.append)
    ahead = timekeeper(-86400)
    location = f"s3://bucket/repo?endpoint=http://127.0.0.1:{ahead.port}"
    share = tmp_path / "share"
    for fields, times in (({}, 0), ({"set_clock": True}, 1)):
        _order(share, saved, repository=location, store_credentials="none", **fields)
        (share / "none").write_text("nothing")
        assert _carry_out(share, Medium("Rescue", "1"))["outcome"] == "failed"
        assert len(was_set) == times


def test_a_store_that_says_no_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(StoreUnreachable, match="does not tell the time"):
        clock.store_time(Endpoint("127.0.0.1", port))


def test_a_medium_tells_what_it_carries(tmp_path: Path) -> None:
    path = tmp_path / "medium.json"
    document = {
        "title": "T",
        "version": "1",
        "repositories": [],
        "recovery_key": None,
        "network": {"interface": "", "address": ["10.0.0.9/24"], "gateway": "10.0.0.1", "dns": []},
        "known_hosts": "/etc/remetal/known_hosts",
        "store_keys": "/etc/remetal/store.keys",
        "authorities": None,
    }
    path.write_text(json.dumps(document))
    medium = read_medium(path)
    assert medium.network.gateways
    assert medium.known_hosts == Path("/etc/remetal/known_hosts")
    assert medium.store_keys == Path("/etc/remetal/store.keys")
    assert medium.authorities is None


def test_what_is_too_large_is_no_key(tmp_path: Path) -> None:
    access = StoreAccess(Medium("Rescue", "1"), tmp_path / "opened")
    (tmp_path / "large").write_bytes(bytes(1 << 21))
    with pytest.raises(SecretError, match="too large"):
        access.use_credentials(tmp_path / "large")
    with pytest.raises(SecretError, match="can't be read"):
        access.use_ssh_key(tmp_path / "none")
    assert StoreAccess(Medium("Rescue", "1"))._folder.is_relative_to(RUN)
