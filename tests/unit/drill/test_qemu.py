import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from imager.errors import DrillError
from restore.drill.qemu import TCG, Bus, Drive, Forward, UserNetwork, Vm, VmSpec

_WAIT = 60.0


def _spec(boot_disk: Path, bus: Bus = Bus.VIRTIO, **more: object) -> VmSpec:
    drive = Drive(boot_disk, bus=bus, serial="BOOT", snapshot=True, bootindex=0)
    consoles = (boot_disk.with_name("ttyS0.log"), boot_disk.with_name("ttyS1.log"))
    return VmSpec("guest", 64, (drive,), serials=consoles, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("bus", [bus for bus in Bus if bus is not Bus.CDROM])
def test_a_guest_starts_from_every_bus_and_powers_off(boot_disk: Path, bus: Bus) -> None:
    with Vm(_spec(boot_disk, bus), TCG) as vm:
        assert vm.wait_serial(0, "HEL+O", _WAIT).group() == b"HELLO"
        vm.send(0, "x")
        assert vm.wait_exit(_WAIT) == "guest-shutdown"
        assert not vm.running
    assert b"HELLO" in boot_disk.with_name("ttyS0.log").read_bytes()


def test_a_reboot_of_the_guest_ends_the_run_and_is_told_apart(boot_disk: Path) -> None:
    with Vm(_spec(boot_disk), TCG) as vm:
        vm.wait_serial(0, "HELLO", _WAIT)
        vm.send(0, "r")
        assert vm.wait_exit(_WAIT) == "guest-reset"


def test_a_prompt_without_end_of_line_is_seen(boot_disk: Path) -> None:
    with Vm(_spec(boot_disk), TCG) as vm:
        assert vm.wait_serial(0, "^> $", _WAIT)


def test_output_is_matched_once_and_in_order(boot_disk: Path) -> None:
    with Vm(_spec(boot_disk), TCG) as vm:
        vm.wait_serial(0, "HELLO", _WAIT)
        assert vm.seen(0, "HELLO", 0.2) is None


def test_what_does_not_come_is_an_error_with_the_end_of_the_console(boot_disk: Path) -> None:
    with Vm(_spec(boot_disk), TCG) as vm:
        vm.wait_serial(0, "HELLO", _WAIT)
        with pytest.raises(DrillError, match="nothing like 'GOODBYE'") as caught:
            vm.wait_serial(0, "GOODBYE", 0.3)
        assert "ttyS0.log" in caught.value.message
        assert "HELLO" in caught.value.message


def test_waiting_ends_at_once_when_the_guest_does(boot_disk: Path) -> None:
    with Vm(_spec(boot_disk), TCG) as vm:
        vm.wait_serial(0, "HELLO", _WAIT)
        vm.send(0, "x")
        start = time.monotonic()
        assert vm.seen(0, "GOODBYE", _WAIT) is None
        assert time.monotonic() - start < _WAIT / 2


def test_a_guest_that_does_not_end_is_an_error_and_goes_away(boot_disk: Path) -> None:
    with Vm(_spec(boot_disk), TCG) as vm:
        vm.wait_serial(0, "HELLO", _WAIT)
        with pytest.raises(DrillError, match="still running after"):
            vm.wait_exit(0.2)
        assert vm.running
    assert not vm.running


def test_the_listener_gets_everything(boot_disk: Path) -> None:
    heard = bytearray()
    complete = threading.Event()

    def listen(data: bytes) -> None:
        heard.extend(data)
        if b"HELLO" in heard:
            complete.set()

    with Vm(_spec(boot_disk), TCG, listener=listen):
        assert complete.wait(_WAIT)


def test_the_screen_is_kept_as_png(boot_disk: Path) -> None:
    picture = boot_disk.with_name("screen.png")
    with Vm(_spec(boot_disk), TCG) as vm:
        vm.wait_serial(0, "HELLO", _WAIT)
        vm.screenshot(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_forwarded_port_is_known_and_not_open_by_itself(boot_disk: Path) -> None:
    network = UserNetwork((Forward(0, 22),))
    with Vm(_spec(boot_disk, network=network), TCG) as vm:
        [(host, guest)] = vm.forwards()
        assert host > 0
        assert guest == 22
        assert vm.established() == set()


def test_what_qemu_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    spec = VmSpec("guest", 64, (Drive(tmp_path / "no, such.raw"),))
    with (
        pytest.raises(DrillError, match=r"can't start the machine guest.*no, such\.raw"),
        Vm(spec, TCG),
    ):
        pass


def test_no_guest_outlives_a_killed_drill(boot_disk: Path) -> None:
    program = f"""
from pathlib import Path
from restore.drill.qemu import TCG, Drive, Vm, VmSpec
spec = VmSpec("orphan", 64, (Drive(Path({str(boot_disk)!r}), snapshot=True),))
with Vm(spec, TCG) as vm:
    print(vm._process.pid, flush=True)
    vm.wait_exit(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        guest = os.pidfd_open(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    ready, _, _ = select.select([guest], [], [], _WAIT)
    os.close(guest)
    assert ready


def test_qemu_s_table_of_connections_is_understood(
    boot_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As QEMU 7.2 writes it: both ports are forwarded, the guest has accepted on the first.
    table = (
        "Hub -1 (#net026):\r\n"
        "  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n"
        "  TCP[ESTABLISHED]   17       127.0.0.1 39231       10.0.2.15    22     0     0\r\n"
        "  TCP[SYN_SENT]      18       127.0.0.1 44889       10.0.2.15    80     0     0\r\n"
        "  TCP[HOST_FORWARD]   9       127.0.0.1 39231       10.0.2.15    22     0     0\r\n"
        "  TCP[HOST_FORWARD]   3       127.0.0.1 44889       10.0.2.15    80     0     0\r\n"
    )
    with Vm(_spec(boot_disk), TCG) as vm:
        monkeypatch.setattr(vm, "_command", lambda *_, **__: table)
        assert vm.forwards() == [(39231, 22), (44889, 80)]
        assert vm.established() == {22}
