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
import fcntl
import hashlib
import json
import os
import re
import sqlite3
import stat
import subprocess
import sys
import termios
import threading
import tty
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DATABASE = Path("/var/lib/fixture/ward.sqlite")
EFI_VARIABLES = Path("/sys/firmware/efi/efivars")
WORKERS = os.cpu_count() or 1
BLOCK = 1 << 18

FS_IOC_GETFLAGS = 0x80086601
# Flags a person sets (immutable, append-only, no dump, no atime); the others are ext4's own.
FLAGS = 0x10 | 0x20 | 0x40 | 0x80

Json = dict[str, Any]


def run(*argv: str) -> str:
    """Return the output of a program."""
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def fields(line: str) -> dict[str, str]:
    """Return the NAME="value" pairs of a line of `blkid -o export` or `udevadm`."""
    return dict(re.findall(r"^([A-Z_]+)=(.*)$", line, re.MULTILINE))


# --- disks


def block_devices() -> Json:
    """Return what blkid reads from every block device, by partition table and number."""
    devices: Json = {}
    for disk in disks():
        table = fields(run("/usr/sbin/blkid", "-p", "-o", "export", f"/dev/{disk.name}"))
        name = table.get("PTUUID", "")
        devices[name] = table
        for part in partitions(disk):
            found = probe(part.name)
            number = (part / "partition").read_text().strip()
            devices[f"{name}/{number}"] = found
    for found in devices.values():
        found.pop("DEVNAME", None)
        found.pop("PART_ENTRY_DISK", None)  # major and minor of the disk
    return devices


def disks() -> list[Path]:
    """Return the disks of this machine in sysfs: all that can be written and is no RAM."""
    found = []
    for disk in sorted(Path("/sys/block").iterdir()):
        virtual = re.match(r"(loop|ram|zram|sr|fd|dm-|md)", disk.name)
        if not virtual and (disk / "size").read_text().strip() != "0":
            found.append(disk)
    return found


def partitions(disk: Path) -> list[Path]:
    """Return the partitions of a disk in sysfs."""
    return sorted(entry.parent for entry in disk.glob("*/partition"))


def probe(name: str) -> dict[str, str]:
    """Return what blkid reads from a device; empty for one without any signature."""
    argv = ["/usr/sbin/blkid", "-p", "-o", "export", f"/dev/{name}"]
    return fields(subprocess.run(argv, check=False, capture_output=True, text=True).stdout)


def partition_tables() -> Json:
    """Return the partition table of every disk, without device names, by its id."""
    tables: Json = {}
    for disk in disks():
        table = json.loads(run("/usr/sbin/sfdisk", "--json", f"/dev/{disk.name}"))["partitiontable"]
        table.pop("device")
        for partition in table["partitions"]:
            partition["number"] = int(re.search(r"\d+$", partition.pop("node")).group())  # type: ignore[union-attr]
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


# --- files


