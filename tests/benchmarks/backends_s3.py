"""s3:// beside boto3 alone: the same engine, as many threads, the same files.

Every run begins with making a client. In a bucket that keeps versions the backend asks for the
first version of each name, which boto3 alone does not. What is put stays until an engine ends, so the
engines lie on a disk.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from imager.repository.backend.s3 import S3Backend
from tests.benchmarks.backends_ssh import empty
from tests.benchmarks.pairs import Row, in_turns, seconds_of
from tests.stores.ceph import Ceph
from tests.stores.engine import Engine
from tests.stores.seaweedfs import SeaweedFS

ENGINES: Final[dict[str, type[Engine]]] = {"SeaweedFS": SeaweedFS, "Ceph": Ceph}
_THREADS: Final = 4
_LEAST: Final = 0.9  # of the rate at which boto3 alone gets
# Each put is into a new bucket, and what is removed takes a while to go.
_MOST_FILES: Final = 16


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
    row = partial(Row, what, "boto3", size=sum(path.stat().st_size for path in files))
    servers = partial(_seconds, engine)
    buckets: list[str] = []

    def new_bucket() -> None:
        buckets.append(engine.new_bucket(locked=locked, mode=None))

    def our_put() -> None:
        backend = S3Backend(engine.place(buckets[-1], engine.owner))
        _at_once(lambda path: backend.put_new(path.name, [path.read_bytes()]), files)

    def their_put() -> None:
        client = engine.client(engine.owner)
        _at_once(
            lambda path: client.put_object(
                Bucket=buckets[-1], Key=f"repo/{path.name}", Body=path.read_bytes()
            ),
            files,
        )

    def our_get() -> None:
        backend = S3Backend(engine.place(buckets[-1], engine.owner))
        _at_once(lambda path: (back / path.name).write_bytes(backend.get(path.name)), files)

    def their_get() -> None:
        client = engine.client(engine.owner)

        def get(path: Path) -> None:
            answer = client.get_object(Bucket=buckets[-1], Key=f"repo/{path.name}")
            (back / path.name).write_bytes(answer["Body"].read())

        _at_once(get, files)

    ours, theirs = in_turns(pairs, our_put, their_put, new_bucket, servers)
    yield row("put", ours=ours, theirs=theirs)
    ours, theirs = in_turns(pairs, our_get, their_get, partial(empty, back), servers)
    yield row("get", ours=ours, theirs=theirs, least=_LEAST)


def _at_once(deed: Callable[[Path], object], files: Sequence[Path]) -> None:
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(deed, files):
            pass


def _seconds(engine: Engine) -> float:
    return sum(map(seconds_of, engine.pids))
