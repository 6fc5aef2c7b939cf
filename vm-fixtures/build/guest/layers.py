"""What lies between partitions and filesystems: md arrays, LUKS containers, LVM, btrfs.

Runs in the guest. Nothing here names a kernel device, and nothing counts what every start of an
array changes.
"""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

BLOCK = Path("/sys/block")
PASSPHRASE = b"fixture"
LUKS_HEADERS = {"1": 2 << 20, "2": 16 << 20}  # bytes up to the data as cryptsetup 2.6 lays it out
LVM_COLUMNS = {
    "pvs": "pv_uuid,vg_name,pv_size,pv_pe_count,pv_pe_alloc_count",
    "vgs": "vg_name,vg_uuid,vg_seqno,vg_size,vg_missing_pv_count",
    "lvs": "vg_name,lv_name,lv_uuid,lv_size,lv_layout,lv_role,pool_lv,origin,lv_time",
}

Json = dict[str, Any]


def run(*argv: str) -> str:
    """Return the output of a program."""
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def virtual_devices() -> dict[str, str]:
    """Return the kernel's names of arrays and mapped devices by names that stay."""
    found = {}
    for device in sorted(BLOCK.glob("dm-*")):
        found[f"mapper/{(device / 'dm/name').read_text().strip()}"] = device.name
    for device in sorted(BLOCK.glob("md*")):
        found[f"md/{array(device.name)['MD_UUID']}"] = device.name
    return found


def array(name: str) -> Json:
    """Return what an array says of itself, without the names of its members."""
    text = run("/usr/sbin/mdadm", "--detail", "--export", f"/dev/{name}")
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {key: value for key, value in fields.items() if not key.startswith("MD_DEVICE_")}


def arrays() -> Json:
    """Return every array with its state."""
    found = {}
    for device in sorted(BLOCK.glob("md*")):
        said = array(device.name)
        state = device / "md"
        for fact in ("level", "raid_disks", "chunk_size", "degraded", "bitmap/location", "size"):
            if (state / fact).exists():
                said[fact] = (state / fact).read_text().strip()
        said["roles"] = sorted(
            f"{(member / 'slot').read_text().strip()} {(member / 'state').read_text().strip()}"
            for member in state.glob("dev-*")
        )
        found[said["MD_UUID"]] = said
    return found


def lvm() -> Json:
    """Return physical volumes, groups and logical volumes, hidden ones included."""
    if shutil.which("lvs") is None:
        return {}
    found: Json = {}
    for program, columns in LVM_COLUMNS.items():
        every = ["--all"] if program == "lvs" else []
        argv = ["--reportformat", "json", "--units", "b", "--options", columns, *every]
        report = json.loads(run(f"/usr/sbin/{program}", *argv))["report"][0]
        rows = next(iter(report.values()))
        found[program] = {" ".join(map(str, row.values())): "there" for row in rows}
    return found


def luks(devices: list[str]) -> Json:
    """Return a hash of the header of each container, and whether the passphrase opens it.

    Args:
        devices: the kernel's names of the containers.
    """
    found: Json = {}
    for name in devices:
        path = f"/dev/{name}"
        text = run("/usr/sbin/cryptsetup", "luksDump", path)
        version = re.findall(r"^Version:\s+(\d)", text, re.MULTILINE)[0]
        uuid = run("/usr/sbin/cryptsetup", "luksUUID", path).strip()
        with Path(path).open("rb") as device:
            header = hashlib.md5(device.read(LUKS_HEADERS[version]), usedforsecurity=False)
        argv = ["/usr/sbin/cryptsetup", "open", "--test-passphrase", "--key-file=-", path]
        opens = subprocess.run(argv, input=PASSPHRASE, check=False).returncode == 0
        found[uuid] = {"version": version, "header": header.hexdigest(), "opens": opens}
    return found


def btrfs(mountpoints: list[str]) -> Json:
    """Return devices and subvolumes of every btrfs.

    Args:
        mountpoints: of btrfs filesystems.
    """
    found: Json = {}
    for mountpoint in mountpoints:
        shown = run("/usr/bin/btrfs", "filesystem", "show", "--raw", mountpoint)
        listed = run("/usr/bin/btrfs", "subvolume", "list", "-p", "-u", "-q", mountpoint)
        found[mountpoint] = {
            "devices": sorted(
                re.sub(r" (used|path) \S+", "", line).strip() for line in shown.splitlines()
            ),
            "subvolumes": sorted(re.sub(r" gen \d+", "", line) for line in listed.splitlines()),
        }
    return found
