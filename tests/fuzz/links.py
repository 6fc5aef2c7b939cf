"""What the other side of a link says: whoever took over a machine, or the server, chooses it."""

from __future__ import annotations

import io
import math
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from blake3 import blake3

from imager.errors import MalformedAnswer
from imager.repository.backend import frames
from imager.repository.backend.directory import DirectoryBackend
from imager.repository.backend.frames import Fault, Greeting, Kind, Put, Role
from imager.repository.backend.protocol import Entry, is_name
from imager.repository.backend.serve import Permit, Server
from imager.repository.backend.serve_budget import Budget
from imager.repository.backend.sftp_client import Open, SftpClient, SftpFailure
from tests.fuzz import world

HELD = f"packs/ab/{'ab' * 32}"
PRECIOUS = b"precious"
NEW = f"packs/cd/{'cd' * 32}"


def served(data: bytes) -> None:
    """A whole conversation with an append-only server: what it held is there afterwards."""
    with tempfile.TemporaryDirectory(dir=_memory()) as scratch, _ends(data) as (source, sink):
        folder = Path(scratch)
        store = DirectoryBackend(folder / "store")
        store.put_new(HELD, [PRECIOUS], 1.7e9)
        budget = Budget(folder / "state", 1 << 24, None)
        permit = Permit(Role.APPEND_ONLY, budget, 1 << 20)
        server = Server(store, permit, lambda *_: None, source, sink)
        try:
            server.run()
        finally:
            held = folder / "store" / HELD
            assert held.read_bytes() == PRECIOUS
            assert held.stat().st_mtime == 1.7e9
            assert {path.name for path in folder.iterdir()} <= {"store", "state"}
            assert not server.deleted
            assert all(is_name(entry.name) for entry in store.list("packs/"))


def answers(data: bytes) -> None:
    """All that a server of ours can say."""
    read = _exactly(data)
    with _ended_links():
        while True:
            kind, payload = frames.read_frame(read)
            _DECODERS.get(kind, bytes)(payload)


def _entries(payload: bytes) -> None:
    again = b"".join(frames.entry(found) for found in frames.split_entries(payload))
    assert again == payload


def _put(payload: bytes) -> None:
    put = Put.decode(payload)
    assert Put.decode(put.encode()).name == put.name


def _greeting(payload: bytes) -> None:
    assert Greeting.decode(payload).encode() == payload


_DECODERS: dict[Kind, Callable[[bytes], object]] = {
    Kind.GREETING: _greeting,
    Kind.PUT: _put,
    Kind.RANGE: frames.split_range,
    Kind.DATA: _entries,
    Kind.SIZE: frames.split_size,
    Kind.NUMBER: frames.split_number,
    Kind.ERROR: frames.split_error,
}


class _Channel:
    """Gives a client of SFTP what a server says, whatever it asks."""

    closed = eof_received = False

    def __init__(self, data: bytes) -> None:
        self._said = io.BytesIO(data)

    def invoke_subsystem(self, name: str) -> None:
        assert name == "sftp"

    def sendall(self, data: bytes) -> None:
        """Nobody listens."""

    def recv(self, length: int) -> bytes:
        return self._said.read(length)

    def close(self) -> None:
        """Nothing is open."""


def sftp(data: bytes) -> None:
    """A client that lists a folder, writes a file, and reads one."""
    with _ended_links():
        client = SftpClient(_Channel(data))
        for name, attributes in client.list("/srv"):
            assert isinstance(name, bytes)
            assert attributes.size >= 0
        with client.opened("/srv/new", Open.WRITE | Open.CREATE) as handle:
            client.write(handle, 0, [bytes(40_000)])
        with client.opened("/srv/it", Open.READ) as handle:
            size = min(client.stat_open(handle).size, 1 << 20)
            assert len(b"".join(client.read(handle, 0, size))) <= size
        client.free_bytes("/srv")


@contextmanager
def _ended_links() -> Iterator[None]:
    """Count an end between two frames as the end, and refusals of a server as such."""
    try:
        yield
    except SftpFailure as failure:
        raise MalformedAnswer(failure.message) from failure
    except _Cut as cut:
        raise MalformedAnswer("it ends in the middle of something") from cut
    except EOFError:
        return


class _Cut(EOFError):
    """The bytes end in the middle of a frame."""


