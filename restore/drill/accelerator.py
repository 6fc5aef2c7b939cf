"""Which accelerator works here: the processor's help (KVM), or translation (TCG).

That /dev/kvm opens says little: on some nested hosts it starts a guest whose stock kernel then
hangs for ever. So a real kernel is booted under it, with a time limit, and must reach its init.
"""

import fcntl
import os
import platform
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from imager.errors import DrillError
from restore.drill.qemu import Vm
from restore.drill.vm_spec import KVM, TCG, Accelerator, VmSpec

PROBE_TIMEOUT: Final = 25.0  # seconds; with a working KVM a kernel needs one or two

_DEVICE: Final = Path("/dev/kvm")
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_MARK: Final = b"remetal-probe-ok\n"


@dataclass(frozen=True, slots=True)
class Choice:
    """The accelerator that was chosen.

    Attributes:
        accelerator: for `Vm`.
        reason: one line for people.
    """

    accelerator: Accelerator
    reason: str


class _Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was found out in one boot of this host."""

    boot_id: str
    works: bool


def choose(kernel: Callable[[], Path | None] | None = None) -> Choice:
    """Choose the accelerator, asking the hardware once per boot of this host.

    Args:
        kernel: returns a stock Linux kernel to try, and is only called when one is needed; by
            default the host's own, if it can be read. Without any, TCG is chosen, since nothing
            could be proven.
    """
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        return Choice(TCG, f"no usable {_DEVICE}: guests run under TCG, which is slower")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "remetal"
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "accelerator.lock"):
        place = cache / "accelerator.json"
        boot_id = _BOOT_ID.read_text().strip()
        works = _recall(place, boot_id)
        if works is None:
            image = (kernel or _host_kernel)()
            if image is None:
                return Choice(TCG, f"no kernel to try {_DEVICE} with: guests run under TCG")
            works = probe(image, KVM, PROBE_TIMEOUT)
            place.write_bytes(msgspec.json.encode(_Answer(boot_id=boot_id, works=works)))
    if works:
        return Choice(KVM, "guests run under KVM")
    return Choice(
        TCG,
        f"{_DEVICE} does not bring a kernel up within {PROBE_TIMEOUT:.0f} s: "
        "guests run under TCG, which is slower",
    )


def _host_kernel() -> Path | None:
    path = Path("/boot") / f"vmlinuz-{platform.release()}"
    return path if os.access(path, os.R_OK) else None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _recall(place: Path, boot_id: str) -> bool | None:
    try:
        answer = msgspec.json.decode(place.read_bytes(), type=_Answer)
    except (OSError, msgspec.MsgspecError):
        return None
    return answer.works if answer.boot_id == boot_id else None


def probe(kernel: Path, accelerator: Accelerator, timeout: float) -> bool:
    """Say whether `kernel` reaches its init under the accelerator within `timeout` seconds."""
    directory = Path(tempfile.mkdtemp(prefix="remetal-probe-"))
    try:
        initrd = directory / "initrd"
        initrd.write_bytes(_initramfs(_init()))
        spec = VmSpec(
            name="probe",
            memory_mib=256,
            serials=(directory / "console",),
            kernel=kernel,
            initrd=initrd,
            append="console=ttyS0 panic=-1",
        )
        try:
            with Vm(spec, accelerator) as vm:
                vm.wait_serial(0, _MARK.decode().strip(), timeout)
        except DrillError:
            return False
        return True
    finally:
        shutil.rmtree(directory)


def _init() -> bytes:
    """Return a static x86-64 program that writes the mark to its standard output and powers off."""
    reboot = struct.pack(
        "<BIBIBIBI2s2s",
        *(0xB8, 169),  # mov eax, SYS_reboot
        *(0xBF, 0xFEE1DEAD),  # mov edi, LINUX_REBOOT_MAGIC1
        *(0xBE, 672274793),  # mov esi, LINUX_REBOOT_MAGIC2
        *(0xBA, 0x4321FEDC),  # mov edx, LINUX_REBOOT_CMD_POWER_OFF
        b"\x0f\x05",  # syscall
        b"\xeb\xfe",  # jmp to itself
    )
    length = len(_MARK)
    write = struct.pack(
        "<BIBI3sIBI2s",
        *(0xB8, 1),  # mov eax, SYS_write
        *(0xBF, 1),  # mov edi, 1
        *(b"\x48\x8d\x35", 7 + len(reboot)),  # lea rsi, [the mark, behind the code]
        *(0xBA, length),  # mov edx, length
        b"\x0f\x05",  # syscall
    )
    body = write + reboot + _MARK
    base, headers = 0x400000, 64 + 56
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    size = headers + len(body)
    elf = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(identity, 2, 62, 1, base + headers, 64, 0, 0, 64, 56, 1, 0, 0, 0),
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
    return elf + segment + body


def _initramfs(init: bytes) -> bytes:
    """Return a cpio archive (newc) that holds /init."""
    archive = b""
    for name, mode, data in (("init", 0o100755, init), ("TRAILER!!!", 0, b"")):
        # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        fields = (1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        archive += b"070701" + b"".join(b"%08X" % field for field in fields)
        archive += name.encode() + b"\0"
        archive += bytes(-len(archive) % 4) + data
        archive += bytes(-len(archive) % 4)
    return archive
