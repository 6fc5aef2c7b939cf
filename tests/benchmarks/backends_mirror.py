"""A mirror of two sites beside the slower of them alone: the other must not hold it up.

The far site has a line of 40 MiB/s, kept by its server; on links that are as fast as the machine,
two sites share its processors, and only that would be measured.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from imager.repository.backend.place import Place
from tests.benchmarks.backends_ssh import empty, get, put
from tests.benchmarks.pairs import Row, in_turns, seconds_of
from tests.stores.mirror import write_mirror_file
from tests.stores.ssh import Sshd, running

_RATE = "40M"
_LEAST = 0.8


def rows(folder: Path, files: Sequence[Path], pairs: int) -> Iterator[Row]:
    """Yield what both do; see `backends.Side`."""
    size = sum(path.stat().st_size for path in files)
    back = folder / "back"
    (folder / "sshd").mkdir()
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    with running(folder / "sshd") as sshd:
        sites = {"near": _site(sshd, folder, "near"), "far": _site(sshd, folder, "far", _RATE)}
        alone = _site(sshd, folder, "alone", _RATE)
        mirror = write_mirror_file(folder / "mirror.toml", sites, copies=2)
        stores = [folder / name for name in ("near", "far", "alone")]
        row = partial(Row, "mirror:", "its slower site alone", size=size, least=_LEAST)
        servers = partial(seconds_of, sshd.pid)
        ours, theirs = partial(put, mirror, files), partial(put, alone, files)
        runs = in_turns(pairs, ours, theirs, partial(empty, *stores), servers)
        yield row("put", ours=runs[0], theirs=runs[1])
        empty(*stores)
        ours()
        theirs()
        ours, theirs = partial(get, mirror, files, back), partial(get, alone, files, back)
        runs = in_turns(pairs, ours, theirs, partial(empty, back), servers)
        yield row("get", ours=runs[0], theirs=runs[1])


def _site(sshd: Sshd, folder: Path, name: str, limit: str | None = None) -> Place:
    key = sshd.new_key(name)
    words: Iterable[str] = ("--limit", limit) if limit else ()
    sshd.serve(key, folder / name, "--append-only", "--name", name, *words)
    return sshd.place("ssh", key, folder / name)
