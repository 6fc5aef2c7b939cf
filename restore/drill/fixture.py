"""Fixture machines: built from a source checkout, captured, and destroyed as ransomware would."""

import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Final, TypeVar

import msgspec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from imager import process
from imager.errors import DrillError, UsageError
from imager.repository.backend.place import Place
from imager.units import MIB
from restore.drill.evidence import Expected
from restore.drill.scenario import BlankDisk
from restore.drill.vm_spec import Bus

_ROOT: Final = Path(__file__).resolve().parents[2]
_PIECE: Final = 4 * MIB

T = TypeVar("T")


class FixtureDisk(msgspec.Struct, frozen=True):
    """A disk of a fixture machine; pristine, to be copied. Its own files call it `device`, or not."""

    path: Path
    size: int
    serial: str
    bus: Bus
    sector: int
    device: str | None

    def blank(self) -> BlankDisk:
        """Return a blank disk like this one."""
        return BlankDisk(self.size, self.bus, self.serial, sector=self.sector)


class FixtureStep(msgspec.Struct, frozen=True):
    """A step of building a fixture machine."""

    name: str
    seconds: float


class Fixture(msgspec.Struct, frozen=True):
    """A fixture machine, as `vm-fixtures/build` describes it.

    Attributes:
        name: of its file in vm-fixtures/machines.
        uuid: DMI UUID.
        firmware: "bios" or "uefi".
        memory_mib: RAM in MiB.
        disks: in order.
        facts: file with what the machine said about itself.
        manifest: file with a digest of every file on it.
        steps: of the building; few when all was in the cache.
    """

    name: str
    uuid: str
    firmware: str
    memory_mib: int
    disks: tuple[FixtureDisk, ...]
    facts: Path
    manifest: Path
    steps: tuple[FixtureStep, ...]

    def expected(self) -> Expected:
        """Return what it said about itself before the disaster."""
        return Expected(json.loads(self.facts.read_bytes()), json.loads(self.manifest.read_bytes()))


def checkout() -> Path:
    """Return the source checkout this code lies in.

    Raises:
        UsageError: it is installed without one, and there are no fixtures.
    """
    if not (_ROOT / "vm-fixtures" / "build").is_dir():
        raise UsageError(
            "fixture machines are built from a source checkout, and this is none",
            hint="Drill one of your own images instead: remetal drill REPO IMAGE",
        )
    return _ROOT


def cache() -> Path:
    """Return the folder of the checkout that holds what is slow to make."""
    return checkout() / ".cache"


def _machines() -> Path:
    return cache() / "fixtures"


def build(name: str, say: Callable[[str], None]) -> Fixture:
    """Build a fixture machine, or take it from the cache.

    Args:
        name: of its file in vm-fixtures/machines.
        say: receives the lines of progress.

    Raises:
        DrillError: it can't be built; the sentence carries the builder's last lines.
    """
    builder = checkout() / "vm-fixtures" / "build"
    # setpriv ties the builder's life to ours, as `qemu` does with that of its virtual machine.
    alive = ("setpriv", "--pdeathsig=KILL")
    argv = (*alive, sys.executable, builder, name, "--cache", _machines())
    running = process.start(*argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None  # noqa: S101  both are pipes
    assert running.stderr is not None  # noqa: S101
    heard: list[str] = []
    listener = threading.Thread(target=_listen, args=(running.stderr, heard, say, f"{name}: "))
    listener.start()
    try:
        output = running.stdout.read()
        code = running.wait()
    finally:
        running.kill()
        running.wait()
        listener.join()
    if code != 0:
        raise DrillError(f"the fixture machine {name} can't be built: {' / '.join(heard[-3:])}")
    try:
        return _decode(output, Fixture)
    except msgspec.MsgspecError as error:
        raise DrillError(f"the description of fixture machine {name} is odd: {error}") from error


def _listen(stream: IO[bytes], heard: list[str], say: Callable[[str], None], prefix: str) -> None:
    for raw in stream:
        line = raw.decode(errors="replace").rstrip()
        if line:
            heard.append(line)
            say(line.removeprefix(prefix))


def copy_disks(disks: Sequence[FixtureDisk], folder: Path, name: str) -> tuple[Path, ...]:
    """Copy disks to `name`0, `name`1, …, sharing or sparing space where the filesystem can."""
    copies = []
    for index, disk in enumerate(disks):
        copy = folder / f"{name}{index}{disk.path.suffix}"
        process.run("cp", "--reflink=auto", "--sparse=always", disk.path, copy)
        copy.chmod(0o600)
        copies.append(copy)
    return tuple(copies)


def destroy(path: Path) -> int:
    """Encrypt all data on a disk with a key that is thrown away, as ransomware does.

    Holes stay holes: they hold nothing that could be lost.

    Returns:
        Bytes overwritten.

    Raises:
        DrillError: the disk still has a partition table afterwards.
    """
    stream = Cipher(algorithms.AES(secrets.token_bytes(32)), modes.CTR(bytes(16))).encryptor()
    done = 0
    with path.open("r+b", buffering=0) as file:
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size
        position = 0
        while position < size:
            try:
                start = os.lseek(descriptor, position, os.SEEK_DATA)
            except OSError:  # nothing but a hole follows
                break
            position = os.lseek(descriptor, start, os.SEEK_HOLE)
            for at in range(start, position, _PIECE):
                data = os.pread(descriptor, min(_PIECE, position - at), at)
                os.pwrite(descriptor, stream.update(data), at)
                done += len(data)
    left = process.run("blkid", "-p", "-o", "export", path, accept=(0, 2))
    if left:
        raise DrillError(f"{path} still shows what it was: {left.strip()}")
    return done


def words(store: Place) -> tuple[str | Path, ...]:
    """Return a place as the words of a command: REPO and the options it needs."""
    access = store.access
    options = {
        "--ssh-key": access.ssh_key,
        "--known-hosts": access.known_hosts,
        "--store-credentials": access.credentials,
        "--authorities": access.authorities,
    }
    given = [word for option, path in options.items() if path for word in (option, path)]
    return (store.location, *given)


def remetal(answer: type[T], *words: str | Path) -> T:
    """Run a verb of remetal in a process of its own, as a person would, and return its JSON.

    Raises:
        DrillError: the verb failed; the sentence is its own.
    """
    argv = (sys.executable, "-m", "imager.console", *words, "--json", "--quiet")
    output = process.run(*argv, accept=range(256))
    try:
        failure = _decode(output, _Failure)
        if failure.error is not None:
            problem = failure.error
            raise DrillError(f"remetal {words[0]}: {problem.message}", hint=problem.hint)
        return _decode(output, answer)
    except msgspec.MsgspecError as error:
        raise DrillError(f"remetal {words[0]} answered oddly: {error}") from error


def _decode(document: str | bytes, kind: type[T]) -> T:
    """Read JSON into a type; paths are written as text.

    Raises:
        msgspec.MsgspecError: it is something else.
    """
    return msgspec.json.decode(document, type=kind, dec_hook=lambda wanted, text: wanted(text))


class _Problem(msgspec.Struct, frozen=True):
    message: str
    hint: str


class _Failure(msgspec.Struct, frozen=True):
    error: _Problem | None = None


class Made(msgspec.Struct, frozen=True):
    """What `remetal init` made."""

    recovery_key: Path
    credential: Path


class Captured(msgspec.Struct, frozen=True):
    """What `remetal capture` did."""

    image: str
    used_bytes: int
    stored_bytes: int
