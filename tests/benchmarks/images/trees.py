"""What the files of a filesystem are: the proof that a restore gave back what was captured."""

import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from blake3 import blake3

# Never written to, also where a journal would have to be played back.
SETTLED: Final = ("ro", "noload")
_PIECE: Final = 1 << 20

Tree = dict[str, str]  # path -> facts and content


def tree_of(place: os.PathLike[str]) -> Tree:
    """Return each path below a place with its kind, mode, owner, time, and content or target."""
    paths = list(_paths(str(place)))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        facts: Iterable[str] = pool.map(_facts, paths, chunksize=64)
        start = len(str(place)) + 1
        return {path[start:]: fact for path, fact in zip(paths, facts, strict=True)}


def differences(wanted: Tree, found: Tree) -> list[str]:
    """Return the paths that are not what they were."""
    return sorted(
        path for path in wanted.keys() | found.keys() if wanted.get(path) != found.get(path)
    )


def _paths(place: str) -> Iterator[str]:
    for where, below, names in os.walk(place):
        below[:] = [name for name in below if name != "lost+found"]
        for name in (*below, *names):
            yield os.path.join(where, name)  # noqa: PTH118  a hundred thousand of them


def _facts(path: str) -> str:
    status = os.lstat(path)
    facts = f"{status.st_mode:o} {status.st_uid}:{status.st_gid}"
    if stat.S_ISLNK(status.st_mode):
        return f"{facts} -> {Path(path).readlink()}"
    if not stat.S_ISREG(status.st_mode):
        return facts
    digest = blake3()
    with open(path, "rb") as file:  # noqa: PTH123
        while piece := file.read(_PIECE):
            digest.update(piece)
    # Whole seconds: fsarchiver keeps no more.
    return f"{facts} {int(status.st_mtime)} {digest.hexdigest()}"
