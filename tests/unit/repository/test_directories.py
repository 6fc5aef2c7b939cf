"""Directories of packs, in memory and in a file."""

import numpy as np
import pytest

from imager.repository import directories
from imager.repository.directories import Directories
from imager.repository.header import PackKind
from imager.repository.pack import ENTRY


@pytest.mark.parametrize("most", [1, 7, 50, 10_000])
def test_they_come_back_in_order(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "_MOST_IN_MEMORY", most)
    found = Directories()
    added = []
    for number in range(40):
        rows = np.zeros(number % 9 + 1, dtype=ENTRY)
        rows["offset"] = number
        kind = PackKind.MAPS if number % 3 else PackKind.DATA
        added.append((bytes([number]) * 32, kind, rows))
        found.add(*added[-1])
    assert list(found.digests()) == [row[0] for row in added]
    for _ in range(2):
        for (digest, kind, rows), (expected, of_kind, wanted) in zip(found, added, strict=True):
            assert (digest, kind, rows.tobytes()) == (expected, of_kind, wanted.tobytes())
