"""What somebody can do who has taken over a captured machine, with its SSH key and its credential.

Nothing is deleted, overwritten, cut off, aged out or read; and every attempt is in the log of the
server, or of sshd where that refuses it already.
"""

import contextlib
import hashlib
import math
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest
from blake3 import blake3

from imager.errors import NoRoom, StoreRefused
from imager.repository.backend import frames
from imager.repository.backend.frames import Fault, Kind, Put
from imager.repository.backend.ssh import Address, Connection
from imager.repository.repository import Repository
from imager.repository.retrieval import Unlocked, open_image
from imager.units import DAY
from tests.ssh.conftest import Served


def pack_of(data: bytes) -> str:
    """The only name that a pack of these bytes may have."""
    name = hashlib.sha256(data).hexdigest()
    return f"packs/{name[:2]}/{name}"


NEW_PACK = pack_of(b"whole")
NEW_IMAGE = f"images/{hashlib.sha256(b'honest').hexdigest()}"


class Raw:
    """Speaks to the server below the client, so that it can say what the client never would."""

    def __init__(self, served: Served, order: str = "") -> None:
        self._connection = Connection(served.place, Address.parse(served.place.location))
        self.channel = self._connection.open_channel()
        self.channel.settimeout(20)
        self.channel.exec_command(order or f"remetal serve --may-delete {served.tiny.path}")

    def read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self.channel.recv(length - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def answer(self) -> tuple[Kind, bytes]:
        return frames.read_frame(self.read)

    def ask(self, kind: Kind, payload: bytes) -> tuple[Kind, bytes]:
        self.channel.sendall(b"".join(frames.frame(kind, payload)))
        return self.answer()

    def fault(self, kind: Kind, payload: bytes) -> Fault:
        answer, said = self.ask(kind, payload)
        assert answer is Kind.ERROR, answer
        return frames.split_error(said)[0]

    def close(self) -> None:
        self._connection.drop()


@pytest.fixture
def raw(served: Served) -> Iterator[Raw]:
    spoken = Raw(served)
    assert spoken.answer()[0] is Kind.GREETING
    yield spoken
    spoken.close()


def content(served: Served) -> dict[str, tuple[bytes, float]]:
    """Everything in the repository, with its times."""
    return {
        path.relative_to(served.tiny.path).as_posix(): (path.read_bytes(), path.stat().st_mtime)
        for path in served.tiny.path.rglob("*")
        if path.is_file()
    }


def announced(name: str, data: bytes, modified: float = math.nan) -> bytes:
    return Put(name, len(data), modified).encode()


def digest(data: bytes) -> bytes:
    return blake3(data).digest()


@pytest.fixture(autouse=True)
def unharmed(served: Served) -> Iterator[None]:
    """Whatever a test tries: what was there is there, byte for byte and with its time."""
    before = content(served)
    yield
    after = content(served)
    assert {name: after.get(name) for name in before} == before
    opened = Repository.open(str(served.tiny.path))
    image = open_image(opened, "tiny", Unlocked(opened, served.tiny.key), lambda _: None)
    assert image.summary.machine_name == "tiny"


def test_deleting(served: Served, raw: Raw) -> None:
    for name in content(served):
        assert raw.fault(Kind.DELETE, name.encode()) is Fault.NOT_ALLOWED
        assert f'refused=delete object="{name}"' in served.sshd.served
        with pytest.raises(StoreRefused):
            served.backend.delete(name)


def test_overwriting(served: Served, raw: Raw) -> None:
    for name in content(served):
        kind, said = raw.ask(Kind.PUT, announced(name, b"ransom"))
        if kind is Kind.THERE:
            assert raw.ask(Kind.END, digest(b"ransom"))[0] is Kind.OTHER
        else:
            assert frames.split_error(said)[0] is Fault.NOT_ALLOWED
        assert f'refused=put object="{name}" reason=' in served.sshd.served
    image = next(name for name in content(served) if name.startswith("images/"))
    assert not served.backend.put_new(image, [b"ransom"])


def test_truncating(served: Served, raw: Raw) -> None:
    """An empty object of the same name, and one that claims to be long and ends early."""
    name = next(name for name in content(served) if name.startswith("packs/"))
    assert raw.ask(Kind.PUT, announced(name, b""))[0] is Kind.THERE
    assert raw.ask(Kind.END, digest(b""))[0] is Kind.OTHER
    assert f'refused=put object="{name}"' in served.sshd.served
    assert raw.ask(Kind.PUT, announced(NEW_PACK, b"whole"))[0] is Kind.DONE
    assert raw.fault(Kind.END, digest(b"")) is Fault.WRONG_HASH
    assert f'refused=put object="{NEW_PACK}"' in served.sshd.served
    assert not (served.tiny.path / NEW_PACK).exists()


def test_other_bytes_than_announced(served: Served, raw: Raw) -> None:
    assert raw.ask(Kind.PUT, announced(NEW_IMAGE, b"honest"))[0] is Kind.DONE
    raw.channel.sendall(b"".join(frames.frame(Kind.DATA, b"forged")))
    assert raw.fault(Kind.END, digest(b"honest")) is Fault.WRONG_HASH
    assert f'refused=put object="{NEW_IMAGE}" reason="other bytes' in served.sshd.served
    assert not (served.tiny.path / NEW_IMAGE).exists()


def test_taking_the_name_of_what_is_to_come(served: Served, raw: Raw) -> None:
    """Of an object that a second site lacks, or that is to be brought back: its name is known."""
    for name in (NEW_PACK, NEW_IMAGE):
        assert raw.ask(Kind.PUT, announced(name, b"ransom"))[0] is Kind.DONE
        raw.channel.sendall(b"".join(frames.frame(Kind.DATA, b"ransom")))
        assert raw.fault(Kind.END, digest(b"ransom")) is Fault.WRONG_HASH
        assert f'refused=put object="{name}" reason="other bytes' in served.sshd.served
        assert not (served.tiny.path / name).exists()


@pytest.mark.parametrize(
    "name",
    ["packs/7f", "images/x", f"generations/{2}", f"removals/{'ab' * 32}", f"parity/ab/{'ab' * 32}"],
)
def test_adding_what_captures_never_write(served: Served, raw: Raw, name: str) -> None:
    """A file where others need a folder, the next generation of keys, a removal."""
    assert raw.fault(Kind.PUT, announced(name, b"x")) is Fault.NOT_ALLOWED
    assert f'refused=put object="{name}"' in served.sshd.served
    assert not (served.tiny.path / name).is_file()


def test_ageing_out(served: Served, raw: Raw) -> None:
    """Times are the server's: none can be given, so that a prune takes nothing for old."""
    for when in (0.0, time.time() - 4000 * DAY, time.time() + 4000 * DAY):
        payload = announced(NEW_IMAGE, b"x", when)
        assert raw.fault(Kind.PUT, payload) is Fault.NOT_ALLOWED
        assert f'refused=put object="{NEW_IMAGE}" reason="this key can' in served.sshd.served
    assert raw.ask(Kind.TIDY, b"")[0] is Kind.DONE


def test_filling_the_disk(served: Served, raw: Raw) -> None:
    size = 101 << 20
    assert raw.fault(Kind.PUT, Put(NEW_PACK, size, math.nan).encode()) is (Fault.OVER_QUOTA)
    assert "quota of this key is used up" in served.sshd.served
    assert raw.fault(Kind.PUT, Put(NEW_PACK, 1 << 62, math.nan).encode()) is (Fault.NOT_ALLOWED)
    backend = served.backend

    def fill() -> None:
        for number in range(200):
            data = number.to_bytes(1 << 20)
            backend.put_new(pack_of(data), [data])

    with pytest.raises(NoRoom):
        fill()
    used = sum(path.stat().st_size for path in served.tiny.path.rglob("*") if path.is_file())
    assert used < 102 << 20


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "packs/../../x", "incoming/x", "a//b", "A", "a\nb", ""]
)
def test_names_that_lead_elsewhere(served: Served, raw: Raw, name: str) -> None:
    before = len(served.sshd.served.splitlines())
    assert raw.fault(Kind.GET, name.encode()) is Fault.BAD_NAME
    assert raw.fault(Kind.PUT, announced(name, b"x")) is Fault.BAD_NAME
    assert raw.fault(Kind.RANGE, frames.range_of(name, 0, 1)) is Fault.BAD_NAME
    lines = served.sshd.served.splitlines()[before:]
    assert [line for line in lines if "no object has such a name" in line] == lines
    assert len(lines) == 3, "an attempt wrote something of its own into the log"


