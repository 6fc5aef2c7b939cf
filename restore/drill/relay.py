"""One connection from a guest to a real host; QEMU runs this once for each.

Run by its path, it uses the standard library only, so that it is there at once: what comes on
standard input goes to HOST PORT, and what comes from there to standard output.
"""

import os
import socket
import sys
import threading
from contextlib import suppress

_PIECE = 1 << 16


def relay(source: int, sink: int, host: str, port: int) -> None:
    """Connect, and pass bytes both ways until both sides have said all.

    Raises:
        OSError: nobody answers there; the guest then sees its connection end.
    """
    with socket.create_connection((host, port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        back = threading.Thread(target=_copy, args=(connection.fileno(), sink))
        back.start()
        _copy(source, connection.fileno())
        back.join()


def _copy(source: int, sink: int) -> None:
    with suppress(OSError):
        while data := os.read(source, _PIECE):
            view = memoryview(data)
            while view:
                view = view[os.write(sink, view) :]
    # What waits for the end of this stream must see it, whichever side has ended.
    with suppress(OSError), socket.socket(fileno=os.dup(sink)) as closing:
        closing.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    relay(sys.stdin.fileno(), sys.stdout.fileno(), sys.argv[1], int(sys.argv[2]))
