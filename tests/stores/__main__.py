"""Starts one of the object stores of the tests for a person to try.

python -m tests.stores seaweedfs|ceph [FOLDER]
"""

import argparse
import shutil
import signal
import tempfile
from pathlib import Path

import click

from tests.stores.ceph import Ceph
from tests.stores.engine import Engine
from tests.stores.seaweedfs import SeaweedFS

ENGINES: dict[str, type[Engine]] = {"seaweedfs": SeaweedFS, "ceph": Ceph}


def main() -> None:
    """Start it, say how it is used, and run until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m tests.stores", description=__doc__)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("--days", type=int, default=1, help="for how long objects are locked")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix=f"{given.engine}-"))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    engine = None
    try:
        click.echo(f"starting {given.engine} below {folder} ...")
        engine = ENGINES[given.engine](folder)
        bucket = engine.new_bucket(days=given.days)
        place = engine.place(bucket, engine.owner)
        engine.place(bucket, engine.capture)
        click.echo(f"""\
It runs until Ctrl-C, and is gone then. Objects are locked for {given.days} d, in COMPLIANCE mode.

export REPO='{place.location}'
export REMETAL_STORE_CREDENTIALS={engine.folder}/owner.credentials
remetal init "$REPO"
remetal capture "$REPO" --disk DISK

What a captured machine needs, and no more: REMETAL_STORE_CREDENTIALS={engine.folder}/capture.credentials
What the gateway writes down: {engine.log_path}""")  # fmt: skip
        signal.pause()
    except KeyboardInterrupt:
        click.echo("stopping")
    finally:
        if engine is not None:
            engine.close()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
