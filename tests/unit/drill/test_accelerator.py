import os
import shutil
import struct
from pathlib import Path

import pytest

from restore.drill import accelerator
from restore.drill.qemu import KVM, TCG

# The real-mode part of a Linux kernel, of which the boot protocol asks little: says the mark of the
# probe on COM1 and powers off.
_SETUP = bytes.fromhex(
    "8cc8 8ed8 bec000"  # ds = cs, si = the message
    "ac 84c0 7410"  # next: al = [si++]; at its end go on
    "50 ba fd03 ec a820 74fb 58"  # until the transmitter is empty
    "ba f803 ee ebeb"  # send al; next
    "ba 0406 b8 0020 ef f4 ebfd"  # ACPI: power off; halt
)
_HANG = bytes.fromhex("ebfe")
_ENTRY = 0x80  # of the code, behind the header


def _kernel(place: Path, code: bytes) -> Path:
    image = bytearray(2 * 512 + 512)
    image[0x1F1] = 1  # sectors of the real-mode part
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x200:0x202] = bytes((0xEB, _ENTRY - 2))
    image[0x202:0x208] = b"HdrS" + struct.pack("<H", 0x020C)
    image[0x211] = 1  # loaded high
    image[0x22C:0x230] = struct.pack("<I", 0x7FFFFFFF)
    image[0x200 + _ENTRY : 0x200 + _ENTRY + len(code)] = code
    image[0x2C0:0x2D2] = b"remetal-probe-ok\n\0"
    place.write_bytes(image)
    return place


@pytest.fixture
def good_kernel(tmp_path: Path) -> Path:
    return _kernel(tmp_path / "vmlinuz-good", _SETUP)


@pytest.fixture
def hanging_kernel(tmp_path: Path) -> Path:
    return _kernel(tmp_path / "vmlinuz-hangs", _HANG)


@pytest.fixture
def kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with a /dev/kvm that opens; QEMU translates behind its back. Returns the log of runs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    log = tmp_path / "runs"
    real = shutil.which("qemu-system-x86_64")
    wrapper = programs / "qemu-system-x86_64"
    wrapper.write_text(
        "#!/bin/bash\n"
        f'echo run >> "{log}"\n'
        'words=("$@"); words=("${words[@]/#kvm/tcg}"); words=("${words[@]/#host/max}")\n'
        f'exec {real} "${{words[@]}}"\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(accelerator, "_DEVICE", device)
    return log


def _runs(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_without_kvm_nothing_is_asked(kvm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "_DEVICE", kvm.with_name("not-there"))
    choice = accelerator.choose(pytest.fail)
    assert choice.accelerator is TCG
    assert "slower" in choice.reason
    assert _runs(kvm) == 0


def test_a_kernel_that_comes_up_chooses_kvm_and_is_asked_once(kvm: Path, good_kernel: Path) -> None:
    assert accelerator.choose(lambda: good_kernel).accelerator is KVM
    assert accelerator.choose(pytest.fail).accelerator is KVM
    assert _runs(kvm) == 1


def test_a_kernel_that_hangs_falls_back_to_tcg_and_says_so_once(
    kvm: Path, hanging_kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "PROBE_TIMEOUT", 2.0)
    choice = accelerator.choose(lambda: hanging_kernel)
    assert choice.accelerator is TCG
    assert "does not bring a kernel up within 2 s" in choice.reason
    assert accelerator.choose(pytest.fail) == choice
    assert _runs(kvm) == 1


def test_another_boot_of_the_host_asks_again(
    kvm: Path, good_kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator.choose(lambda: good_kernel)
    other = tmp_path / "boot_id"
    other.write_text("another\n")
    monkeypatch.setattr(accelerator, "_BOOT_ID", other)
    accelerator.choose(lambda: good_kernel)
    assert _runs(kvm) == 2


def test_a_damaged_answer_is_asked_again(kvm: Path, good_kernel: Path, tmp_path: Path) -> None:
    accelerator.choose(lambda: good_kernel)
    (tmp_path / "cache/remetal/accelerator.json").write_text("{")
    assert accelerator.choose(lambda: good_kernel).accelerator is KVM
    assert _runs(kvm) == 2


def test_without_a_kernel_nothing_is_proven_and_nothing_remembered(
    kvm: Path, good_kernel: Path
) -> None:
    assert accelerator.choose(lambda: None).accelerator is TCG
    assert accelerator.choose(lambda: good_kernel).accelerator is KVM


def test_a_qemu_that_can_t_start_guests_is_no_kvm(kvm: Path, good_kernel: Path) -> None:
    wrapper = kvm.with_name("bin") / "qemu-system-x86_64"
    wrapper.write_text("#!/bin/sh\necho 'no kvm here' >&2\nexit 1\n")
    assert accelerator.choose(lambda: good_kernel).accelerator is TCG
