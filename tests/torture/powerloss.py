"""What a power cut leaves, by the weakest promise that POSIX makes.

From the log of a shim: bytes written since the file's last fsync vanish, arrive in part, or as a
hole of zeros; a change to a directory (create, link, unlink, mkdir) since that directory's last
fsync has happened or not. Changes of one name happen in their order, those of different names
independently of each other. A directory that is not there takes what is below it along.
"""

import json
import os
import random
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture.shim import CHANGES, SYNCS, Step

FOLDER = -1


@dataclass(slots=True)
class _Log:
    """What was not yet durable when the power went.

    Attributes:
        names: per path, the states it had since its directory was last flushed: None, the inode of
            a file, or `FOLDER`; the first is the durable one.
        unsynced: inodes with bytes that were not flushed.
    """

    names: dict[str, list[int | None]] = field(default_factory=dict)
    unsynced: set[int] = field(default_factory=set)

    def read(self, lines: Iterable[str]) -> None:
        for line in lines:
            entry = json.loads(line)
            if entry.get("step") in CHANGES | SYNCS and "note" in entry:
                self._add(Step(entry["step"]), entry["path"], entry["note"])

    def _add(self, step: Step, path: str, inode: int) -> None:
        if step in {Step.CREATE, Step.LINK}:
            self.names.setdefault(path, [None]).append(inode)
        elif step is Step.UNLINK:
            self.names.setdefault(path, [inode]).append(None)
        elif step is Step.MKDIR:
            self.names.setdefault(path, [None]).append(FOLDER)
        elif step is Step.WRITE:
            self.unsynced.add(inode)
        elif step is Step.SYNC:
            self.unsynced.discard(inode)
        elif step is Step.SYNC_FOLDER:
            for name in [name for name in self.names if os.path.dirname(name) == path]:  # noqa: PTH120
                del self.names[name]


def cut_power(log: Path, root: Path, attic: Path, seed: str) -> None:
    """Change the files below `root` to what a power cut could leave.

    Args:
        log: by the shim of a process that has ended.
        root: what the shim watched.
        attic: where the shim kept removed files.
        seed: chooses among the possible outcomes.
    """
    chance = random.Random(seed)
    found = _Log()
    found.read(log.read_text("utf-8").splitlines())
    places = _places(root, attic)
    for inode in sorted(found.unsynced, key=lambda inode: str(places.get(inode, ""))):
        if inode in places:
            _tear(places[inode], chance)
    for path in sorted(found.names, key=lambda name: -name.count("/")):
        states = found.names[path]
        _set(Path(path), states[chance.randrange(len(states))], places)


def _places(root: Path, attic: Path) -> dict[int, Path]:
    """Return for each inode a name that stays."""
    for path in root.rglob("*"):
        if path.is_file():
            kept = attic / str(path.stat().st_ino)
            if not kept.exists():
                os.link(path, kept)
    return {int(path.name): path for path in attic.iterdir()}


def _tear(path: Path, chance: random.Random) -> None:
    size = path.stat().st_size
    part = chance.randrange(size + 1)
    outcome = chance.choice(("all", "nothing", "prefix", "hole", "zeros"))
    if outcome == "nothing":
        os.truncate(path, 0)
    elif outcome == "prefix":
        os.truncate(path, part)
    elif outcome in {"hole", "zeros"}:
        start = part if outcome == "hole" else 0
        with path.open("r+b") as file:
            file.seek(start)
            file.write(bytes(min(4096, size - start) if outcome == "hole" else size))


def _set(path: Path, state: int | None, places: dict[int, Path]) -> None:
    if path.is_dir():
        if state is None:
            shutil.rmtree(path)
        return
    if path.exists():
        path.unlink()
    if state is not None and state != FOLDER and path.parent.is_dir():
        os.link(places[state], path)
