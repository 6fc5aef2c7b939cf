#!/usr/bin/python3
"""Says what this machine is, in a form that can be compared with the machine it was before.

Runs in the guest at every boot, with nothing but Debian's Python. It writes two lines on the
port given as its argument:

    REMETAL-MANIFEST base64(zlib(JSON {mountpoint: {path: "metadata content"}}))
    REMETAL-FACTS    JSON

The manifest comes first, so that who waits for the facts has both. No fact names a kernel device
or anything else that a new disk of the same layout changes.
"""

import base64
import hashlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import termios
import tty
import zlib
from pathlib import Path
from typing import Any

import layers
from file_tree import Tree, abridged, digest
from layers import run

HERE = Path(__file__).parent
DATABASE = Path("/var/lib/fixture/ward.sqlite")
EFI_VARIABLES = Path("/sys/firmware/efi/efivars")

Json = dict[str, Any]


def fields(text: str) -> dict[str, str]:
    """Return the pairs of `blkid -o export`."""
    return dict(re.findall(r"^([A-Z_]+)=(.*)$", text, re.MULTILINE))


# --- disks


def block_devices() -> Json:
    """Return what blkid reads from every block device, by partition table and number."""
    devices: Json = {}
    for disk in disks():
        whole = probe(disk.name)
        # Members of an array or a btrfs have one UUID together, and each one of its own.
        name = whole.get("PTUUID") or whole.get("UUID_SUB") or whole.get("UUID") or "blank"
        devices[name] = whole
        for number, part in partitions(disk).items():
            devices[f"{name}/{number}"] = probe(part)
    for name, device in layers.virtual_devices().items():
        devices[name] = probe(device)
    for found in devices.values():
        found.pop("DEVNAME", None)
        found.pop("PART_ENTRY_DISK", None)  # major and minor of the disk
    return devices


def disks() -> list[Path]:
    """Return the disks of this machine in sysfs; CD drives and virtual devices are none."""
    found = sorted(Path("/sys/block").iterdir())
    return [disk for disk in found if (disk / "device").exists() and disk.name[:2] != "sr"]


def partitions(disk: Path) -> dict[int, str]:
    """Return the kernel's names of the partitions of a disk by their numbers."""
    return {int(path.read_text()): path.parent.name for path in disk.glob("*/partition")}


def containers() -> list[str]:
    """Return the kernel's names of all LUKS containers."""
    names = [path.name for path in sorted(Path("/sys/class/block").iterdir())]
    return [name for name in names if probe(name).get("TYPE") == "crypto_LUKS"]


def probe(name: str) -> dict[str, str]:
    """Return what blkid reads from a device; empty for one without any signature."""
    argv = ["/usr/sbin/blkid", "-p", "-o", "export", f"/dev/{name}"]
    return fields(subprocess.run(argv, check=False, capture_output=True, text=True).stdout)


def partition_tables() -> Json:
    """Return the partition table of every disk, without device names, by its id."""
    tables: Json = {}
    for disk in disks():
        if "PTTYPE" not in probe(disk.name):
            continue
        table = json.loads(run("/usr/sbin/sfdisk", "--json", f"/dev/{disk.name}"))["partitiontable"]
        del table["device"]
        for partition in table["partitions"]:
            partition["number"] = int(re.findall(r"\d+$", partition.pop("node"))[0])
        tables[table["id"]] = table
    return tables


def uuid_of(device: str) -> str:
    """Return the UUID of the filesystem on a device."""
    return probe(Path(device).resolve().name).get("UUID", "")


def mounts() -> Json:
    """Return every mounted filesystem that lies on a disk."""
    found: Json = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, target, kind, options, *_ = line.split(" ")
        if source.startswith("/dev/"):
            found[target] = {"uuid": uuid_of(source), "type": kind, "options": options}
    return found


def swaps() -> Json:
    """Return the swap areas in use."""
    lines = Path("/proc/swaps").read_text().splitlines()[1:]
    return {uuid_of(line.split()[0]): {"size": int(line.split()[2])} for line in lines}


# --- firmware


