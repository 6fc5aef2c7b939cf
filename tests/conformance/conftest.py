"""Each store is started once, when the first test asks for it."""

from collections.abc import Iterator

import pytest

from imager.repository.backend.opening import open_backend
from imager.repository.backend.place import Place
from imager.repository.backend.protocol import Backend
from tests.stores import STORES
from tests.stores.store import Store


@pytest.fixture(scope="session", params=list(STORES))
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Store]:
    with STORES[request.param](tmp_path_factory.mktemp(request.param)) as started:
        yield started


@pytest.fixture
def place(store: Store) -> Place:
    return store.new_place()


@pytest.fixture
def backend(place: Place) -> Backend:
    return open_backend(place)
