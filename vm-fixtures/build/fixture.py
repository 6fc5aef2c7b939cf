"""A whole fixture machine: from its TOML file to disks that have lived, kept by a hash.

    CACHE/root-HASH.tar         Debian, shared by machines with the same packages
    CACHE/NAME-HASH/            disk0.img …, nvram.fd, facts.json, manifest.json, fixture.json, logs
    CACHE/NAME.lock, root.lock  two builds at the same time wait for each other

A machine's directory appears whole or not at all.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

import boot
import disk
import forge
import root
import tree
from imager.units import format_duration
from machine_file import load
from spec import Firmware, Machine, Naming, encode

MACHINES: Final = Path(__file__).parent.parent / "machines"

_SOURCES: Final = Path(__file__).parent
_DOCUMENT: Final = "fixture.json"

Say = Callable[[str], None]


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A step of the build and how long it took."""

    name: str
    seconds: float


class BuiltDisk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A disk of a built machine; the file is pristine, users boot copies.

    `device` is what the machine's own files call it; None where they don't.
    """

    path: str
    size: int
    serial: str
    bus: str
    sector: int
    device: str | None


class Fixture(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A built machine, as it is printed.

    Attributes:
        name: of its TOML file.
        hostname: what its login prompt says.
        uuid: DMI UUID.
        firmware: "bios" or "uefi".
        memory_mib: RAM in MiB.
        disks: in order.
        nvram: file of the UEFI variables with the machine's boot entry; None for BIOS.
        facts: file with what the machine says of itself.
        manifest: file with the hashes of every file, to find what differs.
        steps: how long each step took when it was built.
    """

    name: str
    hostname: str
    uuid: str
    firmware: str
    memory_mib: int
    disks: tuple[BuiltDisk, ...]
    nvram: str | None
    facts: str
    manifest: str
    steps: tuple[Step, ...]


def build(name: str, cache: Path, say: Say) -> Fixture:
    """Return the machine, built unless the cache has it.

    Args:
        name: of a file in vm-fixtures/machines, without `.toml`.
        cache: directory; made when missing.
        say: told what is done.

    Raises:
        ConfigError: no such machine, or its description makes no sense.
        ProgramError: a tool failed.
        DrillError: the machine does not boot, live, or report.
    """
    machine = load(MACHINES / f"{name}.toml")
    cache = cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    final = cache / f"{name}-{key(machine)}"
    with locked(cache / f"{name}.lock", say):
        if not final.exists():
            partial = cache / f".{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)  # of a build that was killed
            partial.mkdir()
            try:
                _make(name, machine, partial, cache, say)
                partial.rename(final)
                shutil.rmtree(cache / f"{name}.failed", ignore_errors=True)
            except BaseException:
                _keep_logs(partial, cache / f"{name}.failed", say)
                raise
        os.utime(final)  # what is used stays
        _forget_unused(final.parent, name)
        document = msgspec.json.decode((final / _DOCUMENT).read_bytes(), type=Fixture)
    return _absolute(document, final)


def key(machine: Machine) -> str:
    """Return the hash of all that decides a machine: its description, its packages, this program."""
    digest = hashlib.sha256(root.key(machine.system).encode() + encode(machine))
    files = [path for path in _SOURCES.rglob("*") if path.suffix in {".py", ".j2"}]
    files += tree.guest_files()
    for path in sorted(files):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@contextmanager
def locked(path: Path, say: Say) -> Iterator[None]:
    """Hold a lock file; say so when somebody else has it, and wait."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another build to free {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(name: str, machine: Machine, directory: Path, cache: Path, say: Say) -> None:
    steps: list[Step] = []

    @contextmanager
    def step(title: str) -> Iterator[None]:
        say(f"{name}: {title}")
        begin = time.monotonic()
        yield
        seconds = time.monotonic() - begin
        steps.append(Step(title, round(seconds, 2)))
        say(f"{name}: {title}: {format_duration(seconds)}")

    with step("debian"), locked(cache / "root.lock", say):
        archive = root.archive(machine.system, cache)
    content = directory / "tree"
    with step("unpack"):
        tree.unpack(archive, content)
        tree.personalise(machine, content)
    with step("disks"):
        put_together = forge.forge if machine.needs_kernel else disk.assemble
        images = put_together(machine, content, directory)
    shutil.rmtree(content)
    shutil.rmtree(directory / "parts", ignore_errors=True)
    nvram = directory / "nvram.fd" if machine.firmware is Firmware.UEFI else None
    with step("first boot, life"):
        boot.live(boot.vm_spec(machine, images, nvram, directory, "life"))
    with step("second boot, facts"):
        spec = boot.vm_spec(machine, images, nvram, directory, "facts")
        report = boot.report(spec, machine.hostname)
    (directory / "facts.json").write_bytes(_pretty(report.facts))
    (directory / "manifest.json").write_bytes(_pretty(report.manifest))
    fixture = Fixture(
        name=name,
        hostname=machine.hostname,
        uuid=machine.uuid,
        firmware=machine.firmware.value,
        memory_mib=machine.memory_mib,
        disks=tuple(
            BuiltDisk(
                image.name,
                int(each.size),
                each.serial,
                each.bus.value,
                each.sector,
                machine.device(each) if machine.boot.naming is Naming.KERNEL else None,
            )
            for image, each in zip(images, machine.disk, strict=True)
        ),
        nvram=nvram.name if nvram else None,
        facts="facts.json",
        manifest="manifest.json",
        steps=tuple(steps),
    )
    (directory / _DOCUMENT).write_bytes(_pretty(fixture))


def _pretty(value: object) -> bytes:
    # The standard library's: names that are not UTF-8 (surrogates) come out escaped.
    return json.dumps(msgspec.to_builtins(value), indent=1, sort_keys=True).encode() + b"\n"


def _keep_logs(partial: Path, place: Path, say: Say) -> None:
    """Keep what a failed machine said; the rest of it is of no use."""
    shutil.rmtree(place, ignore_errors=True)
    logs = sorted(partial.glob("*.log"))
    if logs:
        place.mkdir()
        for log in logs:
            log.rename(place / log.name)
        say(f"what the machine said is in {place}")
    shutil.rmtree(partial, ignore_errors=True)


def _forget_unused(cache: Path, name: str) -> None:
    """Remove machines of this name that other sources made and nobody asked for in a while."""
    for place in cache.glob(f"{name}-" + "[0-9a-f]" * 16):
        if time.time() - place.stat().st_mtime > root.KEEP:
            shutil.rmtree(place)


def _absolute(fixture: Fixture, directory: Path) -> Fixture:
    def place(name: str) -> str:
        return str(directory / name)

    return msgspec.structs.replace(
        fixture,
        disks=tuple(msgspec.structs.replace(each, path=place(each.path)) for each in fixture.disks),
        nvram=place(fixture.nvram) if fixture.nvram else None,
        facts=place(fixture.facts),
        manifest=place(fixture.manifest),
    )
