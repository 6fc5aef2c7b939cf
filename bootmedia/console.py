"""One terminal session on several consoles at once; copied to the rescue medium as it is.

On a machine that lies on the floor a person may sit before the screen or behind a serial console,
and nobody knows which. So the session runs on a terminal of its own, what it writes goes to every
console of the kernel, and what is typed on any of them reaches it.

Uses the standard library only, and little of it: it is the first Python the machine starts.
"""

import contextlib
import fcntl
import os
import select
import signal
import struct
import sys
import termios
import time
import tty
from pathlib import Path

_CHUNK = 1 << 14
_BACKLOG = 1 << 20  # bytes kept for a console that does not take them, such as an unplugged one
_DRAIN = 5.0  # seconds that such a console may still take at the end
_SMALLEST = (24, 80)  # rows and columns, where a console does not say
# Ignored by Python, or by a shell that started this in the background; a program would inherit that.
_USUAL = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)


class _Console:
    """A console that is written to without ever waiting for it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.readable = True
        self._backlog = bytearray()
        self._attributes = termios.tcgetattr(descriptor) if os.isatty(descriptor) else None
        os.set_blocking(descriptor, False)
        if self._attributes is not None:
            tty.setraw(descriptor, termios.TCSANOW)

    def feed(self, data: bytes) -> None:
        """Queue data; the oldest is dropped when the console does not keep up."""
        self._backlog += data
        del self._backlog[:-_BACKLOG]

    @property
    def waiting(self) -> bool:
        return bool(self._backlog)

    def flush(self) -> None:
        """Write what it takes now."""
        try:
            written = os.write(self.descriptor, self._backlog[:_CHUNK])
        except BlockingIOError:
            return
        except OSError:
            self._backlog.clear()  # gone: nobody reads there
            return
        del self._backlog[:written]

    def size(self) -> tuple[int, int]:
        """Return rows and columns, zeros where the console does not know."""
        try:
            packed = fcntl.ioctl(self.descriptor, termios.TIOCGWINSZ, bytes(8))
        except OSError:
            return (0, 0)
        rows, columns, _, _ = struct.unpack("HHHH", packed)
        return (rows, columns)

    def close(self) -> None:
        """Give it back as it was."""
        with contextlib.suppress(OSError, termios.error):
            if self._attributes is not None:
                # All that was written first goes out on the line.
                termios.tcsetattr(self.descriptor, termios.TCSADRAIN, self._attributes)
        os.set_blocking(self.descriptor, True)
        os.close(self.descriptor)


def _common_size(consoles: list[_Console]) -> tuple[int, int]:
    sizes = [console.size() for console in consoles]
    rows = min((size[0] for size in sizes if size[0]), default=_SMALLEST[0])
    columns = min((size[1] for size in sizes if size[1]), default=_SMALLEST[1])
    return (rows, columns)


def run(descriptors: list[int], argv: list[str], pid_file: Path | None = None) -> None:
    """Run a program on a terminal of its own, shared by all consoles, until it ends.

    SIGTERM ends the sharing once everything written so far is shown; the program is not waited
    for then.

    Args:
        descriptors: open consoles; closed at the end.
        argv: the program.
        pid_file: receives the id of this process, for whoever sends that signal.
    """
    consoles = [_Console(descriptor) for descriptor in descriptors]
    stop, stop_writer = os.pipe()
    os.set_blocking(stop_writer, False)
    child, terminal = os.forkpty()
    if child == 0:
        for number in _USUAL:
            signal.signal(number, signal.SIG_DFL)
        try:
            os.execvp(argv[0], argv)  # noqa: S606  no shell is wanted between
        except OSError as error:
            sys.stderr.write(f"{argv[0]}: {error}\n")
        os._exit(127)
    rows, columns = _common_size(consoles)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    os.set_blocking(terminal, False)
    signal.set_wakeup_fd(stop_writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    if pid_file is not None:
        pid_file.write_text(f"{os.getpid()}\n")
    stopped = _share(consoles, terminal, stop)
    deadline = time.monotonic() + _DRAIN
    while (late := [c for c in consoles if c.waiting]) and time.monotonic() < deadline:
        for descriptor in select.select([], [c.descriptor for c in late], [], 0.2)[1]:
            next(c for c in late if c.descriptor == descriptor).flush()
    for console in consoles:
        console.close()
    signal.set_wakeup_fd(-1)
    os.close(stop)
    os.close(stop_writer)
    os.close(terminal)
    if not stopped:
        os.waitpid(child, 0)


def _share(consoles: list[_Console], terminal: int, stop: int) -> bool:
    """Move bytes until the program has closed its terminal or SIGTERM came.

    Returns:
        Whether it was SIGTERM.
    """
    by_descriptor = {console.descriptor: console for console in consoles}
    while True:
        sources = [terminal, stop, *(c.descriptor for c in consoles if c.readable)]
        targets = [c.descriptor for c in consoles if c.waiting]
        readable, writable, _ = select.select(sources, targets, [])
        for descriptor in writable:
            by_descriptor[descriptor].flush()
        for descriptor in readable:
            if descriptor == stop:
                _forward(terminal, consoles)
                return True
            if descriptor == terminal:
                if not _forward(terminal, consoles):
                    return False
            else:
                _type(by_descriptor[descriptor], terminal)


def _forward(terminal: int, consoles: list[_Console]) -> bool:
    """Show everything the program has written; False when it has closed its terminal."""
    while True:
        try:
            data = os.read(terminal, _CHUNK)
        except BlockingIOError:
            return True
        except OSError:  # EIO: nobody holds the other end any more
            return False
        if not data:
            return False
        for console in consoles:
            console.feed(data)


def _type(console: _Console, terminal: int) -> None:
    """Hand what was typed on a console to the program."""
    try:
        data = os.read(console.descriptor, _CHUNK)
    except BlockingIOError:
        return
    except OSError:
        data = b""
    if not data:
        console.readable = False
        return
    # What does not fit into the terminal's buffer was typed ahead of a program that is not reading.
    with contextlib.suppress(BlockingIOError):
        os.write(terminal, data)


def kernel_consoles() -> list[int]:
    """Open every console the kernel writes to; those that can't be opened are left out."""
    descriptors = []
    for name in Path("/sys/class/tty/console/active").read_text().split():
        try:
            descriptor = os.open(f"/dev/{name}", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            termios.tcgetattr(descriptor)
        except termios.error:
            os.close(descriptor)  # a port that the firmware lists and nobody has built in
            continue
        descriptors.append(descriptor)
    return descriptors


def main() -> int:
    """Run `remetal-console PIDFILE PROGRAM [ARGUMENT]…` on the kernel's consoles.

    Returns:
        0 when the program was run, whatever became of it; 1 when there is no console.
    """
    pid_file, *argv = sys.argv[1:]
    consoles = kernel_consoles()
    if not consoles:
        return 1
    run(consoles, argv, Path(pid_file))
    return 0


if __name__ == "__main__":
    sys.exit(main())
