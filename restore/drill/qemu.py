"""QEMU: start a virtual machine, look at it, wait for what it does, and never leave it behind.

`Vm` is a context manager; leaving it always ends the machine. QEMU is also tied to the life of
the process that started it, so that even `kill -9` of a drill leaves no guest running.
"""

import asyncio
import concurrent.futures
import contextlib
import re
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, Final, Self, TypeVar, cast

from qemu.qmp import EventListener, QMPClient, QMPError, Runstate

from imager import process
from imager.errors import DrillError, ProgramMissing
from imager.units import format_duration
from restore.drill import firmware
from restore.drill.command_line import NETWORK, PROGRAM, command_line
from restore.drill.serial_port import Listener, SerialPort
from restore.drill.vm_spec import (
    KVM,
    TCG,
    Accelerator,
    Bus,
    Drive,
    Firmware,
    Forward,
    Outlet,
    Share,
    UserNetwork,
    VmSpec,
)

__all__ = [
    "KVM",
    "TCG",
    "Accelerator",
    "Bus",
    "Drive",
    "Firmware",
    "Forward",
    "Outlet",
    "Share",
    "UserNetwork",
    "Vm",
    "VmSpec",
]

_START_TIMEOUT: Final = 60.0  # seconds until QEMU's monitor answers, on a busy host
_COMMAND_TIMEOUT: Final = 30.0
_END_TIMEOUT: Final = 10.0  # seconds from the end of the guest to the end of the process

# A line of `info usernet`: TCP[STATE] fd source-address port destination-address port …
_CONNECTION: Final = re.compile(
    r"TCP\[(?P<state>\w+)\]\s+\d+\s+\S+\s+(?P<source>\d+)\s+\S+\s+(?P<target>\d+)"
)

T = TypeVar("T")


