"""Racing repositories are small and lie in memory, where flushing costs nothing."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from imager.repository import pack

_MEMORY = Path("/dev/shm")  # noqa: S108 - a fresh directory below it is used


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    parent = _MEMORY if _MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="remetal-racing-", dir=parent) as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pack, "TARGET_SIZE", 3 << 19)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
