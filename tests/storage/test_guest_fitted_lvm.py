"""A machine on LVM that comes back on a smaller disk, in the rescue medium's own system.

Its logical volumes lie scattered, in several segments. The smaller disk holds an older copy of the
group, in the place where the new one comes.
"""

import json
import shutil
from pathlib import Path

import pytest
from restored_disks import PASSPHRASE

from imager import console, process
from imager.units import MIB
from tests.guest import life
from tests.guest.rescue import rescue

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

SIZE, SMALLER = 2048 * MIB, 1380 * MIB
START = 9 * MIB  # of the physical volume
TABLE = b"label: gpt\nstart=1MiB, size=8MiB, type=U\nsize=2036MiB, type=V\n"
SWAP_UUID = "0b4f2a52-3a0e-4f3c-9c1e-1d5d6a3b0c11"
COMMON = """
import json, os, pathlib, subprocess, sys
import life
CONFIG = "activation { udev_sync=0 udev_rules=0 monitoring=0 } devices { use_devicesfile=0 }"
place = pathlib.Path("/mnt/place")
VOLUMES = {"root": "ext4", "data": "btrfs", "var": "xfs"}
subprocess.run(["modprobe", "-a", "dm-mod", "ext4", "btrfs", "xfs"], check=False)
subprocess.run(["/usr/lib/systemd/systemd-udevd", "--daemon"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=True)
place.mkdir()
def run(*words):
    environment = {**os.environ, "DM_DISABLE_UDEV": "1"}
    words = list(map(str, words))
    done = subprocess.run(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment)
    if done.returncode:
        raise RuntimeError(f"{words}: {done.stdout.decode()}")
    return done.stdout.decode()
def lvm(device, verb, *words):
    return run(verb, "--config", CONFIG, "--devices", device, *words)
def states(write=lambda name: None):
    found = {}
    for name, kind in VOLUMES.items():
        options = "nouuid" if kind == "xfs" else "noatime"
        run("mount", "-t", kind, "-o", options, f"/dev/system/{name}", place)
        write(name)
        found[name] = life.state(place)
        run("umount", place)
    # The folder of a filesystem that resize2fs moved is newer.
    for state in found.values():
        for path, said in state.items():
            mode, _, rest = said.split(" ", 2)
            state[path] = f"{mode} {rest}" if mode.startswith("4") else said
    return found
"""
MAKE = """
disk = "/dev/vda2"
lvm(disk, "pvcreate", "-y", disk)
lvm(disk, "vgcreate", "-s", "1m", "--addtag", "ward-3", "system", disk)
for name, size in (("gone", 90), ("root", 300), ("data", 700), ("away", 40), ("swap", 290), ("var", 300)):
    lvm(disk, "lvcreate", "-y", "-Wn", "-L", f"{size}m", "-n", name, "system")
lvm(disk, "lvremove", "-y", "system/gone", "system/away")
lvm(disk, "lvextend", "-L", "600m", "system/root")
run("mke2fs", "-q", "-t", "ext4", "-L", "root", "/dev/system/root")
run("mkfs.btrfs", "-q", "/dev/system/data")
run("mkfs.xfs", "-q", "/dev/system/var")
run("mkswap", "-q", "-U", SWAP_UUID, "-L", "swapped", "/dev/system/swap")
def write(name):
    life.fill(place, len(name), 30)
    if name == "root":
        # What lies at the end is to move: it fills the room, and most of the front goes.
        for number in range(1000):
            try:
                (place / f"big {number}").write_bytes(os.urandom(16 << 20))
            except OSError:
                (place / f"big {number}").unlink()
                break
        os.sync()
        for number in range(number * 3 // 4):
            (place / f"big {number}").unlink()
    life.churn(place, 5)
before = states(write)
facts = lvm(disk, "vgs", "--noheadings", "-o", "vg_uuid,vg_tags,lv_name,lv_uuid", "system")
lvm(disk, "vgchange", "-an", "system")
print(json.dumps([before, facts]))
"""
RESTORE = """
from imager import console
os.mkdir("/mnt/kept")
run("mount", "-o", "ro", "/dev/vda", "/mnt/kept")
words = ["restore", "/mnt/kept/repository", "web1", "--yes", "--no-boot-entries", "--no-boot-repair",
    "--verify-written", "--recovery-key", "/mnt/kept/recovery.key",
    "--passphrase-file", "/mnt/kept/passphrase"]
CHECKS = {"root": ("e2fsck", "-fn"), "data": ("btrfs", "check", "--readonly"), "var": ("xfs_repair", "-n")}
code = console.run([*words, "--fit", "--map", "disk0=/dev/vdb"])
assert code == 0, code
sys.stdout.flush()
disk = "/dev/vdb2"
lvm(disk, "vgck", "system")
lvm(disk, "vgchange", "-ay", "system")
for name, check in CHECKS.items():
    run(*check, f"/dev/system/{name}")
fields = ("--units", "m", "--nosuffix", "--noheadings", "-o", "lv_name,lv_size")
sizes = dict(line.split() for line in lvm(disk, "lvs", *fields, "system").splitlines())
swap = run("blkid", "-p", "-o", "export", "/dev/system/swap")
facts = lvm(disk, "vgs", "--noheadings", "-o", "vg_uuid,vg_tags,lv_name,lv_uuid", "system")
rooms = {}
def look(name):
    stat = os.statvfs(place)
    rooms[name] = stat.f_blocks * stat.f_frsize
after = states(look)
# LVM itself goes on with it.
lvm(disk, "lvchange", "--addtag", "came-back", "system/var")
lvm(disk, "vgck", "system")
lvm(disk, "vgchange", "-an", "system")
print("\\n" + json.dumps([sizes, swap, facts, rooms, after]))
"""


