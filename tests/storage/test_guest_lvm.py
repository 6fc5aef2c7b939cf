"""LVM as it lives: raid, thin pools and snapshots, made and opened again in a guest with device-mapper."""

import json
from pathlib import Path

import pytest
from disk_files import copy_used, noise

from imager import blockdev
from imager.extents.used import used
from imager.probe.disk import probe_disk
from imager.units import MIB
from tests.guest import life
from tests.guest.guest import guest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SIZE = 160 * MIB
COMMON = """
import json, pathlib, subprocess
import life
for module in ("dm-mod", "dm-raid", "dm-thin-pool", "dm-snapshot", "ext4"):
    subprocess.run(["modprobe", module], check=True)
CONFIG = (
    'activation { udev_sync=0 udev_rules=0 monitoring=0 } global { thin_check_executable="" }'
    ' devices { use_devicesfile=0 }'
)
def lvm(verb, *words):
    subprocess.run([verb, "--config", CONFIG, *words], check=True, stdout=subprocess.DEVNULL)
place = pathlib.Path("/mnt")
VOLUMES = ("linear", "mirrored", "thin", "snap")
def states():
    found = []
    for name in VOLUMES:
        subprocess.run(["mount", f"/dev/vg/{name}", place], check=True)
        found.append(life.state(place))
        subprocess.run(["umount", place], check=True)
    return found
"""
MAKE = """
lvm("pvcreate", "/dev/vda", "/dev/vdb")
lvm("vgcreate", "-s", "1m", "vg", "/dev/vda", "/dev/vdb")
lvm("lvcreate", "-y", "-Wn", "-L", "9m", "-n", "gone", "vg")
lvm("lvcreate", "-y", "-Wn", "-L", "20m", "-n", "linear", "vg")
lvm("lvcreate", "-y", "-Wn", "--type", "raid1", "-m", "1", "-L", "16m", "-n", "mirrored", "vg")
lvm("lvcreate", "-y", "-L", "28m", "--type", "thin-pool", "-n", "pool", "vg")
lvm("lvcreate", "-y", "-Wn", "-V", "60m", "-T", "vg/pool", "-n", "thin")
lvm("lvremove", "-y", "vg/gone")
for name in VOLUMES[:3]:
    subprocess.run(["mke2fs", "-q", "-t", "ext4", f"/dev/vg/{name}"], check=True)
    subprocess.run(["mount", f"/dev/vg/{name}", place], check=True)
    life.fill(place, 3, 30)
    life.churn(place, 4)
    subprocess.run(["umount", place], check=True)
lvm("lvcreate", "-y", "-s", "-L", "8m", "-n", "snap", "vg/linear")
subprocess.run(["mount", "/dev/vg/linear", place], check=True)
life.churn(place, 5)
subprocess.run(["umount", place], check=True)
print(json.dumps(states()), flush=True)
lvm("vgchange", "-an", "vg")
"""
COMPARE = """
lvm("vgck", "vg")
lvm("vgchange", "-ay", "vg")
print(json.dumps(states()), flush=True)
lvm("vgchange", "-an", "vg")
"""


def test_volumes_of_many_kinds(tmp_path: Path) -> None:
    disks = [tmp_path / f"disk{number}" for number in range(2)]
    for number, disk in enumerate(disks):
        disk.write_bytes(noise(SIZE, number))
        with disk.open("r+b") as file:
            file.write(bytes(MIB))
    machine = guest()
    modules = (Path(life.__file__),)
    before = machine.run(COMMON + MAKE, disks, tmp_path / "making", modules=modules, timeout=600)
    copies = [tmp_path / f"copy{number}" for number in range(2)]
    for disk, copy in zip(disks, copies, strict=True):
        (volume,) = probe_disk(disk, "disk0", blockdev.identify(disk).identity).volumes
        extents = used(disk, volume)
        assert (extents.method, extents.reason) == ("LVM extents", None)
        assert extents.total < 0.75 * volume.length
        copy_used(disk, volume, extents, copy, 99)
    after = machine.run(
        COMMON + COMPARE, copies, tmp_path / "comparing", modules=modules, timeout=600
    )
    assert json.loads(after.splitlines()[-1]) == json.loads(before.splitlines()[-1])
    assert all(len(state) > 20 for state in json.loads(after.splitlines()[-1]))
