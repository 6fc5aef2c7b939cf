#!/usr/bin/python3
"""Puts a machine's disks together with the kernel that the machine itself will run.

It is the first process of a system that holds all files of the machine and whose first disk is this
system's own. `machine.json` beside this file says what the other disks become, NAME.sfdisk what
their tables are. When all is done it says so on ttyS1; whatever happens, it switches off.
"""

import json
import os
import shutil
import subprocess
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SOURCE = Path("/run/source")
TARGET = Path("/run/target")
TOP = Path("/run/top")
KEY = Path("/etc/keys/fixture.key")
PASSPHRASE = b"fixture"
# Filesystems without owners and modes: files are copied, not cloned.
SIMPLE = {"vfat", "ntfs", "exfat"}

Json = dict[str, Any]


def run(*argv: str | Path, stdin: bytes | None = None) -> str:
    """Run a program and return what it prints; its complaints go to the console."""
    print("+", *argv, flush=True)
    return subprocess.run(argv, input=stdin, check=True, stdout=subprocess.PIPE).stdout.decode()


def settle() -> None:
    """Wait until udev has made the nodes of all devices."""
    run("udevadm", "settle", "--timeout=900")


class Forge:
    """The disks while they are put together.

    Args:
        machine: its description.
    """

    def __init__(self, machine: Json) -> None:
        self.machine = machine
        self.devices: dict[str, str] = {}
        self.disks: dict[str, str] = {}

    def find_disks(self) -> None:
        """Find each disk by its serial number, and write its table."""
        listed = json.loads(run("lsblk", "--json", "--nodeps", "--output", "PATH,SERIAL"))
        paths = {each["serial"]: each["path"] for each in listed["blockdevices"]}
        for disk in self.machine["disk"]:
            path = paths[disk["serial"]]
            self.disks[disk["name"]] = path
            if disk["table"] == "none":
                self.devices[disk["name"]] = path
                continue
            run("sfdisk", "--quiet", path, stdin=(HERE / f"{disk['name']}.sfdisk").read_bytes())
            settle()
            separator = "p" if path[-1].isdigit() else ""
            for partition in disk["partition"]:
                name = f"{disk['name']}/{partition['name']}"
                self.devices[name] = f"{path}{separator}{partition['number']}"

    def make_layers(self) -> None:
        """Make arrays, containers and groups, each when what it lies on is there."""
        waiting = [
            *((self.md, each, each["members"]) for each in self.machine["md"]),
            *((self.luks, each, [each["on"]]) for each in self.machine["luks"]),
            *((self.group, each, each["on"]) for each in self.machine["group"]),
        ]
        while waiting:
            ready = [each for each in waiting if all(name in self.devices for name in each[2])]
            if not ready:
                raise RuntimeError(f"these lie on each other: {waiting}")
            for make, layer, names in ready:
                make(layer, [self.devices[name] for name in names])
                settle()
            waiting = [each for each in waiting if each not in ready]

    def md(self, md: Json, members: list[str]) -> None:
        """Make an array. Blank members are in sync as they are, parity included."""
        path = f"/dev/md/{md['name']}"
        run(
            *("mdadm", "--create", path, "--run", "--assume-clean", "--homehost=any"),
            *(f"--level={md['level']}", f"--metadata={md['metadata']}", f"--uuid={md['uuid']}"),
            *(() if md["metadata"] == "0.90" else (f"--name={md['name']}",)),
            f"--bitmap={'internal' if md['bitmap'] else 'none'}",
            *(f"--raid-devices={len(members)}", *members),
        )
        settle()
        self.devices[md["name"]] = os.path.realpath(path)

    def luks(self, luks: Json, members: list[str]) -> None:
        """Make a container with a passphrase and a key file, and open it."""
        cheap = ("--pbkdf", "argon2id", "--pbkdf-memory", "32768", "--pbkdf-parallel", "1")
        rounds = ("--pbkdf-force-iterations", "4") if luks["version"] == 2 else ("-i", "10")
        cost = (*(cheap if luks["version"] == 2 else ()), *rounds)
        run(
            *("cryptsetup", "luksFormat", "--batch-mode", f"--type=luks{luks['version']}"),
            *("--uuid", luks["uuid"], *cost, members[0], "-"),
            stdin=PASSPHRASE,
        )
        run("cryptsetup", "luksAddKey", *cost, members[0], KEY, stdin=PASSPHRASE)
        run("cryptsetup", "open", "--key-file", KEY, members[0], luks["name"])
        self.devices[luks["name"]] = f"/dev/mapper/{luks['name']}"

    def group(self, group: Json, members: list[str]) -> None:
        """Make a volume group with its volumes."""
        run("pvcreate", "--yes", *members)
        run("vgcreate", group["name"], *members)
        pool = ""
        for volume in group["volume"]:
            name, size = volume["name"], f"{volume['size'] >> 20}m"
            kind = {
                "linear": ("--size", size),
                "striped": ("--size", size, "--type=striped", "--stripes=2"),
                "raid1": ("--size", size, "--type=raid1", "--mirrors=1", "--nosync"),
                "raid5": ("--size", size, "--type=raid5", "--stripes=2"),
                "thin-pool": ("--size", size, "--type=thin-pool"),
                "thin": ("--virtualsize", size, "--type=thin", "--thinpool", pool),
            }[volume["type"]]
            run("lvcreate", "--yes", "--name", name, *kind, group["name"])
            if volume["type"] == "thin-pool":
                pool = f"{group['name']}/{name}"
            else:
                self.devices[f"{group['name']}/{name}"] = f"/dev/{group['name']}/{name}"

    def make_filesystems(self) -> None:
        """Make every filesystem once, and its subvolumes."""
        made: set[str] = set()
        for each in self.machine["filesystem"]:
            if each["on"] not in made:
                self.make(each, self.devices[each["on"]])
                made.add(each["on"])
        settle()
        for each in self.machine["filesystem"]:
            if each["subvolume"]:
                run("mount", "-t", "btrfs", self.devices[each["on"]], TOP)
                run("btrfs", "subvolume", "create", TOP / each["subvolume"])
                run("umount", TOP)

    def make(self, each: Json, path: str) -> None:
        """Make one filesystem or swap area."""
        uuid, label = each["uuid"], each["label"]
        match each["type"]:
            case "swap":
                run("mkswap", "--uuid", uuid, *(("--label", label) if label else ()), path)
            case "ext4":
                lazy = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
                named = ("-L", label) if label else ()
                run("mke2fs", "-q", "-F", "-t", "ext4", "-E", lazy, "-U", uuid, *named, path)
            case "xfs":
                named = ("-L", label) if label else ()
                run("mkfs.xfs", "-q", "-K", "-m", f"uuid={uuid}", *named, path)
            case "btrfs":
                mirror = self.devices[each["mirror"]] if each["mirror"] else None
                twice = ("-d", "raid1", "-m", "raid1", path, mirror) if mirror else (path,)
                named = ("-L", label) if label else ()
                run("mkfs.btrfs", "-q", "-K", "-U", uuid, *named, *twice)
            case "vfat":
                named = ("-n", label) if label else ()
                run("mkfs.vfat", "-F", "32", "-s", "1", "-i", uuid.replace("-", ""), *named, path)
            case "ntfs":
                run("mkntfs", "-Q", "-F", *(("-L", label) if label else ()), path)
                run("ntfslabel", f"--new-serial={uuid}", path)
            case "exfat":
                run("mkfs.exfat", *(("-L", label) if label else ()), path)
                run("tune.exfat", "-I", "0x" + uuid.replace("-", ""), path)

    def copy(self) -> None:
        """Mount everything and copy all files; those of simple filesystems at last."""
        mounted = [each for each in self.machine["filesystem"] if each["mountpoint"]]
        mounted.sort(key=lambda each: len(each["mountpoint"]) if each["mountpoint"] != "/" else 0)
        for each in mounted:
            if each["type"] not in SIMPLE:
                self.mount(each)
        run("mount", "--bind", "/", SOURCE)
        run("cp", "--archive", f"{SOURCE}/.", TARGET)
        run("umount", SOURCE)
        for each in mounted:
            if each["type"] in SIMPLE:
                place = TARGET / each["mountpoint"].lstrip("/")
                run("mount", self.devices[each["on"]], TOP)
                run("cp", "--recursive", "--preserve=timestamps", f"{place}/.", TOP)
                run("umount", TOP)
                shutil.rmtree(place)
                self.mount(each)
        shutil.rmtree(TARGET / HERE.relative_to("/"))
        kept = {each["mountpoint"] for each in mounted if each["type"] == "ext4"}
        if "/" not in kept:
            (TARGET / "lost+found").rmdir()

    def mount(self, each: Json) -> None:
        """Mount a filesystem where it belongs below the target."""
        place = TARGET / each["mountpoint"].lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        options = ("-o", f"subvol={each['subvolume']}") if each["subvolume"] else ()
        run("mount", *options, self.devices[each["on"]], place)

    def finish(self) -> None:
        """Do what needs the new system's own programs: an initramfs with keys, GRUB for BIOS."""
        for name in ("dev", "proc", "sys", "run"):
            (TARGET / name).mkdir(exist_ok=True)
            if name != "run":
                run("mount", "--rbind", f"/{name}", TARGET / name)
        run("mount", "-t", "tmpfs", "run", TARGET / "run")
        (TARGET / "run/udev").mkdir()
        run("mount", "--bind", "/run/udev", TARGET / "run/udev")
        if self.machine["luks"]:
            # Which modules a container needs is found out from its opened device.
            run("chroot", TARGET, "update-initramfs", "-u", "-k", "all")
        if self.machine["boot"]["loader"] == "grub-pc":
            disk = self.disks[self.machine["disk"][0]["name"]]
            run("chroot", TARGET, "grub-install", "--target=i386-pc", "--no-floppy", disk)

    def close(self) -> None:
        """Let go of everything, so that all of it is clean."""
        run("umount", "--recursive", TARGET)
        for group in self.machine["group"]:
            run("vgchange", "--activate", "n", group["name"])
        for luks in reversed(self.machine["luks"]):
            run("cryptsetup", "close", luks["name"])
        for md in reversed(self.machine["md"]):
            run("mdadm", "--stop", self.devices[md["name"]])


def main() -> None:
    """Forge, and say so."""
    os.environ["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    for place in (SOURCE, TARGET, TOP):
        place.mkdir(parents=True, exist_ok=True)
    run("/lib/systemd/systemd-udevd", "--daemon")
    run("udevadm", "trigger", "--action=add", "--subsystem-match=block")
    settle()
    forge = Forge(json.loads((HERE / "machine.json").read_text()))
    forge.find_disks()
    forge.make_layers()
    forge.make_filesystems()
    forge.copy()
    forge.finish()
    forge.close()
    os.sync()
    Path("/dev/ttyS1").write_bytes(b"REMETAL-FORGED\n")


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os.sync()
        subprocess.run(["/usr/bin/systemctl", "poweroff", "--force", "--force"], check=False)
