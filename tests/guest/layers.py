"""What the guest makes of two disks with eight partitions and two whole ones; runs in the guest.

Every kind of layer that the probe knows, by the tools that people use.
"""

import hashlib
import json
import os
import subprocess
import time
from pathlib import Path

PLACE = Path("/mnt")
LVM = (
    'activation { udev_sync=0 udev_rules=0 monitoring=0 } global { thin_check_executable="" }'
    " devices { use_devicesfile=0 }"
)
MODULES = ("raid0", "raid1", "raid456", "dm-mod", "dm-crypt", "dm-thin-pool", "dm-snapshot")


def run(*argv: str, stdin: bytes = b"") -> str:
    environment = {**os.environ, "MDADM_NO_UDEV": "1"}
    done = subprocess.run(argv, input=stdin, stdout=subprocess.PIPE, check=True, env=environment)
    return done.stdout.decode()


def lvm(verb: str, *words: str) -> str:
    return run(verb, "--config", LVM, *words)


def load(*more: str) -> None:
    for module in (*MODULES, "ext4", "vfat", "btrfs", "nls-ascii", "nls-cp437", *more):
        subprocess.run(["modprobe", module], check=False)


def array(number: int, metadata: str, level: str, name: str, *devices: str, more: str = "") -> str:
    device = f"/dev/md{number}"
    named = [f"--name={name}", "--homehost=rack7"] if metadata != "0.90" else []
    run(
        "mdadm", "--create", device, f"--metadata={metadata}", f"--level={level}", *named,
        f"--raid-devices={len(devices)}", "--run", *more.split(), *devices,
    )  # fmt: skip
    settle(device)
    return device


def settle(device: str) -> None:
    """Wait until an array is in sync."""
    subprocess.run(["mdadm", "--wait", device], check=False, stderr=subprocess.DEVNULL)


def write(device: str, kind: str, seed: int) -> None:
    """Put files onto a filesystem."""
    subprocess.run(["mount", "-t", kind, device, PLACE], check=True)
    for number in range(6):
        data = bytes([seed, number]) * (40_000 + 1000 * number)
        (PLACE / f"file{number}").write_bytes(data)
    (PLACE / "file3").unlink()
    subprocess.run(["umount", PLACE], check=True)


def cached(backing: str, cache: str) -> None:
    """Make a backing device of bcache and its cache, which keeps what is written."""
    run("make-bcache", "--bucket", "16k", "--writeback", "-B", backing, "-C", cache)
    for device in (cache, backing):
        Path("/sys/fs/bcache/register").write_text(device)
    control = Path("/sys/block/bcache0/bcache")
    while not (control / "cache_mode").exists():
        time.sleep(0.1)
    (control / "cache_mode").write_text("writeback")
    (control / "sequential_cutoff").write_text("0")
    (control / "writeback_running").write_text("0")
    with Path("/dev/bcache0").open("r+b", buffering=0) as file:
        file.write(bytes(range(256)) * 4096)
        os.fsync(file.fileno())
    state = (control / "state").read_text().strip()
    if state != "dirty":
        raise RuntimeError(f"the bcache device is {state}")
    (control / "stop").write_text("1")
    for group in Path("/sys/fs/bcache").glob("*-*-*"):
        (group / "stop").write_text("1")
    while any(Path("/sys/fs/bcache").glob("*-*-*")) or control.exists():
        time.sleep(0.1)


