"""A guest's serial port: kept in a file as it comes, and waited on as an event."""

import asyncio
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

_SETTLE: Final = 0.05  # seconds without output after which half a line (a prompt) counts

Listener = Callable[[bytes], None]


class SerialPort:
    """One serial port.

    QEMU writes into one end of a socket pair; the event loop of the machine reads the other,
    appends to the log file and wakes who waits. Nothing is lost when nobody waits.

    Args:
        log: file that receives everything; overwritten.
        listener: called with every piece as it comes, from the event loop's thread.
    """

    def __init__(self, log: Path, listener: Listener | None = None) -> None:
        self.log = log
        self._socket, self.guest_end = socket.socketpair()
        self._socket.setblocking(False)
        self._file = log.open("wb", buffering=0)
        self._listener = listener
        self._changed = threading.Condition()
        self._data = bytearray()
        self._position = 0  # behind the last match
        self._closed = False
        self._pending: asyncio.TimerHandle | None = None

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start to read; to be called in the loop's thread."""
        loop.add_reader(self._socket, self._read, loop)

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            data = self._socket.recv(1 << 16)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            loop.remove_reader(self._socket)
            with self._changed:
                self._closed = True
                self._changed.notify_all()
            return
        self._file.write(data)
        if self._listener is not None:
            self._listener(data)
        with self._changed:
            self._data += data
            if b"\n" in data:
                self._changed.notify_all()
        if self._pending is None:
            self._pending = loop.call_later(_SETTLE, self._settled)

    def _settled(self) -> None:
        self._pending = None
        with self._changed:
            self._changed.notify_all()

    def wait(self, pattern: str, timeout: float) -> re.Match[bytes] | None:
        """Wait until a line of output matches, from behind the previous match on.

        Args:
            pattern: regular expression; `^` is the start of a line. It can't match across lines, and the line
                may be unfinished, as a prompt is.
            timeout: seconds.

        Returns:
            The match, or None when the time is over or the port is closed before it came.
        """
        expression = re.compile(pattern.encode(), re.MULTILINE)
        deadline = time.monotonic() + timeout
        with self._changed:
            start = self._position
            while True:
                # A copy: a match of the growing buffer itself would pin it.
                found = expression.search(bytes(self._data[start:]))
                if found:
                    self._position = start + found.end()
                    return found
                left = deadline - time.monotonic()
                if self._closed or left <= 0:
                    return None
                start = max(start, self._data.rfind(b"\n") + 1)
                self._changed.wait(left)

    def send(self, text: str) -> None:
        """Type `text` on the guest's console; a few lines at most."""
        self._socket.sendall(text.encode())

    def tail(self, lines: int = 20) -> str:
        """Return the last lines of output as text."""
        with self._changed:
            data = bytes(self._data[-(1 << 14) :])
        return "\n".join(data.decode(errors="replace").splitlines()[-lines:])

    def close(self) -> None:
        """Close file and socket; the event loop must not read any more."""
        self._file.close()
        self._socket.close()
        self.guest_end.close()
