"""How much memory and time the index of a repository of 16 TiB takes.

The index objects are real and sealed, 131 million entries in all; the million packs they name
exist in the listing only. Each measurement is a process of its own, so that its peak is its own.
Measured are opening (no cache), a million look-ups, and looking for lost packs; prune is not.

    .venv/bin/python -m tests.benchmarks.scale --scale 0.01
"""

import argparse
import dataclasses
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from imager.repository.backend.directory import DirectoryBackend
from imager.repository.backend.protocol import Entry
from imager.repository.configuration import Secrets
from imager.repository.crypto.recipient import RecipientKey
from imager.repository.header import NO_KIND, Header, Magic, PackKind
from imager.repository.index import ENTRY, NOWHERE, Index, Segment
from imager.repository.keyring import Credential
from imager.repository.pack import object_name
from imager.repository.repository import Repository
from imager.units import GIB, KIB, MIB

INDEXES: Final = 125
PACKS_EACH: Final = 8192
CHUNKS_EACH: Final = 128
CHUNK: Final = 128 * KIB
LOOKUPS: Final = 1_000_000
LIMIT: Final = GIB
STEPS: Final = ("open", "look-ups", "lost packs")
_VERSION: Final = 1
_CACHE: Final = Path(".cache/bench-scale")


def indexes(scale: float) -> int:
    return max(1, round(INDEXES * scale))


def digest(pack: int) -> bytes:
    return hashlib.sha256(pack.to_bytes(8, "little")).digest()


def ids(number: int) -> np.ndarray:
    noise = np.random.Generator(np.random.PCG64(number))
    return np.frombuffer(noise.bytes(PACKS_EACH * CHUNKS_EACH * 32), dtype="V32")


def segment(number: int) -> Segment:
    rows = np.empty(PACKS_EACH * CHUNKS_EACH, dtype=ENTRY)
    rows["id"] = ids(number)
    rows["pack"] = np.arange(len(rows)) // CHUNKS_EACH
    rows["offset"] = 1300 + np.arange(len(rows)) % CHUNKS_EACH * CHUNK
    rows["length"] = rows["plain"] = CHUNK
    heads = np.ascontiguousarray(rows["id"]).view(">u8").reshape(-1, 4)[:, 0]
    order = np.argsort(heads.astype(np.uint64))
    packs = range(number * PACKS_EACH, (number + 1) * PACKS_EACH)
    return Segment(tuple((digest(pack), PackKind.DATA) for pack in packs), rows[order])


def make(scale: float) -> Path:
    """Return a folder with the repository and a credential, made unless it is there."""
    folder = _CACHE / f"v{_VERSION}-{indexes(scale)}"
    if folder.exists():
        return folder
    growing = folder.with_suffix(".new")
    shutil.rmtree(growing, ignore_errors=True)
    growing.mkdir(parents=True)
    held: list[Credential] = []

    def keep(repository: Repository, secrets: Secrets) -> None:
        held.append(repository.new_credential(secrets, "bench"))

    recipients = [("bench", RecipientKey.generate().recipient)]
    repository = Repository.create(str(growing / "repository"), recipients, keep)
    repository.publish(held[0])
    held[0].write(growing / "credential")
    keys = repository.credential_keys(held[0])
    header = Header(Magic.INDEX, NO_KIND, 0, os.urandom(16), keys.group, repository.id)
    for number in range(indexes(scale)):
        name, data = segment(number).encode(header, keys.directory_key)
        repository.backend.put_new(name, [data])
    growing.rename(folder)
    return folder


class Listed(DirectoryBackend):
    """A directory whose packs exist in the listing only."""

    count = 0

    def list(self, prefix: str) -> Iterator[Entry]:
        if prefix == "packs/":
            for pack in range(self.count):
                yield Entry(object_name(digest(pack)), 17 * MIB, 0.0)
        else:
            yield from super().list(prefix)


def measure(step: str, folder: Path, scale: float) -> dict[str, float]:
    """Do one thing and return its seconds and the peak of this process in bytes."""
    Listed.count = indexes(scale) * PACKS_EACH
    opened = Repository.open(str(folder / "repository"))
    repository = dataclasses.replace(opened, backend=Listed(folder / "repository"))
    keys = repository.credential_keys(Credential.read(folder / "credential"))
    began = time.monotonic()
    index, problems = repository.load_index(keys)
    assert not problems
    assert not index.unlisted
    assert len(index) == Listed.count * CHUNKS_EACH
    if step == "look-ups":
        began = time.monotonic()
        look_up(index, scale)
    elif step == "lost packs":
        began = time.monotonic()
        assert not repository.lost_packs(index)
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
    return {"seconds": round(seconds, 2), "peak": peak}


def look_up(index: Index, scale: float) -> None:
    """Ask for a million ids, half of them there, spread over all indexes."""
    each = LOOKUPS // 2 // indexes(scale)
    for number in range(indexes(scale)):
        known = ids(number)[:each]
        unknown = np.frombuffer(os.urandom(32 * each), dtype="V32")
        found = index.holders(np.concatenate([known, unknown])) != NOWHERE
        assert found[:each].all()
        assert not found[each:].any()


def run(scale: float) -> dict[str, dict[str, float]]:
    began = time.monotonic()
    folder = make(scale)
    sys.stderr.write(f"input made or found in {time.monotonic() - began:.0f} s\n")
    results = {}
    for step in STEPS:
        command = [sys.executable, "-m", "tests.benchmarks.scale", "--scale", str(scale)]
        done = subprocess.run(
            [*command, "--step", step, "--folder", str(folder)],
            check=True,
            stdout=subprocess.PIPE,
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
