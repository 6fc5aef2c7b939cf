"""How much memory and time a repository of 16 TiB takes.

Each measurement is a process of its own, so that its peak is its own: opening with nothing cached,
opening from the cache, a million look-ups, looking for lost packs, and the plan of a prune that has one
image to remove (`tests.benchmarks.scale_input`). The exit code is 1 when one needs more than 1 GiB.

    .venv/bin/python -m tests.benchmarks.scale --scale 0.02
"""

import argparse
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import numpy as np

from imager.repository.ids import NOWHERE
from imager.repository.index import Index
from imager.repository.keyring import Credential, GroupKeys
from imager.repository.repository import Repository
from imager.units import GIB, KIB, MIB
from imager.upkeep.prune import plan
from tests.benchmarks.scale_input import (
    CHUNK,
    PACKS_EACH,
    ROWS,
    Listed,
    digest,
    ids,
    indexes,
    make,
)

LOOKUPS: Final = 1_000_000
LIMIT: Final = GIB
STEPS: Final = ("open", "open again", "look-ups", "lost packs", "prune plan")
_CACHE: Final = Path(".cache/bench-scale")


def measure(step: str, folder: Path, scale: float) -> dict[str, float]:
    """Do one thing and return its seconds and the peak of this process in bytes."""
    Listed.count = indexes(scale) * PACKS_EACH
    opened = Repository.open(str(folder / "repository"))
    repository = dataclasses.replace(opened, backend=Listed(folder / "repository"))
    keys = repository.credential_keys(Credential.read(folder / "credential"))
    began = time.monotonic()
    if step == "prune plan":
        plan_prune(repository, keys, (folder / "unwanted").read_text("ascii"), scale)
    else:
        index = load(repository, keys, scale)
        if step == "look-ups":
            began = time.monotonic()
            look_up(index, scale)
        elif step == "lost packs":
            began = time.monotonic()
            assert not repository.lost_packs(index)
    seconds = time.monotonic() - began
    return {"seconds": round(seconds, 2), "peak": _peak()}


def _peak() -> int:
    """Return the most bytes that this program has had; those of the parent don't count, as in ru_maxrss."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"))
    assert found
    return int(found[1]) * KIB


def load(repository: Repository, keys: GroupKeys, scale: float) -> Index:
    index, problems = repository.load_index(keys)
    assert not problems
    assert not index.is_unlisted.any()
    assert len(index) > indexes(scale) * ROWS
    return index


def look_up(index: Index, scale: float) -> None:
    """Ask for a million ids, half of them there, spread over all indexes."""
    each = LOOKUPS // 2 // indexes(scale)
    for number in range(indexes(scale)):
        known = ids(number)[:each]
        unknown = np.frombuffer(os.urandom(32 * each), dtype="V32")
        found = index.holders(np.concatenate([known, unknown])) != NOWHERE
        assert found[:each].all()
        assert not found[each:].any()


def plan_prune(repository: Repository, keys: GroupKeys, unwanted: str, scale: float) -> None:
    """Plan, and make sure that exactly what the unwanted image alone needs is to go."""
    made = plan(repository, keys, frozenset({unwanted}))
    assert made.condemn_images == (unwanted,)
    last = (indexes(scale) - 1) * PACKS_EACH
    names = {digest(pack).hex() for pack in range(last, last + PACKS_EACH)}
    data = [name for name, _ in made.condemn_packs if name[-64:] in names]
    assert len(data) == PACKS_EACH
    assert len(made.condemn_packs) < PACKS_EACH + 10
    assert not made.repack
    assert made.sizes.live > (indexes(scale) - 1) * ROWS * CHUNK


def run(scale: float) -> dict[str, dict[str, float]]:
    """Return seconds and peak memory of each step."""
    began = time.monotonic()
    folder = make(_CACHE, scale)
    sys.stderr.write(f"input made or found in {time.monotonic() - began:.0f} s\n")
    results = {}
    place = folder / "cache"
    shutil.rmtree(place, ignore_errors=True)
    for step in STEPS:
        command = [sys.executable, "-m", "tests.benchmarks.scale", "--scale", str(scale)]
        done = subprocess.run(
            [*command, "--step", step, "--folder", str(folder)],
            check=True,
            stdout=subprocess.PIPE,
            env={**os.environ, "XDG_CACHE_HOME": str(place)},
        )
        results[step] = json.loads(done.stdout)
    return results


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of 16 TiB")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        say(json.dumps(measure(options.step, options.folder, options.scale)))
        return 0
    results = run(options.scale)
    if options.json:
        say(json.dumps({"scale": options.scale, "limit": LIMIT, "steps": results}))
    else:
        for step, result in results.items():
            say(f"{step:12} {result['seconds']:8.1f} s   peak {result['peak'] / MIB:6.0f} MiB")
    return int(any(result["peak"] > LIMIT for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