class Tree:
    """Every file of one mounted filesystem, with all that a restore must bring back.

    Args:
        root: the mountpoint.
        volatile: paths that change by themselves; nothing at or below them counts.
    """

    def __init__(self, root: str, volatile: set[str]) -> None:
        self.root = root
        self.volatile = volatile
        self.device = os.lstat(root).st_dev
        self.entries: list[tuple[str, os.stat_result]] = []
        self.links: dict[int, str] = {}
        self._walk(root)
        self.entries.sort(key=lambda entry: os.fsencode(entry[0]))
        for path, found in self.entries:
            if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
                self.links.setdefault(found.st_ino, path)  # the group's first name
        self.digests: dict[str, str] = {}

    def _walk(self, root: str) -> None:
        waiting = [root]
        while waiting:
            path = waiting.pop()
            if path in self.volatile:
                continue
            self.entries.append((path, os.lstat(path)))
            with os.scandir(path) as entries:
                for entry in entries:
                    found = entry.stat(follow_symlinks=False)
                    if found.st_dev != self.device:
                        continue
                    if stat.S_ISDIR(found.st_mode):
                        waiting.append(entry.path)
                    elif entry.path not in self.volatile:
                        self.entries.append((entry.path, found))

    def hash(self) -> None:
        """Hash all entries, on every processor; hashlib and reads let other threads run."""
        # The largest first, so that no thread ends with a big file alone.
        order = sorted(self.entries, key=lambda entry: entry[1].st_size, reverse=True)
        source = iter(order)
        lock = threading.Lock()

        def work() -> None:
            buffer = memoryview(bytearray(BLOCK))
            while True:
                with lock:
                    entry = next(source, None)
                if entry is None:
                    return
                self.digests[entry[0]] = self._digest(*entry, buffer)

        threads = [threading.Thread(target=work) for _ in range(WORKERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _digest(self, path: str, found: os.stat_result, buffer: memoryview) -> str:
        """Return "metadata content" of one entry."""
        names = os.listxattr(path, follow_symlinks=False)
        attributes = [(n, os.getxattr(path, n, follow_symlinks=False)) for n in sorted(names)]
        meta: list[Any] = [
            *(found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns, attributes),
        ]
        content = ""
        if stat.S_ISREG(found.st_mode):
            meta += (found.st_size, found.st_nlink, self.links.get(found.st_ino))
            # Hard links are one file: its content is read under its first name.
            if self.links.get(found.st_ino, path) == path:
                content = self._content(path, found, buffer, meta)
        elif stat.S_ISLNK(found.st_mode):
            meta.append(os.readlink(path))
        elif stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
            meta.append(found.st_rdev)
        return f"{digest(repr(meta).encode())} {content}"

    def _content(
        self, path: str, found: os.stat_result, buffer: memoryview, meta: list[Any]
    ) -> str:
        """Return the hash of a file's data, and add its flags and holes to `meta`."""
        hasher = hashlib.md5(usedforsecurity=False)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOATIME)
        try:
            meta.append(flags(descriptor))
            ranges = [(0, found.st_size)]
            if found.st_size > found.st_blocks * 512:
                ranges = list(data_ranges(descriptor, found.st_size))
                meta.append(ranges)  # a restore that fills holes shows
            for start, end in ranges:
                while start < end and (count := os.preadv(descriptor, [buffer], start)):
                    hasher.update(buffer[: min(count, end - start)])
                    start += count
        finally:
            os.close(descriptor)
        return hasher.hexdigest()[:16]

    def facts(self) -> Json:
        """Return one hash per directory below the root, so that a difference names where."""
        tops: dict[str, Any] = {}
        for path, _ in self.entries:
            relative = path.removeprefix(self.root).strip("/").split("/")
            depth = 2 if relative[0] in {"usr", "var"} else 1
            top = "/".join(relative[:depth])
            hasher = tops.setdefault(top, hashlib.md5(usedforsecurity=False))
            hasher.update(os.fsencode(path) + b"\0" + self.digests[path].encode() + b"\0")
        return {
            "files": len(self.entries),
            "bytes": sum(found.st_size for _, found in self.entries if stat.S_ISREG(found.st_mode)),
            "hashes": {top or ".": hasher.hexdigest()[:16] for top, hasher in sorted(tops.items())},
        }


def digest(data: bytes) -> str:
    """Return a hash that is long enough to see a difference; nobody here is an adversary.

    Without the processor's own instructions, as under TCG, MD5 is the fastest by far: 238 MB/s,
    SHA-512 128, SHA-1 65, SHA-256 44, BLAKE2b 40.
    """
    return hashlib.md5(data, usedforsecurity=False).hexdigest()[:16]


def flags(descriptor: int) -> int:
    """Return the inode flags a person can set; 0 where the filesystem has none."""
    word = bytearray(8)
    try:
        fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, word)
    except OSError:
        return 0
    return int.from_bytes(word[:4], sys.byteorder) & FLAGS


def data_ranges(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of what is no hole in a sparse file."""
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError:
            break  # only holes are left
        position = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, position


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
        tree = Tree(mountpoint, skip)
        tree.hash()
        files[mountpoint] = tree.facts()
        manifest[mountpoint] = tree.digests
    facts = {
        "machine_id": Path("/etc/machine-id").read_text().strip(),
        "hostname": os.uname().nodename,
        "kernel": os.uname().release,
        "command_line": Path("/proc/cmdline").read_text().strip(),
        "firmware": "uefi" if EFI_VARIABLES.is_dir() else "bios",
        "boot_entries": boot_entries(),
        "partition_tables": partition_tables(),
        "block_devices": block_devices(),
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
    with open(sys.argv[1], "wb", buffering=0) as port:
        tty.setraw(port.fileno())
        with os.fdopen(os.dup(port.fileno()), "wb") as writer:
            writer.write(b"REMETAL-MANIFEST " + packed + b"\n")
            writer.write(b"REMETAL-FACTS " + line + b"\n")
        termios.tcdrain(port.fileno())


if __name__ == "__main__":
    main()
