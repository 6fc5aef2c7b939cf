"""The benchmark runs; at this size it shows little about memory."""

from pathlib import Path

import pytest

from imager.repository.scratch import MANY_ROWS
from imager.units import MIB
from tests.benchmarks import scale, scale_input

SMALL = 2 / scale_input.INDEXES


def test_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "_CACHE", tmp_path)
    assert scale_input.ROWS >= MANY_ROWS
    results = scale.run(SMALL)
    assert set(results) == set(scale.STEPS)
    assert all(result["peak"] < 400 * MIB for result in results.values()), results
