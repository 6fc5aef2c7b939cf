"""What counts as proof that a restored machine is up.

In order of strength: facts the machine reports itself, compared one by one; a login prompt on the
serial console; a TCP port that answers. A picture of the screen is kept in any case, but is weak:
a boot menu or a panic is a still picture, too.
"""

import base64
import json
import re
import socket
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from imager.errors import DrillError
from imager.units import format_duration
from restore.drill.qemu import Vm

_CONSOLE: Final = 0  # ttyS0
_REPORTS: Final = 1  # ttyS1
_FACTS: Final = "REMETAL-FACTS "
_MANIFEST: Final = "REMETAL-MANIFEST "

_LOGIN: Final = r"[\w.-]+ login: "
# Firmware, boot loader, initramfs and kernel that have given up.
_DEAD_END: Final = (
    r"UEFI Interactive Shell|grub rescue>|^grub> |^\(initramfs\)"
    r"|Kernel panic - not syncing.*|You are in emergency mode"
)
_LOOK: Final = 5.0  # seconds between two looks at the console
_POLL: Final = 2.0  # seconds between two looks at what makes no event
_STILL: Final = 5.0  # seconds between two pictures that are compared
_STILL_SHARE: Final = 0.005  # of the pixels that may differ: a cursor blinks
MISSING: Final = "(nothing)"


@dataclass(frozen=True, slots=True)
class Difference:
    """A fact that is not what it was.

    Attributes:
        fact: its name; parts of it are separated by " / ".
        before: its value on the captured machine.
        after: its value on the restored one.
    """

    fact: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Expected:
    """What a machine said about itself before.

    Attributes:
        facts: each is compared.
        manifest: a digest of every file by mount point and path, to name files that differ.
    """

    facts: Mapping[str, Any]
    manifest: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Proof:
    """What showed that the machine is up.

    Attributes:
        text: for people.
        weak: whether a person should look at the picture before believing it.
    """

    text: str
    weak: bool = False


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from _leaves(part, f"{name} / {key}" if name else str(key))
    elif isinstance(value, list) and value:
        for number, part in enumerate(value):
            yield from _leaves(part, f"{name} / {number}")
    else:
        yield name, value if isinstance(value, str) else json.dumps(value)


def count(facts: Mapping[str, Any]) -> int:
    """Return the number of single facts, which is what `compare` compares."""
    return sum(1 for _ in _leaves(facts))


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Compare facts one by one, however deep they lie.

    Returns:
        What differs, is missing, or was not there before; in the order of the names.
    """
    old, new = dict(_leaves(before)), dict(_leaves(after))
    return tuple(
        Difference(name, old.get(name, MISSING), new.get(name, MISSING))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    )


def wait_for_facts(vm: Vm, timeout: float) -> Expected:
    """Wait for what a machine reports about itself on its second serial port.

    Raises:
        DrillError: nothing came in time, it can't be read, or the machine came to a dead end.
    """
    deadline = time.monotonic() + timeout
    manifest = None
    while manifest is None and vm.running and time.monotonic() < deadline:
        manifest = vm.seen(_REPORTS, rf"{_MANIFEST}(\S+)\r?\n", _LOOK)
        _check_dead_end(vm)
    if manifest is None:
        limit = f"within {format_duration(timeout)}" if vm.running else "before it ended"
        raise vm.error(f"no facts came on its second serial port {limit}")
    facts = vm.wait_serial(_REPORTS, rf"{_FACTS}(\{{.*\}})\r?\n", timeout)
    try:
        packed = base64.b64decode(manifest.group(1), validate=True)
        return Expected(json.loads(facts.group(1)), json.loads(zlib.decompress(packed)))
    except (ValueError, zlib.error) as error:
        raise DrillError(f"what {vm.spec.name} reports can't be read: {error}") from error


def _check_dead_end(vm: Vm) -> None:
    """Don't wait for what can't come any more.

    Raises:
        DrillError: the console shows that nobody but a person can get the machine further.
    """
    found = vm.seen(_CONSOLE, _DEAD_END, 0)
    if found:
        raise vm.error(f'it came to a dead end: "{found.group().decode(errors="replace").strip()}"')


def compare_all(before: Expected, after: Expected) -> tuple[Difference, ...]:
    """Compare all facts, and name the files that differ when one of them says that some do."""
    differences = compare(before.facts, after.facts)
    if differences:
        differences += compare({"file": before.manifest}, {"file": after.manifest})
    return differences


def wait_for_sign(vm: Vm, timeout: float, folder: Path, *, accept_screen: bool) -> Proof:
    """Wait for what can be seen of a machine from outside.

    Args:
        vm: a running machine.
        timeout: seconds.
        folder: for pictures that are compared.
        accept_screen: whether a still screen that is not blank counts when the time is over.

    Raises:
        DrillError: nothing was seen in time.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found = vm.seen(_CONSOLE, _LOGIN, _POLL)
        if found:
            return Proof(f"login prompt on the serial console ({found.group().decode().strip()})")
        _check_dead_end(vm)
        if not vm.running:
            raise vm.error("the machine ended before it was up")
        port = _open_port(vm)
        if port is not None:
            return Proof(f"TCP port {port} is open")
    if accept_screen and _is_still(vm, folder):
        return Proof("a still screen that is not blank; weak: look at the picture", weak=True)
    raise vm.error("neither a login prompt on the serial console nor an open TCP port was seen")


def _open_port(vm: Vm) -> int | None:
    """Return a forwarded port on which the guest itself has accepted a connection, if any.

    QEMU accepts a connection on behalf of the guest at once, so what counts is the state of the
    half of the connection that leads into the guest.
    """
    if vm.spec.network is None or not vm.spec.network.forwards:
        return None
    for host, guest in vm.forwards():
        with closing(socket.socket()) as connection:
            connection.settimeout(_POLL)
            try:
                connection.connect(("127.0.0.1", host))
            except OSError:
                continue
            deadline = time.monotonic() + _POLL
            while time.monotonic() < deadline:
                if guest in vm.established():
                    return guest
                time.sleep(0.1)  # QEMU has no event for this
    return None


def _is_still(vm: Vm, folder: Path) -> bool:
    first = _picture(vm, folder / "still.ppm")
    time.sleep(_STILL)  # what is waited for is that nothing happens
    second = _picture(vm, folder / "still.ppm")
    if first.shape != second.shape or len(np.unique(second, axis=0)) < 2:
        return False
    return float(np.mean(np.any(first != second, axis=-1))) < _STILL_SHARE


def _picture(vm: Vm, path: Path) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Return the screen as an array of pixels, shape (height * width, 3)."""
    vm.screenshot(path, "ppm")
    data = path.read_bytes()
    path.unlink()
    header = re.match(rb"P6\s(\d+) (\d+)\s255\s", data)
    if header is None:
        raise DrillError(f"{vm.spec.name}: QEMU's picture of the screen can't be read")
    return np.frombuffer(data, np.uint8, offset=header.end()).reshape(-1, 3)