@pytest.mark.parametrize("frame", [b"\xff\0\0\0\0", b"\x02\xff\xff\xff\xff", b"\x10\0\0\0\1x"])
def test_nonsense_ends_the_connection(served: Served, raw: Raw, frame: bytes) -> None:
    raw.channel.sendall(frame)
    with contextlib.suppress(EOFError):
        assert raw.answer()[0] is Kind.ERROR
    with pytest.raises(EOFError):
        raw.answer()
    assert "ended: " in served.sshd.served or "refused=" in served.sshd.served


@pytest.mark.parametrize(
    "order", ["rm -rf /", "sh", "remetal serve --may-delete /etc", "scp -t /tmp", "remetal init x"]
)
def test_other_orders(served: Served, order: str) -> None:
    spoken = Raw(served, order)
    with pytest.raises(EOFError):
        spoken.answer()
    assert spoken.channel.recv_exit_status() != 0
    assert f'refused=command object="{order}"' in served.sshd.served
    spoken.close()


def test_a_long_order_makes_no_long_line(served: Served) -> None:
    spoken = Raw(served, f"remetal serve --may-delete /{'x' * 100_000}")
    with pytest.raises(EOFError):
        spoken.answer()
    assert max(map(len, served.sshd.served.splitlines())) < 1000
    spoken.close()