def boot_entries() -> list[Json] | None:
    """Return the UEFI boot entries that start a loader from a partition, in boot order.

    What the firmware adds by itself (its shell, one entry per disk) has no loader and is left
    out. None without UEFI.
    """
    if not EFI_VARIABLES.is_dir():
        return None
    found = []
    text = run("/usr/bin/efibootmgr", "--verbose")
    order = re.search(r"^BootOrder: (.*)$", text, re.MULTILINE)
    lines = dict(re.findall(r"^Boot([0-9A-F]{4})(.*)$", text, re.MULTILINE))
    for number in order.group(1).split(",") if order else []:
        entry = re.match(
            r"(\*?) (.*?)\tHD\(\d+,GPT,([0-9a-f-]+),.*?\)/File\((.*?)\)", lines.get(number, "")
        )
        if entry:
            active, label, partition, loader = entry.groups()
            found.append(
                {
                    "label": label,
                    "partition_uuid": partition.upper(),
                    "loader": loader,
                    "active": active == "*",
                }
            )
    return found


def volatile() -> set[str]:
    """Return the paths that change by themselves."""
    lines = (HERE / "volatile.txt").read_text().splitlines()
    return {line.split("#")[0].strip() for line in lines} - {""}


# --- database


def database() -> Json | None:
    """Return rows and a checksum of the fixture's database; None when there is none yet."""
    if not DATABASE.exists():
        return None
    connection = sqlite3.connect(DATABASE)
    result: Json = {"integrity": [row[0] for row in connection.execute("PRAGMA integrity_check")]}
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type='table' ORDER BY name")
    for (table,) in tables.fetchall():
        hasher = hashlib.md5(usedforsecurity=False)
        rows = 0
        for row in connection.execute(f'SELECT * FROM "{table}" ORDER BY rowid'):  # noqa: S608
            hasher.update(repr(row).encode())
            rows += 1
        result[table] = {"rows": rows, "checksum": hasher.hexdigest()}
    connection.close()
    return result


def packages() -> Json:
    """Return how many packages there are, and a hash over their names, versions and states."""
    form = "${binary:Package} ${Version} ${db:Status-Abbrev}\n"
    lines = sorted(run("/usr/bin/dpkg-query", "--show", f"--showformat={form}").splitlines())
    return {"count": len(lines), "hash": digest("\n".join(lines).encode())}


def collect() -> tuple[Json, Json]:
    """Return the facts and the manifest."""
    mounted = mounts()
    files: Json = {}
    manifest: Json = {}
    skip = volatile()
    for mountpoint in sorted(mounted):
        # What is mounted itself counts where it is mounted, also when it is a subvolume.
        others = {each for each in mounted if each != mountpoint}
        tree = Tree(mountpoint, skip | others, mounted[mountpoint]["type"])
        tree.hash()
        files[mountpoint] = tree.facts()
        manifest[mountpoint] = {path: abridged(each) for path, each in tree.digests.items()}
    facts = {
        "machine_id": Path("/etc/machine-id").read_text().strip(),
        "hostname": os.uname().nodename,
        "kernel": os.uname().release,
        "command_line": Path("/proc/cmdline").read_text().strip(),
        "firmware": "uefi" if EFI_VARIABLES.is_dir() else "bios",
        "boot_entries": boot_entries(),
        "partition_tables": partition_tables(),
        "block_devices": block_devices(),
        "arrays": layers.arrays(),
        "containers": layers.luks(containers()),
        "lvm": layers.lvm(),
        "btrfs": layers.btrfs([m for m in sorted(mounted) if mounted[m]["type"] == "btrfs"]),
        "mounts": mounted,
        "swaps": swaps(),
        "packages": packages(),
        "files": files,
        "database": database(),
    }
    return facts, manifest


def main() -> None:
    """Report on the serial port named on the command line."""
    facts, manifest = collect()
    packed = base64.b64encode(zlib.compress(json.dumps(manifest, sort_keys=True).encode()))
    line = json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
    with Path(sys.argv[1]).open("wb") as port:
        tty.setraw(port.fileno())
        port.write(b"REMETAL-MANIFEST " + packed + b"\n")
        port.write(b"REMETAL-FACTS " + line + b"\n")
        port.flush()
        termios.tcdrain(port.fileno())


if __name__ == "__main__":
    main()
