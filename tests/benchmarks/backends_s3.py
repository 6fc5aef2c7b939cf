"""s3:// beside boto3 alone: the same engine, as many threads, the same files.

Every run begins with making a client. In a bucket that keeps versions the backend asks for the
first version of each name, which boto3 alone does not; so each get is of a name that its client has
not read before. What is put stays until an engine ends, so the engines lie on a disk.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from imager.repository.backend.s3 import S3Backend
from tests.benchmarks.backends_ssh import empty
from tests.benchmarks.pairs import Row, in_turns, seconds_of
from tests.stores.ceph import Ceph
from tests.stores.engine import Engine
from tests.stores.seaweedfs import SeaweedFS

ENGINES: Final[dict[str, type[Engine]]] = {"SeaweedFS": SeaweedFS, "Ceph": Ceph}
Item = TypeVar("Item")

_THREADS: Final = 4
_LEAST: Final = 0.9  # of the rate at which boto3 alone gets
# Each put is into a new bucket, and what is removed takes a while to go.
_MOST_FILES: Final = 16
# A single round of gets is over in half a second, of which making a client is a third.
_ROUNDS: Final = 8


def rows(folder: Path, files: Sequence[Path], pairs: int) -> Iterator[Row]:
    """Yield what both do on each engine; see `backends.Side`."""
    for name, kind in ENGINES.items():
        with (
            tempfile.TemporaryDirectory(prefix="bench-s3-") as place,
            contextlib.closing(kind(Path(place))) as engine,
        ):
            for locked in (True, False):
                what = f"s3:// {name}, {'versions' if locked else 'plain'}"
                yield from _rows(engine, what, locked, files[:_MOST_FILES], folder / "back", pairs)


def _rows(
    engine: Engine, what: str, locked: bool, files: Sequence[Path], back: Path, pairs: int
) -> Iterator[Row]:
    size = sum(path.stat().st_size for path in files)
    row = partial(Row, what, "boto3")
    servers = partial(_seconds, engine)
    buckets: list[str] = []

    def new_bucket() -> None:
        buckets.append(engine.new_bucket(locked=locked, mode=None))

    def our_put() -> None:
        backend = S3Backend(engine.place(buckets[-1], engine.owner))
        _at_once(lambda path: backend.put_new(path.name, [path.read_bytes()]), files)

    def their_put() -> None:
        client = engine.client(engine.owner)

        def put(path: Path) -> None:
            client.put_object(Bucket=buckets[-1], Key=f"repo/{path.name}", Body=path.read_bytes())

        _at_once(put, files)

    def our_get() -> None:
        backend = S3Backend(engine.place(buckets[-1], engine.owner))
        _at_once(lambda name: (back / name).write_bytes(backend.get(name)), names)

    def their_get() -> None:
        client = engine.client(engine.owner)

        def get(name: str) -> None:
            answer = client.get_object(Bucket=buckets[-1], Key=f"repo/{name}")
            (back / name).write_bytes(answer["Body"].read())

        _at_once(get, names)

    ours, theirs = in_turns(pairs, our_put, their_put, new_bucket, servers)
    yield row("put", size=size, ours=ours, theirs=theirs)
    new_bucket()
    names = _fill(S3Backend(engine.place(buckets[-1], engine.owner)), files)
    ours, theirs = in_turns(pairs, our_get, their_get, partial(empty, back), servers)
    yield row("get", size=size * _ROUNDS, ours=ours, theirs=theirs, least=_LEAST)


def _fill(backend: S3Backend, files: Sequence[Path]) -> list[str]:
    """Put each file under as many names as there are rounds, and return all names."""
    names = {f"{number:02x}{path.name}": path for number in range(_ROUNDS) for path in files}
    _at_once(lambda item: backend.put_new(item[0], [item[1].read_bytes()]), names.items())
    return list(names)


def _at_once(deed: Callable[[Item], object], items: Iterable[Item]) -> None:
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(deed, items):
            pass


def _seconds(engine: Engine) -> float:
    return sum(map(seconds_of, engine.pids))