@pytest.fixture
def transport(served: Served) -> Iterator[paramiko.Transport]:
    link = paramiko.Transport(("127.0.0.1", served.sshd.port))
    link.start_client(timeout=20)
    link.auth_publickey("root", paramiko.PKey.from_path(served.key))
    yield link
    link.close()


def test_sftp_and_scp_are_not_there(served: Served, transport: paramiko.Transport) -> None:
    channel = transport.open_session()
    channel.invoke_subsystem("sftp")
    assert channel.recv(1) == b""
    assert channel.recv_exit_status() != 0
    assert 'refused=command object="internal-sftp"' in served.sshd.served


def test_a_shell_is_the_server(transport: paramiko.Transport) -> None:
    channel = transport.open_session()
    with pytest.raises(paramiko.SSHException):
        channel.get_pty()
    channel = transport.open_session()
    channel.invoke_shell()
    channel.sendall(b"id; exit\n")
    said = b"".join(iter(lambda: channel.recv(1000), b""))
    assert said.startswith(b"".join([bytes([Kind.GREETING])]))
    assert b"uid=" not in said


def test_nothing_is_forwarded(served: Served, transport: paramiko.Transport) -> None:
    before = len(served.sshd.log.read_text())
    with pytest.raises(paramiko.ChannelException):
        transport.open_channel("direct-tcpip", ("127.0.0.1", 22), ("127.0.0.1", 1))
    with pytest.raises(paramiko.SSHException):
        transport.request_port_forward("127.0.0.1", 0)
    said = served.sshd.log.read_text()[before:]
    assert "refused local port forward" in said


def test_reading_images(served: Served) -> None:
    """What can be fetched is sealed; the credential of the machine opens nothing."""
    backend = served.backend
    for entry in backend.list("packs/"):
        assert b"precious" not in backend.get(entry.name)
    repository = Repository.open(served.place)
    keys = repository.credential_keys(served.tiny.credential)
    images, _ = repository.images(keys)
    assert len(images) == 1
    assert not hasattr(served.tiny.credential, "secrets")


def test_another_repository_of_the_server(served: Served) -> None:
    other = served.sshd.place("ssh", served.key, Path("/etc"))
    with pytest.raises(StoreRefused, match="does not reach /etc"):
        Repository.open(other)


def test_a_key_that_only_reads(served: Served, tmp_path: Path) -> None:
    key = served.sshd.new_key(f"reader-{tmp_path.name}")
    served.sshd.serve(key, served.tiny.path, "--read-only", "--name", "reader")
    reader = Repository.open(served.sshd.place("ssh", key, served.tiny.path)).backend
    assert reader.get("config")
    with pytest.raises(StoreRefused):
        reader.put_new(NEW_IMAGE, [b"x"])
    with pytest.raises(StoreRefused):
        reader.delete("config")
    assert 'key="reader"' in served.sshd.served


def test_a_key_of_somebody_else(served: Served, tmp_path: Path) -> None:
    key = served.sshd.new_key(f"stranger-{tmp_path.name}")
    with pytest.raises(StoreRefused, match="does not let root in"):
        Repository.open(served.sshd.place("ssh", key, served.tiny.path))
    assert "Failed publickey for root" in served.sshd.log.read_text()


def test_the_line_for_authorized_keys(served: Served) -> None:
    lines = (served.sshd.folder / "authorized_keys").read_text().splitlines()
    assert all(line.startswith("restrict,command=") for line in lines)
    subprocess.run(["ssh-keygen", "-lf", served.sshd.folder / "authorized_keys"], check=True)
