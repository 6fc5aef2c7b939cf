"""A real medium, built once for all tests here; its slow parts come from the checkout's cache."""

from pathlib import Path

import pytest

from bootmedia import layer, rootfs, wheels
from bootmedia.config import MediumConfig
from bootmedia.medium import MediumReport, build_medium


@pytest.fixture(scope="session")
def cache() -> Path:
    return Path(__file__).parents[3] / ".cache"


@pytest.fixture(scope="session")
def base(cache: Path) -> rootfs.Base:
    wanted = wheels.requirements(layer.imported_modules(layer.sources()))
    return rootfs.prepare(cache, wanted, (), lambda _: None)


@pytest.fixture(scope="session")
def medium(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> MediumReport:
    output = tmp_path_factory.mktemp("medium") / "rescue.iso"
    return build_medium(output, MediumConfig(), cache, lambda _: None)
