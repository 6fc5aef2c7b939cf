"""The engines, started once and shared with the conformance suite."""

from collections.abc import Iterator

import pytest

from imager.repository.backend.place import Place
from imager.repository.backend.s3 import S3Backend
from tests.s3.proxy import Proxy
from tests.stores.ceph import Ceph
from tests.stores.engine import Engine, shared
from tests.stores.seaweedfs import SeaweedFS

ENGINES: dict[str, type[Engine]] = {"seaweedfs": SeaweedFS, "ceph": Ceph}


@pytest.fixture(scope="session", params=list(ENGINES))
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return shared(ENGINES[request.param], tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The lighter of both, where the other side of the link does not matter."""
    return shared(SeaweedFS, tmp_path_factory.mktemp("seaweedfs"))


@pytest.fixture
def place(engine: Engine) -> Place:
    """A bucket with versions, and locks that somebody has to order, as its owner sees it."""
    return engine.place(engine.new_bucket(mode=None), engine.owner)


@pytest.fixture
def backend(place: Place) -> S3Backend:
    return S3Backend(place)


@pytest.fixture
def proxy(engine: Engine) -> Iterator[Proxy]:
    """Something on the way to the engine that can misbehave."""
    with Proxy(engine.port) as proxy:
        yield proxy
