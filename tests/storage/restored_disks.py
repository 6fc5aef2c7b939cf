"""Disk files of two machines, and a repository with an image of each, made by the verbs themselves."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from imager import blockdev, console, process
from imager.layout.disk import Disk
from imager.probe.disk import probe_disk
from imager.units import MIB

ESP_AT, ESP_SIZE = MIB, 32 * MIB
ROOT_AT, ROOT_SIZE = 33 * MIB, 60 * MIB
SIZE = 128 * MIB
PASSPHRASE = "correct horse battery"


@dataclass(frozen=True)
class Saved:
    """A repository with images of two machines, and the disks they were taken from."""

    folder: Path
    repository: Path
    gpt: Path
    mbr: Path

    def capture(self, disk: Path, *words: str) -> int:
        credential = str(self.folder / "keys" / "capture.credential")
        return run(
            [
                "capture",
                str(self.repository),
                *("--disk", str(disk), "--credential", credential),
                *words,
            ]
        )

    def restore(self, *words: str) -> int:
        return run(
            [
                "restore",
                str(self.repository),
                *words,
                "--recovery-key",
                str(self.folder / "keys" / "recovery.key"),
                "--passphrase-file",
                str(self.folder / "passphrase"),
            ]
        )


def onto(device: Path) -> list[str]:
    """Words that restore onto a loop device, whatever it holds: its size names it."""
    size = process.run("blockdev", "--getsize64", device).strip()
    return ["--map", f"disk0={device}", "--overwrite-serial", size]


def run(words: list[str]) -> int:
    try:
        return console.run(words)
    except SystemExit as end:
        return int(end.code or 0)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_tree(root: Path) -> None:
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "hostname").write_text("web1\n")
    for number in range(40):
        (root / f"file{number}").write_bytes(os.urandom(1 + 37_000 * number % 500_000))
    (root / "same1").write_bytes(b"equal content " * 20_000)
    (root / "same2").write_bytes(b"equal content " * 20_000)
    (root / "link").symlink_to("etc/hostname")


def place(disk: Path, offset: int, part: Path) -> None:
    process.run(
        "dd", f"if={part}", f"of={disk}", "bs=1M", f"seek={offset // MIB}", "conv=notrunc,sparse",
        "status=none",
    )  # fmt: skip


def make_gpt(path: Path, scratch: Path) -> None:
    """UEFI machine: ESP with a loader, ext4, swap; all free space full of noise."""
    path.write_bytes(os.urandom(SIZE))
    with path.open("r+b") as file:
        file.write(bytes(MIB))
        file.seek(SIZE - MIB)
        file.write(bytes(MIB))
    table = (
        "label: gpt\n"
        f"start={ESP_AT // 512}, size={ESP_SIZE // 512}, type=uefi, name=ESP\n"
        f"start={ROOT_AT // 512}, size={ROOT_SIZE // 512}, type=linux, name=root\n"
        f"start={94 * MIB // 512}, size={16 * MIB // 512}, type=swap\n"
    )
    process.run("sfdisk", "--quiet", "--wipe=never", path, stdin=table.encode())
    process.run(
        "mkfs.vfat", "-n", "ESP", "--offset", str(ESP_AT // 512), path, str(ESP_SIZE // 1024)
    )
    for directory in ("::/EFI", "::/EFI/debian"):
        process.run("mmd", "-i", f"{path}@@{ESP_AT}", directory)
    loader = scratch / "shimx64.efi"
    loader.write_bytes(os.urandom(200_000))
    process.run("mcopy", "-i", f"{path}@@{ESP_AT}", loader, "::/EFI/debian/shimx64.efi")
    process.run(
        "mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-d", scratch / "tree",
        "-E", f"offset={ROOT_AT}", path, f"{ROOT_SIZE // 1024}k",
    )  # fmt: skip
    swap = scratch / "swap"
    with swap.open("wb") as file:
        file.truncate(16 * MIB)
    process.run("mkswap", "-L", "swap", swap)
    place(path, 94 * MIB, swap)


def make_mbr(path: Path, scratch: Path) -> None:
    """BIOS machine: boot code before the first partition, ext4, extended with a logical one."""
    with path.open("wb") as file:
        file.write(os.urandom(MIB))
        file.truncate(SIZE)
    table = (
        "label: dos\nlabel-id: 0x1234abcd\n"
        f"start=2048, size={60 * MIB // 512}, type=83, bootable\n"
        f"start={61 * MIB // 512}, size={60 * MIB // 512}, type=5\n"
        f"start={62 * MIB // 512}, size={40 * MIB // 512}, type=83\n"
    )
    process.run("sfdisk", "--quiet", "--wipe=never", path, stdin=table.encode())
    for number, (offset, size) in enumerate(((MIB, 60 * MIB), (62 * MIB, 40 * MIB))):
        part = scratch / f"part{number}"
        process.run("mke2fs", "-q", "-t", "ext4", "-d", scratch / "tree", part, f"{size // 1024}k")
        place(path, offset, part)


def make_foreign(path: Path) -> Path:
    """Make the disk of another machine: a GPT with an ext4 that has a label."""
    part = path.with_suffix(".part")
    process.run("mke2fs", "-q", "-t", "ext4", "-L", "data", part, f"{ROOT_SIZE // 1024}k")
    process.run("truncate", "-s", str(SIZE), path)
    process.run("sfdisk", "--quiet", path, stdin=f"label: gpt\nstart={ROOT_AT // 512}\n".encode())
    place(path, ROOT_AT, part)
    return path


def make_saved(folder: Path) -> Saved:
    """Make both machines' disks, a repository, and an image of each."""
    make_tree(folder / "tree")
    made = Saved(folder, folder / "repository", folder / "gpt.raw", folder / "mbr.raw")
    make_gpt(made.gpt, folder)
    make_mbr(made.mbr, folder)
    (folder / "passphrase").write_text(PASSPHRASE + "\n")
    secret = ["--passphrase-file", str(folder / "passphrase")]
    repository = str(made.repository)
    assert console.run(["init", repository, "--keys-dir", str(folder / "keys"), *secret]) == 0
    credential = ["--credential", str(folder / "keys" / "capture.credential")]
    for name, disk in (("uefi", made.gpt), ("bios", made.mbr)):
        words = ["capture", repository, "--disk", str(disk), "--name", name, *credential]
        assert console.run(words) == 0
    return made


def probe(path: Path) -> Disk:
    return probe_disk(path, "disk0", blockdev.identify(path).identity)


def extracted(path: Path, offset: int, size: int, to: Path) -> Path:
    with path.open("rb") as source, to.open("wb") as target:
        source.seek(offset)
        target.write(source.read(size))
    return to


def tree_in(path: Path, offset: int, size: int, scratch: Path) -> dict[str, str]:
    """Every file of an ext4 filesystem with its hash, read by e2fsprogs, after a full check."""
    part = extracted(path, offset, size, scratch / "part")
    process.run("e2fsck", "-f", "-n", part)
    out = scratch / "out"
    out.mkdir()
    process.run("debugfs", "-R", f"rdump / {out}", part)
    found = {
        str(file.relative_to(out)): digest(file)
        for file in sorted(out.rglob("*"))
        if file.is_file()
    }
    process.run("rm", "-r", out)
    return found