class Vm:
    """A running virtual machine.

    All waiting is for events: output on a serial port, the end of the process. Errors carry the
    last lines of the console.

    Args:
        spec: what it is made of.
        accelerator: how it runs; what `accelerator.choose` found to work here.
        listener: called with every piece of output on ttyS0 as it comes, from another thread.
    """

    def __init__(
        self,
        spec: VmSpec,
        accelerator: Accelerator,
        *,
        listener: Listener | None = None,
    ) -> None:
        self.spec = spec
        self._accelerator = accelerator
        self._listener = listener
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._monitor = QMPClient(spec.name)
        self._ends = EventListener("SHUTDOWN")
        self._serials: list[SerialPort] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._directory = Path(tempfile.mkdtemp(prefix="remetal-vm-"))
        self._stderr = self._directory / "stderr"

    def __enter__(self) -> Self:
        """Start the machine.

        Raises:
            ProgramMissing: QEMU is not installed.
            DrillError: QEMU refuses to start it.
        """
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End the machine, whatever state it is in, and free all it holds."""
        self.kill()
        if self._thread.is_alive():
            self._call(self._disconnect())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()
        for port in self._serials:
            port.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _disconnect(self) -> None:
        with contextlib.suppress(QMPError, EOFError, OSError):  # the other end may be gone
            await self._monitor.disconnect()

    def _start(self) -> None:
        if shutil.which(PROGRAM) is None:
            raise ProgramMissing((PROGRAM,))
        nvram = None
        if self.spec.firmware is not Firmware.BIOS:
            nvram = self.spec.nvram or self._directory / "nvram.fd"
            firmware.make_nvram(self.spec.firmware, nvram)
        for index, log in enumerate(self.spec.serials):
            self._serials.append(SerialPort(log, self._listener if index == 0 else None))
        ours, theirs = socket.socketpair()
        with theirs:
            argv = command_line(
                self.spec,
                self._accelerator.arguments,
                monitor=theirs.fileno(),
                serials=[port.guest_end.fileno() for port in self._serials],
                nvram=nvram,
            )
            with self._stderr.open("wb") as stderr:
                # setpriv ties QEMU's life to ours and then becomes QEMU.
                self._process = process.start(
                    "setpriv",
                    "--pdeathsig=KILL",
                    *argv,
                    stderr=stderr,
                    pass_fds=[theirs.fileno(), *(p.guest_end.fileno() for p in self._serials)],
                )
        for port in self._serials:
            port.guest_end.close()
        self._thread.start()
        try:
            self._call(self._connect(ours), _START_TIMEOUT)
        except (QMPError, EOFError, OSError, TimeoutError) as error:
            self.kill()
            reason = self._complaint() or str(error)
            raise DrillError(f"QEMU can't start the machine {self.spec.name}: {reason}") from error

    def _complaint(self) -> str:
        """Return what QEMU itself wrote, the last lines of it."""
        return " / ".join(self._stderr.read_text(errors="replace").splitlines()[-3:])

    async def _connect(self, monitor: socket.socket) -> None:
        for port in self._serials:
            port.attach(self._loop)
        self._monitor.register_listener(self._ends)
        await self._monitor.connect(monitor)

    def _call(self, work: Coroutine[Any, Any, T], timeout: float = _COMMAND_TIMEOUT) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise

    def _command(self, name: str, /, **arguments: object) -> object:
        try:
            return self._call(self._monitor.execute(name, arguments))
        except (QMPError, EOFError, OSError, TimeoutError) as error:
            raise self.error(f"QEMU does not do {name}: {error}") from error

    def error(self, problem: str) -> DrillError:
        """Return an error that says what happened to this machine, and how its console ends."""
        text = f"{self.spec.name}: {problem}"
        code = self._process.poll() if self._process is not None else None
        if code:
            text += f" (QEMU ended with code {code}: {self._complaint()})"
        if self._serials:
            tail = self._serials[0].tail()
            text += f"; the console ({self._serials[0].log}) ends with:\n{tail}"
        return DrillError(text)

    def wait_exit(self, timeout: float) -> str:
        """Wait until the machine ends by itself.

        Args:
            timeout: seconds.

        Returns:
            QEMU's reason: "guest-shutdown" for a power-off, "guest-reset" for a reboot,
            "guest-panic" …

        Raises:
            DrillError: it still runs when the time is over (it is left running), or QEMU crashed.
        """
        running = self._running()
        try:
            code = running.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise self.error(f"still running after {format_duration(timeout)}") from error
        reason = self._call(self._reason(), _END_TIMEOUT)
        if code != 0 or reason is None:
            raise self.error("crashed")
        return reason

    async def _reason(self) -> str | None:
        # The process is gone: what is left in the monitor's socket comes at once.
        while self._monitor.runstate is Runstate.RUNNING:
            await self._monitor.runstate_changed()
        reasons = [cast("dict[str, str]", event["data"])["reason"] for event in self._ends.clear()]
        return reasons[-1] if reasons else None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise DrillError(f"{self.spec.name} was not started")
        return self._process

    def wait_serial(self, index: int, pattern: str, timeout: float) -> re.Match[bytes]:
        """Wait until a line on ttyS`index` matches, from behind the previous match on.

        Args:
            index: of the port.
            pattern: regular expression, within one line; the line may be unfinished.
            timeout: seconds.

        Raises:
            DrillError: it did not come in time, or the machine ended before.
        """
        found = self.seen(index, pattern, timeout)
        if found is None:
            state = f"within {format_duration(timeout)}" if self.running else "before it ended"
            raise self.error(f"nothing like {pattern!r} came on ttyS{index} {state}")
        return found

    def seen(self, index: int, pattern: str, timeout: float) -> re.Match[bytes] | None:
        """Wait as `wait_serial` does, and return None when it did not come."""
        return self._serials[index].wait(pattern, timeout)

    @property
    def running(self) -> bool:
        """Whether the machine has not ended yet."""
        return self._process is not None and self._process.poll() is None

    def send(self, index: int, text: str) -> None:
        """Type `text` on ttyS`index`; a line ends with a carriage return."""
        self._serials[index].send(text)

    def screenshot(self, path: Path, format_: str = "png") -> None:
        """Save what the machine's screen shows, as "png" or "ppm"."""
        self._command("screendump", filename=str(path.resolve()), format=format_)

    def forwards(self) -> list[tuple[int, int]]:
        """Return (port on the host, port in the guest) of every forwarded TCP port."""
        return [
            (int(line["source"]), int(line["target"]))
            for line in self._connections()
            if line["state"] == "HOST_FORWARD"
        ]

    def established(self) -> set[int]:
        """Return the guest's forwarded ports on which it has accepted a connection."""
        return {
            int(line["target"]) for line in self._connections() if line["state"] == "ESTABLISHED"
        }

    def _connections(self) -> Iterator[re.Match[str]]:
        table = self._command("human-monitor-command", **{"command-line": "info usernet"})
        return _CONNECTION.finditer(str(table))

    def set_link(self, *, up: bool) -> None:
        """Plug the cable of the machine's network card in, or out."""
        self._command("set_link", name=NETWORK, up=up)

    def powerdown(self) -> None:
        """Press the power button (ACPI); what follows is the guest's decision."""
        self._command("system_powerdown")

    def kill(self) -> None:
        """Cut the power; nothing when the machine has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
