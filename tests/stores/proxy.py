"""A link between a client and a store that tests can make bad: silent, cut, or full of nonsense."""

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Final, Self

_AT_ONCE: Final = 1 << 16


class Proxy:
    """Passes connections on to a port of loopback; use it as a context.

    Attributes:
        port: where it listens, on loopback.
        passed: bytes that have gone through, both ways together.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.passed = 0
        self._lock = threading.Condition()
        self._is_open = True
        self._trigger: tuple[int, Callable[[], None]] | None = None
        self._sockets: set[socket.socket] = set()
        self._change: Callable[[bytes], bytes | None] = lambda data: data

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.resume()
        self.cut()

    def pause(self) -> None:
        """Let nothing through any more, and close nothing: a cable that was pulled."""
        with self._lock:
            self._is_open = False

    def resume(self) -> None:
        """Let everything through that waits."""
        with self._lock:
            self._is_open = True
            self._lock.notify_all()

    def cut(self) -> None:
        """Close every connection; new ones are let in."""
        with self._lock:
            found, self._sockets = self._sockets, set()
        for sock in found:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def change_answers(self, change: Callable[[bytes], bytes | None]) -> None:
        """Change what the store sends; None closes the connection."""
        self._change = change

    def after(self, count: int, deed: Callable[[], None]) -> None:
        """Do something once when so many bytes have gone through from now on."""
        with self._lock:
            self._trigger = self.passed + count, deed

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                store = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            with self._lock:
                self._sockets |= {client, store}
            for source, sink, change in ((client, store, bytes), (store, client, self._answer)):
                threading.Thread(
                    target=self._pump, args=(source, sink, change), daemon=True
                ).start()

    def _answer(self, data: bytes) -> bytes | None:
        return self._change(data)

    def _pump(
        self, source: socket.socket, sink: socket.socket, change: Callable[[bytes], bytes | None]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_AT_ONCE):
                deed = None
                with self._lock:
                    self._lock.wait_for(lambda: self._is_open)
                    self.passed += len(data)
                    if self._trigger is not None and self.passed >= self._trigger[0]:
                        deed, self._trigger = self._trigger[1], None
                if deed is not None:
                    deed()
                changed = change(data)
                if changed is None:
                    break
                sink.sendall(changed)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        with self._lock:
            self._sockets -= {source, sink}
