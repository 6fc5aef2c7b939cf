"""The initramfs of a system on arrays and volumes, repaired in a guest beside a stale copy of it."""

import json
import zipfile
from pathlib import Path

import pytest

from imager import process
from imager.units import MIB
from tests.guest import small_system
from tests.guest.guest import guest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
SIZE = 110 * MIB
COMMON = """
import hashlib, json, os, pathlib, subprocess, sys
os.environ["DM_DISABLE_UDEV"] = "1"  # nobody is there to make device nodes
sys.path[:0] = ["/job/code.zip"]
import small_system
for module in ("raid1", "dm-mod", "ext4"):
    subprocess.run(["modprobe", module], check=True)
def run(*argv, **more):
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True, **more).stdout
"""
MAKE = """
LVM = "devices { use_devicesfile=0 } activation { monitoring=0 }"
place = pathlib.Path("/mnt")
for disk in ("vda", "vdb"):
    run("sfdisk", "--quiet", f"/dev/{disk}", input="label: gpt\\nsize=24M\\nsize=+\\n")
subprocess.run(["udevadm", "settle"], check=False)
for number, metadata in ((1, "1.0"), (2, "1.2")):
    run("mdadm", "--create", f"/dev/md{number}", f"--metadata={metadata}", "--level=1", "--run",
        "--raid-devices=2", f"/dev/vda{number}", f"/dev/vdb{number}", env={**os.environ, "MDADM_NO_UDEV": "1"})
    subprocess.run(["mdadm", "--wait", f"/dev/md{number}"], check=False)
run("pvcreate", "--config", LVM, "/dev/md2")
run("vgcreate", "--config", LVM, "ward", "/dev/md2")
run("lvcreate", "--config", LVM, "-y", "-Wn", "-L", "56m", "-n", "root", "ward")
for device in ("/dev/ward/root", "/dev/md1"):
    run("mke2fs", "-q", "-t", "ext4", device)
uuid = run("blkid", "-p", "-s", "UUID", "-o", "value", "/dev/md1").strip()
run("mount", "/dev/ward/root", place)
(place / "boot").mkdir()
run("mount", "/dev/md1", place / "boot")
small_system.plant(place, f"/dev/mapper/ward-root / ext4 defaults 0 1\\nUUID={uuid} /boot ext4 defaults 0 2\\n")
(place / "etc/mdadm").mkdir()
(place / "etc/mdadm/mdadm.conf").write_text("DEVICE /dev/sd[ab][12]\\n")
run("umount", "-R", place)
run("vgchange", "--config", LVM, "-an", "ward")
run("mdadm", "--stop", "/dev/md1", "/dev/md2")
"""
REPAIR = """
from pathlib import Path
from restore.boot_steps import DiskDrivers, Driver, MapDisks, RepairInitramfs
from restore.bootrepair.disks import map_disks
from restore.bootrepair.repair import repair
from restore.target import Target, TargetKind
def step(driver):
    return RepairInitramfs(tuple(
        DiskDrivers(
            Target(f"disk{n}", Path(f"/dev/vd{x}"), TargetKind.DEVICE, 1, 1, 512, None, None, "", ""),
            f"/dev/sd{x}", (Driver(driver, "", False),),
        )
        for n, x in enumerate("ab")
    ))
def digests():
    Path("/proc/sys/vm/drop_caches").write_text("3")
    found = []
    for x in "abcd":
        with open(f"/dev/vd{x}", "rb") as file:
            found.append(hashlib.file_digest(file, "md5").hexdigest())
    return found
said = [digests()]
for driver in ("virtio_blk", "nvme", "nvme"):
    said += [repair(step(driver)), digests()]
said += [map_disks(MapDisks(step("nvme").disks)) for _ in "12"] + [digests()]
left = [path.name for pattern in ("dm-*", "md*") for path in Path("/sys/block").glob(pattern)]
print(json.dumps({"said": said, "left": left}), flush=True)
"""


def code(folder: Path) -> Path:
    """What a repair is made of, as an archive that Python imports from; the guest has no more."""
    packed = folder / "code.zip"
    files = [
        *(ROOT / "imager").glob("*.py"),
        *(ROOT / "imager/layout").glob("*.py"),
        *(ROOT / "restore").glob("*.py"),
        *(ROOT / "restore/bootrepair").glob("*.py"),
    ]
    with zipfile.ZipFile(packed, "w") as archive:
        for path in files:
            name = path.relative_to(ROOT).as_posix()
            # It asks for the version of what is installed.
            archive.writestr(name, "" if name == "imager/__init__.py" else path.read_text())
        archive.writestr("zstandard.py", "class ZstdError(Exception): ...\n")
        # Documents that a repair reads none of.
        archive.writestr("msgspec.py", "class Struct:\n def __init_subclass__(cls, **_): ...\n")
    return packed


def test_a_system_on_mirrors_is_repaired_and_its_stale_copy_left_alone(tmp_path: Path) -> None:
    disks = [tmp_path / f"{name}.raw" for name in "ab"]
    for disk in disks:
        with disk.open("wb") as file:
            file.truncate(SIZE)
    modules = [Path(small_system.__file__), code(tmp_path)]
    guest().run(COMMON + MAKE, disks, tmp_path / "make", modules=modules, timeout=900)
    stale = [tmp_path / f"stale-{name}.raw" for name in "ab"]
    for disk, copy in zip(disks, stale, strict=True):
        process.run("cp", "--sparse=always", disk, copy)
    printed = guest().run(
        COMMON + REPAIR, [*disks, *stale], tmp_path / "run", modules=modules, timeout=900
    )
    found = json.loads(printed)
    before, looked, after_look, repaired, changed, again, _, mapped, no_more, at_end = found["said"]
    (note,) = looked
    assert "nothing to do" in note
    assert after_look == before
    (note,) = repaired
    assert f"/{small_system.INITRAMFS} on /dev/mapper/ward-root lacked nvme and was rebuilt" in note
    assert changed[:2] != after_look[:2]
    assert at_end[2:] == before[2:], "the stale copy was written"
    (note,) = again
    assert "nothing to do" in note
    # The kernel's names of old are those of the fixture's step: sda and sdb.
    changed_file, nothing_left = mapped
    assert changed_file == (
        "/dev/mapper/ward-root: /etc/mdadm/mdadm.conf: "
        "DEVICE /dev/sd[ab][12] is DEVICE partitions containers now"
    )
    assert no_more == [nothing_left]
    assert found["left"] == []
