"""A repository behind `remetal serve`, reached over SSH.

Each call has a channel of its own, with a server process at its other end, so calls don't wait for
each other. Every request may be made twice (`channels.py`): of an object whose answer was lost, the
server says whether it lies there with the same bytes.
"""

import contextlib
import shlex
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from blake3 import blake3

from imager.errors import (
    MalformedAnswer,
    NoRoom,
    ObjectDamaged,
    ObjectLocked,
    ObjectMissing,
    OutputError,
    RemetalError,
    StoreRefused,
    StoreUnreachable,
)
from imager.repository.backend import frames
from imager.repository.backend.channels import Channels
from imager.repository.backend.frames import Fault, Greeting, Kind, Put
from imager.repository.backend.place import Place
from imager.repository.backend.protocol import Buffer, Entry
from imager.repository.backend.ssh import Address, Connection


class SshStore:
    """See `protocol.Backend` for the guarantees.

    Args:
        place: `ssh://[USER@]HOST[:PORT]/PATH`, and the keys.
    """

    def __init__(self, place: Place) -> None:
        self._location = place.location
        self._address = Address.parse(place.location)
        self._channels = Channels(Connection(place, self._address), _Channel, _ANSWERED)

    @property
    def location(self) -> str:
        """The location as it was given; it holds no secret."""
        return self._location

    @property
    def folders(self) -> tuple[Path, ...]:
        """None: the objects lie elsewhere."""
        return ()

    @property
    def lock_span(self) -> None:
        """None: what keeps objects there is that this key can't remove them."""
        return

    def put_new(self, name: str, parts: Sequence[Buffer], modified: float | None = None) -> bool:
        """Create an object; see `protocol.Backend.put_new`."""
        size = sum(len(part) for part in parts)
        put = Put(name, size, float("nan") if modified is None else modified)
        tries = 0

        def send(channel: _Channel) -> bool:
            nonlocal tries
            tries += 1
            answer, _ = channel.ask(Kind.PUT, put.encode(), Kind.DONE, Kind.THERE)
            if answer is Kind.DONE:
                channel.send_object(parts)
            answer, _ = channel.ask(Kind.END, digest.result(), Kind.CREATED, Kind.SAME, Kind.OTHER)
            # After a lost answer, the same bytes are most likely ours.
            return answer is Kind.CREATED or (answer is Kind.SAME and tries > 1)

        with ThreadPoolExecutor(1, thread_name_prefix="hash") as pool:
            digest = pool.submit(_digest, parts)
            return self._channels.call(send)

    def get(self, name: str) -> bytes:
        """Return an object whole; see `protocol.Backend.get`."""
        return self._channels.call(lambda channel: channel.fetch(Kind.GET, name.encode()))

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Return a range of an object; see `protocol.Backend.get_range`."""
        data = self._channels.call(
            lambda channel: channel.fetch(Kind.RANGE, frames.range_of(name, offset, length))
        )
        if len(data) != length:
            raise ObjectDamaged(f"{name} ends {length - len(data)} bytes too early")
        return data

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield objects; see `protocol.Backend.list`."""

        def fetch(channel: _Channel) -> list[bytes]:
            channel.send(Kind.LIST, prefix.encode())
            return list(channel.data())

        for batch in self._channels.call(fetch):
            yield from frames.split_entries(batch)

    def delete(self, name: str) -> None:
        """Remove an object; see `protocol.Backend.delete`."""
        self._channels.call(lambda channel: channel.ask(Kind.DELETE, name.encode(), Kind.DONE))

    def locked_until(self, name: str, *, shortest: bool = False) -> float | None:
        """Return infinity for what is immutable there; see `protocol.Backend.locked_until`."""
        del shortest
        return self._number(Kind.LOCKED, name)

    def retain(self, name: str, until: float) -> None:
        """Do nothing; see `lock_span`."""

    def now(self) -> float:
        """Return the clock of the filesystem there; see `protocol.Backend.now`."""
        found = self._number(Kind.NOW, "")
        if found is None:
            raise MalformedAnswer(f"{self._address.host} does not tell its time")
        return found

    def tidy(self) -> None:
        """Remove stale temporary files; see `protocol.Backend.tidy`."""
        self._channels.call(lambda channel: channel.ask(Kind.TIDY, b"", Kind.DONE))

    def _number(self, kind: Kind, name: str) -> float | None:
        _, payload = self._channels.call(
            lambda channel: channel.ask(kind, name.encode(), Kind.NUMBER)
        )
        return frames.split_number(payload)


