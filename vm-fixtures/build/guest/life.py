#!/usr/bin/python3
"""Lets the machine live a little: runs once, in the guest, at the first boot.

Writes what a filesystem can hold and a restore can lose: files of all sizes, deleted ones whose
blocks stay behind, hard links, odd names, extended attributes, ACLs, capabilities, sparse and
fragmented files, a directory of thousands, a database with history. `life.json` beside this file
says how much (`size`, bytes) and from which `seed`; the same seed writes the same content.
"""

import json
import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
STATE = Path("/var/lib/fixture")
ESP = Path("/boot/efi")
SHIM = ("debian", r"\EFI\debian\shimx64.efi")
SYSTEMD_BOOT = ("Linux Boot Manager", r"\EFI\systemd\systemd-bootx64.efi")
LIVING = Path("/run/fixture-living")  # tells the facts service to wait for the next boot
PEOPLE = ("anna", "boris", "chiara")
LARGEST = 4 << 20
MANY = 3000
WORDS = (
    "admission",
    "allergy",
    "blood",
    "chart",
    "clinic",
    "dose",
    "fever",
    "heart",
    "insulin",
    "kidney",
    "lab",
    "lung",
    "night",
    "nurse",
    "patient",
    "pressure",
    "pulse",
    "record",
    "saline",
    "sample",
    "shift",
    "surgery",
    "ward",
    "x-ray",
)
ODD_NAMES = (
    b" leading and trailing ",
    b"-rf",
    b"$(reboot); `id` & * ? [a-z] {b}",
    b"a\\b",
    b"quote ' and \"",
    b"new\nline",
    b"tab\there",
    b"\xff\xfe not utf-8",
    "Müller, 診療所.txt".encode(),
    "e\u0301 decomposed".encode(),
    b"n" * 255,
)


def run(*argv: str | Path) -> None:
    """Run a program; its complaints go to the journal."""
    subprocess.run(argv, check=True)


