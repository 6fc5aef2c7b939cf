import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from imager.errors import SecretError, UsageError
from imager.repository.backend.place import Access, Place
from restore.drill import relay
from restore.drill.command_line import command_line
from restore.drill.job import forget_secrets, place_order
from restore.drill.reach import reach
from restore.drill.vm_spec import TCG, Outlet, UserNetwork, VmSpec
from restore.unattended import read_order
from tests.stores.engine import Identity
from tests.stores.ssh import make_key


@pytest.fixture
def access(tmp_path: Path) -> Access:
    make_key(tmp_path / "key")
    public = " ".join((tmp_path / "key.pub").read_text().split()[:2])
    names = ("192.0.2.7", "backup.example", "[192.0.2.7]:2222")
    (tmp_path / "known").write_text("".join(f"{name} {public}\n" for name in names))
    credentials = Identity("machine", "KEY", "SECRET").write(tmp_path / "credentials")
    return Access(tmp_path / "key", tmp_path / "known", credentials)


def test_a_directory_is_shared(tmp_path: Path) -> None:
    way = reach(Place(str(tmp_path), Access()))
    assert way.folder == tmp_path
    assert way.outlet is None


def test_the_address_of_a_host_is_another_in_the_guest(access: Access) -> None:
    way = reach(Place("ssh://backup@192.0.2.7:2222/srv/images", access))
    assert way.location == "ssh://backup@10.0.2.100:2222/srv/images"
    assert way.outlet == Outlet(("10.0.2.100", 2222), ("192.0.2.7", 2222))
    assert way.hosts == {}
    assert way.known_hosts is not None
    assert way.known_hosts.startswith(b"[10.0.2.100]:2222 ssh-ed25519 AAAA")
    assert way.ssh_key == (access.ssh_key or Path()).read_bytes()
    assert way.credentials is None
    assert b"PRIVATE" not in repr(way).encode()


def test_a_name_stays(access: Access) -> None:
    way = reach(Place("sftp://backup@backup.example/srv/images", access))
    assert way.location == "sftp://backup@backup.example:22/srv/images"
    assert way.outlet == Outlet(("10.0.2.100", 22), ("backup.example", 22))
    assert way.hosts == {"backup.example": "10.0.2.100"}
    assert way.known_hosts is not None
    assert way.known_hosts.startswith(b"backup.example ssh-ed25519 AAAA")


def test_a_store_on_loopback_is_reached_without_tls(access: Access) -> None:
    location = "s3://bucket/repo?endpoint=http://127.0.0.1:8333&region=us-east-1"
    way = reach(Place(location, access))
    assert way.location == (
        "s3://bucket/repo?region=us-east-1&endpoint=http%3A%2F%2F10.0.2.100%3A8333&tls=no"
    )
    assert way.outlet == Outlet(("10.0.2.100", 8333), ("127.0.0.1", 8333))
    assert way.credentials is not None
    assert b"aws_secret_access_key = SECRET" in way.credentials
    assert way.ssh_key is None


def test_a_store_with_a_certificate_keeps_its_name(access: Access) -> None:
    location = "s3://bucket/repo?endpoint=https://store.example:9000"
    way = reach(Place(location, access))
    assert way.location == location
    assert way.hosts == {"store.example": "10.0.2.100"}


def test_the_names_of_a_bucket_of_amazon(access: Access) -> None:
    way = reach(Place("s3://bucket/repo?region=eu-central-1", access))
    assert way.outlet == Outlet(("10.0.2.100", 443), ("s3.eu-central-1.amazonaws.com", 443))
    assert set(way.hosts) == {
        "s3.eu-central-1.amazonaws.com",
        "bucket.s3.eu-central-1.amazonaws.com",
    }


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("mirror:/etc/remetal/sites.toml", "one site of a mirror"),
        ("s3://bucket/repo", "does not say where the store is"),
        ("s3://bucket/repo?endpoint=https://192.0.2.7", "its certificate is not made"),
        ("gopher://host/repo", "can't be reached by this version"),
    ],
)
def test_what_no_guest_reaches(access: Access, location: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        reach(Place(location, access))


def test_a_key_under_a_passphrase_is_none_for_a_guest(access: Access, tmp_path: Path) -> None:
    make_key(tmp_path / "locked", "a passphrase")
    own = Access(tmp_path / "locked", access.known_hosts)
    with pytest.raises(UsageError, match="without a passphrase"):
        reach(Place("ssh://backup@192.0.2.7/srv/images", own))
    with pytest.raises(SecretError, match="can't be read"):
        reach(Place("ssh://backup@192.0.2.7/srv/images", Access(tmp_path / "none")))


def test_the_order_names_all_of_it_and_no_secret_stays(access: Access, tmp_path: Path) -> None:
    way = reach(Place("ssh://backup@192.0.2.7/srv/images", access))
    (tmp_path / "recovery.key").write_text("a recovery key")
    share = tmp_path / "job"
    place_order(share, way, "1234", tmp_path / "recovery.key", "a passphrase")
    order = read_order(share)
    assert order.repository == way.location
    assert order.ssh_key is not None
    assert (share / order.ssh_key).read_bytes() == way.ssh_key
    assert (share / order.ssh_key).stat().st_mode & 0o777 == 0o600
    assert order.known_hosts is not None
    assert (share / order.known_hosts).read_bytes() == way.known_hosts
    assert order.store_credentials is None
    forget_secrets(share)
    assert {path.name for path in share.iterdir()} == {"job.json", "known_hosts"}


def test_qemu_lets_the_guest_out_to_that_host_only() -> None:
    network = UserNetwork(outlets=(Outlet(("10.0.2.100", 22), ("192.0.2.7", 2222)),))
    spec = VmSpec("guest", 64, network=network)
    words = command_line(spec, TCG.arguments, monitor=3, serials=(), nvram=None)
    (nic,) = [word for word in words if word.startswith("user,")]
    assert ",restrict=on," in nic
    program = f"cmd:{sys.executable} -IS {relay.__file__} 192.0.2.7 2222"
    assert nic.endswith(f",guestfwd=tcp:10.0.2.100:22-{program}")


def test_the_relay_passes_all_bytes_and_both_ends() -> None:
    payload = bytes(range(256)) * 4096
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                heard = b"".join(iter(lambda: connection.recv(1 << 16), b""))
                connection.sendall(heard[::-1])

        threading.Thread(target=answer, daemon=True).start()
        ours, theirs = socket.socketpair()
        argv = [sys.executable, "-IS", relay.__file__, *map(str, server.getsockname())]
        with ours, subprocess.Popen(argv, stdin=theirs, stdout=theirs) as program:
            theirs.close()
            ours.sendall(payload)
            ours.shutdown(socket.SHUT_WR)
            assert b"".join(iter(lambda: ours.recv(1 << 16), b"")) == payload[::-1]
            assert program.wait(10) == 0
