import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bootmedia import console

_TIMEOUT = 20.0


@dataclass
class Side:
    """Two people's terminals, and the process that shares a session between them."""

    masters: list[int]
    slaves: list[int]
    process: "subprocess.Popen[bytes] | None" = None

    def read_until(self, index: int, wanted: bytes) -> bytes:
        data, deadline = b"", time.monotonic() + _TIMEOUT
        while wanted not in data:
            left = deadline - time.monotonic()
            ready = select.select([self.masters[index]], [], [], max(left, 0))[0]
            assert ready, f"{wanted!r} never came, only {data!r}"
            data += os.read(self.masters[index], 1 << 16)
        return data

    def start(self, *argv: str, pid_file: Path) -> None:
        numbers = ",".join(map(str, self.slaves))
        code = (
            "import sys; sys.path.insert(0, sys.argv[1]); import console; from pathlib import Path;"
            "console.run([int(n) for n in sys.argv[2].split(',')], sys.argv[4:], Path(sys.argv[3]))"
        )
        folder = str(Path(console.__file__).parent)
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", code, folder, numbers, str(pid_file), *argv],
            pass_fds=self.slaves,
        )


@pytest.fixture
def side() -> Iterator[Side]:
    pairs = [pty.openpty() for _ in range(2)]
    made = Side([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()
    for descriptor in made.masters + made.slaves:
        os.close(descriptor)


def test_both_see_all_and_both_may_type(side: Side, tmp_path: Path) -> None:
    script = "echo ready; read a; echo got-$a; read b; echo got-$b"
    side.start("sh", "-c", script, pid_file=tmp_path / "pid")
    for index in (0, 1):
        side.read_until(index, b"ready\r\n")
    os.write(side.masters[0], b"one\r")
    for index in (0, 1):
        side.read_until(index, b"got-one\r\n")
    os.write(side.masters[1], b"two\r")
    for index in (0, 1):
        side.read_until(index, b"got-two\r\n")
    assert side.process is not None
    assert side.process.wait(_TIMEOUT) == 0


def test_control_c_reaches_the_program_only(side: Side, tmp_path: Path) -> None:
    script = "trap 'echo stopped' INT; echo ready; read a; echo end-$a"
    side.start("sh", "-c", script, pid_file=tmp_path / "pid")
    side.read_until(0, b"ready")
    os.write(side.masters[1], b"\x03")
    side.read_until(0, b"stopped")
    os.write(side.masters[0], b"x\r")


def test_size_is_what_fits_on_both(side: Side, tmp_path: Path) -> None:
    termios.tcsetwinsize(side.slaves[0], (50, 90))
    termios.tcsetwinsize(side.slaves[1], (0, 0))  # a serial line does not know
    side.start("stty", "size", pid_file=tmp_path / "pid")
    side.read_until(1, b"50 90")


def test_a_console_that_is_stuck_holds_nobody_up(side: Side, tmp_path: Path) -> None:
    # Nobody reads the second one: 4 MiB can't be there and not be dropped.
    script = "head -c 4194304 /dev/zero | tr '\\0' x; echo; echo all-out; read a"
    side.start("sh", "-c", script, pid_file=tmp_path / "pid")
    side.read_until(0, b"all-out")


def test_what_was_said_before_the_power_off_is_shown(side: Side, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"seq 1 5000; kill -TERM $(cat {pid_file}); exec sleep 60"
    side.start("sh", "-c", script, pid_file=pid_file)
    side.read_until(0, b"\r\n5000\r\n")
    side.read_until(1, b"\r\n5000\r\n")
    assert side.process is not None
    assert side.process.wait(_TIMEOUT) == 0


def test_terminals_are_given_back_as_they_were(side: Side, tmp_path: Path) -> None:
    before = termios.tcgetattr(side.slaves[0])
    side.start("true", pid_file=tmp_path / "pid")
    assert side.process is not None
    assert side.process.wait(_TIMEOUT) == 0
    assert termios.tcgetattr(side.slaves[0]) == before


def test_the_program_is_missing(side: Side, tmp_path: Path) -> None:
    side.start("/no/such/program", pid_file=tmp_path / "pid")
    side.read_until(1, b"/no/such/program")


def test_the_program_starts_with_all_signals_as_usual(side: Side, tmp_path: Path) -> None:
    side.start("grep", "SigIgn", "/proc/self/status", pid_file=tmp_path / "pid")
    found = side.read_until(0, b"\n")
    ignored = int(re.findall(rb"SigIgn:\t([0-9a-f]{16})", found)[0], 16)
    # Signals 32 and up belong to the C library or came with whoever started the tests.
    assert not ignored & 0x7FFFFFFF
