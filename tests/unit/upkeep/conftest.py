"""A repository with parity."""

from pathlib import Path

import pytest

from imager.repository import pack as pack_format
from tests.conftest import Tiny
from tests.unit.upkeep.covered_repository import ONE, TWO, cover


@pytest.fixture
def covered(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """Two machines, about fifty packs, and parity."""
    monkeypatch.setattr(pack_format, "TARGET_SIZE", 100_000)
    tiny.add(ONE, tmp_path, "one")
    tiny.add(TWO, tmp_path, "two")
    cover(tiny)
    return tiny
