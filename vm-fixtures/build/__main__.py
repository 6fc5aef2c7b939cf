"""Builds a fixture machine: `python vm-fixtures/build NAME --cache DIR`.

Prints one JSON document on standard output (see `fixture.Fixture`) and what it does on standard
error. A second call with unchanged sources answers from the cache.
"""

import argparse
import sys
from pathlib import Path

import msgspec

from fixture import MACHINES, build
from imager.errors import Interrupted, RemetalError


def _arguments() -> argparse.Namespace:
    known = ", ".join(sorted(path.stem for path in MACHINES.glob("*.toml")))
    parser = argparse.ArgumentParser(
        prog="python vm-fixtures/build",
        description="Build a real Debian machine that has booted and lived a little.",
    )
    parser.add_argument("name", help=f"machine to build: {known}")
    parser.add_argument("--cache", type=Path, required=True, help="directory for what is built")
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Build, print, and return the exit code."""
    arguments = _arguments()
    try:
        fixture = build(arguments.name, arguments.cache, _say)
    except KeyboardInterrupt:
        return Interrupted.exit_code
    except RemetalError as error:
        _say(f"fixture: {error.message}")
        if error.hint:
            _say(error.hint)
        return error.exit_code
    print(msgspec.json.encode(fixture).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
