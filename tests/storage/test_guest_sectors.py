"""FAT that is made anew for sectors of another size, in the rescue medium's own system.

Loop devices with sectors of 4096 bytes stand in for such disks. One FAT holds what names, times and
attributes can be; the other so many tiny files that they have no room in larger clusters.
"""

import json
from pathlib import Path

import pytest
from restored_disks import digest
from test_guest_fitted_lvm import captured, sparse

from imager import process
from imager.errors import TargetTooSmall
from imager.units import MIB
from tests.guest.rescue import rescue

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

SIZE, TIGHT = 160 * MIB, 24 * MIB
TABLE = b"label: gpt\nstart=1MiB, size=128MiB, type=U\nsize=16MiB, type=L\n"
TIGHT_TABLE = b"label: gpt\nstart=1MiB, size=20MiB, type=L\n"
COMMON = """
import fcntl, hashlib, json, os, pathlib, subprocess, sys
subprocess.run(["modprobe", "-a", "vfat", "loop", "nls_ascii", "nls_cp437"], check=False)
subprocess.run(["/usr/lib/systemd/systemd-udevd", "--daemon"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=True)
place = pathlib.Path("/mnt/place")
place.mkdir()
def run(*words, check=True):
    done = subprocess.run(list(map(str, words)), check=check, stdout=subprocess.PIPE)
    return done.stdout.decode()
def attributes(path, change=None):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if change is not None:
            fcntl.ioctl(descriptor, 0x40047211, change.to_bytes(4, "little"))
        return int.from_bytes(fcntl.ioctl(descriptor, 0x80047210, bytes(4)), "little")
    finally:
        os.close(descriptor)
def state():
    found = {}
    for path in sorted(place.rglob("*")):
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        said = attributes(path), path.stat().st_mtime_ns, content
        found[str(path.relative_to(place))] = said
    return found
OPTIONS = "utf8=1,tz=UTC"
"""
MAKE = """
run("mkfs.vfat", "-F", "32", "-s", "1", "-i", "5EF10A11", "-n", "WARD ESP", "/dev/vda1")
run("mkfs.vfat", "-F", "16", "-n", "DATA", "/dev/vda2")
run("mount", "-t", "vfat", "-o", OPTIONS, "/dev/vda1", place)
for name in ("EFI/debian", "EFI/BOOT", "Ein langer Ordner \\u00fc\\u4e2d", "many", "deep/er/and/deeper"):
    (place / name).mkdir(parents=True)
(place / "EFI/debian/shimx64.efi").write_bytes(os.urandom(5 << 20))
(place / "EFI/BOOT/BOOTX64.EFI").write_bytes(os.urandom(900_001))
(place / "empty").write_bytes(b"")
(place / "REPORT~1.TXT").write_text("short by itself")
(place / "report of the night.txt").write_text("long")
(place / "deep/er/and/deeper" / ("n" * 200)).write_text("bottom")
(place / "Ein langer Ordner \\u00fc\\u4e2d" / "\\u00e4\\u00f6 \\u0416.txt").write_text("names")
for number in range(700):
    (place / "many" / f"a file with number {number}").write_bytes(b"x" * (number * 37 % 3000))
for number, path in enumerate(sorted(place.rglob("*"))):
    change = (0, 1, 2, 4, 7, 32)[number % 6]
    attributes(path, attributes(path) & 16 | change)
    moment = 1_000_000_000 + 2 * 86_411 * number
    os.utime(path, (moment, moment))
before = state()
run("umount", place)
print(json.dumps(before))
"""
FILL = """
run("mkfs.vfat", "-F", "16", "-s", "1", "/dev/vda1")
run("mount", "-t", "vfat", "-o", OPTIONS, "/dev/vda1", place)
for number in range(6000):
    (place / f"{number % 16}").mkdir(exist_ok=True)
    (place / f"{number % 16}/{number}").write_bytes(b"x")
run("umount", place)
print("filled")
"""
RESTORE = """
import time
from imager import console
os.mkdir("/mnt/kept")
run("mount", "-o", "ro", "/dev/vda", "/mnt/kept")
disk = run("losetup", "--find", "--show", "--sector-size", "4096", "/dev/vdb").strip()
size = run("blockdev", "--getsize64", disk).strip()
words = ["restore", "/mnt/kept/repository", "web1", "--yes", "--no-boot-entries", "--no-boot-repair",
    "--recovery-key", "/mnt/kept/recovery.key", "--passphrase-file", "/mnt/kept/passphrase",
    "--fit", "--map", f"disk0={disk}", "--overwrite-serial", size, "--log", "/mnt/log"]
started = time.monotonic()
try:
    code = console.run(words)
except SystemExit as end:
    code = end.code
print(f"restored in {time.monotonic() - started:.1f} s", file=sys.stderr)
sys.stdout.flush()
"""
LOOK = """
run("partx", "--add", disk)
kinds = [run("blkid", "-p", "-o", "export", f"{disk}p{number}") for number in (1, 2)]
run("fsck.vfat", "-n", f"{disk}p1")
run("mount", "-t", "vfat", "-o", f"ro,{OPTIONS}", f"{disk}p1", place)
after = state()
print("\\n" + json.dumps([code, kinds, after]))
"""


def made(path: Path, size: int, table: bytes) -> Path:
    disk = sparse(path, size)
    process.run("sfdisk", "--quiet", disk, stdin=table)
    return disk


def test_every_file_is_there_afterwards(tmp_path: Path) -> None:
    disk = made(tmp_path / "disk", SIZE, TABLE)
    printed = rescue().run(COMMON + MAKE, [disk], tmp_path / "making", timeout=900)
    before = json.loads(printed.splitlines()[-1])
    assert len(before) > 700
    packed = captured(disk, tmp_path)
    target = sparse(tmp_path / "target", SIZE)
    program = COMMON + RESTORE + LOOK
    printed = rescue().run(program, [packed, target], tmp_path / "restoring", timeout=1800)
    code, (esp, data), after = json.loads(printed.splitlines()[-1])
    assert code == 0
    assert after == before
    for word in ("UUID=5EF1-0A11", "LABEL=WARD\\ ESP", "VERSION=FAT16", "BLOCK_SIZE=4096"):
        assert word in esp
    assert "LABEL=DATA" in data


def test_files_without_room_in_larger_clusters_are_refused(tmp_path: Path) -> None:
    disk = made(tmp_path / "disk", TIGHT, TIGHT_TABLE)
    rescue().run(COMMON + FILL, [disk], tmp_path / "making", timeout=900)
    packed = captured(disk, tmp_path)
    target = sparse(tmp_path / "target", TIGHT, b"of somebody else")
    before = digest(target)
    program = COMMON + RESTORE + 'print("\\n" + json.dumps(code))'
    printed = rescue().run(program, [packed, target], tmp_path / "restoring", timeout=900)
    assert json.loads(printed.splitlines()[-1]) == TargetTooSmall.exit_code
    assert digest(target) == before
