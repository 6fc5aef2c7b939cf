"""Something on the way to a store that can misbehave: it cuts, hangs, and answers by itself."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Self

from imager.repository.backend.place import Place

_PIECE = 1 << 16


def answer(status: str, body: bytes = b"", *headers: str) -> bytes:
    """Return an HTTP answer after which the connection is closed."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Proxy:
    """Passes connections of loopback on to a port, byte for byte, unless told otherwise.

    Args:
        port: of the store.
        tls: as what to be spoken to with TLS; the store is spoken to without.

    Attributes:
        port: where it listens itself.
        cut_after: after how many bytes of what the store says a new connection is closed.
        answers: what the next connections get for their first request, instead of the store.
        flows: cleared, nothing passes either way and nothing is closed.
        held: set when `hold_after` has cleared it.
        connections: how many there were.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.port: int = self._listener.getsockname()[1]
        self.cut_after: int | None = None
        self.answers: Iterator[bytes] = iter(())
        self.flows = threading.Event()
        self.flows.set()
        self.held = threading.Event()
        self.connections = 0
        self._left: int | None = None

    def hold_after(self, count: int) -> None:
        """Let nothing pass any more after so many bytes, counted from now, both ways together."""
        self.held.clear()
        self._left = count

    def _count(self, size: int) -> None:
        with self._lock:
            if self._left is None:
                return
            self._left -= size
            if self._left <= 0:
                self._left = None
                self.flows.clear()
                self.held.set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.flows.set()
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def before(self, place: Place) -> Place:
        """Return a place of the store as it is reached through this proxy."""
        location = place.location.replace(f":{self._target[1]}", f":{self.port}")
        return replace(place, location=location)

    def will_answer(self, answers: Iterable[bytes]) -> None:
        """Set what the next connections get."""
        self.answers = iter(answers)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.connections += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.suppress(OSError))
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
            stack.enter_context(self._kept(client))
            self.flows.wait()
            with self._lock:
                canned = next(self.answers, None)
            if canned is not None:
                _read_request(client)
                client.sendall(canned)
                return
            with self._kept(socket.create_connection(self._target)) as store:
                store.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                up = threading.Thread(target=self._pump, args=(client, store, None), daemon=True)
                up.start()
                self._pump(store, client, self.cut_after)

    @contextlib.contextmanager
    def _kept(self, each: socket.socket) -> Iterator[socket.socket]:
        with self._lock:
            self._open.add(each)
        try:
            yield each
        finally:
            with self._lock:
                self._open.discard(each)
            # Both pumps may wait on it.
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _pump(self, source: socket.socket, target: socket.socket, left: int | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_PIECE):
                self._count(len(data))
                self.flows.wait()
                if left is not None and len(data) >= left:
                    target.sendall(data[:left])
                    break
                target.sendall(data)
                left = None if left is None else left - len(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def _read_request(client: socket.socket) -> None:
    data = b""
    while b"\r\n\r\n" not in data:
        more = client.recv(_PIECE)
        if not more:
            return
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    left = int(lengths[0].partition(b":")[2]) - len(body) if lengths else 0
    if b"100-continue" in head.lower():
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    while left > 0:
        left -= len(client.recv(_PIECE)) or left
