"""remetal and its peers: how each one captures a disk file and brings it back.

Each is set up as its own documentation advises for speed: encrypted where it can be, zstd at level 1 where it
can be, on all processors. What can't encrypt does less work than remetal, and the table says so.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import imager
import restore
from tests.benchmarks.images.measure import Command, said

PHRASE: Final = "correct horse battery"
LEVEL: Final = 1
NONE: Final = "none"
_OWN: Final = [Path(package.__file__).parent for package in (imager, restore)]
_HAS_SHA: Final = "sha_ni" in Path("/proc/cpuinfo").read_text().split()


class Tool(Protocol):
    """A program that captures disks; it has one folder for all that it keeps.

    Attributes:
        name: in tables and options.
        encryption: what it encrypts with, or "none".
        needs_device: whether it takes block devices only.
    """

    name: str
    encryption: str
    needs_device: bool

    def version(self) -> str:
        """Return what it is, and which version."""

    def prepare(self, folder: Path) -> None:
        """Make a repository, where there is such a thing; never measured."""

    def capture(self, folder: Path, source: Path, name: str) -> Command:
        """Return what saves a disk under a name."""

    def restore(self, folder: Path, name: str, target: Path) -> Command:
        """Return what brings it back into a new file, or into a device."""


def _first_line(*words: str) -> str:
    return said(*words).splitlines()[0].strip()


@dataclass(frozen=True, slots=True)
class Remetal:
    """This tree, from the environment that runs the benchmark."""

    name: str = "remetal"
    encryption: str = "AES-256-GCM, hybrid keys"
    needs_device: bool = False

    def version(self) -> str:
        return self._words("--version")[0] and said(*self._words("--version")).strip()

    def prepare(self, folder: Path) -> None:
        # As pip does with what it installs; this tree is installed in place.
        said(sys.executable, "-m", "compileall", "-q", *_OWN)
        phrase = folder / "phrase"
        phrase.write_text(PHRASE + "\n")
        words = ("--keys-dir", folder / "keys", "--passphrase-file", phrase)
        said(*self._words("init"), folder / "repository", *words, env=self._env(folder))

    def capture(self, folder: Path, source: Path, name: str) -> Command:
        return Command(
            (
                (
                    *self._words("capture", str(folder / "repository")),
                    *("--disk", str(source), "--name", name, "--no-polite"),
                    *("--compression", str(LEVEL), "--json", "--quiet"),
                    *("--credential", str(folder / "keys" / "capture.credential")),
                ),
            ),
            env=self._env(folder),
        )

    def restore(self, folder: Path, name: str, target: Path) -> Command:
        return self.restore_with(folder, name, target)

    def restore_with(self, folder: Path, name: str, target: Path, *options: str) -> Command:
        """Return a restore with more options."""
        return Command(
            (
                (
                    *self._words("restore", str(folder / "repository"), name),
                    *("--map", f"disk0={target}", "--yes", "--json", "--quiet"),
                    *("--recovery-key", str(folder / "keys" / "recovery.key")),
                    *("--passphrase-file", str(folder / "phrase")),
                    *("--log", str(folder / "restore.log"), *options),
                ),
            ),
            env=self._env(folder),
        )

    def _words(self, *words: str) -> tuple[str, ...]:
        return (str(Path(sys.executable).with_name("remetal")), *words)

    def _env(self, folder: Path) -> dict[str, str]:
        return {"XDG_CACHE_HOME": str(folder / "cache"), "REMETAL_NO_CONFIG": "1"}


@dataclass(frozen=True, slots=True)
class Restic:
    """restic, of a file that it reads again each time, as it would a device."""

    name: str = "restic"
    encryption: str = "AES-256-CTR, Poly1305"
    needs_device: bool = False

    def version(self) -> str:
        return " ".join(_first_line("restic", "version").split()[:2])

    def prepare(self, folder: Path) -> None:
        said("restic", "init", "--quiet", env=self._env(folder))

    def capture(self, folder: Path, source: Path, name: str) -> Command:
        words = ("--quiet", "--force", "--compression", "fastest", "--tag", name)
        return Command((("restic", "backup", *words, str(source)),), env=self._env(folder))

    def restore(self, folder: Path, name: str, target: Path) -> Command:
        words = ("--quiet", "--sparse", "--tag", name, "--target", str(target.parent))
        return Command((("restic", "restore", "latest", *words),), env=self._env(folder))

    def _env(self, folder: Path) -> dict[str, str]:
        return {
            "RESTIC_REPOSITORY": str(folder / "repository"),
            "RESTIC_PASSWORD": PHRASE,
            "RESTIC_CACHE_DIR": str(folder / "cache"),
        }


@dataclass(frozen=True, slots=True)
class Borg:
    """borg 1, with one of its chunkers, and with the hash that costs less on this processor.

    Attributes:
        compression: as borg calls it.
        chunker: parameters; empty for its own choice.
    """

    name: str
    compression: str
    chunker: str = ""
    encryption: str = f"AES-256-CTR, {'HMAC-SHA-256' if _HAS_SHA else 'BLAKE2b'}"
    needs_device: bool = False

    def version(self) -> str:
        return _first_line("borg", "--version")

    def prepare(self, folder: Path) -> None:
        mode = "repokey" if _HAS_SHA else "repokey-blake2"
        said("borg", "init", "--encryption", mode, env=self._env(folder))

    def capture(self, folder: Path, source: Path, name: str) -> Command:
        words = ["--compression", self.compression, "--files-cache", "disabled"]
        if self.chunker:
            words += ["--chunker-params", self.chunker, "--sparse"]
        return Command(
            (("borg", "create", *words, f"::{name}", str(source)),), env=self._env(folder)
        )

    def restore(self, folder: Path, name: str, target: Path) -> Command:
        command = ("borg", "extract", "--sparse", f"::{name}")
        return Command((command,), env=self._env(folder), cwd=target.parent)

    def _env(self, folder: Path) -> dict[str, str]:
        return {
            "BORG_REPO": str(folder / "repository"),
            "BORG_PASSPHRASE": PHRASE,
            "BORG_BASE_DIR": str(folder),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }


@dataclass(frozen=True, slots=True)
class Partclone:
    """partclone through zstd, and openssl where it is to be encrypted."""

    name: str
    encryption: str
    needs_device: bool = False

    def version(self) -> str:
        words = said("partclone.ext4", "--version").split()
        return f"partclone {next(word for word in words if word[:1] in 'v0123456789')}"

    def prepare(self, folder: Path) -> None:
        pass

    def capture(self, folder: Path, source: Path, name: str) -> Command:
        read = ("partclone.ext4", "-c", "-F", "-q", "-L", "/dev/null", "-s", str(source), "-o", "-")
        threads = len(os.sched_getaffinity(0))
        pack = ("zstd", f"-{LEVEL}", f"-T{threads}", "-q", "-c")
        return Command((read, pack, *self._cipher("-e")), stdout=folder / name)

    def restore(self, folder: Path, name: str, target: Path) -> Command:
        stored = str(folder / name)
        write = ("partclone.restore", "-W", "-C", "-q", "-L", "/dev/null", "-s", "-", "-o")
        unpack = ("zstd", "-d", "-q", "-c")
        if self.encryption == NONE:
            return Command(((*unpack, stored), (*write, str(target))))
        (cipher,) = self._cipher("-d")
        return Command(((*cipher, "-in", stored), unpack, (*write, str(target))))

    def _cipher(self, way: str) -> tuple[tuple[str, ...], ...]:
        if self.encryption == NONE:
            return ()
        return (("openssl", "enc", way, "-aes-256-ctr", "-pbkdf2", "-pass", f"pass:{PHRASE}"),)


@dataclass(frozen=True, slots=True)
class Casync:
    """casync, chunks compressed with zstd."""

    name: str = "casync"
    encryption: str = NONE
    needs_device: bool = False

    def version(self) -> str:
        return _first_line("casync", "--version")

    def prepare(self, folder: Path) -> None:
        pass

    def capture(self, folder: Path, source: Path, name: str) -> Command:
        words = ("--compression=zstd", f"--store={folder / 'store'}", f"{folder / name}.caibx")
        return Command((("casync", "make", *words, str(source)),))

    def restore(self, folder: Path, name: str, target: Path) -> Command:
        words = (f"--store={folder / 'store'}", f"{folder / name}.caibx", str(target))
        return Command((("casync", "extract", *words),))


@dataclass(frozen=True, slots=True)
class QemuImg:
    """qemu-img, into qcow2 compressed with zstd."""

    name: str = "qemu-img"
    encryption: str = NONE
    needs_device: bool = False

    def version(self) -> str:
        return " ".join(_first_line("qemu-img", "--version").split()[:3])

    def prepare(self, folder: Path) -> None:
        pass

    def capture(self, folder: Path, source: Path, name: str) -> Command:
        words = ("-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd", "-m", "16", "-W")
        return Command((("qemu-img", "convert", *words, str(source), str(folder / name)),))

    def restore(self, folder: Path, name: str, target: Path) -> Command:
        words = ("-f", "qcow2", "-O", "raw", "-m", "16", "-W", str(folder / name), str(target))
        return Command((("qemu-img", "convert", *words),))


@dataclass(frozen=True, slots=True)
class Fsarchiver:
    """fsarchiver, which saves files and makes the filesystem anew."""

    name: str = "fsarchiver"
    encryption: str = "Blowfish"
    needs_device: bool = True

    def version(self) -> str:
        return " ".join(_first_line("fsarchiver", "--version").split()[:2])

    def prepare(self, folder: Path) -> None:
        pass

    def capture(self, folder: Path, source: Path, name: str) -> Command:
        words = (f"-Z{LEVEL}", *self._words(), str(folder / f"{name}.fsa"), str(source))
        return Command((("fsarchiver", "savefs", "-o", *words),))

    def restore(self, folder: Path, name: str, target: Path) -> Command:
        words = (*self._words(), str(folder / f"{name}.fsa"), f"id=0,dest={target}")
        return Command((("fsarchiver", "restfs", *words),))

    def _words(self) -> tuple[str, ...]:
        return (f"-j{len(os.sched_getaffinity(0))}", "-c", PHRASE)


PARTCLONE: Final = Partclone("partclone", "AES-256-CTR, no MAC")
PARTCLONE_PLAIN: Final = Partclone("partclone-plain", NONE)
BORG: Final = Borg("borg", f"zstd,{LEVEL}")
BORG_FIXED: Final = Borg("borg-fixed", "lz4", "fixed,131072")
REMETAL: Final = Remetal()
RESTIC: Final = Restic()
QEMU_IMG: Final = QemuImg()

TOOLS: Final[Mapping[str, Tool]] = {
    tool.name: tool
    for tool in (
        REMETAL,
        RESTIC,
        BORG,
        BORG_FIXED,
        PARTCLONE,
        PARTCLONE_PLAIN,
        Casync(),
        QEMU_IMG,
        Fsarchiver(),
    )
}


def stored_bytes(folder: Path) -> int:
    """Return the bytes of all that a tool keeps, but for its caches and keys."""
    return sum(
        path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
        and not {"cache", ".cache", ".config", "keys"} & set(path.relative_to(folder).parts)
    )


def restored_file(folder: Path) -> Path:
    """Return the one file that a restore has left somewhere below a folder."""
    (found,) = (path for path in folder.rglob("*") if path.is_file())
    return found


def empty(folder: Path) -> Path:
    """Return a folder that has nothing in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