def make() -> str:
    """Make all layers, stop them all, and return as JSON what their tools say of them."""
    load("bcache")
    a, b, c, d = "/dev/vda", "/dev/vdb", "/dev/vdc", "/dev/vdd"
    esp = array(1, "1.0", "1", "esp", f"{a}1", f"{b}1")
    run("mkfs.fat", "-F", "32", esp)
    write(esp, "vfat", 1)
    boot = array(2, "1.2", "1", "boot", f"{a}2", f"{b}2", more="--bitmap=internal")
    run("mke2fs", "-q", "-t", "ext4", boot)
    write(boot, "ext4", 2)
    old = array(3, "0.90", "1", "", f"{a}3", f"{b}3")
    run("mke2fs", "-q", "-t", "ext4", old)
    write(old, "ext4", 3)
    physical = array(4, "1.1", "1", "pv", f"{a}4", f"{b}4")
    lvm("pvcreate", physical)
    lvm("vgcreate", "-s", "1m", "data", physical)
    lvm("lvcreate", "-y", "-Wn", "-L", "12m", "-n", "root", "data")
    lvm("lvcreate", "-y", "-Wn", "-L", "8m", "-n", "var", "data")
    for number, name in enumerate(("root", "var")):
        run("mke2fs", "-q", "-t", "ext4", f"/dev/data/{name}")
        write(f"/dev/data/{name}", "ext4", 4 + number)
    array(5, "1.2", "0", "fast", f"{a}5", f"{b}5", more="--chunk=64")
    for device, kind in ((f"{a}6", "luks2"), (f"{b}6", "luks1")):
        label = ["--label", "vault"] if kind == "luks2" else []
        run(
            "cryptsetup", "luksFormat", "-q", "--type", kind, *label, "--pbkdf", "pbkdf2",
            "--pbkdf-force-iterations", "1000", "--key-file", "-", device, stdin=b"secret",
        )  # fmt: skip
    run("mkfs.btrfs", "-q", "-f", "-m", "raid1", "-d", "raid1", "-L", "pool", f"{a}7", f"{b}7")
    cached(f"{a}8", f"{b}8")
    whole = array(6, "1.0", "1", "whole", c, d)
    run("sfdisk", "--quiet", whole, stdin=b"label: gpt\nsize=34M, type=U\nsize=20M\n")
    subprocess.run(["udevadm", "settle"], check=False)
    run("mkfs.fat", "-F", "32", f"{whole}p1")
    write(f"{whole}p1", "vfat", 6)
    run("mke2fs", "-q", "-t", "ext4", f"{whole}p2")
    write(f"{whole}p2", "ext4", 7)
    facts = {
        name: run("mdadm", "--detail", "--export", f"/dev/md{number}")
        for number, name in enumerate(("esp", "boot", "old", "pv", "fast", "whole"), 1)
    }
    facts["vgs"] = lvm("vgs", "--noheadings", "-o", "vg_uuid", "data").strip()
    facts["pvs"] = lvm("pvs", "--noheadings", "-o", "pv_uuid").strip()
    lvm("vgchange", "-an", "data")
    time.sleep(0.3)  # the arrays are marked clean a while after the last write
    run("mdadm", "--stop", "--scan")
    return json.dumps(facts)


def examine(a: str, b: str, c: str, d: str) -> dict[str, object]:
    """Return what lies in the mirrors on four disks, and whether they are in order."""
    load()
    found: dict[str, object] = {}
    members = [(f"{a}{n}", f"{b}{n}") for n in range(1, 6)] + [(c, d)]
    for number, (one, other) in enumerate(members, 1):
        run("mdadm", "--assemble", f"/dev/md{number}", "--run", one, other)
        said = Path(f"/sys/block/md{number}/md")
        found[f"md{number}"] = [
            (said / name).read_text()
            for name in ("array_state", "resync_start", "metadata_version")
        ] + [(said / "degraded").read_text() if (said / "degraded").exists() else ""]
    lvm("vgchange", "-ay", "data")
    subprocess.run(["partx", "-u", "/dev/md6"], check=False)
    devices = ["/dev/md1", "/dev/md2", "/dev/md3", "/dev/data/root", "/dev/data/var"]
    for device in [*devices, "/dev/md6p1", "/dev/md6p2"]:
        run("mount", "-o", "ro", device, str(PLACE))
        found[device] = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(PLACE.iterdir())
            if path.is_file()
        }
        run("umount", str(PLACE))
    lvm("vgchange", "-an", "data")
    run("mdadm", "--stop", "--scan")
    return found
