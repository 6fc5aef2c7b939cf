"""One target under libFuzzer: `python -m tests.fuzz.engine TARGET [CORPUS or INPUT] [-options]`."""

from __future__ import annotations

import sys
from random import Random

import atheris

with atheris.instrument_imports(include=["imager"]):
    from tests.fuzz.mutations import mutate
    from tests.fuzz.targets import TARGETS


def _change(data: bytes, most: int, seed: int) -> bytes:
    """Change an input: half of the time as libFuzzer does, else so that JSON stays JSON."""
    if seed & 1:
        return bytes(atheris.Mutate(data, most))
    return mutate(data, Random(seed))[:most]


def main() -> None:
    target = TARGETS[sys.argv[1]]

    def run(data: bytes) -> None:
        target.accepts(data)

    atheris.Setup([sys.argv[0], *sys.argv[2:]], run, custom_mutator=_change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
