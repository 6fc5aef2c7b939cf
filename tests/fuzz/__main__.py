"""Fuzz all targets in turn: `python -m tests.fuzz [--seconds N] [TARGET...]`.

Each runs in a process of its own under libFuzzer, with 1 GiB of memory and 10 seconds for one
input. What it finds, and the corpus it grew, lie below .cache/fuzz.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
FOUND = ROOT / ".cache/fuzz"
_STATISTIC = re.compile(r"stat::number_of_executed_units:\s*(\d+)")


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz")
    parser.add_argument("--seconds", type=int, default=600, help="for all targets together")
    parser.add_argument("targets", nargs="*", default=[])
    options = parser.parse_args()
    names = options.targets or sorted(TARGETS)
    seconds = max(options.seconds // len(names), 1)
    total, bad = 0, []
    for name in names:
        count, crashes = fuzz(name, seconds)
        total += count
        say(f"{name:20} {count:>10} executions, {len(crashes)} found")
        for crash in crashes:
            say(f"  {crash}\n  again: .venv/bin/python -m tests.fuzz.engine {name} {crash}")
        bad += crashes
    say(
        f"{len(names)} targets, {total} executions, {len(bad)} inputs that must not do what they do"
    )
    return 1 if bad else 0


def fuzz(name: str, seconds: int) -> tuple[int, list[Path]]:
    """Fuzz a target; return the number of executions and the inputs that made it fail."""
    corpus, crashes = FOUND / name / "corpus", FOUND / name / "found"
    corpus.mkdir(parents=True, exist_ok=True)
    crashes.mkdir(exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds):
        (corpus / f"seed{number}").write_bytes(seed)
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.fuzz.engine", name, str(corpus),
            f"-max_total_time={seconds}", "-rss_limit_mb=1024", "-timeout=10",
            f"-artifact_prefix={crashes}/", "-print_final_stats=1", "-max_len=65536",
        ],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )  # fmt: skip
    said = done.stderr.decode(errors="replace") + done.stdout.decode(errors="replace")
    (FOUND / name / "log").write_text(said, "utf-8")
    count = _STATISTIC.search(said)
    found = sorted(crashes.iterdir())
    if done.returncode and not found:
        raise SystemExit(f"the fuzzer of {name} failed:\n{said[-2000:]}")
    return int(count[1]) if count else 0, found


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
