"""The benchmark runs; at this size it shows little about memory."""

from pathlib import Path

import pytest

from imager.repository.scratch import MANY_ROWS
from imager.units import MIB
from tests.benchmarks import scale

SMALL = 1 / scale.INDEXES


def test_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "_CACHE", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert scale.PACKS_EACH * scale.CHUNKS_EACH >= MANY_ROWS
    results = scale.run(SMALL)
    assert set(results) == set(scale.STEPS)
    assert all(result["peak"] < 450 * MIB for result in results.values()), results