class Life:
    """Everything that is written, from one seeded source of chance."""

    def __init__(self, seed: int, size: int, also: list[str], midway: list[list[str]]) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - repeatable on purpose
        self.size = size
        self.also = also
        self.midway = midway

    def content(self, size: int) -> bytes:
        """Return text that compresses, or bytes that do not."""
        if self.chance.random() < 0.4:
            return self.chance.randbytes(size)
        text = " ".join(self.chance.choices(WORDS, k=2000)).encode()
        return (text * (size // len(text) + 1))[:size]

    def length(self) -> int:
        """Return a size; every order of magnitude is as likely as the next."""
        return int(LARGEST ** self.chance.random()) - 1

    def files(self, root: Path) -> list[Path]:
        """Fill a tree with half of the wanted size, deleting every fourth file on the way."""
        kept: list[Path] = []
        left = self.size // 2
        number = 0
        while left > 0:
            number += 1
            folder = root / f"{number % 7}" / f"{number % 31:02d}"
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"record-{number}"
            size = min(self.length(), left) if left > 1 else 1
            path.write_bytes(self.content(size))
            if number % 4 == 0:
                os.sync()  # on the disk first, so that its blocks stay behind as residue
                path.unlink()
            else:
                kept.append(path)
                left -= max(size, 1)
        return kept

    def homes(self) -> None:
        """Give everybody a home with small files."""
        for person in PEOPLE:
            run("/usr/sbin/useradd", "--create-home", "--shell", "/bin/bash", person)
            home = Path("/home") / person
            for number in range(60):
                path = home / self.chance.choice(WORDS) / f"note-{number}.txt"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(self.content(self.length() // 64))
            run("/usr/bin/chown", "-R", f"{person}:{person}", home)

    def names(self, root: Path) -> None:
        """Write names that scripts stumble over, a full directory and a deep one."""
        odd = root / "odd"
        odd.mkdir()
        for name in ODD_NAMES:
            (odd / os.fsdecode(name)).write_bytes(name)
        many = root / "many"
        many.mkdir()
        for number in range(MANY):
            (many / f"{self.chance.getrandbits(64):016x}-{number}").touch()
        for path in sorted(many.iterdir())[:: MANY // 100]:
            path.unlink()
        deep = root.joinpath(*["deeper"] * 60)
        deep.mkdir(parents=True)
        (deep / "bottom").write_text("here\n")

    def links(self, root: Path, files: list[Path]) -> None:
        """Write hard links, symbolic links of all sorts, and what is no file at all."""
        (root / "hard").mkdir()
        (root / "soft").mkdir()
        for number, path in enumerate(self.chance.sample(files, min(20, len(files)))):
            for copy in range(1 + number % 3):
                (root / "hard" / f"{path.name}-{copy}").hardlink_to(path)
            (root / "soft" / path.name).symlink_to(os.path.relpath(path, root / "soft"))
        (root / "soft/absolute").symlink_to("/etc/hostname")
        (root / "soft/dangling").symlink_to("/nowhere")
        (root / "soft/loop").symlink_to("loop")
        (root / "soft/long").symlink_to("x/" * 510)  # XFS takes no more than 1023 characters
        special = root / "special"
        special.mkdir()
        os.mkfifo(special / "fifo", 0o620)
        os.mknod(special / "null", 0o020666, os.makedev(1, 3))
        os.mknod(special / "disk", 0o060600, os.makedev(7, 200))

    def metadata(self, root: Path, files: list[Path]) -> None:
        """Set owners, modes, times, attributes, ACLs, capabilities and flags."""
        for path in self.chance.sample(files, min(60, len(files))):
            os.chown(path, self.chance.randrange(70000), self.chance.randrange(70000))
            path.chmod(self.chance.randrange(0o10000))
            moment = self.chance.randrange(-(10**18), 9 * 10**18)  # 1938 to 2255
            os.utime(path, ns=(moment, moment))
        folder = root / "metadata"
        folder.mkdir()
        for number, size in enumerate((0, 1, 60, 2000, 3500)):
            path = folder / f"attributes-{number}"
            path.write_bytes(self.content(100))
            os.setxattr(path, "user.fixture", self.chance.randbytes(size))
            os.setxattr(path, "user.number", str(number).encode())
        os.setxattr(folder, "user.folder", b"of attributes")
        os.setxattr(folder / "attributes-0", "trusted.fixture", b"only root sees this")
        acl = folder / "acl"
        acl.mkdir()
        run("/usr/bin/setfacl", "-m", "u:anna:rwx,g:boris:r-x,d:u:chiara:rwx,d:o::---", acl)
        (acl / "inherits").write_text("by default\n")
        run("/usr/bin/setfacl", "-m", "u:65534:r,m::rw", acl / "inherits")
        for name, mode in (("setuid", 0o4755), ("setgid", 0o2755), ("capable", 0o755)):
            (folder / name).write_bytes(Path("/usr/bin/true").read_bytes())
            (folder / name).chmod(mode)
        run("/usr/sbin/setcap", "cap_net_bind_service,cap_net_raw+ep", folder / "capable")
        (folder / "sticky").mkdir()
        (folder / "sticky").chmod(0o1777)
        for flag in "iad":
            (folder / f"flag-{flag}").write_text(f"chattr +{flag}\n")
            run("/usr/bin/chattr", f"+{flag}", folder / f"flag-{flag}")

    def shapes(self, root: Path) -> None:
        """Write files whose blocks are not simply one after the other."""
        folder = root / "shapes"
        folder.mkdir()
        with (folder / "sparse").open("wb") as file:
            for position in sorted(self.chance.sample(range(0, 1 << 30, 1 << 16), 20)):
                file.seek(position)
                file.write(self.chance.randbytes(1 + position % 9000))
            file.truncate(1 << 30)
        with (folder / "hole").open("wb") as file:
            file.truncate(100 << 20)
        with (folder / "preallocated").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 3 << 20)
            file.write(b"begun")
        with (folder / "zeros").open("wb") as file:
            file.write(bytes(1 << 20))
        # Turn by turn with a flush between: extents of the two files alternate on the disk.
        with (folder / "braid-a").open("wb") as first, (folder / "braid-b").open("wb") as second:
            for _ in range(64):
                for file in (first, second):
                    file.write(self.chance.randbytes(20000))
                    file.flush()
                    os.fdatasync(file.fileno())
        with (folder / "rewritten").open("w+b") as updated:
            updated.write(self.content(2 << 20))
            for _ in range(50):
                updated.seek(self.chance.randrange(2 << 20))
                updated.write(self.chance.randbytes(500))
            updated.truncate((3 << 19) + 17)

    def database(self) -> None:
        """Write a database with history: commits, updates, deletes and a rollback."""
        connection = sqlite3.connect(STATE / "ward.sqlite", isolation_level=None)
        connection.executescript(
            """
            CREATE TABLE patient (id INTEGER PRIMARY KEY, name TEXT NOT NULL, born TEXT);
            CREATE TABLE reading (
                id INTEGER PRIMARY KEY, patient INTEGER NOT NULL REFERENCES patient,
                kind TEXT NOT NULL, value REAL NOT NULL, raw BLOB
            );
            CREATE INDEX reading_of ON reading (patient, kind);
            """
        )
        for group in range(10):
            connection.execute("BEGIN")
            for number in range(40):
                patient = group * 40 + number
                year = 1930 + self.chance.randrange(90)
                connection.execute(
                    "INSERT INTO patient VALUES (?, ?, ?)",
                    (patient, f"{self.chance.choice(WORDS)} {patient}", f"{year}-01-01"),
                )
                for _ in range(8):
                    value = (
                        patient,
                        self.chance.choice(WORDS),
                        self.chance.gauss(100, 15),
                        self.chance.randbytes(self.chance.randrange(200)),
                    )
                    connection.execute(
                        "INSERT INTO reading (patient, kind, value, raw) VALUES (?, ?, ?, ?)",
                        value,
                    )
            connection.execute("COMMIT")
        connection.execute("UPDATE reading SET value = value + 1 WHERE id % 3 = 0")
        connection.execute("DELETE FROM reading WHERE id % 7 = 0")
        connection.execute("BEGIN")
        connection.execute("DELETE FROM patient")
        connection.execute("ROLLBACK")
        connection.close()


def boot_entry() -> None:
    """Tell the UEFI firmware what to start, as an installer does; from each disk it is on."""
    is_shim = (ESP / "EFI/debian").is_dir()
    label, loader = SHIM if is_shim else SYSTEMD_BOOT
    source = next(
        line.split()[0]
        for line in Path("/proc/self/mounts").read_text().splitlines()
        if line.split()[1] == str(ESP)
    )
    device = Path("/sys/class/block") / Path(source).resolve().name
    partitions = sorted((device / "slaves").iterdir()) if (device / "md").exists() else [device]
    for partition in reversed(partitions):  # what is made last comes first
        run(
            *("/usr/bin/efibootmgr", "--quiet", "--create"),
            *("--disk", Path("/dev") / partition.resolve().parent.name),
            *("--part", (partition / "partition").read_text().strip()),
            *("--label", label, "--loader", loader),
        )


def main() -> None:
    """Live, and say so on the port named on the command line."""
    LIVING.touch()
    life = Life(**json.loads((HERE / "life.json").read_text()))
    root = Path("/srv/ward")
    root.mkdir(parents=True, exist_ok=True)
    files = life.files(root / "records")
    for mountpoint in life.also:
        life.files(Path(mountpoint) / "records")
    for command in life.midway:
        os.sync()
        run(*command)
    life.homes()
    life.files(Path("/home/archive"))
    life.names(root)
    life.links(root, files)
    life.metadata(root, files)
    life.shapes(root)
    life.database()
    if ESP.is_mount():
        boot_entry()
    (STATE / "lived").touch()
    os.sync()
    Path(sys.argv[1]).write_bytes(b"REMETAL-LIVED\n")


if __name__ == "__main__":
    main()
