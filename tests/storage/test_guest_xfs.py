"""XFS that comes back on a smaller disk, in a partition and in LVM, in the rescue medium's own system."""

import json
from pathlib import Path

import pytest
from restored_disks import digest
from test_guest_fitted_lvm import captured, sparse

from imager import process
from imager.errors import TargetTooSmall
from imager.units import MIB
from tests.guest import life
from tests.guest.rescue import rescue

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

SIZE, SMALLER, TINY = 2200 * MIB, 1200 * MIB, 350 * MIB
TABLE = b"label: gpt\nstart=1MiB, size=1000MiB, type=L\nsize=1190MiB, type=V\n"
UUID = "2f6b7c10-94d1-4b0e-b5a3-8c1d2e3f4a78"
COMMON = (
    f"UUID = {UUID!r}\n"
    """
import json, os, pathlib, subprocess, sys
import life
CONFIG = "activation { udev_sync=0 udev_rules=0 monitoring=0 } devices { use_devicesfile=0 }"
place = pathlib.Path("/mnt/place")
subprocess.run(["modprobe", "-a", "dm-mod", "xfs", "ext4"], check=False)
subprocess.run(["/usr/lib/systemd/systemd-udevd", "--daemon"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=True)
place.mkdir()
def run(*words):
    environment = {**os.environ, "DM_DISABLE_UDEV": "1"}
    done = subprocess.run(list(map(str, words)), stdout=subprocess.PIPE, env=environment, check=True)
    return done.stdout.decode()
def lvm(device, verb, *words):
    return run(verb, "--config", CONFIG, "--devices", device, *words)
def states(devices, write=lambda number: None):
    found = []
    for number, device in enumerate(devices):
        run("mount", "-t", "xfs", "-o", "nouuid", device, place)
        write(number)
        found.append(life.state(place))
        run("umount", place)
    return found
"""
)
MAKE = """
lvm("/dev/vda2", "pvcreate", "-y", "/dev/vda2")
lvm("/dev/vda2", "vgcreate", "system", "/dev/vda2")
lvm("/dev/vda2", "lvcreate", "-y", "-Wn", "-l", "100%FREE", "-n", "data", "system")
run("mkfs.xfs", "-q", "-m", f"uuid={UUID},reflink=0", "-L", "ward", "/dev/vda1")
run("mkfs.xfs", "-q", "/dev/system/data")
def write(number):
    life.fill(place, number + 1, 60)
    life.churn(place, number + 1)
    (place / "large").write_bytes(os.urandom(60 << 20))
before = states(["/dev/vda1", "/dev/system/data"], write)
lvm("/dev/vda2", "vgchange", "-an", "system")
print(json.dumps(before))
"""
RESTORE = """
from imager import console
os.mkdir("/mnt/kept")
run("mount", "-o", "ro", "/dev/vda", "/mnt/kept")
words = ["restore", "/mnt/kept/repository", "web1", "--yes", "--no-boot-entries", "--no-boot-repair",
    "--verify-written", "--recovery-key", "/mnt/kept/recovery.key",
    "--passphrase-file", "/mnt/kept/passphrase", "--fit", "--map", "disk0=/dev/vdb"]
try:
    code = console.run(words)
except SystemExit as end:
    code = end.code
sys.stdout.flush()
"""
LOOK = """
assert code == 0, code
lvm("/dev/vdb2", "vgck", "system")
lvm("/dev/vdb2", "vgchange", "-ay", "system")
devices = ["/dev/vdb1", "/dev/system/data"]
for device in devices:
    run("xfs_repair", "-n", device)
sizes = [int(run("blockdev", "--getsize64", device)) for device in devices]
kinds = [run("blkid", "-p", "-o", "export", device) for device in devices]
info = run("xfs_db", "-r", "-c", "info", "/dev/vdb1")
after = states(devices)
lvm("/dev/vdb2", "vgchange", "-an", "system")
print("\\n" + json.dumps([sizes, kinds, info, after]))
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]]]:
    """A repository with an image of a disk, packed, and what the disk held."""
    folder = tmp_path_factory.mktemp("xfs")
    disk = sparse(folder / "disk", SIZE)
    process.run("sfdisk", "--quiet", disk, stdin=TABLE)
    modules = (Path(life.__file__),)
    printed = rescue().run(COMMON + MAKE, [disk], folder / "making", modules=modules, timeout=900)
    return captured(disk, folder), json.loads(printed.splitlines()[-1])


def test_all_files_are_there_on_the_smaller_disk(
    machine: tuple[Path, list[dict[str, str]]], tmp_path: Path
) -> None:
    packed, before = machine
    smaller = sparse(tmp_path / "smaller", SMALLER)
    program, modules = COMMON + RESTORE + LOOK, (Path(life.__file__),)
    printed = rescue().run(
        program, [packed, smaller], tmp_path / "restoring", modules=modules, timeout=1800
    )
    sizes, (first, second), info, after = json.loads(printed.splitlines()[-1])
    assert after == before
    assert 300 * MIB <= sizes[0] < 1000 * MIB
    assert 300 * MIB <= sizes[1] < 1190 * MIB
    assert f"UUID={UUID}" in first
    assert "LABEL=ward" in first
    assert "TYPE=xfs" in second
    assert "reflink=0" in info


def test_what_does_not_fit_is_refused_before_anything_is_written(
    machine: tuple[Path, list[dict[str, str]]], tmp_path: Path
) -> None:
    tiny = sparse(tmp_path / "tiny", TINY, b"of somebody else")
    before = digest(tiny)
    program = COMMON + RESTORE + 'print("\\n" + json.dumps(code))'
    printed = rescue().run(
        program, [machine[0], tiny], tmp_path / "restoring", modules=(Path(life.__file__),)
    )
    assert json.loads(printed.splitlines()[-1]) == TargetTooSmall.exit_code
    assert digest(tiny) == before