def _exactly(data: bytes) -> Callable[[int], bytes]:
    stream = io.BytesIO(data)

    def read(length: int) -> bytes:
        part = stream.read(length)
        if len(part) != length:
            raise _Cut if part else EOFError
        return part

    return read


@contextmanager
def _ends(data: bytes) -> Iterator[tuple[int, int]]:
    source, sink = world.as_file(data), os.open(os.devnull, os.O_WRONLY)
    try:
        yield source, sink
    finally:
        os.close(source)
        os.close(sink)


def _memory() -> str | None:
    """Return where files are kept in memory, since fuzzing writes very many; None if nowhere."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108


def _frame(kind: Kind, payload: bytes = b"") -> bytes:
    return b"".join(frames.frame(kind, payload))


def _sent(name: str, data: bytes, modified: float = math.nan) -> bytes:
    put, digest = Put(name, len(data), modified), blake3(data).digest()
    return _frame(Kind.PUT, put.encode()) + _frame(Kind.DATA, data) + _frame(Kind.END, digest)


def _packet(kind: int, number: int | None, body: bytes = b"") -> bytes:
    whole = bytes([kind]) + (b"" if number is None else struct.pack(">I", number)) + body
    return _string(whole)


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _sftp_server() -> bytes:
    """What OpenSSH's server would say to the client above."""
    limits = struct.pack(">QQQQ", 262_144, 261_120, 261_120, 100)
    status = [struct.pack(">I", code) + _string(b"") + _string(b"") for code in (0, 1)]
    folder = struct.pack(">IQIIIII", 13, 9, 0o40700, 1_700_000_000, 1_700_000_000, 0, 0)[:24]
    offered = (b"limits@openssh.com", b"fsync@openssh.com", b"statvfs@openssh.com")
    extensions = b"".join(_string(name) + _string(b"1") for name in offered)
    handle = _string(b"\0\0\0\1")
    names = struct.pack(">I", 1) + _string(b"packs") + _string(b"drwx packs") + folder
    said = [
        (201, limits), (102, handle), (104, names), (101, status[1]), (101, status[0]),
        (102, handle), (101, status[0]), (101, status[0]),
        (102, handle), (105, struct.pack(">IQ", 1, 5)), (103, _string(b"12345")), (101, status[0]),
        (201, struct.pack(">11Q", 4096, 4096, 9, 9, 9, 9, 9, 9, 0, 0, 255)),
    ]  # fmt: skip
    begin = _packet(2, None, struct.pack(">I", 3) + extensions)
    return begin + b"".join(_packet(kind, n, body) for n, (kind, body) in enumerate(said, 1))


def targets() -> dict[str, tuple[Callable[[bytes], None], Sequence[bytes]]]:
    asked = [
        _sent(NEW, b"x" * 100),
        _frame(Kind.PUT, Put(HELD, 8, math.nan).encode()) + _frame(Kind.END, bytes(32)),
        _frame(Kind.GET, HELD.encode()) + _frame(Kind.DELETE, HELD.encode()),
        _frame(Kind.RANGE, frames.range_of(HELD, 2, 4)) + _frame(Kind.LIST, b"packs/"),
        _frame(Kind.LIST) + _frame(Kind.LOCKED, HELD.encode()) + _frame(Kind.NOW),
        _frame(Kind.TIDY) + _sent(NEW, b""),
    ]
    listed = frames.entry(Entry(HELD, 8, 1.7e9)) + frames.entry(Entry(NEW, 100, 1.8e9))
    said = [
        _frame(Kind.GREETING, Greeting(frames.VERSION, Role.APPEND_ONLY, 1 << 30).encode()),
        _frame(Kind.SIZE, frames.size(8)) + _frame(Kind.DATA, listed) + _frame(Kind.END),
        _frame(Kind.NUMBER, frames.number(None)) + _frame(Kind.NUMBER, frames.number(math.inf)),
        _frame(Kind.ERROR, frames.error(Fault.MISSING, "packs/ab is missing")),
        _frame(Kind.RANGE, frames.range_of(HELD, 0, 8)) + _sent(NEW, listed),
        _frame(Kind.THERE) + _frame(Kind.SAME) + _frame(Kind.CREATED),
    ]
    return {
        "served": (served, asked),
        "answers": (answers, said),
        "sftp": (sftp, [_sftp_server()]),
    }
