"""The benchmark runs; rates of so few bytes say nothing."""

from pathlib import Path

import pytest
from rich.console import Console

from imager.units import MIB
from tests.benchmarks import backends
from tests.benchmarks.pairs import Row, Run


def test_a_small_run(tmp_path: Path) -> None:
    rows = backends.run(["ssh"], tmp_path, 2, MIB, 1)
    assert [(row.subject, row.verb) for row in rows] == [
        (subject, verb) for subject in ("ssh://", "sftp://") for verb in ("put", "get")
    ]
    assert sum(run.cpu_there for row in rows for run in row.ours) > 0
    console = Console(width=100)
    with console.capture() as said:
        console.print(backends.table(rows))
    assert said.get().count("ssh://") == 2


@pytest.mark.slow
def test_a_small_run_of_s3(tmp_path: Path) -> None:
    rows = backends.run(["s3"], tmp_path, 2, MIB, 1)
    assert [row.verb for row in rows] == ["put", "get"] * 4
    assert {row.subject for row in rows} == {
        f"s3:// {engine}, {bucket}"
        for engine in ("SeaweedFS", "Ceph")
        for bucket in ("versions", "plain")
    }


def test_what_is_too_slow() -> None:
    fast, slow = Run(1.0, 0.5, 0.5), Run(2.0, 0.5, 0.5)
    row = Row("ssh://", "sftp", "put", MIB, (slow, slow, fast), (fast, fast, fast), 0.9)
    assert row.ratio == 0.5
    assert not row.is_fast_enough