def captured(disk: Path, folder: Path) -> Path:
    """Return a disk file with a repository that has an image of the disk, and what opens it."""
    kept = folder / "kept"
    kept.mkdir()
    repository, keys = kept / "repository", kept / "keys"
    (kept / "passphrase").write_text(PASSPHRASE + "\n")
    words = ["init", str(repository), "--keys-dir", str(keys)]
    assert console.run([*words, "--passphrase-file", str(kept / "passphrase")]) == 0
    credential = ["--credential", str(keys / "capture.credential")]
    words = ["capture", str(repository), "--disk", str(disk), "--name", "web1"]
    assert console.run([*words, *credential]) == 0
    shutil.copy(keys / "recovery.key", kept / "recovery.key")
    held = sum(path.stat().st_size for path in kept.rglob("*") if path.is_file())
    packed = folder / "kept.ext4"
    size = f"{(held + held // 4) // 1024 + 16 * 1024}k"
    process.run("mke2fs", "-q", "-t", "ext4", "-d", kept, packed, size)
    return packed


def sparse(path: Path, size: int, head: bytes = b"") -> Path:
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    return path


def test_every_volume_is_there_afterwards(tmp_path: Path) -> None:
    disk = sparse(tmp_path / "disk", SIZE)
    process.run("sfdisk", "--quiet", disk, stdin=TABLE)
    modules = (Path(life.__file__),)
    program = f"SWAP_UUID = {SWAP_UUID!r}\n{COMMON}{MAKE}"
    printed = rescue().run(program, [disk], tmp_path / "making", modules=modules, timeout=900)
    before, facts = json.loads(printed.splitlines()[-1])
    with disk.open("rb") as file:
        stale = bytes(START) + file.read(20 * MIB)[START:]
    packed = captured(disk, tmp_path)
    smaller = sparse(tmp_path / "smaller", SMALLER, stale)
    printed = rescue().run(
        COMMON + RESTORE, [packed, smaller], tmp_path / "restoring", modules=modules, timeout=1800
    )
    found, swap, facts_then, rooms, after = json.loads(printed.splitlines()[-1])
    assert after == before
    assert facts_then.split() == facts.split()
    assert SWAP_UUID in swap
    assert "LABEL=swapped" in swap
    sizes = {name: int(float(size)) for name, size in found.items()}
    assert (sizes["swap"], sizes["var"]) == (256, 300)
    assert sizes["root"] < 600
    assert sizes["data"] < 700
    assert rooms["root"] <= sizes["root"] * MIB
    assert rooms["data"] == sizes["data"] * MIB