class _Channel:
    """One server process at the other end."""

    def __init__(self, connection: Connection) -> None:
        self._address = connection.address
        self._channel = connection.open_channel()
        self._channel.exec_command(f"remetal serve --may-delete {shlex.quote(self._address.path)}")
        try:
            kind, payload = frames.read_frame(self._read)
        except (EOFError, MalformedAnswer) as error:
            raise self._no_server() from error
        if kind is not Kind.GREETING:
            raise self._no_server()
        Greeting.decode(payload)

    @property
    def is_closed(self) -> bool:
        """Whether the other side is gone."""
        return bool(self._channel.closed or self._channel.eof_received)

    def close(self) -> None:
        """End it."""
        self._channel.close()

    def ask(self, kind: Kind, payload: bytes, *expected: Kind) -> tuple[Kind, bytes]:
        """Send a request and return its answer."""
        self.send(kind, payload)
        return self.answer(*expected)

    def send(self, kind: Kind, *parts: Buffer) -> None:
        """Send a frame."""
        self._channel.sendall(b"".join(frames.frame(kind, *parts)))

    def send_object(self, parts: Sequence[Buffer]) -> None:
        """Send the bytes of an object, without its end."""
        for part in parts:
            view = memoryview(part).cast("B")
            for start in range(0, len(view), frames.MOST_PAYLOAD):
                data = view[start : start + frames.MOST_PAYLOAD]
                self._channel.sendall(frames.head(Kind.DATA, len(data)))
                # paramiko cuts off what it has sent: of a view that copies nothing.
                self._channel.sendall(data)

    def answer(self, *expected: Kind) -> tuple[Kind, bytes]:
        """Return the next frame.

        Raises:
            RemetalError: what the server says went wrong.
            MalformedAnswer: it is none of those expected.
        """
        kind, payload = frames.read_frame(self._read)
        self._check(kind, payload, *expected)
        return kind, payload

    def _check(self, kind: Kind, payload: bytes, *expected: Kind) -> None:
        if kind is Kind.ERROR:
            raise _error(*frames.split_error(payload), self._address.host)
        if kind not in expected:
            raise MalformedAnswer(f"{self._address.host} answers with {kind.name}")

    def data(self) -> Iterator[bytes]:
        """Yield the DATA that comes before END."""
        while True:
            kind, payload = self.answer(Kind.DATA, Kind.END)
            if kind is Kind.END:
                return
            yield payload

    def fetch(self, kind: Kind, payload: bytes) -> bytes:
        """Return an object, or a range of it."""
        _, answer = self.ask(kind, payload, Kind.SIZE)
        size = left = frames.split_size(answer)
        parts: list[bytes] = []
        while True:
            found, length = frames.read_head(self._read)
            if found is not Kind.DATA:
                break
            if length > left:
                raise MalformedAnswer(
                    f"{self._address.host} sends more than the {size} bytes it said"
                )
            left -= length
            parts.extend(self._pieces(length))
        self._check(found, self._read(length), Kind.END)
        if left:
            raise MalformedAnswer(f"{self._address.host} sends {left} bytes less than it said")
        return b"".join(parts)

    def _read(self, length: int) -> bytes:
        return b"".join(self._pieces(length))

    def _pieces(self, length: int) -> Iterator[bytes]:
        while length:
            part = self._channel.recv(length)
            if not part:
                raise EOFError
            yield part
            length -= len(part)

    def _no_server(self) -> RemetalError:
        """Say why there is no server, in its own words."""
        said = b""
        with contextlib.suppress(TimeoutError):
            self._channel.settimeout(5.0)
            while len(said) < frames.MOST_TEXT and (part := self._channel.recv_stderr(4096)):
                said += part
        code = self._channel.recv_exit_status() if self._channel.exit_status_ready() else None
        self._channel.close()
        words = " ".join(said.decode("utf-8", "replace").split())
        if not words and (code is None or code < 0):  # it was killed, or the link broke
            return StoreUnreachable(f"{self._address.host} closed the connection at once")
        return StoreRefused(
            f"{self._address.host} runs no `remetal serve` for this key"
            + (f": {words}" if words else f" (exit code {code})"),
            hint="Install remetal there, and set up the key as README.md says.",
        )


_ERRORS: Final = {
    Fault.MISSING: ObjectMissing,
    Fault.DAMAGED: ObjectDamaged,
    Fault.NOT_ALLOWED: StoreRefused,
    Fault.NO_ROOM: NoRoom,
    Fault.LOCKED: ObjectLocked,
    Fault.NOT_TAKEN: OutputError,
    Fault.OVER_QUOTA: NoRoom,
    Fault.BAD_NAME: ObjectMissing,
    Fault.WRONG_HASH: StoreUnreachable,
    Fault.MALFORMED: MalformedAnswer,
}

_ANSWERED: Final = tuple(set(_ERRORS.values()) - {MalformedAnswer, StoreUnreachable})


def _digest(parts: Iterable[Buffer]) -> bytes:
    digest = blake3()
    for part in parts:
        digest.update(part)
    return digest.digest()


def _error(fault: Fault, message: str, host: str) -> RemetalError:
    return _ERRORS[fault](f"{host}: {message}")
