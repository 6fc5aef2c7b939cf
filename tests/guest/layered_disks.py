"""Disks with layers of every kind, made once in the guest and kept below .cache under a hash."""

import fcntl
import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from imager import process
from imager.units import MIB
from tests.guest import layers
from tests.guest.guest import CACHE, guest

PARTITIONS = (34, 24, 20, 32, 20, 20, 128, 24)  # MiB
SIZES = (350, 350, 64, 64)  # MiB
PROGRAM = "import layers\nprint(layers.make(), flush=True)\n"


@dataclass(frozen=True)
class Layered:
    """Two disks with partitions, two that are one mirror, and what the tools say of them.

    Attributes:
        disks: raw files, not to be written.
        facts: as `layers.make` returns them.
    """

    disks: tuple[Path, ...]
    facts: dict[str, str]


def layered_disks() -> Layered:
    """Return the disks, made first if need be; several processes may ask at once."""
    machine = guest()
    module = Path(layers.__file__)
    made_of = [machine.root.parent.name, _making(module), PROGRAM, PARTITIONS, SIZES]
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    place = CACHE / f"layers-{key}"
    with (CACHE / f"layers-{key}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            for old in CACHE.glob("layers-*/facts.json"):
                shutil.rmtree(old.parent)
            with tempfile.TemporaryDirectory(dir=CACHE, prefix="layers-") as name:
                work = Path(name) / "made"
                work.mkdir()
                disks = _blank(work)
                facts = machine.run(PROGRAM, disks, Path(name), modules=(module,), timeout=900)
                (work / "facts.json").write_text(facts)
                work.rename(place)
    facts = json.loads((place / "facts.json").read_text())
    return Layered(tuple(place / f"disk{number}" for number in range(len(SIZES))), facts)


def _blank(folder: Path) -> list[Path]:
    script = "label: gpt\n" + "".join(
        f"size={size}M, type={'L' if number else 'U'}\n" for number, size in enumerate(PARTITIONS)
    )
    disks = [folder / f"disk{number}" for number in range(len(SIZES))]
    for number, disk in enumerate(disks):
        with disk.open("wb") as file:
            file.truncate(SIZES[number] * MIB)
        if number < 2:
            process.run("sfdisk", "--quiet", disk, stdin=script.encode())
    return disks


def _making(module: Path) -> str:
    """Return what of the guest's program makes the disks; the rest looks at them later."""
    return module.read_text().partition("def examine(")[0]
